"""Every defect of a manifest is told by its own name at its own line, and no good row is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corpus_samples import jsonl
from corpus_samples.sound import babble
from data.audio import pcm_sha256, to_pcm16
from data.cross_checks import check_across, plain_sentence, row_key
from data.executors import SerialExecutor
from data.json_lines import CorpusError
from data.manifest import read_ontology
from data.manifest_rows import SOURCE_ROW
from data.records import Split, Turn
from data.validate import ValidationReport, validate

Row = dict[str, Any]
LABELS = [{"name": "city", "description": "where to"}, {"name": "day", "description": "when"}]
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def words(number: int) -> str:
    """A number as digits that are said, so that every row has its own sentence."""
    return " ".join(NUMBERS[int(digit)] for digit in str(number))


def row(number: int, split: str = "train") -> Row:
    return {
        "id": f"row-{number}",
        "audio": f"audio/{number}.wav",
        "transcript": f"flight {words(number)} to denver",
        "slots": {"city": "denver"},
        "split": split,
    }


def put(**fields: Any) -> Callable[[Row], Any]:
    return lambda line: {**line, **fields}


def drop(field: str) -> Callable[[Row], Any]:
    return lambda line: {name: value for name, value in line.items() if name != field}


def slot(**fields: Any) -> Callable[[Row], Any]:
    return put(slots=[{"label": "city", "value": "denver", **fields}])


def raw(line: bytes) -> Callable[[Row], Any]:
    return lambda _: line


def text(old: str, new: str) -> Callable[[Row], Any]:
    """The line with something changed that JSON's writer would not write."""
    return lambda line: json.dumps(line).replace(old, new).encode()


