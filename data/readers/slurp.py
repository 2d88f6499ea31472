"""A SLURP folder (train.jsonl, devel.jsonl, test.jsonl, slurp_real/) -> one row per recording.

A line of a file is a sentence with its entities and all its recordings. `intent` is not read: in one line of seventy it contradicts
scenario and action. Format and official fillers: https://github.com/pswietojanski/slurp (Bastianelli et al. 2020).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from data.findings import Finding
from data.json_lines import CorpusError, Location, iter_lines, parse_object, shown
from data.readers.source import AudioSource, Reader, SourceRow, Unusable
from data.readers.texts import clean_text
from data.records import SlotValue, Split

FILES: tuple[tuple[str, Split, str], ...] = (
    ("train.jsonl", "train", "slurp_real"),
    ("train_synthetic.jsonl", "train", "slurp_synth"),  # read only where its audio lies
    ("devel.jsonl", "validation", "slurp_real"),
    ("test.jsonl", "test", "slurp_real"),
)
TEXT_FOLDERS = (".", "dataset/slurp", "slurp")
AUDIO_FOLDERS = (".", "audio", "scripts/audio", "dataset/slurp", "slurp")
SPEAKERS_FILE = "metadata.json"

_APOSTROPHES = str.maketrans("’‘`", "'''")


class _Recordings(NamedTuple):
    """One folder of recordings, listed once."""

    folder: PurePosixPath  # below the root
    names: frozenset[str]


def read(root: Path) -> Iterator[SourceRow | Finding]:
    """The rows of a SLURP folder; id "<slurp_id>-<recording>", so a close-talk recording is known by its "-headset".

    The texts lie in the folder, in dataset/slurp or in slurp; the audio beside them, or in audio/. Speakers come from metadata.json.
    """
    main = [name for name, _, audio in FILES if audio == "slurp_real"]
    texts = next((root / f for f in TEXT_FOLDERS if any((root / f / name).is_file() for name in main)), None)
    if texts is None:
        looked = f"none of {', '.join(main)} lies in it, in dataset/slurp or in slurp"
        raise CorpusError(f"{root}: is not SLURP, {looked}; name the folder that holds them")
    recordings = {kind: _list_recordings(root, kind) for kind in ("slurp_real", "slurp_synth")}
    if recordings["slurp_real"] is None:
        looked = ", ".join(AUDIO_FOLDERS)
        raise CorpusError(f"{root}: has no folder slurp_real (looked in {looked}); unpack slurp_real.tar.gz there")
    speakers, findings = _read_speakers(texts / SPEAKERS_FILE)
    yield from findings
    for name, split, kind in FILES:
        audio = recordings[kind]
        if audio is None:
            continue
        if (texts / name).is_file():
            yield from _read_file(texts / name, split, audio, speakers)
        else:
            problem, remedy = f"is missing, so split {split} lacks its rows", "copy it from the SLURP repository"
            yield Location(texts / name).warning("file-missing", None, problem, remedy)


def _read_file(
    path: Path, split: Split, audio: _Recordings, speakers: Mapping[str, str]
) -> Iterator[SourceRow | Finding]:
    for at, line in iter_lines(path):
        row, findings = parse_object(at, line)
        if findings:
            yield from findings if line.strip() else ()
            continue
        try:
            yield from _read_recordings(at, row, split, audio, speakers)
        except Unusable as error:
            yield error.finding(at)


def _read_recordings(
    at: Location, row: dict[str, Any], split: Split, audio: _Recordings, speakers: Mapping[str, str]
) -> Iterator[SourceRow | Finding]:
    """One row per recording of a sentence. The whole line is checked before its first row."""
    sentence, scenario = clean_text(row.get("sentence"), "sentence"), clean_text(row.get("scenario"), "scenario")
    number = row.get("slurp_id")
    if isinstance(number, bool) or not isinstance(number, int | str):
        raise Unusable("id-missing", "slurp_id", f"{shown(number)} is no number", "restore the line")
    slots = _slots(row, sentence)
    files = _texts(row, "recordings", "file")
    for place, file in enumerate(files):
        example_id = f"{number}-{PurePosixPath(file).stem}"
        if file not in audio.names:
            yield Location(at.file, at.line, example_id).error(
                "audio-missing",
                f"recordings[{place}].file",
                f"{shown(file)} is not in {audio.folder}",
                "unpack the audio archive again, or remove the recording",
            )
            continue
        yield SourceRow(
            file=at.file,
            line=at.line,
            id=example_id,
            split=split,
            domain=scenario,
            transcript=sentence,
            slots=slots,
            audio=AudioSource(path=str(audio.folder / file)),
            speaker=speakers.get(file, ""),
        )


def _slots(row: dict[str, Any], sentence: str) -> tuple[SlotValue, ...]:
    """The entities in order of mention. Canonical is the official filler, its tokens in lower case with spaces between ("domino 's"); spoken
    and surface are the words of the sentence ("domino's"), where the tokens can be found in it.
    """
    tokens = _texts(row, "tokens", "surface")
    places = _token_places(sentence, tokens)
    found = []
    for number, label in enumerate(_texts(row, "entities", "type")):
        span = row["entities"][number].get("span")
        if not isinstance(span, list) or not span or not all(type(i) is int and 0 <= i < len(tokens) for i in span):
            problem = f"{span!r} is not a list of token ids from 0 to {len(tokens) - 1}"
            raise Unusable(
                "entity-span", f"entities[{number}].span", problem, "correct it: ids of tokens, not characters"
            )
        filler = " ".join(tokens[i] for i in span).lower()
        whole = places is not None and span == list(range(span[0], span[-1] + 1))
        spoken = sentence[places[span[0]][0] : places[span[-1]][1]] if places and whole else filler
        found.append((span[0], SlotValue(label=label, spoken=spoken, surface=spoken, canonical=filler)))
    return tuple(slot for _, slot in sorted(found, key=lambda item: item[0]))


def _token_places(sentence: str, tokens: Sequence[str]) -> list[tuple[int, int]] | None:
    """Start and end of every token in the sentence, in characters; None where sentence and tokens are not the same text."""
    text = sentence.translate(_APOSTROPHES).lower()
    places, end = [], 0
    for token in tokens:
        start = end + len(text[end:]) - len(text[end:].lstrip())
        end = start + len(token)
        if text[start:end] != token.translate(_APOSTROPHES).lower():
            return None
        places.append((start, end))
    return places if end == len(text) == len(sentence) else None


def _list_recordings(root: Path, kind: str) -> _Recordings | None:
    for folder in AUDIO_FOLDERS:
        if (root / folder / kind).is_dir():
            with os.scandir(root / folder / kind) as entries:
                return _Recordings(PurePosixPath(folder, kind), frozenset(entry.name for entry in entries))
    return None


def _read_speakers(path: Path) -> tuple[dict[str, str], list[Finding]]:
    """The speaker (`usrid`) of every recording; none where there is no such file."""
    if not path.is_file():
        return {}, []
    try:
        sentences = json.loads(path.read_bytes())
        recordings = [item for sentence in sentences.values() for item in sentence["recordings"].items()]
        return {file: str(recording.get("usrid", "")) for file, recording in recordings}, []
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem, remedy = f"cannot be read ({error!r}), so no speaker is known", "copy it from the SLURP repository"
        return {}, [Location(path).warning("speakers-unreadable", None, problem, remedy)]


def _texts(row: dict[str, Any], field: str, name: str) -> list[str]:
    """One text of every object that a field of the row lists."""
    values = row.get(field)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise Unusable("field-missing", field, "is missing, or not a list of objects", "restore the line")
    return [clean_text(value.get(name), f"{field}[{place}].{name}") for place, value in enumerate(values)]


READER = Reader(name="slurp", title="SLURP", licence="text CC BY 4.0, audio CC BY-NC 4.0", read=read)
