"""`slotgrid data validate` tells every bad row, writes both files, and says with its exit code whether a row was rejected."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from corpus_samples import jsonl
from data.json_lines import CorpusError
from orchestrator.cli import OneLineParser
from orchestrator.commands import validate


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    jsonl.write(tmp_path / "calls")
    return tmp_path / "calls"


def run(*arguments: str | Path) -> int:
    parser = OneLineParser(prog="slotgrid")
    validate.add_command(parser.add_subparsers())
    options = parser.parse_args(["validate", *map(str, arguments)])
    return int(options.act(options))


def damage(corpus: Path, *, rows: int = 2) -> None:
    path = corpus / "manifest.jsonl"
    lines = path.read_text().splitlines()
    for number in range(rows):
        lines.insert(1, json.dumps({"audio": f"audio/no-{number}.wav", "transcript": "to rome", "slots": {}}))
    path.write_text("\n".join(lines) + "\n")


def test_a_clean_manifest(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (corpus / "manifest.jsonl").read_bytes()
    assert run(corpus, "--decode-audio", "--workers", "1") == 0
    shown = capsys.readouterr().out
    assert "17 rows: 17 good (11 train, 3 validation, 3 test), 0 rejected" in shown
    assert f"next: slotgrid data import jsonl {corpus}" in shown
    assert (corpus / "validated/manifest.jsonl").read_bytes() == before
    assert (corpus / "validated/rejected.jsonl").read_bytes() == b""


def test_bad_rows_are_told_line_by_line(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(corpus)
    before = (corpus / "manifest.jsonl").read_bytes()
    assert run(corpus / "manifest.jsonl", "--out", corpus / "checked") == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"error: {corpus}/manifest.jsonl, line 2, field audio: 'audio/no-1.wav' does not exist; "
        "restore the file, remove the line, or run the command that wrote the corpus again"
    )
    assert "       2  error    audio-not-found" in lines and "19 rows: 17 good" in lines[-3]
    assert f"{corpus}/checked/rejected.jsonl" in lines[-2] and lines[-1].startswith("next: correct ")
    assert (corpus / "manifest.jsonl").read_bytes() == before and not (corpus / "validated").exists()


def test_a_corpus_of_the_store_goes_by_its_name(
    corpus_root: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(corpus_root, tmp_path / "store/prepared/corpora/calls")
    store = ("--store", tmp_path / "store")
    assert run("calls", *store) == 0
    assert "0 rejected" in capsys.readouterr().out
    assert run(corpus, *store) == 0, "a path that exists wins"
    with pytest.raises(CorpusError, match=r"^cals: is no .* \(the store has calls\)"):
        run("cals", *store)


def test_a_manifest_that_an_import_would_refuse_is_not_called_ready(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = corpus / "manifest.jsonl"
    rows = [{**json.loads(line), "split": "train"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(corpus) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("next: correct ")


def test_a_flood_is_cut_short(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(corpus, rows=250)
    assert run(corpus) == 2
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 200
    assert any(line.startswith("and 50 more: ") for line in lines)
    assert len((corpus / "validated/rejected.jsonl").read_text().splitlines()) == 250


def test_json_holds_every_finding(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(corpus)
    assert run(corpus, "--json") == 2
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["good"], report["rejected"]) == (19, 17, 2)
    assert report["by_kind"] == {"audio-not-found": 2} and report["splits"]["validation"] == 3
    assert report["findings"][0].items() >= {"line": 2, "field": "audio", "severity": "error", "id": None}.items()


def test_labels_and_shared_sentences(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = corpus / "manifest.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["transcript"] = rows[8]["transcript"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(corpus) == 2
    assert run(corpus, "--allow-shared-sentences") == 0
    labels = tmp_path / "labels.json"
    names = [{"name": name, "description": name} for name in ("city", "day")]
    labels.write_text(json.dumps({"domains": {"default": names}}))
    capsys.readouterr()
    assert run(corpus, "--allow-shared-sentences", "--ontology", labels) == 2
    assert "'seats' is not a label of domain 'default'" in capsys.readouterr().out
