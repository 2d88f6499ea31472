"""SpokenWOZ as it is distributed: the caller's turns, cut from the channel and the time that the words name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from corpus_samples import spokenwoz
from data.audio import read_audio
from data.findings import Finding
from data.json_lines import CorpusError
from data.readers.source import SourceRow
from data.readers.spokenwoz import CONTEXT_TURNS, MARGIN_S, READER
from data.records import SlotValue, Turn

TEXTS = "text_5700_train_dev/data.json"


@pytest.fixture
def root(copy_of: Callable[[ModuleType], Path]) -> Path:
    return copy_of(spokenwoz)


def rows_of(root: Path) -> tuple[dict[str, SourceRow], list[Finding]]:
    items = list(READER.read(root))
    return {i.id: i for i in items if isinstance(i, SourceRow)}, [i for i in items if isinstance(i, Finding)]


def edit(root: Path, change: Callable[[dict[str, Any]], object], turn: int = 2, name: str = "SNG0001") -> None:
    """Change one turn of a dialogue."""
    value = json.loads((root / TEXTS).read_text())
    change(value[name]["log"][turn])
    (root / TEXTS).write_text(json.dumps(value), encoding="utf-8")


def test_a_sample_is_read(root: Path) -> None:
    rows, findings = rows_of(root)
    assert findings == [] and len(rows) == 29
    splits = {row.group: row.split for row in rows.values()}
    assert {name for name, split in splits.items() if split == "validation"} == set(spokenwoz.VALIDATION)
    assert {name for name, split in splits.items() if split == "test"} == set(spokenwoz.DIALOGUES["test"])
    row = rows["SNG0001-2"]
    assert row.transcript == "in the center, and not too expensive." and row.domain == "restaurant"
    cheap = SlotValue(
        label="restaurant-pricerange", spoken="not too expensive", surface="not too expensive", canonical="cheap"
    )
    assert row.slots[1] == cheap and row.slots[0].label == "restaurant-area"
    assert row.context == (
        Turn(speaker="caller", text="hello, i need a italian restaurant please"),
        Turn(speaker="agent", text="sure, which part of town?"),
    )
    assert len(rows["MUL0003-6"].context) == CONTEXT_TURNS
    assert rows["SNG0004-4"].domain == "hotel", "thanks belong to the domain that is spoken of"


def test_the_cut_holds_the_caller_and_not_the_agent(root: Path) -> None:
    rows, _ = rows_of(root)
    assert {row.audio.channel for row in rows.values() if row.group in spokenwoz.CALLER_ON_1} == {1}
    assert {row.audio.channel for row in rows.values() if row.group not in spokenwoz.CALLER_ON_1} == {0}
    for row in rows.values():
        heard = np.abs(cut(root, row, row.audio.channel)).max()
        other = np.abs(cut(root, row, 1 - (row.audio.channel or 0))).max()
        assert heard > 0.3 and other == 0, row.id


def cut(root: Path, row: SourceRow, channel: int | None) -> np.ndarray:
    path = root / row.audio.path
    return read_audio(path, channel=channel, start_s=row.audio.start_s, end_s=row.audio.end_s)


def words(*times: tuple[Any, Any], channel: Any = 0) -> Callable[[dict[str, Any]], None]:
    """Give a turn words at these milliseconds."""
    made = [
        {"BeginTime": begin, "EndTime": end, "ChannelId": channel, "Word": "w", "WordIndex": index}
        for index, (begin, end) in enumerate(times)
    ]
    return lambda turn: turn.__setitem__("words", made)


@pytest.mark.parametrize(
    ("before", "own", "after", "start_s", "end_s"),
    [
        ((1000, 3000), (5000, 7000), (9000, 9500), 5 - MARGIN_S, 7 + MARGIN_S),
        ((1000, 4900), (5000, 7000), (7050, 9500), 4.9, 7.05),  # the neighbours are nearer than the margin
        ((1000, 5500), (5000, 7000), (6500, 9500), 5, 7),  # they overlap: nobody loses a word
        ((50, 90), (100, 7000), (9000, 9500), 0.09, 7 + MARGIN_S),
        ((None, None), (100, 7000), (None, None), 0, 7),  # a neighbour without times says nothing
    ],
)
def test_the_margin_ends_at_the_neighbouring_turn(
    root: Path,
    before: tuple[int, int],
    own: tuple[int, int],
    after: tuple[int, int],
    start_s: float,
    end_s: float,
) -> None:
    for turn, times in enumerate((before, own, after), start=1):
        edit(root, words(times), turn=turn)
    audio = rows_of(root)[0]["SNG0001-2"].audio
    assert (audio.start_s, audio.end_s) == pytest.approx((start_s, end_s))


def test_a_last_turn_gets_no_margin_beyond_its_words(root: Path) -> None:
    value = json.loads((root / TEXTS).read_text())
    last = value["SNG0001"]["log"][4]["words"][-1]["EndTime"] / 1000
    del value["SNG0001"]["log"][5:]
    (root / TEXTS).write_text(json.dumps(value))
    assert rows_of(root)[0]["SNG0001-4"].audio.end_s == last


def span(*fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda turn: turn.__setitem__("span_info", [list(fields)])


@pytest.mark.parametrize(
    ("change", "slots"),
    [
        (span("Hotel-Inform", "Area", "centre", 7, 13), [("hotel-area", "center", "centre")]),
        (span("hotel-request", "area", "?", 7, 13), []),
        (span("hotel-request", "area", "none"), []),
        (span("ack", "name", "x", 7, 13), [("general-name", "center", "x")]),
        (lambda turn: turn.pop("span_info"), []),
        (
            lambda turn: turn.__setitem__(
                "span_info", [["a-inform", "b", "c", 19, 22], ["a-x", "b", "c", 19, 22], ["a-x", "b", "d", 7, 13]]
            ),
            [("a-b", "center", "d"), ("a-b", "not", "c")],
        ),
        (
            lambda turn: turn.update(text="the café’s “rosé” bar", span_info=[["a-b", "name", "rosé", 12, 16]]),
            [("a-name", "rosé", "rosé")],
        ),
    ],
    ids=["labels in lower case", "request", "nothing", "act without domain", "no spans", "twice, in order", "unicode"],
)
def test_spans_become_slots(
    root: Path, change: Callable[[dict[str, Any]], object], slots: list[tuple[str, ...]]
) -> None:
    edit(root, change)
    rows, findings = rows_of(root)
    assert findings == []
    assert [(slot.label, slot.spoken, slot.canonical) for slot in rows["SNG0001-2"].slots] == slots


# the turn: "in the center, and not too expensive."
DEFECTS: dict[str, tuple[Callable[[dict[str, Any]], object], str, str]] = {
    "token offsets": (span("a-b", "area", "centre", 2, 2), "span-out-of-range", "span_info[0]"),
    "two token offsets": (span("a-b", "area", "centre", 4, 6), "span-cuts-word", "span_info[0]"),
    "a blank": (span("a-b", "area", "centre", 6, 7), "span-cuts-word", "span_info[0]"),
    "beyond the end": (span("a-b", "area", "centre", 7, 99), "span-out-of-range", "span_info[0]"),
    "negative start": (span("a-b", "area", "centre", -6, 13), "span-out-of-range", "span_info[0]"),
    "no end": (span("a-b", "area", "centre", 7), "span-broken", "span_info[0]"),
    "numbers as text": (span("a-b", "area", "centre", "7", "13"), "span-broken", "span_info[0]"),
    "number as value": (span("a-b", "area", 3, 7, 13), "span-broken", "span_info[0]"),
    "spans as text": (lambda turn: turn.update(span_info="none"), "spans-broken", "span_info"),
    "no words": (lambda turn: turn.update(words=[]), "words-missing", "words"),
    "words as text": (lambda turn: turn.update(words=["in"]), "words-missing", "words"),
    "no times": (lambda turn: turn["words"][0].pop("BeginTime"), "times-missing", "words"),
    "times as text": (words(("5", "7")), "times-missing", "words"),
    "NaN": (words((5, float("nan"))), "times-missing", "words"),
    "end before start": (words((7000, 6900), (6950, 6980)), "times-reversed", "words"),
    "negative times": (words((-5, 7000)), "times-reversed", "words"),
    "no channel": (words((5000, 7000), channel=None), "channel-unclear", "words"),
    "channel as list": (words((5000, 7000), channel=[0]), "channel-unclear", "words"),
    "two channels": (lambda turn: turn["words"][1].update(ChannelId=1), "channel-unclear", "words"),
    "unknown tag": (lambda turn: turn.update(tag="bot"), "tag-unknown", "tag"),
    "no text": (lambda turn: turn.update(text=" "), "transcript-missing", "text"),
    "half a character": (lambda turn: turn.update(text="in the \ud83d"), "not-utf-8", "text"),
    "not an object": (lambda turn: turn.clear(), "tag-unknown", "tag"),
}


@pytest.mark.parametrize(("change", "kind", "field"), DEFECTS.values(), ids=DEFECTS)
def test_a_defect_costs_its_turn_only(
    root: Path, change: Callable[[dict[str, Any]], object], kind: str, field: str
) -> None:
    edit(root, change)
    rows, findings = rows_of(root)
    assert len(rows) == 28 and "SNG0001-2" not in rows
    (finding,) = findings
    assert (finding.kind, finding.field, finding.example_id) == (kind, f"SNG0001.log[2].{field}", "SNG0001-2")
    assert finding.file == root / TEXTS and "\n" not in str(finding)


def test_an_agents_turn_needs_no_times(root: Path) -> None:
    edit(root, lambda turn: turn.update(words=[]), turn=1)
    rows, findings = rows_of(root)
    assert findings == [] and len(rows) == 29 and rows["SNG0001-2"].context[1].speaker == "agent"


def test_a_missing_recording_costs_its_dialogue_only(root: Path) -> None:
    (root / "audio_5700_train_dev" / "SNG0002.wav").unlink()
    rows, findings = rows_of(root)
    assert [(f.kind, f.field) for f in findings] == [("audio-missing", "SNG0002")] and len(rows) == 26


def test_bytes_that_are_not_utf8_cost_their_turn_only(root: Path) -> None:
    path = root / TEXTS
    path.write_bytes(path.read_bytes().replace(b"somewhere in the", b"somewh\xe8re in the"))
    rows, findings = rows_of(root)
    assert [(f.kind, f.field) for f in findings] == [("not-utf-8", "SNG0004.log[2].text")] and len(rows) == 28


@pytest.mark.parametrize(
    ("content", "line", "kept"),
    [
        ('{"SNG0001": %s,\n "SNG0002": {"log": [}}', 2, 3),
        ('{"SNG0001": %s', 1, 3),
        ('{"SNG0001": %s "SNG0002": {}}', 1, 3),
        ('{"SNG0001": %s, }', 1, 3),
        ("[]", 1, 0),
        ("", 1, 0),
        ("[" * 100_000, None, 0),
        ('{"a": ' + "[" * 100_000, None, 0),
    ],
)
def test_dialogues_before_a_fault_in_the_json_are_kept(root: Path, content: str, line: int | None, kept: int) -> None:
    whole = json.loads((root / TEXTS).read_text())["SNG0001"]
    (root / TEXTS).write_text(content.replace("%s", json.dumps(whole)))
    rows, findings = rows_of(root)
    assert [f.kind for f in findings] == ["json-broken"]
    assert line is None or findings[0].line == line
    assert [row.split for row in rows.values()] == ["train"] * kept + ["test"] * 6


@pytest.mark.parametrize("value", [None, [], {}, {"log": {}}, 7])
def test_what_is_no_dialogue_is_said(root: Path, value: Any) -> None:
    dialogues = json.loads((root / TEXTS).read_text()) | {"SNG0002": value}
    (root / TEXTS).write_text(json.dumps(dialogues, indent=1))
    rows, findings = rows_of(root)
    assert [(f.kind, f.field) for f in findings] == [("dialogue-broken", "SNG0002")] and len(rows) == 26


def test_the_test_split_may_be_absent(root: Path) -> None:
    (root / "text_5700_test" / "data.json").unlink()
    rows, findings = rows_of(root)
    assert [(f.kind, f.severity) for f in findings] == [("split-missing", "warning")] and len(rows) == 23


@pytest.mark.parametrize("file", ["data.json", "valListFile.json"])
def test_another_folder_is_refused_with_the_file_that_is_looked_for(root: Path, file: str) -> None:
    (root / "text_5700_train_dev" / file).unlink()
    with pytest.raises(CorpusError, match=rf"text_5700_train_dev/{file}: is missing; give the folder"):
        READER.read(root)
