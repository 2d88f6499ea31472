"""STOP as it is distributed: trees become flat slots, and no line stops another."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_samples import stop
from data.findings import Finding
from data.json_lines import CorpusError
from data.readers.source import SourceRow
from data.readers.stop import READER, ParseError, flatten_parse, locate
from data.records import SlotValue

FLAT = {
    "one slot": ("[IN:CREATE_ALARM set an alarm [SL:DATE_TIME for eight am ] ]", [("date_time", "for eight am")]),
    "several, one label twice": (
        "[IN:GET_WEATHER rain in [SL:LOCATION rome ] or [SL:LOCATION oslo ] [SL:DATE_TIME today ] ]",
        [("location", "rome"), ("location", "oslo"), ("date_time", "today")],
    ),
    "no slot": ("[IN:GET_ALARM show my alarms ]", []),
    "an intent alone": ("[IN:GET_ALARM ]", []),
    "brackets without blanks": (
        "[IN:GET_DIRECTIONS [SL:DESTINATION [IN:GET_EVENT [SL:NAME_EVENT Eagles ][SL:CAT_EVENT game]]]]",
        [("name_event", "Eagles"), ("cat_event", "game")],
    ),
    "three levels deep": (
        "[IN:CREATE_REMINDER remind me to [SL:TODO [IN:SEND_MESSAGE text [SL:RECIPIENT [IN:GET_CONTACT my"
        " [SL:CONTACT_RELATED mom ] ] ] that [SL:CONTENT_EXACT i am late ] ] ] [SL:DATE_TIME at noon ] ]",
        [("contact_related", "mom"), ("content_exact", "i am late"), ("date_time", "at noon")],
    ),
    "an intent without slots keeps the outer slot": (
        "[IN:CREATE_REMINDER remind me to [SL:TODO [IN:GET_TODO pick up milk ] ] [SL:DATE_TIME today ] ]",
        [("todo", "pick up milk"), ("date_time", "today")],
    ),
    "its decoupled form fills nothing": (
        "[IN:CREATE_REMINDER [SL:TODO [IN:GET_TODO ] ] [SL:DATE_TIME today ] ]",
        [("date_time", "today")],
    ),
    "words beside an inner slot are the outer slot's, and go with it": (
        "[IN:X [SL:A before [IN:Y [SL:B inner ] ] after ] ]",
        [("b", "inner")],
    ),
}

BROKEN = {
    "": "does not begin with an intent",
    "set an alarm": "does not begin with an intent",
    "[SL:DATE_TIME today ]": "does not begin with an intent",
    "[IN:CREATE_ALARM [SL:DATE_TIME today ]": "lacks the closing bracket of IN:CREATE_ALARM",
    "[IN:CREATE_ALARM [SL:DATE_TIME today": "lacks the closing bracket of IN:CREATE_ALARM, SL:DATE_TIME",
    "[IN:CREATE_ALARM [SL:DATE_TIME today ] ] ]": "goes on with ']'",
    "[IN:A one ] [IN:B two ]": "goes on with '[IN:B'",
    "[IN:CREATE_ALARM [SL:DATE_TIME ] ]": "slot without words, SL:DATE_TIME",
    "[IN:CREATE_ALARM [DATE_TIME today ] ]": "opens neither",
}


@pytest.mark.parametrize(("parse", "slots"), FLAT.values(), ids=FLAT)
def test_trees_become_flat_slots(parse: str, slots: list[tuple[str, str]]) -> None:
    assert list(flatten_parse(parse)) == slots


@pytest.mark.parametrize("parse", BROKEN)
def test_what_is_no_tree_is_said(parse: str) -> None:
    with pytest.raises(ParseError, match=re.escape(BROKEN[parse])):
        flatten_parse(parse)


@given(st.lists(st.sampled_from(["[IN:A", "[SL:B", "[SL:C", "]", "[", "word", "]]", "[IN:", " "])))
def test_no_parse_raises_anything_else(tokens: list[str]) -> None:
    try:
        slots = flatten_parse(" ".join(tokens))
    except ParseError:
        return
    assert all(words for _, words in slots)


@pytest.mark.parametrize(
    ("words", "text", "found"),
    [
        ("mom 's", "call mom’s office", "mom’s"),
        ("ten", "often at ten", "ten"),
        ("Oslo", "in oslo", "oslo"),
        ("8 am", "at 8am", "8am"),
        ("a.m .", "at eight a.m.", "a.m."),
        ("two", "twofold", None),
    ],
)
def test_slot_words_are_found_as_whole_words(words: str, text: str, found: str | None) -> None:
    span = locate(words, text, 0)
    assert (text[slice(*span)] if span else None) == found


@pytest.fixture
def root(copy_of: Callable[[ModuleType], Path]) -> Path:
    return copy_of(stop)


def rows_of(root: Path) -> tuple[list[SourceRow], list[Finding]]:
    items = list(READER.read(root))
    return [i for i in items if isinstance(i, SourceRow)], [i for i in items if isinstance(i, Finding)]


def edit(root: Path, cells: dict[str, str], line: int = 3, file: str = "train") -> None:
    """Change cells of one line of a manifest."""
    path = root / "manifests" / f"{file}.tsv"
    lines = path.read_text(encoding="utf-8").split("\n")
    values = dict(zip(stop.COLUMNS, lines[line - 1].split("\t"), strict=True)) | cells
    lines[line - 1] = "\t".join(values.values())
    path.write_text("\n".join(lines), encoding="utf-8")


def test_a_sample_is_read(root: Path) -> None:
    rows, findings = rows_of(root)
    assert findings == []
    assert [row.split for row in rows] == ["train"] * 12 + ["validation"] * 4 + ["test"] * 4
    reminder = rows[9]
    assert reminder.id == "train_0-reminder_train_0-00000009" and reminder.domain == "reminder" and reminder.line == 11
    assert [(slot.label, slot.spoken) for slot in reminder.slots] == [
        ("person_reminded", "me"),
        ("contact", "mom's doctor"),
        ("date_time", "at noon"),
    ]
    assert rows[0].slots == (
        SlotValue(label="date_time", spoken="for eight am", surface="for eight am", canonical="for eight am"),
    )
    assert (root / rows[0].audio.path).is_file()
    assert rows[0].group == "set an alarm for eight am"


def test_audio_is_found_under_the_written_name_too(root: Path) -> None:
    (root / "train_0" / "alarm_train").rename(root / "train_0" / "alarm_train_0")
    rows, findings = rows_of(root)
    assert findings == [] and rows[0].audio.path == "train_0/alarm_train_0/00000000.wav"


def test_the_domain_comes_from_the_path_where_the_column_is_empty(root: Path) -> None:
    edit(root, {"domain": ""})
    rows, findings = rows_of(root)
    assert findings == [] and rows[1].domain == "alarm"


def test_the_decoupled_parse_stands_in_for_a_broken_one(root: Path) -> None:
    edit(root, {"normalized_seqlogical": "[IN:CREATE_ALARM wake me up [SL:DATE_TIME tomorrow at six thirty ]"})
    rows, findings = rows_of(root)
    assert findings == [] and rows[1].slots[0].spoken == "tomorrow at six thirty"


TREE, DECOUPLED = "normalized_seqlogical", "decoupled_normalized_seqlogical"
OTHER = "[IN:CREATE_ALARM [SL:DATE_TIME for nine ] ]"
DEFECTS: dict[str, tuple[dict[str, str], str, str | None]] = {
    "audio missing": ({"file_id": "train_0/alarm_train_0/99999999.wav"}, "audio-missing", "file_id"),
    "path that leaves": ({"file_id": "../alarm_train_0/1.wav"}, "audio-missing", "file_id"),
    "absolute path": ({"file_id": "/alarm_train_0/1.wav"}, "audio-missing", "file_id"),
    "no path": ({"file_id": ""}, "id-missing", "file_id"),
    "no transcript": ({"normalized_utterance": " "}, "transcript-missing", "normalized_utterance"),
    "no domain": ({"file_id": "x/1.wav", "domain": ""}, "domain-missing", "domain"),
    "no parse": ({TREE: "", DECOUPLED: ""}, "parse-missing", TREE),
    "unbalanced": ({TREE: "", DECOUPLED: "[IN:CREATE_ALARM [SL:DATE_TIME a ]"}, "parse-broken", DECOUPLED),
    "words of another sentence": ({TREE: OTHER, DECOUPLED: OTHER}, "slot-not-in-transcript", DECOUPLED),
    "a tab too many": ({"utterance": "a\tb"}, "column-count", None),
    "a zero byte": ({"utterance": "a\0b"}, "line-nul-byte", None),
}


@pytest.mark.parametrize(("cells", "kind", "field"), DEFECTS.values(), ids=DEFECTS)
def test_a_defect_costs_its_line_only(root: Path, cells: dict[str, str], kind: str, field: str | None) -> None:
    edit(root, cells)
    rows, findings = rows_of(root)
    assert len(rows) == 19
    (finding,) = findings
    assert (finding.kind, finding.field, finding.line) == (kind, field, 3)
    assert finding.file == root / "manifests" / "train.tsv" and "\n" not in str(finding)


def test_audio_may_lie_on_another_disk(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    disk = tmp_path_factory.mktemp("disk") / "train_0"
    (root / "train_0").rename(disk)
    (root / "train_0").symlink_to(disk)
    rows, findings = rows_of(root)
    assert len(rows) == 20 and findings == []


def test_a_line_that_is_not_utf8_costs_itself_only(root: Path) -> None:
    path = root / "manifests" / "eval.tsv"
    path.write_bytes(path.read_bytes().replace(b"set an alarm for noon", b"set an alarm for n\xf6\xf6n"))
    rows, findings = rows_of(root)
    assert len(rows) == 19 and [(f.kind, f.line) for f in findings] == [("line-not-utf8", 2)]


def test_a_manifest_without_its_columns_costs_its_split_only(root: Path) -> None:
    path = root / "manifests" / "eval.tsv"
    path.write_text(path.read_text().replace("file_id", "path", 1))
    (root / "manifests" / "test.tsv").unlink()
    rows, findings = rows_of(root)
    assert {row.split for row in rows} == {"train"}
    assert [(f.kind, f.severity) for f in findings] == [("column-missing", "error"), ("split-missing", "warning")]
    assert "'file_id'" in findings[0].problem


def test_another_folder_is_refused_with_the_file_that_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"manifests/train\.tsv: is missing; give the folder"):
        READER.read(tmp_path)
