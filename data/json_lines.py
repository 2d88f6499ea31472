"""Turns the bytes of a JSON-lines file into objects, each with its `Location`, or into `Finding`s; never into an exception, whatever the bytes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.findings import Finding, Severity

_BOM = b"\xef\xbb\xbf"
_SHOWN = 80  # characters of an offending value that a message quotes


class CorpusError(ValueError):
    """A corpus that cannot be used; the one-line message names file, line, field and remedy."""


@dataclass(frozen=True)
class Location:
    """Where a finding is found: a line of a file, and the id of its row where it is known."""

    file: Path
    line: int | None = None
    example_id: str | None = None

    def error(self, kind: str, field: str | None, problem: str, remedy: str) -> Finding:
        """A finding that keeps the row out."""
        return self._finding(kind, field, problem, remedy, "error")

    def warning(self, kind: str, field: str | None, problem: str, remedy: str) -> Finding:
        """A finding that is told; the row stays."""
        return self._finding(kind, field, problem, remedy, "warning")

    def _finding(self, kind: str, field: str | None, problem: str, remedy: str, severity: Severity) -> Finding:
        return Finding(
            kind=kind,
            file=self.file,
            line=self.line,
            field=field,
            problem=problem,
            remedy=remedy,
            severity=severity,
            example_id=self.example_id,
        )


def raise_first(findings: Iterable[Finding]) -> None:
    """Raise the CorpusError of the first error; warnings pass."""
    for finding in findings:
        if finding.severity == "error":
            raise CorpusError(str(finding))


def iter_lines(path: Path) -> Iterator[tuple[Location, bytes]]:
    """Every line of a file, its line feed included. Raises CorpusError when there is no file."""
    if not path.is_file():
        raise CorpusError(f"{path}: is missing; write it, or check the path")
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            yield Location(path, number), line


def iter_objects(path: Path) -> Iterator[tuple[Location, dict[str, Any]]]:
    """The JSON object of every line. Raises CorpusError for the first line that is none."""
    for at, line in iter_lines(path):
        value, findings = parse_object(at, line)
        raise_first(findings)
        yield at, value


def read_object(path: Path) -> dict[str, Any]:
    """The one JSON object that a file holds. Raises CorpusError."""
    if not path.is_file():
        raise CorpusError(f"{path}: is missing; write it, or check the path")
    value, findings = parse_object(Location(path), path.read_bytes())
    raise_first(findings)
    return value


def parse_object(at: Location, data: bytes) -> tuple[dict[str, Any], list[Finding]]:
    """One JSON object, and what is wrong with its text; the object is empty where it cannot be read at all."""
    if data.startswith(_BOM):
        mark = "begins with a byte order mark, so it is not valid JSON"
        return {}, [at.error("line-byte-order-mark", None, mark, "save the file as UTF-8 without a byte order mark")]
    if b"\0" in data:
        remedy = "save the file as UTF-8 text, or write this line again"
        return {}, [at.error("line-nul-byte", None, "holds a NUL byte, so it is not valid JSON", remedy)]
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            twice.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return value

    remedy = "correct it, or write the corpus again"
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 (byte {error.start + 1})"
        return {}, [at.error("line-not-utf8", None, problem, "save the file as UTF-8 without a byte order mark")]
    except json.JSONDecodeError as error:
        if not data.strip():
            return {}, [at.error("line-blank", None, "is not valid JSON (it is blank)", "remove the line")]
        problem = f"is not valid JSON ({error.msg}, column {error.colno})"
        return {}, [at.error("line-not-json", None, problem, remedy)]
    except (RecursionError, ValueError):  # ValueError: an integer of thousands of digits
        problem = "is not usable JSON (nested too deeply, or a number of thousands of digits)"
        return {}, [at.error("json-too-deep", None, problem, remedy)]
    if not isinstance(value, dict):
        return {}, [at.error("line-not-object", None, f"must be a JSON object, not {shown(value)}", remedy)]
    findings = [
        at.error("json-key-twice", key_name(key), "is given twice in one object", "keep one of the two")
        for key in twice
    ]
    return value, findings


def is_text(value: Any) -> bool:
    """Whether a value is a string with something other than blanks in it."""
    return isinstance(value, str) and bool(value.strip())


def shown(value: Any) -> str:
    """A JSON value as a message quotes it: one line, not too long, printable."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return str(json.dumps(value))
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]}...{text[0] if isinstance(value, str) else ''}"


def key_name(key: str) -> str:
    """A key of a user's object as a message names it."""
    return key if key.isprintable() and 0 < len(key) <= _SHOWN else shown(key)
