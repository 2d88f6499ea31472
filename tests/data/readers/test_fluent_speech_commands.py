"""Fluent Speech Commands is read as one pool that is split by sentence, and every defect costs its own line only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from corpus_samples import fluent_speech_commands
from data.findings import Finding
from data.json_lines import CorpusError
from data.readers.fluent_speech_commands import READER
from data.readers.source import SourceRow, draw_split


@pytest.fixture
def root(copy_of: Callable[[ModuleType], Path]) -> Path:
    return copy_of(fluent_speech_commands)


def read(root: Path) -> tuple[list[SourceRow], list[Finding]]:
    items = list(READER.read(root))
    return [i for i in items if isinstance(i, SourceRow)], [i for i in items if isinstance(i, Finding)]


def change(root: Path, line: int, old: bytes, new: bytes) -> None:
    path = root / "data/train_data.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new)
    path.write_bytes(b"".join(lines))


def test_all_files_are_one_pool_that_is_split_by_sentence(root: Path) -> None:
    rows, findings = read(root)
    assert findings == [] and len(rows) == 24 == len({row.id for row in rows})
    assert {row.split for row in rows} == {None} and {row.domain for row in rows} == {"smart-home"}
    splits = Counter(draw_split(group) for group in {row.group for row in rows})
    assert splits["train"] >= 10 and splits["validation"] >= 3 and splits["test"] >= 3
    same = [row for row in rows if row.group == "turn on the lights"]
    assert [row.file.name for row in same] == ["train_data.csv", "test_data.csv"]


def test_values_are_the_canonical_words(root: Path) -> None:
    rows = {row.transcript: row for row in read(root)[0]}
    bathroom = rows["Decrease the heating in the bathroom"].slots
    assert [(s.label, s.spoken, s.surface, s.canonical) for s in bathroom] == [
        ("action", "Decrease", "decrease", "decrease"),  # said, with a capital
        ("object", "heat", "heat", "heat"),  # "heating" is another word
        ("location", "washroom", "washroom", "washroom"),  # not said at all
    ]
    assert [slot.label for slot in rows["Change the language"].slots] == ["action"]
    assert set(READER.descriptions) == {"action", "object", "location"}


def test_a_row_knows_its_speaker_and_its_sound(root: Path) -> None:
    row = read(root)[0][3]
    assert row.transcript == "Hey, it's dark in here, turn on the washroom lights" and row.line == 5
    assert row.speaker == "2BqVo8kVB2Skwgyb" and row.id.startswith("2BqVo8kVB2Skwgyb-")
    assert (root / row.audio.path).is_file() and row.audio.path.startswith("wavs/speakers/")


def test_the_folder_above_is_read_too(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    above = tmp_path_factory.mktemp("above")
    root.rename(above / "fluent_speech_commands_dataset")
    rows, findings = read(above)
    assert len(rows) == 24 and findings == [] and (above / rows[0].audio.path).is_file()


def test_quotes_and_apostrophes(root: Path) -> None:
    change(root, 2, b"Turn on the lights", '"Turn on, ""please"", the lamp’s lights"'.encode())
    rows, findings = read(root)
    assert findings == [] and rows[0].transcript == 'Turn on, "please", the lamp’s lights'
    assert rows[0].group == "turn on please the lamp's lights"


@pytest.mark.parametrize(
    ("old", "new", "kind", "field"),
    [
        (b"Turn on the lights", b"", "field-missing", "transcription"),
        (b"Turn on the lights", b"Turn on \x00 the lights", "text-unreadable", "transcription"),
        (b"Turn on the lights", b"Turn on \xff the lights", "line-not-utf8", None),
        (b"Turn on the lights", b'"Turn on the lights', "line-not-csv", None),
        (b"Turn on the lights", b"Hey, turn on the lights", "column-count", None),
        (b",none", b"", "column-count", None),
        (b"activate", b" ", "field-missing", "action"),
        (b"wavs/speakers", b"wavs/../../speakers", "audio-missing", "path"),
        (b"wavs/speakers", b"/wavs/speakers", "audio-missing", "path"),
        (b".wav", b".mp3", "audio-missing", "path"),
    ],
)
def test_a_defect_costs_its_line(root: Path, old: bytes, new: bytes, kind: str, field: str | None) -> None:
    good = [row.id for row in read(root)[0]]
    change(root, 2, old, new)
    rows, (finding,) = read(root)
    assert (finding.kind, finding.field, finding.line) == (kind, field, 2) and str(finding).isprintable()
    assert [row.id for row in rows] == good[1:]


def test_a_missing_file_is_told(root: Path) -> None:
    (root / "data/test_data.csv").unlink()
    rows, (finding,) = read(root)
    assert len(rows) == 22 and (finding.kind, finding.severity) == ("file-missing", "warning")


def test_another_folder_is_refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(CorpusError, match=r"train_data.csv is missing; name the folder that holds data/ and wavs/"):
        next(READER.read(tmp_path_factory.mktemp("empty")))
    change(root, 1, b"speakerId", b"speaker")
    with pytest.raises(CorpusError, match=r"train_data.csv, line 1: has no column speakerId"):
        next(READER.read(root))
    (root / "wavs").rename(root / "waves")
    with pytest.raises(CorpusError, match="unpack the audio"):
        next(READER.read(root))
