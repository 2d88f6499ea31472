"""Turns a corpus folder (corpus.json, ontology.json, manifest.jsonl, traces.jsonl, audio) into a `Corpus`, and back.

Every defect is one `CorpusError` that names file, line, field and remedy. Audio is looked for, not decoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.atomic import file_sha256, write_json, write_jsonl
from data.manifest_rows import (
    ONTOLOGY_FILE,
    AudioFolder,
    CorpusError,
    check_context,
    check_fields,
    check_slots,
    check_texts,
    fail,
    is_text,
    iter_objects,
    read_object,
)
from data.records import (
    SPLITS,
    AnnotatedExample,
    Example,
    Label,
    Ontology,
    Split,
    Trace,
    example_from_json,
    to_json,
    trace_from_json,
)

__all__ = ["Corpus", "CorpusError", "open_corpus", "read_manifest", "read_ontology", "read_traces", "write_corpus"]

CORPUS_FILE = "corpus.json"
MANIFEST_FILE = "manifest.jsonl"
TRACES_FILE = "traces.jsonl"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A whole, checked corpus: every label is in the ontology and every audio file is there."""

    root: Path
    name: str
    fingerprint: str  # of what the corpus was made from; it enters the fingerprint of every trial
    ontology: Ontology
    examples: tuple[AnnotatedExample, ...]  # in the order of the manifest

    def split(self, name: Split) -> tuple[AnnotatedExample, ...]:
        """The examples of one split, in the order of the manifest."""
        if name not in SPLITS:
            raise CorpusError(f"split {name!r} is unknown; use one of {', '.join(SPLITS)}")
        return tuple(row for row in self.examples if row.example.split == name)

    def audio_path(self, example: Example) -> Path:
        """Where the audio of an example lies."""
        return self.root / example.audio


def open_corpus(root: Path) -> Corpus:
    """Read and check a finished corpus. Raises CorpusError for the first defect found."""
    path = root / CORPUS_FILE
    if not path.is_file():
        raise CorpusError(
            f"{path}: is missing, so this is no finished corpus; write it with `slotgrid data synthesize`"
        )
    summary = read_object(path)
    for name in ("name", "fingerprint"):
        if not is_text(summary.get(name)):
            fail(path, None, name, "must be a non-empty string", "write the corpus again")
    corpus = _read_corpus(root, summary["name"], summary["fingerprint"])
    for file, expected in summary.get("files", {}).items():
        if not (root / file).is_file() or file_sha256(root / file) != expected:
            fail(root / file, None, None, f"changed since {CORPUS_FILE} was written", "restore it, or write it again")
    return corpus


def write_corpus(
    root: Path,
    *,
    name: str,
    fingerprint: str,
    ontology: Ontology,
    examples: Sequence[AnnotatedExample],
    details: Mapping[str, Any],
) -> Corpus:
    """Write the corpus files beside the audio that is already below `root`, check them, and write `corpus.json` last.

    `details` go into `corpus.json` for people to read. The same arguments give the same bytes. Raises CorpusError for a
    defect; the corpus is then not finished.
    """
    write_jsonl(root / MANIFEST_FILE, (to_json(row.example) for row in examples))
    write_json(
        root / ONTOLOGY_FILE,
        {"domains": {d: [to_json(label) for label in labels] for d, labels in ontology.domains.items()}},
    )
    write_jsonl(
        root / TRACES_FILE, ({"id": row.example.id, "trace": to_json(row.trace)} for row in examples if row.trace)
    )
    corpus = _read_corpus(root, name, fingerprint)
    counts = {split: sum(row.example.split == split for row in examples) for split in SPLITS}
    summary = {
        "name": name,
        "fingerprint": fingerprint,
        "splits": counts,
        "hours": round(sum(row.example.duration_s for row in examples) / 3600, 4),
        **details,
        "files": {file: file_sha256(root / file) for file in (MANIFEST_FILE, ONTOLOGY_FILE, TRACES_FILE)},
    }
    write_json(root / CORPUS_FILE, summary)
    return corpus


def read_ontology(path: Path) -> Ontology:
    """Read `{"domains": {"<domain>": [{"name": ..., "description": ...}, ...]}}`. Raises CorpusError."""
    domains = read_object(path).get("domains")
    if not isinstance(domains, dict) or not domains:
        fail(path, None, "domains", "must be a non-empty object", "list the labels of every domain")
    for domain, labels in domains.items():
        field = f"domains.{domain}"
        if not isinstance(labels, list) or not labels:
            fail(path, None, field, "must be a non-empty list", "list the labels of the domain")
        for place, label in enumerate(labels):
            check_texts(path, None, f"{field}[{place}]", label, ("name", "description"))
        if len({label["name"] for label in labels}) < len(labels):
            fail(path, None, field, "names a label twice", "keep one of the two")
    return Ontology(domains={d: tuple(Label(**label) for label in labels) for d, labels in domains.items()})


def read_manifest(root: Path, ontology: Ontology) -> tuple[Example, ...]:
    """Read and check every row of `manifest.jsonl`. Raises CorpusError."""
    path = root / MANIFEST_FILE
    labels = {domain: frozenset(label.name for label in rows) for domain, rows in ontology.domains.items()}
    audio = AudioFolder(root)
    lines: dict[str, int] = {}
    examples = []
    for number, row in iter_objects(path):
        check_fields(path, number, row)
        check_slots(path, number, row, labels)
        check_context(path, number, row)
        if problem := audio.problem(row["audio"]):
            fail(path, number, "audio", f"{row['audio']!r} {problem[0]}", problem[1])
        if row["id"] in lines:
            fail(
                path,
                number,
                "id",
                f"{row['id']!r} stands on line {lines[row['id']]} too",
                "give every example its own id",
            )
        lines[row["id"]] = number
        examples.append(example_from_json(row))
    if not examples:
        raise CorpusError(f"{path}: holds no examples; write the corpus again")
    return tuple(examples)


def read_traces(path: Path, ids: set[str]) -> dict[str, Trace]:
    """Read `traces.jsonl`, `{"id": ..., "trace": {...}}` a line; an example may have none. Raises CorpusError."""
    traces: dict[str, Trace] = {}
    if not path.exists():
        return traces
    for number, row in iter_objects(path):
        name, trace = row.get("id"), row.get("trace")
        if not is_text(name) or name not in ids:
            fail(path, number, "id", f"{name!r} is not in {MANIFEST_FILE}", "remove the line")
        if name in traces:
            fail(path, number, "id", f"{name!r} has a trace already", "keep one of the two")
        if not isinstance(trace, dict) or not is_text(trace.get("transcription")):
            fail(path, number, "trace.transcription", "must be a non-empty string", "annotate the example again")
        for field, names in (("mentions", ("label", "text")), ("justifications", ("label", "value", "because"))):
            if not isinstance(trace.get(field), list):
                fail(path, number, f"trace.{field}", "must be a list", "annotate the example again")
            for place, part in enumerate(trace[field]):
                check_texts(path, number, f"trace.{field}[{place}]", part, names)
        traces[name] = trace_from_json(trace)
    return traces


def _read_corpus(root: Path, name: str, fingerprint: str) -> Corpus:
    ontology = read_ontology(root / ONTOLOGY_FILE)
    examples = read_manifest(root, ontology)
    traces = read_traces(root / TRACES_FILE, {example.id for example in examples})
    return Corpus(
        root=root,
        name=name,
        fingerprint=fingerprint,
        ontology=ontology,
        examples=tuple(AnnotatedExample(example=row, trace=traces.get(row.id)) for row in examples),
    )