SAID = "transcript"
DEFECTS: list[tuple[str, Callable[[Row], Any]]] = [
    ("line-byte-order-mark", lambda line: b"\xef\xbb\xbf" + json.dumps(line).encode()),
    ("line-not-utf8", raw(b'{"id": "caf\xe9"}')),
    ("line-nul-byte", text("denver", "den\0ver")),
    ("line-blank", raw(b"  ")),
    ("line-not-json", raw(b'{"id": "call-2", "tr')),
    ("line-not-object", raw(b"[1, 2]")),
    ("json-too-deep", raw(b"[" * 100_000)),
    ("json-too-deep", text('"train"', "1" * 10_000)),
    ("json-key-twice", text('"train"', '"train", "split": "train"')),
    ("audio-absent", drop("audio")),
    ("transcript-absent", drop(SAID)),
    ("slots-absent", drop("slots")),
    ("audio-blank", put(audio=" ")),
    ("transcript-blank", put(transcript="")),
    ("id-blank", put(id="")),
    ("id-not-text", put(id=7)),
    ("transcript-not-text", put(transcript=None)),
    ("domain-blank", put(domain=" ")),
    ("dialogue-not-text", put(dialogue=5)),
    ("field-unknown", put(transcription="to denver")),
    ("split-unknown", put(split="dev")),
    ("id-too-long", put(id="x" * 300)),
    ("audio-absolute", put(audio="/home/me/1.wav")),
    ("audio-windows-path", put(audio="C:\\calls\\1.wav")),
    ("audio-backslash", put(audio="audio\\1.wav")),
    ("audio-leaves-root", put(audio="../1.wav")),
    ("audio-link-outside", put(audio="audio/linked.wav")),
    ("audio-path-unusable", put(audio="audio/1\x00.wav")),
    ("audio-unreachable", put(audio="x" * 300 + "/1.wav")),
    ("audio-not-found", put(audio="audio/no.wav")),
    ("audio-is-folder", put(audio="audio/folder.wav")),
    ("audio-empty-file", put(audio="audio/empty.wav")),
    ("audio-suffix-unknown", put(audio="audio/1.m4a")),
    ("audio-sha256-malformed", put(audio_sha256="ABC")),
    ("duration-not-finite", text('"train"', '"train", "duration_s": NaN')),
    ("duration-not-a-number", put(duration_s="1.5")),
    ("duration-not-positive", put(duration_s=-1.0)),
    ("duration-too-long", put(duration_s=31)),
    ("duration-too-short", put(duration_s=0.01)),
    ("start-not-a-number", put(start_s="0")),
    ("start-negative", put(start_s=-0.5)),
    ("end-not-finite", text('"train"', '"train", "end_s": Infinity')),
    ("cut-reversed", put(start_s=2, end_s=1)),
    ("cut-too-long", put(start_s=2, end_s=40)),
    ("channel-not-a-number", put(channel="left")),
    ("channel-negative", put(channel=-1)),
    ("speaker-not-text", put(speaker=3)),
    ("held-out-unknown", put(held_out=["accent"])),
    ("slots-wrong-type", put(slots="city=denver")),
    ("slot-shape", put(slots=["denver"])),
    ("slot-label-blank", slot(label="")),
    ("slot-value-blank", slot(value=" ")),
    ("slot-value-not-text", put(slots={"city": 5})),
    ("slot-values-empty", put(slots={"city": []})),
    ("slot-label-unknown", put(slots={"town": "denver"})),
    ("slot-canonical-not-text", put(slots=[{"label": "city", "spoken": "a", "surface": "a", "canonical": 1}])),
    ("domain-unknown", put(domain="insurance")),
    ("context-wrong-type", put(context="where to")),
    ("turn-shape", put(context=["where to"])),
    ("turn-text-blank", put(context=[{"speaker": "agent", "text": ""}])),
    ("turn-speaker-unknown", put(context=[{"speaker": "bot", "text": "where to"}])),
    ("transcript-too-long", lambda line: {**line, SAID: line[SAID] + " and on" * 200}),
    ("text-control-character", lambda line: {**line, SAID: line[SAID] + "\x07"}),
    ("text-replacement-character", lambda line: {**line, SAID: line[SAID] + " caf\ufffd"}),
    ("text-lone-surrogate", lambda line: {**line, SAID: line[SAID] + " \ud83d"}),
]
WARNINGS: list[tuple[str, Callable[[Row], Any]]] = [
    ("slot-value-not-in-transcript", put(slots={"city": "boston"})),
    ("slot-twice", put(slots={"city": ["denver", "Denver"]})),
    ("transcript-markup", lambda line: {**line, SAID: line[SAID] + " [laughs]"}),
    ("transcript-too-fast", lambda line: {**line, SAID: line[SAID] + " and back again at noon", "duration_s": 0.2}),
    ("text-line-break", lambda line: {**line, SAID: line[SAID] + "\nplease"}),
    ("text-invisible-character", lambda line: {**line, SAID: line[SAID] + "\u200b"}),
    ("text-wrongly-decoded", lambda line: {**line, SAID: line[SAID] + " cafÃ©"}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio for 200 rows, which nobody decodes, and an ontology."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "audio/folder.wav").mkdir(parents=True)
    for number in range(200):
        (root / f"audio/{number}.wav").write_bytes(b"RIFF")
    (root / "audio/empty.wav").touch()
    (root / "audio/1.m4a").write_bytes(b"ftyp")
    (root.parent / "outside.wav").write_bytes(b"RIFF")
    (root / "audio/linked.wav").symlink_to(root.parent / "outside.wav")
    (root / "ontology.json").write_text(json.dumps({"domains": {"default": LABELS}}))
    return root


def encode(line: Any) -> bytes:
    return line if isinstance(line, bytes) else json.dumps(line).encode()


def check(folder: Path, lines: list[Any], **options: Any) -> tuple[ValidationReport, list[tuple[int | None, str]]]:
    """Validate these lines: the report, and (line, kind) of every finding."""
    (folder / "manifest.jsonl").write_bytes(b"".join(encode(line) + b"\n" for line in lines))
    report = validate(folder, **options)
    return report, [(finding.line, finding.kind) for finding in report.findings]


def test_each_defect_is_told_once_and_no_good_row_is_lost(folder: Path) -> None:
    """More than 60 defective rows, a good row after each, and the defects between rows at the end."""
    lines: list[Any] = []
    expected: list[tuple[int | None, str]] = []
    for kind, change in [*DEFECTS, *WARNINGS]:
        lines.append(change(row(len(lines))))
        expected.append((len(lines), kind))
        lines.append(row(len(lines)))
    between = len(lines)
    lines += [
        {**row(between), "id": "row-1"},
        row(190, "test"),
        {**row(191), SAID: "Flight  two-ten zero to Denver!".replace("two-ten zero", words(190).upper())},
        {**row(192, "validation"), SAID: "i am going to denver", "audio": "audio/190.wav"},
        {**row(193), "audio": "./audio/193.wav"},
        {**row(194), "audio": "audio/193.wav"},
        row(195, "validation"),
    ]
    expected += [(between + 1, "id-duplicate"), (between + 3, "sentence-in-two-splits")]
    expected += [(between + 4, "audio-in-two-splits"), (between + 6, "audio-twice")]
    report, found = check(folder, lines)
    assert found == expected
    errors = {finding.line for finding in report.errors}
    assert len(errors) == len(DEFECTS) + 3 and len({kind for _, kind in found}) >= 40
    good = [encode(line) + b"\n" for number, line in enumerate(lines, start=1) if number not in errors]
    assert report.good_file.read_bytes() == b"".join(good) and report.good == len(good) == report.rows - len(errors)
    for finding in report.findings:
        message = str(finding)
        assert f"manifest.jsonl, line {finding.line}" in message and "; " in message
        assert message.isprintable() and len(message) < 600
    rejected = [json.loads(line) for line in report.rejected_file.read_text(encoding="utf-8").splitlines()]
    assert [line["line"] for line in rejected] == sorted(errors)
    assert json.loads(rejected[9]["text"]) == drop("audio")(row(18)) and rejected[1]["text"] == '{"id": "caf\\xe9"}'
    assert rejected[9]["findings"] == [
        {"kind": "audio-absent", "severity": "error", "field": "audio", "problem": "is missing", "remedy": "add it"}
    ]


def test_all_defects_of_a_row_are_told(folder: Path) -> None:
    line = {
        **row(1),
        "split": "dev",
        "audio": "/a.wav",
        "slots": {"city": "", "town": 3},
        "transcirpt": "x",
        SAID: "a\x07",
    }
    report, found = check(folder, [line])
    kinds = {"split-unknown", "audio-absolute", "slot-value-blank", "slot-value-not-text", "slot-label-unknown"}
    assert {kind for _, kind in found} == {*kinds, "field-unknown", "text-control-character", "manifest-empty"}
    (unknown,) = (finding for finding in report.findings if finding.kind == "field-unknown")
    assert unknown.field == "transcirpt" and "did you mean transcript?" in unknown.remedy
    assert unknown.example_id == "row-1"


def test_values_are_looked_for_in_all_their_forms(folder: Path) -> None:
    amount = [{"label": "day", "spoken": "march third", "surface": "March 3rd", "canonical": "--03-03"}]
    lines = [
        {**row(1), SAID: "on March the 3rd", "slots": [{"label": "day", "value": "the third"}]},
        {**row(2), SAID: "on march third please", "slots": amount},
        {**row(3), SAID: "i said  DENVER", "slots": {"city": "Denver"}},
        {**row(4), SAID: "i said no", "slots": {"city": "denver"}},
        row(5, "validation"),
        row(6, "test"),
    ]
    assert check(folder, lines)[1] == [(4, "slot-value-not-in-transcript")]


def test_the_same_words_after_other_turns_are_another_sentence(folder: Path) -> None:
    def answer(number: int, split: str, asked: str) -> Row:
        return {**row(number, split), SAID: "denver", "context": [{"speaker": "agent", "text": asked}]}

    lines = [answer(1, "train", "where to"), answer(2, "test", "from where"), row(3, "validation"), row(5)]
    assert check(folder, lines)[1] == []
    lines.append(answer(4, "validation", "Where to?"))
    report, found = check(folder, lines)
    assert found == [(1, "sentence-in-two-splits")] and "line 5 (id 'row-4', split validation)" in str(report.errors[0])
    report, found = check(folder, lines, allow_shared_sentences=True)
    assert found == [(1, "sentence-in-two-splits")] and not report.errors and report.good == 5


def test_a_dialogue_in_two_splits_is_told(folder: Path) -> None:
    lines = [
        {**row(n, split), "dialogue": "call 1"} for n, split in enumerate(("train", "train", "validation", "test"))
    ]
    report, found = check(folder, [*lines, {**row(4, "train"), "dialogue": "call 2"}])
    assert found == [(line, "dialogue-in-two-splits") for line in (1, 2, 3)] and report.good == 5
    assert "has a turn on line 4 (id 'row-3', split test) too, and this row is in train" in str(report.warnings[0])


def test_a_row_that_is_out_pushes_nobody_out() -> None:
    def key(line: int, id: str, split: Split, audio: str, said: str, asked: str = "") -> Any:
        context = (Turn(speaker="agent", text=asked),)
        return row_key(file=Path("m"), line=line, id=id, split=split, audio=audio, transcript=said, context=context)

    rows = [
        key(1, "a", "train", "sound 1", "yes"),  # the sentence of line 2, which is out: stays
        key(2, "b", "validation", "sound 2", "yes"),  # the sound of line 3
        key(3, "c", "test", "sound 2", "no"),
        key(4, "c", "test", "sound 1", "maybe"),  # an id again: the sound of line 1 may stay
        key(5, "d", "train", "sound 5", "no", "really?"),
    ]
    assert [(place, finding.kind) for place, finding in check_across(rows)] == [
        (1, "audio-in-two-splits"),
        (3, "id-duplicate"),
    ]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Don’t go!", "don't  go", True),
        ("‘Hello’, she said", "hello she said", True),
        ("the 5.20 to Bath", "the 5 20 to bath", True),
        ("ＡＢＣ", "abc", True),
        ("we're", "were", False),
        ("कल", "काल", False),
        ("...", "?", False),
    ],
)
def test_plain_sentences(one: str, other: str, same: bool) -> None:
    assert (plain_sentence(one) == plain_sentence(other)) is same


