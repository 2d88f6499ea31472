"""A corpus of any format becomes a corpus folder: good rows are kept, bad ones are told, and a killed import goes on where it stopped."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from corpus_samples.sound import babble
from data.audio import encode_flac, pcm_sha256, read_audio, to_pcm16
from data.executors import ProcessExecutor, SerialExecutor
from data.findings import Finding
from data.importing import import_corpus
from data.manifest import CorpusError, open_corpus
from data.readers.source import AudioSource, Reader, SourceRow, draw_split, plain_slot
from data.records import SAMPLE_RATE, Label, Ontology, Turn

CITIES = ("paris", "oslo", "rome", "bern", "lima", "kiev", "riga", "baku")


def read_lab(root: Path) -> Iterator[SourceRow | Finding]:
    """A format of our own: rows.jsonl, each {"id", "text", "audio": {...}} and perhaps "split", "domain", "slots", "context"."""
    file = root / "rows.jsonl"
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        if not row["text"]:
            yield Finding(
                kind="transcript-blank", file=file, line=number, field="text", problem="is blank", remedy="write it"
            )
            continue
        yield SourceRow(
            file=file,
            line=number,
            id=row["id"],
            split=row.get("split"),
            domain=row.get("domain", "travel"),
            transcript=row["text"],
            slots=tuple(
                plain_slot(label, value) for label, value in row.get("slots", [["to_city", row["text"].split()[-1]]])
            ),
            audio=AudioSource(**row["audio"]),
            context=tuple(Turn(speaker="agent", text=text) for text in row.get("context", [])),
        )


LAB = Reader(
    name="lab",
    title="Our lab's calls",
    licence="CC0",
    read=read_lab,
    descriptions={"to_city": "where the journey ends"},
)
SPLITS_OF_8 = ("train", "train", "train", "train", "validation", "validation", "test", "test")


def lab_rows(count: int = 8) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call-{n}",
            "text": f"ticket {n} to {CITIES[n % 8]}",
            "split": SPLITS_OF_8[n % 8],
            "audio": {"path": f"sound/{n}.wav"},
        }
        for n in range(count)
    ]


def write_lab(root: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows, and a sound for each whose file is not there yet; its seed is its place."""
    (root / "sound").mkdir(parents=True, exist_ok=True)
    for place, row in enumerate(rows):
        path = root / row["audio"]["path"]
        if path.suffix == ".wav" and not path.exists() and path.parent.exists():
            soundfile.write(path, to_pcm16(babble(place, 0.5)), SAMPLE_RATE)
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


def run(root: Path, source: Path, **options: Any) -> Any:
    return import_corpus(
        root, **{"reader": LAB, "source": source, "executor": SerialExecutor(), "name": "lab", **options}
    )


def contents(root: Path) -> dict[str, bytes]:
    """Every file that a reader of the corpus sees."""
    names = ("manifest.jsonl", "ontology.json", "traces.jsonl", "corpus.json", "rejected.jsonl")
    paths = [*(root / name for name in names), *sorted(root.glob("audio/*/*"))]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def rejected(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]


def test_rows_become_a_corpus(tmp_path: Path) -> None:
    report = run(tmp_path / "corpus", write_lab(tmp_path / "lab", lab_rows()))
    corpus = open_corpus(tmp_path / "corpus")
    assert report.corpus == corpus and not report.dropped and not report.warnings
    assert [row.example.id for row in corpus.examples] == [f"call-{n}" for n in range(8)]
    for place, row in enumerate(corpus.examples):
        pcm = to_pcm16(read_audio(corpus.audio_path(row.example)))
        assert np.array_equal(pcm, to_pcm16(babble(place, 0.5))) and row.example.audio_sha256 == pcm_sha256(pcm)
        assert row.example.duration_s == 0.5 and row.trace is None
    assert corpus.ontology.domains["travel"] == (
        Label(name="to_city", description="where the journey ends", values=("bern", "oslo", "paris", "rome")),
    )
    held = report.splits["train"]
    assert (held.examples, held.labels, held.domains) == (4, 1, 1) and held.hours == pytest.approx(2 / 3600)
    summary = json.loads((tmp_path / "corpus/corpus.json").read_text())
    assert summary["licence"] == "CC0" and summary["source"] == "lab" and summary["splits"]["test"] == 2
    assert str(tmp_path) not in "".join(
        (tmp_path / "corpus" / name).read_text() for name in ("corpus.json", "manifest.jsonl", "rejected.jsonl")
    )


