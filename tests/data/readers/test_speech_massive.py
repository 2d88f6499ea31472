"""Speech-MASSIVE shards are read without their audio, slots from the brackets, and every defect costs its own row only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from corpus_samples import speech_massive
from data.findings import Finding
from data.json_lines import CorpusError
from data.readers.source import SourceRow
from data.readers.speech_massive import READER

TRAIN = "de-DE/train-00000-of-00001.parquet"
ROWS = 18


@pytest.fixture
def root(copy_of: Callable[[ModuleType], Path]) -> Path:
    return copy_of(speech_massive)


def read(root: Path) -> tuple[list[SourceRow], list[Finding]]:
    items = list(READER.read(root))
    return [i for i in items if isinstance(i, SourceRow)], [i for i in items if isinstance(i, Finding)]


def edit(root: Path, file: str, place: int, **values: Any) -> None:
    rows = parquet.read_table(root / file).to_pylist()
    rows[place].update(values)
    speech_massive.write_shard(root / file, rows)


def annotate(root: Path, annotated: str, sentence: str, **values: Any) -> None:
    edit(root, TRAIN, 0, annot_utt=annotated, utt=sentence, labels=None, **values)


def test_locales_and_splits(root: Path) -> None:
    rows, findings = read(root)
    assert findings == [] and Counter(row.split for row in rows) == {"train": 12, "validation": 3, "test": 3}
    row = rows[1]
    assert row.id.startswith("de-DE-1002-") and row.domain == "alarm" and row.line == 2
    assert row.speaker.startswith("5f32") and row.transcript == "stell einen wecker für freitag sechs uhr"
    assert [(slot.label, slot.spoken) for slot in row.slots] == [("date", "freitag"), ("time", "sechs uhr")]
    assert len({row.id for row in rows}) == ROWS and {row.id[:5] for row in rows} == {"de-DE", "fr-FR"}


def test_the_audio_is_the_row_that_is_named(root: Path) -> None:
    for row in read(root)[0]:
        stored = parquet.read_table(root / row.audio.path).to_pylist()[row.audio.parquet_row]
        assert stored["utt"] == row.transcript and stored["audio"]["bytes"][:4] == b"RIFF"


def test_neighbours_of_one_label_are_two_slots(root: Path) -> None:
    row = next(row for row in read(root)[0] if "anna luc" in row.transcript)
    assert [(slot.label, slot.spoken) for slot in row.slots] == [("person", "anna"), ("person", "luc")]


@pytest.mark.parametrize(
    ("annotated", "sentence", "value"),
    [
        ("[date : 这周] [time : 五点] 叫我起床", "这周五点叫我起床", "五点"),  # no spaces between words
        ("l’heure à [time : l’aube]", "l'heure à l'aube", "l’aube"),
        ("Um [time : 5:30] bitte", "um 5:30 bitte", "5:30"),  # a colon in the value
        ("um [time: fünf uhr ]", "um fünf uhr", "fünf uhr"),
    ],
)
def test_brackets(root: Path, annotated: str, sentence: str, value: str) -> None:
    annotate(root, annotated, sentence)
    rows, findings = read(root)
    assert findings == [] and rows[0].slots[-1].spoken == value and rows[0].transcript == sentence


@pytest.mark.parametrize(
    ("kind", "field", "values"),
    [
        ("annotation-disagrees", "annot_utt", {"annot_utt": "weck mich um [time : sechs uhr]"}),
        ("annotation-brackets", "annot_utt", {"annot_utt": "weck mich um [time : fünf uhr"}),
        ("annotation-brackets", "annot_utt", {"annot_utt": "weck mich um [ : fünf uhr]"}),
        ("annotation-brackets", "annot_utt", {"annot_utt": "weck mich um fünf uhr [time : ]"}),
        ("field-missing", "annot_utt", {"annot_utt": None}),
        ("field-missing", "utt", {"utt": " \n"}),
        ("text-unreadable", "utt", {"utt": "weck mich\x00um fünf uhr"}),
        ("field-missing", "scenario_str", {"scenario_str": ""}),
        ("split-unknown", "partition", {"partition": "MMNLU-22"}),
        ("split-disagrees", "partition", {"partition": "test"}),
    ],
)
def test_a_defect_costs_its_row(root: Path, kind: str, field: str, values: dict[str, Any]) -> None:
    edit(root, TRAIN, 0, **values)
    rows, (finding,) = read(root)
    assert (finding.kind, finding.field, finding.line) == (kind, field, 1) and str(finding).isprintable()
    assert len(rows) == ROWS - 1 and rows[0].line == 2 and rows[0].audio.parquet_row == 1


def test_labels_of_tokens_that_disagree_are_told_and_the_brackets_taken(root: Path) -> None:
    edit(root, TRAIN, 0, labels=["Other", "Other", "Other", "date", "date"])
    rows, (finding,) = read(root)
    assert (finding.kind, finding.severity, finding.line) == ("labels-disagree", "warning", 1)
    assert len(rows) == ROWS and rows[0].slots[0].label == "time" and finding.example_id == rows[0].id


@pytest.mark.parametrize(("numbers", "agree"), [([0, 0, 0, 1, 1], True), ([0, 0, 0, 2, 2], False), ([9] * 5, False)])
def test_labels_may_be_numbers_of_the_names_in_the_file(root: Path, numbers: list[int], agree: bool) -> None:
    rows = parquet.read_table(root / TRAIN).to_pylist()[:1]
    rows[0]["labels"] = numbers
    feature = {"feature": {"names": ["Other", "time", "date"], "_type": "ClassLabel"}, "_type": "Sequence"}
    metadata = {"huggingface": json.dumps({"info": {"features": {"labels": feature}}})}
    parquet.write_table(pyarrow.Table.from_pylist(rows).replace_schema_metadata(metadata), root / TRAIN)
    assert (read(root)[1] == []) is agree


def test_text_that_is_not_utf8_costs_its_row(root: Path) -> None:
    table = parquet.read_table(root / TRAIN)
    texts = [text.encode() for text in table["utt"].to_pylist()]
    texts[1] = b"weck \xff mich"
    broken = pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(table.set_column(table.schema.get_field_index("utt"), "utt", broken), root / TRAIN)
    rows, (finding,) = read(root)
    assert (finding.kind, finding.line) == ("line-not-utf8", 2) and len(rows) == ROWS - 1


def test_the_folder_of_all_locales_is_read_only_without_the_others(root: Path) -> None:
    for file in list(root.rglob("*.parquet")):
        copy = root / "all" / file.name.replace("-0", f"-{file.parent.name}-0", 1)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    assert len(read(root)[0]) == ROWS
    assert len(read(root / "all")[0]) == ROWS


@pytest.mark.parametrize("damage", [lambda data: b"not parquet", lambda data: data[:-9], lambda data: b""])
def test_a_broken_shard_costs_itself(root: Path, damage: Callable[[bytes], bytes]) -> None:
    path = root / TRAIN
    path.write_bytes(damage(path.read_bytes()))
    rows, (finding,) = read(root)
    assert (finding.kind, finding.file, len(rows)) == ("parquet-unreadable", path, ROWS - 7)


def test_a_broken_page_costs_its_row_group(root: Path) -> None:
    path = root / TRAIN
    group = parquet.ParquetFile(path).metadata.row_group(1)
    column = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "utt")
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    rows, (finding,) = read(root)
    assert finding.kind == "parquet-unreadable" and "rows 4 to 6" in finding.problem and len(rows) == ROWS - 3
    assert [row.audio.parquet_row for row in rows[:4]] == [0, 1, 2, 6]


def test_a_shard_of_another_form_is_told(root: Path) -> None:
    path = root / TRAIN
    parquet.write_table(parquet.read_table(path).drop_columns(["annot_utt"]), path)
    rows, (finding,) = read(root)
    assert finding.kind == "column-missing" and "'annot_utt'" in finding.problem and len(rows) == ROWS - 7


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"no parquet file lies below it; Speech-MASSIVE is looked for as <locale>/<split>-00000"
    ):
        next(READER.read(tmp_path))
    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(CorpusError, match="has no column 'id'"):
        next(READER.read(tmp_path))