def test_what_is_wrong_with_the_whole(folder: Path, tmp_path: Path) -> None:
    assert check(folder, [])[1] == [(None, "manifest-empty")]
    assert check(folder, [row(1), row(2, "test")])[1] == [(None, "split-absent")]
    lines = [row(1), row(2, "test"), row(3, "validation")]
    labels = [{"name": "city"}, {"name": "day", "description": "when", "values": "monday"}, *LABELS, *LABELS]
    other = tmp_path / "labels.json"
    other.write_text(json.dumps({"domains": {"default": labels, "bank": []}}))
    report, found = check(folder, lines, ontology=other)
    kinds = ["ontology-label-shape", "ontology-values-wrong", "ontology-label-twice", "ontology-labels-wrong"]
    assert found == [(None, kind) for kind in kinds] and report.good == 3
    other.write_text(json.dumps({"domains": {"default": [LABELS[1]]}}))
    assert [kind for _, kind in check(folder, lines, ontology=other)[1]][1:] == ["slot-label-unknown"] * 3
    with pytest.raises(CorpusError, match=r"no.json: is missing"):
        validate(folder, ontology=tmp_path / "no.json")
    with pytest.raises(CorpusError, match="would be written over the manifest"):
        validate(folder / "manifest.jsonl", out=folder)
    with pytest.raises(CorpusError, match=r"manifest.jsonl: is missing"):
        validate(tmp_path)