def stereo(path: Path) -> None:
    soundfile.write(path, np.stack([babble(1, 0.6), babble(2, 0.6)], 1), SAMPLE_RATE)


def cut(path: Path, container: str) -> None:
    stream = io.BytesIO()
    soundfile.write(stream, babble(3, 2.0), SAMPLE_RATE, format=container)
    path.write_bytes(stream.getvalue()[: len(stream.getvalue()) * 9 // 10])


def sound(samples: np.ndarray, rate: int = SAMPLE_RATE, **options: Any) -> Callable[[Path], None]:
    return lambda path: soundfile.write(path, samples, rate, **options)


DEFECTS: dict[str, tuple[str, Callable[[Path], object], dict[str, Any]]] = {
    "gone": ("audio-not-found", lambda path: None, {"path": "sound/gone.flac"}),
    "text": ("audio-undecodable", lambda path: path.write_text("version https://git-lfs.example"), {}),
    "cut wav": ("audio-truncated", lambda path: cut(path, "WAV"), {}),
    "cut flac": ("audio-truncated", lambda path: cut(path, "FLAC"), {}),
    "cut ogg": ("audio-truncated", lambda path: cut(path, "OGG"), {}),
    "cut mp3": ("audio-truncated", lambda path: cut(path, "MP3"), {}),
    "empty": ("audio-empty", sound(np.zeros(0)), {}),
    "stereo": ("audio-channels", stereo, {}),
    "third channel": ("audio-channel-unknown", stereo, {"channel": 2}),
    "late": ("audio-cut-outside", sound(babble(4, 0.5)), {"start_s": 0.6, "end_s": 0.9}),
    "reversed": ("audio-cut-outside", sound(babble(4, 0.5)), {"start_s": 0.4, "end_s": 0.2}),
    "nan": ("audio-not-finite", sound(np.array([0.1, np.nan] * 4000, np.float32), subtype="FLOAT"), {}),
    "infinite": ("audio-not-finite", sound(np.array([0.1, np.inf] * 4000, np.float32), subtype="FLOAT"), {}),
    "silent": ("audio-silent", sound(np.zeros(8000)), {}),
    "long": ("audio-too-long", sound(babble(5, 30.5)), {}),
    "short": ("audio-too-short", sound(babble(5, 0.05)), {}),
    "rate": ("audio-sample-rate", sound(babble(5, 0.5), 100), {}),
    "outside": ("audio-leaves-root", lambda path: None, {"path": "../secret.wav"}),
    "absolute": ("audio-absolute", lambda path: None, {"path": "/etc/secret.wav"}),
    "no parquet": ("audio-not-found", lambda path: None, {"path": "gone.parquet", "parquet_row": 0}),
    "text as parquet": ("audio-undecodable", lambda path: path.write_text("PAR1?"), {"parquet_row": 0}),
}


def test_every_defect_of_a_sound_is_one_finding_and_good_rows_are_kept(tmp_path: Path) -> None:
    rows = lab_rows()
    for place, (name, (_, write, audio)) in enumerate(DEFECTS.items()):
        path = tmp_path / "lab" / "sound" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
        bad = {"id": name, "text": f"to {name}", "split": "train", "audio": {"path": f"sound/{name}.wav", **audio}}
        rows.insert(2 * place % len(rows), bad)
    report = run(tmp_path / "corpus", write_lab(tmp_path / "lab", rows))
    assert {row["id"]: row["kind"] for row in rejected(tmp_path / "corpus")} == {n: d[0] for n, d in DEFECTS.items()}
    assert len(rejected(tmp_path / "corpus")) == len(DEFECTS) == sum(lost.rows for lost in report.dropped.values())
    assert sorted(row.example.id for row in report.corpus.examples) == [f"call-{n}" for n in range(8)]
    line = next(row for row in rejected(tmp_path / "corpus") if row["id"] == "late")
    assert line["file"] == "rows.jsonl" and rows[line["line"] - 1]["id"] == "late" and line["field"] == "audio"
    assert line["problem"].startswith("sound/late.wav: is 0.500 s long, and the row asks for 0.600 s to 0.900 s")
    assert "\n" not in line["problem"] + line["remedy"]
    assert str(tmp_path) not in (tmp_path / "corpus/rejected.jsonl").read_text(), "the same wherever the corpus lies"
    assert report.dropped["audio-truncated"].rows == 4
    assert "sound/cut " in report.dropped["audio-truncated"].first


def test_turns_of_a_dialogue_are_cut_to_the_sample(tmp_path: Path) -> None:
    for container, exact in (("wav", True), ("ogg", False)):
        rows = lab_rows()
        call = np.stack([babble(1, 12.0), babble(2, 12.0)], 1)
        (tmp_path / container).mkdir()
        soundfile.write(tmp_path / container / f"call.{container}", call, SAMPLE_RATE)
        for n, row in enumerate(rows):
            row["audio"] = {"path": f"call.{container}", "channel": n % 2, "start_s": n * 1.25, "end_s": n * 1.25 + 1}
        report = run(tmp_path / f"{container}-corpus", write_lab(tmp_path / container, rows))
        for n, row in enumerate(report.corpus.examples):
            expected = call[n * 20_000 : n * 20_000 + SAMPLE_RATE, n % 2]
            got = read_audio(report.corpus.audio_path(row.example))
            assert len(got) == SAMPLE_RATE and np.abs(got - expected).max() < (1e-4 if exact else 0.1)


def test_parquet_rows_hold_their_sound(tmp_path: Path) -> None:
    sounds: list[dict[str, Any] | None] = [
        {"bytes": encode_flac(to_pcm16(babble(n, 0.5))), "path": f"{n}.flac"} for n in range(10)
    ]
    sounds[3], sounds[5] = None, {"bytes": None, "path": "5.flac"}
    sounds[6] = {"bytes": b"fLaC", "path": "6.flac"}
    (tmp_path / "lab").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"audio": sounds}), tmp_path / "lab/a.parquet", row_group_size=4)
    pyarrow.parquet.write_table(pyarrow.table({"utt": ["go"]}), tmp_path / "lab/b.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"audio": [{"bytes": 3}]}), tmp_path / "lab/c.parquet")
    rows = [
        {**row, "audio": {"path": "a.parquet", "parquet_row": n}}
        for row, n in zip(lab_rows(11), (0, 1, 9, 2, 4, 7, 8, 3, 5, 6, 10), strict=True)
    ]
    rows += [
        {**row, "audio": {"path": path, "parquet_row": 0}}
        for row, path in zip(lab_rows(13)[11:], ("b.parquet", "c.parquet"), strict=True)
    ]
    report = run(tmp_path / "corpus", write_lab(tmp_path / "lab", rows))
    assert [(row["id"], row["kind"], row["problem"]) for row in rejected(tmp_path / "corpus")] == [
        ("call-7", "audio-not-found", "a.parquet, row 3: has no sound"),
        ("call-8", "audio-not-found", "a.parquet, row 5: has no sound"),
        ("call-9", "audio-undecodable", rejected(tmp_path / "corpus")[2]["problem"]),
        ("call-10", "audio-not-found", "a.parquet, row 10: has no such row, it has 10"),
        ("call-11", "audio-not-found", "b.parquet, row 0: has no column `audio` with `bytes`"),
        ("call-12", "audio-not-found", "c.parquet, row 0: has no sound"),
    ]
    assert len(report.corpus.examples) == 7
    for example, row in zip(report.corpus.examples, rows, strict=False):
        got = to_pcm16(read_audio(report.corpus.audio_path(example.example)))
        assert np.array_equal(got, to_pcm16(babble(row["audio"]["parquet_row"], 0.5)))


def test_other_rates_and_codecs(tmp_path: Path) -> None:
    rows = lab_rows()
    kinds = ((44_100, "WAV", "PCM_24"), (8_000, "WAV", "ULAW"), (48_000, "OGG", "OPUS"), (22_050, "MP3", None))
    (tmp_path / "lab/sound").mkdir(parents=True)
    for n, (rate, container, subtype) in enumerate(kinds):
        rows[n]["audio"]["path"] = f"sound/{n}.x"
        soundfile.write(tmp_path / f"lab/sound/{n}.x", babble(n, 1.0, rate), rate, format=container, subtype=subtype)
    report = run(tmp_path / "corpus", write_lab(tmp_path / "lab", rows))
    assert not report.dropped
    for n, row in enumerate(report.corpus.examples[:4]):
        got = read_audio(report.corpus.audio_path(row.example))
        assert abs(len(got) - SAMPLE_RATE) < 40
        spectrum = [np.abs(np.fft.rfft(part, SAMPLE_RATE))[:3000] for part in (got, babble(n, 1.0))]
        assert np.corrcoef(*spectrum)[0, 1] > 0.98


def test_what_is_wrong_between_rows(tmp_path: Path) -> None:
    rows = lab_rows()
    rows += [
        {**rows[0], "text": "the same id again to oslo"},
        {"id": "train-sound", "text": "another to rome", "split": "train", "audio": rows[7]["audio"]},
        {"id": "train-text", "text": rows[6]["text"].upper() + "!", "split": "train", "audio": {"path": "sound/t.wav"}},
        {"id": "other-context", "text": rows[6]["text"], "context": ["which"], "audio": {"path": "sound/c.wav"}, "split": "train"},
        {"id": "twice", "text": "once more to riga", "split": "test", "audio": rows[7]["audio"]},
        {"id": "blank", "text": "", "audio": {"path": "sound/b.wav"}},
        {"id": "half\ud83d", "text": "to \ud83d rome", "split": "train", "audio": {"path": "sound/h.wav"}},
        {"id": "greeting", "text": "hello", "domain": "talk", "slots": [], "split": "train", "audio": {"path": "sound/g.wav"}},
    ]  # fmt: skip
    report = run(tmp_path / "strict", write_lab(tmp_path / "lab", rows))
    kinds = [(row["line"], row["kind"]) for row in rejected(tmp_path / "strict")]
    assert kinds == [
        (9, "id-duplicate"),
        (10, "audio-in-two-splits"),
        (11, "sentence-in-two-splits"),
        (14, "transcript-blank"),
        (15, "text-lone-surrogate"),  # its id
        (15, "text-lone-surrogate"),  # its text
        (16, "domain-without-labels"),
    ]
    assert report.warnings == {"audio-twice": 1} and report.dropped["text-lone-surrogate"].rows == 1
    assert set(report.corpus.ontology.domains) == {"travel"}
    report = run(tmp_path / "shared", tmp_path / "lab", allow_shared_sentences=True)
    assert report.warnings == {"sentence-in-two-splits": 1, "audio-twice": 1}
    assert "train-text" in [row.example.id for row in report.corpus.examples]


def test_warnings_are_kept_in_a_file(tmp_path: Path) -> None:
    rows = lab_rows()
    rows[0]["slots"] = [["to_city", "a town nobody names"]]
    report = run(tmp_path / "corpus", write_lab(tmp_path / "lab", rows))
    (warning,) = map(json.loads, report.warned.read_text().splitlines())
    assert (warning["line"], warning["kind"]) == (1, "slot-value-not-in-transcript") and report.warnings == {
        warning["kind"]: 1
    }


def test_what_validate_wrote_into_the_source_does_not_change_it(tmp_path: Path) -> None:
    first = run(tmp_path / "corpus", write_lab(tmp_path / "lab", lab_rows()))
    (tmp_path / "lab/validated").mkdir()
    (tmp_path / "lab/validated/manifest.jsonl").write_text("good rows")
    assert run(tmp_path / "corpus", tmp_path / "lab") == first


def test_rows_without_a_split_are_drawn_by_their_group(tmp_path: Path) -> None:
    rows = [{**row, "split": None} for row in lab_rows(60)]
    report = run(tmp_path / "corpus", write_lab(tmp_path / "lab", rows))
    assert {row.example.id: row.example.split for row in report.corpus.examples} == {
        row["id"]: draw_split(row["text"]) for row in rows
    }


def test_values_of_the_ontology_are_those_of_train(tmp_path: Path) -> None:
    rows = lab_rows(40)
    for n, row in enumerate(rows):
        row["slots"] = [["to_city", f"town {n % 8}"], ["day:of-week", "monday"]][: 2 if row["split"] == "test" else 1]
    labels = run(tmp_path / "corpus", write_lab(tmp_path / "lab", rows)).corpus.ontology.domains["travel"]
    assert labels[0] == Label(name="day:of-week", description="day of week", values=())
    assert labels[1].values == ("town 0", "town 1", "town 2", "town 3")


def test_a_given_ontology_decides(tmp_path: Path) -> None:
    rows = lab_rows()
    rows[0]["slots"] = [["from_city", "paris"], ["from_city", "rome"]]
    rows[1]["domain"] = "weather"
    given = Ontology(domains={"travel": (Label(name="to_city", description="goal"),)})
    report = run(tmp_path / "given", write_lab(tmp_path / "lab", rows), ontology=given)
    assert report.corpus.ontology == given
    assert {kind: lost.rows for kind, lost in report.dropped.items()} == {"slot-label-unknown": 1, "domain-unknown": 1}
    own = Reader(name="lab", title="", licence="", read=read_lab, read_ontology=lambda root: given)
    assert run(tmp_path / "own", tmp_path / "lab", reader=own).corpus == open_corpus(tmp_path / "own")


def test_the_same_bytes_whatever_the_executor_and_the_folder(tmp_path: Path) -> None:
    write_lab(tmp_path / "lab", lab_rows(48))
    run(tmp_path / "serial", tmp_path / "lab")
    run(tmp_path / "pool", tmp_path / "lab", executor=ProcessExecutor(2))
    assert contents(tmp_path / "serial") == contents(tmp_path / "pool")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "lab").rename(tmp_path / "elsewhere/lab")
    run(tmp_path / "moved", tmp_path / "elsewhere/lab")
    assert contents(tmp_path / "serial") == contents(tmp_path / "moved")


