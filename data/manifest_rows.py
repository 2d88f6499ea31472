"""Turns lines of corpus files into checked JSON, or into a `CorpusError` that names file, line, field and remedy."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn

from data.records import SPLITS, Example

ONTOLOGY_FILE = "ontology.json"
HELD_OUT = ("frame", "value", "speaker", "domain")
REQUIRED_FIELDS = ("id", "split", "domain", "audio", "audio_sha256", "duration_s", "transcript", "slots")
KNOWN_FIELDS = frozenset(field.name for field in fields(Example))


class CorpusError(ValueError):
    """A corpus that cannot be used; the one-line message names file, line, field and remedy."""


class AudioFolder:
    """Looks up audio files below a root. Every folder is listed once: far cheaper than asking for each file."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._folders: dict[str, dict[str, os.DirEntry[str]] | None] = {}

    def problem(self, audio: str) -> tuple[str, str] | None:
        """What is wrong with a manifest's audio path, and the remedy; None for a non-empty file inside the root."""
        path = PurePosixPath(audio)
        if path.is_absolute() or PureWindowsPath(audio).drive or PureWindowsPath(audio).root:
            return "is an absolute path", "write it relative to the corpus folder"
        if ".." in path.parts or "\\" in audio:
            return "leaves the corpus folder", "copy the file into it, and write the path with forward slashes"
        folder = self._list(str(path.parent))
        if folder is None:
            return "leaves the corpus folder through a link", "copy the file into the corpus folder"
        entry = folder.get(path.name)
        if entry is None or not entry.is_file():
            return "does not exist", "restore the file, remove the line, or run the command that wrote the corpus again"
        if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(self._root):
            return "leaves the corpus folder through a link", "copy the file into the corpus folder"
        if entry.stat().st_size == 0:
            return "is an empty file", "restore the file, or run the command that wrote the corpus again"
        return None

    def _list(self, folder: str) -> dict[str, os.DirEntry[str]] | None:
        """The entries of a folder by name, none when it does not exist; None when it lies outside the root."""
        if folder not in self._folders:
            path = (self._root / folder).resolve()
            if not path.is_relative_to(self._root):
                self._folders[folder] = None
            elif not path.is_dir():
                self._folders[folder] = {}
            else:
                with os.scandir(path) as entries:
                    self._folders[folder] = {entry.name: entry for entry in entries}
        return self._folders[folder]


def check_fields(path: Path, number: int, row: Mapping[str, Any]) -> None:
    """The plain fields of a manifest row."""
    for field in REQUIRED_FIELDS:
        if field not in row:
            fail(path, number, field, "is missing", "add it")
    if unknown := sorted(row.keys() - KNOWN_FIELDS):
        fail(
            path,
            number,
            unknown[0],
            "is not a field of a manifest row",
            f"remove it; the fields are {', '.join(sorted(KNOWN_FIELDS))}",
        )
    for field in ("id", "domain", "audio", "transcript"):
        if not is_text(row[field]):
            fail(path, number, field, "must be a non-empty string", "fill it, or remove the line")
    if row["split"] not in SPLITS:
        fail(path, number, "split", f"{row['split']!r} is unknown", f"use one of {', '.join(SPLITS)}")
    sha = row["audio_sha256"]
    if not (isinstance(sha, str) and len(sha) == 64 and set(sha) <= set("0123456789abcdef")):
        fail(
            path,
            number,
            "audio_sha256",
            "must be 64 lower-case hexadecimal digits",
            "compute it with data.audio.pcm_sha256",
        )
    duration = row["duration_s"]
    if (
        isinstance(duration, bool)
        or not isinstance(duration, int | float)
        or not math.isfinite(duration)
        or duration <= 0
    ):
        fail(path, number, "duration_s", f"{duration!r} is not a number of seconds above 0", "measure the file again")
    if not isinstance(row.get("speaker", ""), str):
        fail(path, number, "speaker", "must be a string", "write the speaker's id, or an empty string")
    held_out = row.get("held_out", [])
    if not isinstance(held_out, list) or any(name not in HELD_OUT for name in held_out):
        fail(path, number, "held_out", "must be a list", f"use names among {', '.join(HELD_OUT)}")


def check_slots(path: Path, number: int, row: Mapping[str, Any], labels: Mapping[str, frozenset[str]]) -> None:
    """The domain and the slots of a manifest row against the label names of every domain."""
    if row["domain"] not in labels:
        fail(
            path,
            number,
            "domain",
            f"{row['domain']!r} is not in {ONTOLOGY_FILE}",
            "add the domain and its labels there",
        )
    if not isinstance(row["slots"], list):
        fail(path, number, "slots", "must be a list", "write [] where the turn fills no slot")
    for place, slot in enumerate(row["slots"]):
        check_texts(path, number, f"slots[{place}]", slot, ("label", "spoken", "surface", "canonical"))
        if slot["label"] not in labels[row["domain"]]:
            fail(
                path,
                number,
                f"slots[{place}].label",
                f"{slot['label']!r} is not a label of domain {row['domain']!r} in {ONTOLOGY_FILE}",
                "add it there, or correct it",
            )


def check_context(path: Path, number: int, row: Mapping[str, Any]) -> None:
    """The previous turns of a manifest row."""
    context = row.get("context", [])
    if not isinstance(context, list):
        fail(path, number, "context", "must be a list", "write [] where there are no previous turns")
    for place, turn in enumerate(context):
        check_texts(path, number, f"context[{place}]", turn, ("speaker", "text"))
        if turn["speaker"] not in ("agent", "caller"):
            fail(
                path, number, f"context[{place}].speaker", f"{turn['speaker']!r} is unknown", "use 'agent' or 'caller'"
            )


def check_texts(path: Path, number: int | None, field: str, value: Any, names: tuple[str, ...]) -> None:
    """`value` is an object that holds exactly these non-empty strings."""
    if not isinstance(value, dict) or value.keys() != set(names):
        fail(path, number, field, f"must be an object of {', '.join(names)}", "correct it")
    for name in names:
        if not is_text(value[name]):
            fail(path, number, f"{field}.{name}", "must be a non-empty string", "fill it")


def iter_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON object of every line, with its line number from 1."""
    if not path.is_file():
        raise CorpusError(f"{path}: is missing; write the corpus again")
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            yield number, _parse_object(path, number, line)


def read_object(path: Path) -> dict[str, Any]:
    """The one JSON object that a file holds. Raises CorpusError."""
    if not path.is_file():
        raise CorpusError(f"{path}: is missing; write the corpus again")
    return _parse_object(path, None, path.read_bytes())


def _parse_object(path: Path, number: int | None, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        fail(
            path,
            number,
            None,
            f"is not UTF-8 (byte {error.start + 1})",
            "save the file as UTF-8 without a byte order mark",
        )
    except json.JSONDecodeError as error:
        fail(
            path,
            number,
            None,
            f"is not valid JSON ({error.msg}, column {error.colno})",
            "correct it, or write the corpus again",
        )
    if not isinstance(value, dict):
        fail(path, number, None, "must be a JSON object", "correct it, or write the corpus again")
    return value


def is_text(value: Any) -> bool:
    """Whether a value is a string with something other than blanks in it."""
    return isinstance(value, str) and bool(value.strip())


def fail(path: Path, number: int | None, field: str | None, problem: str, remedy: str) -> NoReturn:
    """Raise the CorpusError of one defect."""
    where = f"{path}" + (f", line {number}" if number else "") + (f", field {field}" if field else "")
    raise CorpusError(f"{where}: {problem}; {remedy}")
