"""A Fluent Speech Commands folder (data/{train,valid,test}_data.csv, wavs/) -> one row per recording.

The official splits are by speaker and hold the same 248 sentences each, so a model that knows the sentences by heart is perfect on them. Here the
three files are one pool and every sentence goes to one split, drawn from its text: the scores are not comparable with published ones.
Format: https://fluent.ai/fluent-speech-commands-a-dataset-for-spoken-language-understanding-research/ (Lugosch et al. 2019).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data.findings import Finding
from data.json_lines import CorpusError, Location, iter_lines, shown
from data.readers.source import AudioSource, Reader, SourceRow, Unusable
from data.readers.texts import clean_text
from data.records import SlotValue

FILES = ("data/train_data.csv", "data/valid_data.csv", "data/test_data.csv")
FOLDERS = (".", "fluent_speech_commands_dataset")
LABELS = ("action", "object", "location")
COLUMNS = ("path", "speakerId", "transcription", *LABELS)
NO_VALUE = "none"
DOMAIN = "smart-home"


def read(root: Path) -> Iterator[SourceRow | Finding]:
    """The rows of all three files; id "<speaker>-<recording>", split None, group the sentence.

    A value is the canonical word of its slot ("activate", "washroom"), often not the spoken one ("turn on", "bathroom"): where the value's words
    stand in the transcript, `spoken` is them, else all three forms are the value. "none" means no slot.
    """
    base = next((root / folder for folder in FOLDERS if (root / folder / FILES[0]).is_file()), None)
    if base is None:
        problem = f"is not Fluent Speech Commands, {root / FILES[0]} is missing"
        raise CorpusError(f"{root}: {problem}; name the folder that holds data/ and wavs/")
    if not (base / "wavs").is_dir():
        raise CorpusError(f"{base / 'wavs'}: no such folder; unpack the audio of Fluent Speech Commands there")
    headers = {file: _read_header(base / file) for file in FILES if (base / file).is_file()}
    folder = PurePosixPath(base.relative_to(root))
    recordings = frozenset(path.relative_to(base).as_posix() for path in (base / "wavs").rglob("*.wav"))
    for file in FILES:
        if file in headers:
            yield from _read_file(base / file, headers[file], folder, recordings)
        else:
            remedy = "restore it from the archive"
            yield Location(base / file).warning("file-missing", None, "is missing, so its rows are too", remedy)


def _read_file(
    path: Path, header: list[str], folder: PurePosixPath, recordings: frozenset[str]
) -> Iterator[SourceRow | Finding]:
    for at, line in iter_lines(path):
        if at.line == 1 or not line.strip():
            continue
        try:
            yield _read_row(at, _parse(line, header), folder, recordings)
        except Unusable as error:
            yield error.finding(at)


def _read_row(at: Location, row: dict[str, str], folder: PurePosixPath, recordings: frozenset[str]) -> SourceRow:
    texts = {column: clean_text(row[column], column) for column in COLUMNS}
    audio, transcript = texts["path"], texts["transcription"]
    if audio not in recordings:
        problem, remedy = f"{shown(audio)} is no recording of this folder", "unpack wavs/ again, or remove the line"
        raise Unusable("audio-missing", "path", problem, remedy)
    return SourceRow(
        file=at.file,
        line=at.line,
        id="-".join(PurePosixPath(audio).with_suffix("").parts[-2:]),
        split=None,
        domain=DOMAIN,
        transcript=transcript,
        slots=tuple(_slot(label, texts[label], transcript) for label in LABELS if texts[label] != NO_VALUE),
        audio=AudioSource(path=str(folder / audio)),
        speaker=texts["speakerId"],
    )


def _slot(label: str, value: str, transcript: str) -> SlotValue:
    said = re.search(rf"\b{re.escape(value)}\b", transcript, re.IGNORECASE)
    return SlotValue(label=label, spoken=said[0] if said else value, surface=value, canonical=value)


def _read_header(path: Path) -> list[str]:
    """The names of the columns. Raises CorpusError when one of `COLUMNS` is not among them."""
    with path.open("rb") as stream:
        first = stream.readline()
    try:
        header = _split(first)
    except Unusable as error:
        raise CorpusError(f"{path}, line 1: {error.problem}; {error.remedy}") from error
    if missing := [column for column in COLUMNS if column not in header]:
        raise CorpusError(f"{path}, line 1: has no column {missing[0]}; the columns are ,{','.join(COLUMNS)}")
    return header


def _parse(line: bytes, header: list[str]) -> dict[str, str]:
    cells = _split(line)
    if len(cells) != len(header):
        problem = f"has {len(cells)} columns, and line 1 names {len(header)}"
        raise Unusable("column-count", None, problem, "put texts with commas in double quotes")
    return dict(zip(header, cells, strict=True))


def _split(line: bytes) -> list[str]:
    """The cells of one line. By itself, so that a quote that is not closed costs one line and not the rest of the file."""
    try:
        return next(csv.reader([line.decode("utf-8").removeprefix("\ufeff")], strict=True), [])
    except UnicodeDecodeError as error:
        raise Unusable(
            "line-not-utf8", None, f"is not UTF-8 (byte {error.start + 1})", "save the file as UTF-8"
        ) from error
    except csv.Error as error:
        raise Unusable("line-not-csv", None, f"is not valid CSV ({error})", "close the double quotes") from error


READER = Reader(
    name="fluent-speech-commands",
    title="Fluent Speech Commands",
    licence="Fluent Speech Commands Public License, academic research only",
    read=read,
    descriptions={
        "action": "what to do: activate, deactivate, increase, decrease, bring or change language",
        "object": "what it is done to: lights, lamp, music, volume, heat, a thing to bring, or a language",
        "location": "the room: kitchen, bedroom or washroom",
    },
)
