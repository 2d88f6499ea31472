"""`slotgrid data import` brings a sample of every format, says what it holds and what was left out, and tells what is wrong in one line."""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.manifest import open_corpus
from data.readers.registry import READERS
from orchestrator.slotgrid_cli import main


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus of every format, in the folder of its name."""
    folder = tmp_path_factory.mktemp("downloads")
    for name in READERS:
        importlib.import_module(f"corpus_samples.{name.replace('-', '_')}").write(folder / name)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["data", "import", *map(str, arguments)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.mark.parametrize("name", READERS)
def test_every_format(samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    store = tmp_path / "my store"
    code, out, err = run(capsys, name, samples / name, "--out", store, "--workers", "1")
    assert code == 0 and not err
    corpus = open_corpus(store / "prepared/corpora" / name)
    assert corpus.name == name and all(corpus.split(split) for split in ("train", "validation", "test"))
    assert {slot.label for row in corpus.examples for slot in row.example.slots} <= corpus.ontology.labels().keys()
    assert "the first of them" not in out and READERS[name].licence in out
    assert out.splitlines()[-3:] == [
        f"next: slotgrid data stats {name} --store {shlex.quote(str(store))}",
        f"next: slotgrid data annotate {name} --store {shlex.quote(str(store))}",
        f"next: python experiments/grid.py plan --corpus {name} --store {shlex.quote(str(store))}",
    ]
    assert run(capsys, name, samples / name, "--out", store, "--workers", "1") == (code, out, err)


def test_statistics_lead_on_with_the_same_store(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "my store"
    assert run(capsys, "jsonl", samples / "jsonl", "--out", store, "--workers", "1")[0] == 0
    assert main(["data", "stats", "jsonl", "--store", str(store), "--sample", "1"]) == 0
    assert (
        capsys.readouterr().out.rstrip().endswith(f": slotgrid data annotate jsonl --store {shlex.quote(str(store))}")
    )


def test_dropped_rows_are_counted_and_shown(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLOTGRID_STORE", raising=False)
    lab = shutil.copytree(samples / "jsonl", tmp_path / "lab")
    bad = [
        json.dumps({"id": f"bad{n}", "audio": "gone.wav", "transcript": f"[{n}] to rome", "slots": {}}) for n in (1, 2)
    ]
    silent = {"audio": "silent.wav", "transcript": "to bern", "slots": {"city": "bern"}, "split": "train"}
    soundfile.write(lab / "silent.wav", np.zeros(16_000), 16_000)
    rows = (lab / "manifest.jsonl").read_text().splitlines()
    (lab / "manifest.jsonl").write_text("\n".join([bad[0], *rows, bad[1], json.dumps(silent)]) + "\n")
    code, out, err = run(capsys, "jsonl", lab, "--name", "calls", "--workers", "1")
    assert code == 0 and not err
    root = tmp_path / "runs/prepared/corpora/calls"
    lines = out.splitlines()
    shown = {line.split()[1]: line.split(maxsplit=2) for line in lines if " audio-" in line}
    assert shown["audio-not-found"][0] == "2" and shown["audio-not-found"][2].startswith(
        "manifest.jsonl, line 1, field audio: "
    )
    assert (
        shown["audio-silent"][2].strip()
        == f"manifest.jsonl, line {len(rows) + 3}, field audio: silent.wav: is silent (every sample is 0)"
    )
    assert f"each is a line of {root / 'rejected.jsonl'}" in lines
    assert lines[-1] == "next: python experiments/grid.py plan --corpus calls"
    assert len((root / "rejected.jsonl").read_text().splitlines()) == 3
    code, _, err = run(capsys, "jsonl", samples / "jsonl", "--name", "calls", "--workers", "1")
    assert code == 2 and "holds another corpus (the files have changed since); choose another --name" in err


def test_errors_are_told_in_one_line(samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*arguments: str | Path) -> str:
        code, out, err = run(capsys, *arguments, "--out", tmp_path / "store")
        assert code == 2 and not out and err.count("\n") == 1
        return err

    for name in ("Calls", "-calls", "my calls", "../calls", "", "calls.v2"):
        assert "is no corpus name; use lower-case letters" in told("jsonl", samples / "jsonl", f"--name={name}")
    assert "is no folder; give the folder" in told("slurp", tmp_path / "nowhere")
    assert "train.jsonl" in told("slurp", samples / "jsonl")
    assert "--workers: 0 is too few" in told("slurp", samples / "slurp", "--workers", "0")
    assert "no-labels.json: is missing" in told("slurp", samples / "slurp", "--ontology", tmp_path / "no-labels.json")
    assert not (tmp_path / "store").exists()


def test_a_format_that_is_not_known_is_told_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "voxforge", ".")
    assert code == 2 and not out and "'voxforge' (choose from" in err and "slue-voxpopuli" in err