def test_sounds_are_decoded_when_asked_for(tmp_path: Path) -> None:
    jsonl.write(tmp_path)
    assert validate(tmp_path, decoder=SerialExecutor()).findings == ()
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    (tmp_path / "audio/train-0.wav").write_bytes(b"RIFF....WAVE")
    soundfile.write(tmp_path / "audio/copy.flac", babble(1, 1.0), 16_000)
    pcm = to_pcm16(soundfile.read(tmp_path / "audio/copy.flac", dtype="float32")[0])
    lines[1] |= {"audio": "audio/copy.flac", "audio_sha256": pcm_sha256(pcm), "duration_s": 1.4}
    lines[2]["audio_sha256"] = "0" * 64
    lines[12]["audio"] = "audio/copy.flac"
    del lines[15]["channel"]
    lines[16]["end_s"] = 9.0
    report, found = check(tmp_path, lines, decoder=SerialExecutor())
    assert found == [
        (1, "audio-undecodable"),
        (2, "duration-differs"),
        (2, "id-duplicate"),  # made from the path of the sound
        (2, "audio-in-two-splits"),
        (3, "audio-sha256-differs"),
        (16, "audio-channels"),
        (17, "audio-cut-outside"),
    ]
    assert "audio/train-0.wav" in str(report.findings[0])


def test_a_finished_corpus_is_held_to_every_field(corpus_root: Path, tmp_path: Path) -> None:
    report = validate(corpus_root, out=tmp_path)
    assert report.finished and report.errors == [] and report.good == 21
    assert report.good_file.read_bytes() == (corpus_root / "manifest.jsonl").read_bytes()
    assert not (corpus_root / "validated").exists() and read_ontology(corpus_root / "ontology.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = st.sampled_from((*SOURCE_ROW.known,))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(FIELDS | st.text(st.characters(), max_size=5), JSON, max_size=4))
def test_no_json_raises(folder: Path, fields: Row) -> None:
    report, found = check(folder, [row(1), {**row(2), **fields}, row(3)], out=folder / "out")
    assert {line for line, _ in found} <= {None, 2} and report.good >= 2
    for finding in report.findings:
        assert str(finding).isprintable()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(line=st.binary(max_size=40).filter(lambda line: b"\n" not in line))
def test_no_bytes_raise(folder: Path, line: bytes) -> None:
    report, found = check(folder, [row(1), line, row(3)], out=folder / "out")
    assert report.good == 2 and 2 in {place for place, _ in found}
