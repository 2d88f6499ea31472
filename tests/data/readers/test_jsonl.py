"""A lab's own manifest is read in every short form, and a bad row costs no other row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from corpus_samples import jsonl
from data.findings import Finding
from data.json_lines import CorpusError
from data.readers.jsonl import READER
from data.readers.source import AudioSource, SourceRow, plain_slot
from data.records import SlotValue, Turn

Row = dict[str, Any]
ROW: Row = {"audio": "a.wav", "transcript": "to denver", "slots": {"city": "denver"}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    return tmp_path


def write(root: Path, *rows: Row) -> None:
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(root: Path) -> list[SourceRow | Finding]:
    return list(READER.read(root))


def read_one(root: Path, **fields: Any) -> SourceRow:
    write(root, {**ROW, **fields})
    (row,) = read(root)
    assert isinstance(row, SourceRow), row
    return row


def test_the_sample_is_read(tmp_path: Path) -> None:
    jsonl.write(tmp_path)
    rows = [row for row in read(tmp_path) if isinstance(row, SourceRow)]
    assert [row.line for row in rows] == list(range(1, 18)) and len({row.id for row in rows}) == 17
    assert [row.split for row in rows].count("train") == 11
    two = rows[15]
    assert two.audio == AudioSource(path="audio/call.wav", channel=1, start_s=3.0, end_s=4.0)
    assert two.group == "call" and two.speaker == "caller-7" and two.domain == "default"
    assert two.slots == (plain_slot("day", "wednesday"),)
    assert two.context == (
        Turn(speaker="agent", text="how can i help you"),
        Turn(speaker="caller", text="can i still go to vienna"),
        Turn(speaker="agent", text="when do you want to travel"),
    )
    assert rows[16].slots == (SlotValue(label="seats", spoken="five", surface="5", canonical="5"),)
    assert rows[3].slots == (plain_slot("city", "paris"), plain_slot("city", "boston")) and rows[5].slots == ()


def test_what_is_left_out_is_filled_in_the_same_way_each_time(root: Path) -> None:
    row = read_one(root)
    assert row.id.startswith("a-") and row.split is None and row.group == "to denver" and row.speaker == ""
    assert row.audio == AudioSource(path="a.wav")
    assert read_one(root, transcript="other words", slots=[]).id == row.id, "the id names the sound"
    assert read_one(root, start_s=1, end_s=2).id != row.id
    assert read_one(root, transcript="To  Denver!").group == row.group, "one sentence, one split"


def test_texts_are_stripped(root: Path) -> None:
    row = read_one(root, id=" x ", transcript=" to denver ", slots={"city": " denver "}, dialogue=" d ")
    assert (row.id, row.transcript, row.slots, row.group) == ("x", "to denver", (plain_slot("city", "denver"),), "d")


def test_a_bad_row_is_told_and_costs_no_other_row(root: Path) -> None:
    write(
        root, {**ROW, "id": "1"}, {**ROW, "id": "2", "slots": "city", "split": "dev"}, {**ROW, "id": "3", "slots": []}
    )
    one, slots, split, three = sorted(read(root), key=lambda item: (item.line, getattr(item, "kind", "")))
    assert isinstance(one, SourceRow) and isinstance(three, SourceRow)
    assert isinstance(slots, Finding) and isinstance(split, Finding)
    assert (slots.kind, slots.example_id, split.kind) == ("slots-wrong-type", "2", "split-unknown")


def test_warnings_keep_the_row_and_are_left_to_validate(root: Path) -> None:
    assert read_one(root, slots={"city": "boston"}).slots == (plain_slot("city", "boston"),)


def test_an_ontology_is_read_where_there_is_one(root: Path) -> None:
    assert READER.read_ontology(root) is None
    labels = [{"name": "city", "description": "where to", "values": ["denver"]}, {"name": "day", "description": "when"}]
    (root / "ontology.json").write_text(json.dumps({"domains": {"default": labels}}))
    ontology = READER.read_ontology(root)
    assert ontology and ontology.labels()["city"].values == ("denver",) and ontology.labels()["day"].values == ()
    write(root, ROW, {**ROW, "id": "2", "slots": {"town": "denver"}})
    good, bad = read(root)
    assert isinstance(good, SourceRow) and isinstance(bad, Finding) and bad.kind == "slot-label-unknown"
    (root / "ontology.json").write_text("{}")
    with pytest.raises(CorpusError, match=r"ontology.json, field domains: must be a non-empty object"):
        READER.read(root)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"manifest.jsonl: is missing; give the folder that holds manifest.jsonl"):
        READER.read(tmp_path)
