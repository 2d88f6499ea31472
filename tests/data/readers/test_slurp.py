"""SLURP as its authors distribute it is read row by row, and every defect costs its own row only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from corpus_samples import slurp
from data.findings import Finding
from data.json_lines import CorpusError
from data.readers.slurp import READER
from data.readers.source import SourceRow

Row = dict[str, Any]


@pytest.fixture
def root(copy_of: Callable[[ModuleType], Path]) -> Path:
    return copy_of(slurp)


def read(root: Path) -> tuple[list[SourceRow], list[Finding]]:
    items = list(READER.read(root))
    return [i for i in items if isinstance(i, SourceRow)], [i for i in items if isinstance(i, Finding)]


def edit(root: Path, file: str, change: Callable[[Row], object], line: int = 1) -> None:
    path = root / "dataset/slurp" / file
    lines = path.read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[line - 1])
    change(row)
    lines[line - 1] = json.dumps(row)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_every_recording_is_a_row_of_its_sentence(root: Path) -> None:
    rows, findings = read(root)
    assert findings == []
    sentences = {split: {row.group for row in rows if row.split == split} for split in ("train", "validation", "test")}
    assert {split: len(found) for split, found in sentences.items()} == {"train": 13, "validation": 3, "test": 4}
    assert len({row.id for row in rows}) == len(rows) > 20
    far, close = (row for row in rows if row.group == "set an alarm for friday at six am")
    assert (far.id, close.id) == ("102-audio-14102", "102-audio-14102-headset")
    assert far.domain == "alarm" and far.speaker == "FO-2" and far.line == 2
    assert [(slot.label, slot.spoken) for slot in far.slots] == [("date", "friday"), ("time", "six am")]
    assert far.audio.path == "audio/slurp_real/audio-14102.flac" and (root / far.audio.path).is_file()
    assert all(slot.spoken in row.transcript for row in rows for slot in row.slots)


def test_a_value_is_said_as_in_the_sentence_and_stored_as_the_official_filler(root: Path) -> None:
    row = next(row for row in read(root)[0] if "domino" in row.transcript)
    (slot,) = row.slots
    assert (slot.spoken, slot.surface, slot.canonical) == ("domino's", "domino's", "domino 's")


def test_an_apostrophe_of_another_form_or_a_capital_is_the_same_word(root: Path) -> None:
    edit(root, "train.jsonl", lambda row: row.update(sentence="is my order at Domino’s ready"), line=11)
    row = next(row for row in read(root)[0] if "Domino" in row.transcript)
    assert row.slots[0].spoken == "Domino’s" and row.slots[0].canonical == "domino 's"
    assert row.group == "is my order at domino's ready"


def test_tokens_that_are_not_the_sentence_give_the_official_filler(root: Path) -> None:
    edit(root, "devel.jsonl", lambda row: row.update(sentence="is it sunny in roma"), line=2)
    row = next(row for row in read(root)[0] if "roma" in row.transcript)
    assert [slot.spoken for slot in row.slots] == ["rome"]


def test_intent_is_not_read(root: Path) -> None:
    edit(root, "test.jsonl", lambda row: row.update(intent="query"))
    assert read(root)[0][-1].domain == "takeaway" and read(root)[1] == []


def test_synthetic_speech_is_read_only_where_it_lies(root: Path) -> None:
    assert [row.split for row in read(root)[0] if "slurp_synth" in row.audio.path] == ["train", "train"]
    (root / "audio/slurp_synth").rename(root / "elsewhere")
    rows, findings = read(root)
    assert findings == [] and not any("noon" in row.transcript for row in rows)


@pytest.mark.parametrize("texts", [".", "slurp"])
def test_other_layouts(root: Path, texts: str) -> None:
    whole = len(read(root)[0])
    (root / texts).mkdir(exist_ok=True)
    for file in (root / "dataset/slurp").iterdir():
        file.rename(root / texts / file.name)
    for folder in (root / "audio").iterdir():
        folder.rename(root / folder.name)
    rows, findings = read(root)
    assert len(rows) == whole and findings == [] and rows[0].audio.path == "slurp_real/audio-14101.flac"


@pytest.mark.parametrize(
    ("kind", "field", "change"),
    [
        ("entity-span", "entities[0].span", lambda row: row["entities"][0].update(span=[0, 999])),
        ("entity-span", "entities[0].span", lambda row: row["entities"][0].update(span=[-1])),
        ("entity-span", "entities[0].span", lambda row: row["entities"][0].update(span=[])),
        ("entity-span", "entities[0].span", lambda row: row["entities"][0].update(span=[True])),
        ("entity-span", "entities[0].span", lambda row: row["entities"][0].update(span="4")),
        ("field-missing", "entities[0].type", lambda row: row["entities"][0].pop("type")),
        ("field-missing", "entities", lambda row: row.update(entities=None)),
        ("field-missing", "tokens", lambda row: row.update(tokens=["wake", "me"])),
        ("field-missing", "tokens[1].surface", lambda row: row["tokens"][1].update(surface=7)),
        ("field-missing", "recordings", lambda row: row.pop("recordings")),
        ("field-missing", "sentence", lambda row: row.update(sentence=" \t ")),
        ("text-unreadable", "sentence", lambda row: row.update(sentence="wake\x00me")),
        ("text-unreadable", "sentence", lambda row: row.update(sentence="wake \ud800 me")),
        ("field-missing", "scenario", lambda row: row.pop("scenario")),
        ("id-missing", "slurp_id", lambda row: row.update(slurp_id=None)),
        ("audio-missing", "recordings[0].file", lambda row: row["recordings"][0].update(file="audio-0.flac")),
        ("audio-missing", "recordings[0].file", lambda row: row["recordings"][0].update(file="../slurp_real/a.flac")),
    ],
)
def test_a_defect_costs_its_line(root: Path, kind: str, field: str, change: Callable[[Row], object]) -> None:
    good = [row.id for row in read(root)[0]]
    edit(root, "train.jsonl", change)
    rows, (finding,) = read(root)
    assert (finding.kind, finding.field, finding.line) == (kind, field, 1)
    assert finding.file.name == "train.jsonl" and finding.remedy and str(finding).isprintable()
    assert [row.id for row in rows] == good[1:]


@pytest.mark.parametrize("line", [b"{nonsense", b'["a list"]', b'{"sentence": "\xff"}', b"[" * 100_000])
def test_a_line_that_is_no_object_costs_itself(root: Path, line: bytes) -> None:
    good = [row.id for row in read(root)[0]]
    path = root / "dataset/slurp/train.jsonl"
    path.write_bytes(line + b"\n\n" + path.read_bytes())
    rows, (finding,) = read(root)
    assert finding.line == 1 and finding.kind.startswith(("line-", "json-")) and [row.id for row in rows] == good


def test_one_recording_missing_keeps_the_others_of_its_sentence(root: Path) -> None:
    (root / "audio/slurp_real/audio-14102.flac").unlink()
    rows, (finding,) = read(root)
    assert (finding.kind, finding.example_id, finding.line) == ("audio-missing", "102-audio-14102", 2)
    assert "102-audio-14102-headset" in [row.id for row in rows]


def test_what_is_missing_is_told_and_the_rest_is_read(root: Path) -> None:
    (root / "dataset/slurp/devel.jsonl").unlink()
    (root / "dataset/slurp/metadata.json").write_text('{"101": {"recordings": 3}}')
    rows, findings = read(root)
    assert [(f.kind, f.severity) for f in findings] == [("speakers-unreadable", "warning"), ("file-missing", "warning")]
    assert {row.split for row in rows} == {"train", "test"} and {row.speaker for row in rows} == {""}


def test_another_folder_is_refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(CorpusError, match=r"is not SLURP, none of train.jsonl, devel.jsonl, test.jsonl"):
        next(READER.read(tmp_path_factory.mktemp("empty")))
    (root / "audio").rename(root / "sounds")
    with pytest.raises(CorpusError, match=r"has no folder slurp_real .*; unpack slurp_real.tar.gz there"):
        next(READER.read(root))