KILLED = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[3:]
import data.source_audio
from data.executors import SerialExecutor
from data.importing import import_corpus
from test_importing import LAB

def slowly(done, total):
    print(done, flush=True)
    time.sleep(0.1)

import_corpus(Path(sys.argv[1]), reader=LAB, source=Path(sys.argv[2]), executor=SerialExecutor(), name="lab", on_progress=slowly)
"""


def test_a_killed_import_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    write_lab(tmp_path / "lab", lab_rows(128))
    run(tmp_path / "whole", tmp_path / "lab")
    folders = [str(Path(__file__).parent), *sys.path]
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(tmp_path / "lab"), *folders]
    for _ in range(2):
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            for _ in range(2):
                assert process.stdout.readline()
            os.kill(process.pid, signal.SIGKILL)
        assert not (tmp_path / "killed/corpus.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed/audio").glob("*/*.flac")}
    assert 64 <= len(kept) < 128
    whole, cut_off, gone, *_ = sorted(kept)
    cut_off.write_bytes(cut_off.read_bytes()[:-100])
    gone.unlink()
    (whole.parent / f".{whole.name}.x1y2").write_bytes(b"half a file")
    run(tmp_path / "killed", tmp_path / "lab")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert whole.stat().st_mtime_ns == kept[whole]


class Failing:
    """Fails before task `at`."""

    def __init__(self, at: int, error: Exception) -> None:
        self.at, self.error = at, error

    def map_unordered(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        for place, task in enumerate(tasks):
            if place == self.at:
                raise self.error
            yield function(task)


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    write_lab(tmp_path / "lab", lab_rows(40))
    full = OSError(errno.ENOSPC, "No space left on device", "/tmp/x")
    with pytest.raises(OSError) as told:  # the command line adds what to do
        run(tmp_path / "corpus", tmp_path / "lab", executor=Failing(1, full))
    assert (told.value.strerror, told.value.filename) == (
        "no space left while importing 40 rows",
        str(tmp_path / "corpus"),
    )
    assert len(run(tmp_path / "corpus", tmp_path / "lab").corpus.examples) == 40


def test_a_finished_import_is_only_opened(tmp_path: Path) -> None:
    rows = [*lab_rows(), {"id": "bad", "text": "to bad", "split": "train", "audio": {"path": "sound/no.flac"}}]
    first = run(tmp_path / "corpus", write_lab(tmp_path / "lab", rows))
    again = run(tmp_path / "corpus", tmp_path / "lab", executor=Failing(0, AssertionError("nothing is to be done")))
    assert again == first and again.dropped["audio-not-found"].first.startswith(
        "rows.jsonl, line 9, field audio: sound/no.flac: "
    )


def test_another_corpus_in_the_folder_is_refused(tmp_path: Path) -> None:
    write_lab(tmp_path / "lab", lab_rows())
    write_lab(tmp_path / "other", lab_rows(16))
    other = Reader(name="other", title="", licence="", read=read_lab)
    with pytest.raises(AssertionError):
        run(tmp_path / "corpus", tmp_path / "lab", executor=Failing(0, AssertionError()))
    for options in ({"reader": other}, {"name": "calls"}, {"source": tmp_path / "other"}):
        with pytest.raises(CorpusError, match=r"holds another corpus .* -> .*choose another --name, or delete"):
            run(tmp_path / "corpus", **{"source": tmp_path / "lab", **options})
    run(tmp_path / "corpus", tmp_path / "lab")
    given = Ontology(domains={"travel": (Label(name="to_city", description="goal"),)})
    more: tuple[dict[str, Any], ...] = (
        {"allow_shared_sentences": True},
        {"ontology": given},
        {"source": tmp_path / "other"},
    )
    for options in ({"reader": other}, {"name": "calls"}, *more):
        with pytest.raises(CorpusError, match="holds another corpus"):
            run(tmp_path / "corpus", **{"source": tmp_path / "lab", **options})
    (tmp_path / "lab/rows.jsonl").write_text("")
    with pytest.raises(
        CorpusError, match=r"holds another corpus \(the files have changed since\); choose another --name"
    ):
        run(tmp_path / "corpus", tmp_path / "lab")


def test_an_unfinished_import_goes_on_with_a_mended_source(tmp_path: Path) -> None:
    rows = lab_rows()
    write_lab(tmp_path / "lab", rows)
    for n in (6, 7):
        (tmp_path / f"lab/sound/{n}.wav").write_bytes(b"")
    problem = (
        r"lab: no example is left for test \(6 examples in all; dropped: 2 audio-undecodable\); see .*rejected.jsonl"
    )
    with pytest.raises(CorpusError, match=problem):
        run(tmp_path / "corpus", tmp_path / "lab")
    assert len(rejected(tmp_path / "corpus")) == 2
    for n in (6, 7):
        (tmp_path / f"lab/sound/{n}.wav").unlink()
    time.sleep(0.01)
    assert len(run(tmp_path / "corpus", write_lab(tmp_path / "lab", rows)).corpus.examples) == 8


def test_a_source_that_is_no_corpus_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="is no folder; give the folder that the corpus was unpacked into"):
        run(tmp_path / "corpus", tmp_path / "lab")
    (tmp_path / "lab").mkdir()
    with pytest.raises(OSError):
        run(tmp_path / "corpus", tmp_path / "lab")  # what this reader says of it
    assert not (tmp_path / "corpus").exists()


def test_a_damaged_corpus_is_an_error_until_mending_is_asked_for(tmp_path: Path) -> None:
    report = run(tmp_path / "corpus", write_lab(tmp_path / "lab", lab_rows()))
    before = contents(tmp_path / "corpus")
    report.corpus.audio_path(report.corpus.examples[1].example).unlink()
    with pytest.raises(CorpusError, match=r"does not exist.* delete .*corpus.json and run again"):
        run(tmp_path / "corpus", tmp_path / "lab")
    (tmp_path / "corpus/corpus.json").unlink()
    run(tmp_path / "corpus", tmp_path / "lab")
    assert contents(tmp_path / "corpus") == before


def test_a_store_inside_the_source_does_not_change_it(tmp_path: Path) -> None:
    write_lab(tmp_path, lab_rows())
    first = run(tmp_path / "runs/prepared/corpora/lab", tmp_path)
    (tmp_path / "runs/mlflow.db").write_bytes(b"more")
    assert run(tmp_path / "runs/prepared/corpora/lab", tmp_path) == first


def test_planning_an_import_loads_no_numerics() -> None:
    code = "import sys, data.importing; print({'numpy', 'soundfile', 'pyarrow', 'torch'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
