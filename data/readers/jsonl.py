"""A lab's own corpus, a folder with `manifest.jsonl` and perhaps `ontology.json` -> `SourceRow`s. docs/data.md shows the format.

One JSON object a line; audio, transcript and slots are enough:
    {"audio": "calls/0001.wav", "transcript": "i fly to denver", "slots": {"city": "denver"}}
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from data.audio_folder import AudioFolder
from data.findings import Finding
from data.json_lines import CorpusError, Location, is_text, iter_lines, parse_object
from data.manifest import MANIFEST_FILE, read_ontology
from data.manifest_rows import DEFAULT_DOMAIN, ONTOLOGY_FILE, SOURCE_ROW, Labels, RowForm, label_names, slot_items
from data.readers.source import AudioSource, Reader, SourceRow, plain_slot
from data.records import Ontology, SlotValue, Turn
from data.row_content import check_whole_row


def read(root: Path) -> Iterator[SourceRow | Finding]:
    """The rows of `manifest.jsonl` and an error for each that cannot be used. Raises CorpusError when it is missing or the ontology is wrong."""
    path = root / MANIFEST_FILE
    if not path.is_file():
        raise CorpusError(f"{path}: is missing; give the folder that holds {MANIFEST_FILE}")
    ontology = read_folder_ontology(root)
    return _iter_rows(path, label_names(ontology.domains) if ontology else None)


def read_folder_ontology(root: Path) -> Ontology | None:
    """`ontology.json` of the folder, where there is one. Raises CorpusError."""
    path = root / ONTOLOGY_FILE
    return read_ontology(path) if path.exists() else None


def read_line(
    at: Location, line: bytes, form: RowForm, *, labels: Labels | None, audio: AudioFolder
) -> tuple[SourceRow | None, dict[str, Any], list[Finding]]:
    """One line of a manifest: the row unless it is in error, the JSON object, and everything that is wrong with it."""
    value, findings = parse_object(at, line)
    if value or not findings:
        if is_text(value.get("id")) and value["id"].isprintable():
            at = Location(at.file, at.line, value["id"])
        plain = line.isascii() and b"\\" not in line and b"\x7f" not in line  # JSON escapes all others
        findings += check_whole_row(at, value, form, labels=labels, audio=audio, plain=plain)
    bad = any(finding.severity == "error" for finding in findings)
    return None if bad else source_row(at, value), value, findings


def source_row(at: Location, row: Mapping[str, Any]) -> SourceRow:
    """The row of a sound JSON object. Without `split` it is drawn from `dialogue`, and without that from the sentence."""
    audio = AudioSource(
        path=row["audio"],
        channel=row.get("channel"),
        start_s=float(row.get("start_s", 0)),
        end_s=float(row["end_s"]) if "end_s" in row else None,
    )
    return SourceRow(
        file=at.file,
        line=at.line,
        id=row["id"].strip() if "id" in row else _default_id(audio),
        split=row.get("split"),
        dialogue=row.get("dialogue", "").strip(),
        domain=row.get("domain", DEFAULT_DOMAIN).strip(),
        transcript=row["transcript"].strip(),
        slots=tuple(_slot(label, value) for label, value, _ in slot_items(row["slots"])),
        audio=audio,
        context=tuple(Turn(speaker=turn["speaker"], text=turn["text"].strip()) for turn in row.get("context", ())),
        speaker=row.get("speaker", "").strip(),
    )


def _iter_rows(path: Path, labels: Labels | None) -> Iterator[SourceRow | Finding]:
    audio = AudioFolder(path.parent)
    for at, line in iter_lines(path):
        row, _, findings = read_line(at, line, SOURCE_ROW, labels=labels, audio=audio)
        yield from (finding for finding in findings if finding.severity == "error")
        if row:
            yield row


def _slot(label: str, value: str | Mapping[str, str]) -> SlotValue:
    if isinstance(value, str):
        return plain_slot(label.strip(), value.strip())
    return SlotValue(**{form: text.strip() for form, text in value.items()})


def _default_id(audio: AudioSource) -> str:
    """Readable, and the same as long as the row points at the same sound: "0001-5f0c9a3b7d21"."""
    place = f"{audio.path}|{audio.channel}|{audio.start_s}|{audio.end_s}"
    stem = re.sub(r"[^\w.-]+", "-", PurePosixPath(audio.path).stem)[:60]
    return f"{stem}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"


READER = Reader(name="jsonl", title="manifest.jsonl", licence="yours", read=read, read_ontology=read_folder_ontology)
