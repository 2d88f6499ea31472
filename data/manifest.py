"""Turns a corpus folder (corpus.json, ontology.json, manifest.jsonl, traces.jsonl, audio) into a `Corpus`, and back.

Every defect is one `CorpusError` that names file, line, field and remedy. Audio is looked for, not decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from data.atomic import file_sha256, write_json, write_jsonl
from data.audio_folder import AudioFolder, problem_of_path
from data.findings import Finding
from data.json_lines import CorpusError, Location, is_text, iter_objects, key_name, raise_first, read_object, shown
from data.manifest_rows import CORPUS_ROW, ONTOLOGY_FILE, check_row, check_text, check_texts, label_names
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

__all__ = [
    "Corpus",
    "CorpusError",
    "TracesRef",
    "attach_traces",
    "check_ontology",
    "corpus_summary",
    "open_corpus",
    "read_manifest",
    "read_ontology",
    "read_traces",
    "write_corpus",
]

CORPUS_FILE = "corpus.json"
MANIFEST_FILE = "manifest.jsonl"
TRACES_FILE = "traces.jsonl"
NEEDED_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""Without an example of each, no trial can train, stop and be measured."""


@dataclass(frozen=True, kw_only=True)
class TracesRef:
    """The reasoning traces that were attached to a corpus after it was made."""

    file: str  # below the corpus root, forward slashes
    fingerprint: str  # of what the traces were made from; it enters the fingerprint of every trial that reads them
    annotator: Mapping[str, Any]  # model, prompt version and parameters, for people
    count: int
    quarantined: int  # examples whose traces were given up


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A whole, checked corpus: every label is in the ontology and every audio file is there."""

    root: Path
    name: str
    fingerprint: str  # of what the corpus was made from; it enters the fingerprint of every trial
    ontology: Ontology
    examples: tuple[AnnotatedExample, ...]  # in the order of the manifest
    traces: TracesRef | None = None  # None: the traces that the corpus was made with, if any, in traces.jsonl

    def split(self, name: Split) -> tuple[AnnotatedExample, ...]:
        """The examples of one split, in the order of the manifest."""
        if name not in SPLITS:
            raise CorpusError(f"split {name!r} is unknown; use one of {', '.join(SPLITS)}")
        return tuple(row for row in self.examples if row.example.split == name)

    def audio_path(self, example: Example) -> Path:
        """Where the audio of an example lies."""
        return self.root / example.audio


def corpus_summary(root: Path) -> dict[str, Any]:
    """What `corpus.json` says, without reading the corpus: at least name, fingerprint, and traces or None. Raises CorpusError.

    `splits` (examples per split), `hours` and what else the maker of the corpus noted down are there where it wrote them.
    """
    path = root / CORPUS_FILE
    if not path.is_file():
        raise CorpusError(
            f"{path}: is missing, so this is no finished corpus; write it with `slotgrid data import` or `slotgrid data synthesize`"
        )
    summary = read_object(path)
    raise_first(_check_summary(path, summary))
    return {"traces": None, **summary}


def open_corpus(root: Path) -> Corpus:
    """Read and check a finished corpus. Raises CorpusError for the first defect found."""
    summary = corpus_summary(root)
    corpus = _read_corpus(root, summary)
    for file, expected in summary.get("files", {}).items():
        if not (root / file).is_file() or file_sha256(root / file) != expected:
            problem = f"changed since {CORPUS_FILE} was written"
            raise_first([Location(root / file).error("file-changed", None, problem, "restore it, or write it again")])
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
    corpus = _read_corpus(root, {"name": name, "fingerprint": fingerprint})
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


def attach_traces(
    root: Path, *, file: Path, fingerprint: str, annotator: Mapping[str, Any], quarantined: int
) -> Corpus:
    """Make `file`, a traces file below `root` (or its path from there), the traces of a finished corpus, and return the corpus with them.

    The file is checked against the manifest first; then `corpus.json` is replaced in one step. A kill before that leaves the corpus with the
    traces that it had. Raises CorpusError.
    """
    summary = corpus_summary(root)
    path = (file if file.is_relative_to(root) else root / file).absolute()
    if not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
        raise CorpusError(f"{path}: is no file below {root}; write the traces below the corpus folder")
    before = summary["traces"]["file"] if summary["traces"] else TRACES_FILE
    name = path.relative_to(root.absolute()).as_posix()
    count = sum(1 for _ in iter_objects(path))
    traces = TracesRef(file=name, fingerprint=fingerprint, annotator=annotator, count=count, quarantined=quarantined)
    files = {file: sha for file, sha in summary.get("files", {}).items() if file != before}
    attached = {**summary, "traces": asdict(traces), "files": {**files, name: file_sha256(path)}}
    raise_first(_check_summary(root / CORPUS_FILE, attached))
    corpus = _read_corpus(root, attached)
    write_json(root / CORPUS_FILE, attached)
    return corpus


def read_ontology(path: Path) -> Ontology:
    """Read `{"domains": {"<domain>": [{"name": ..., "description": ..., "values": [...]}, ...]}}`, values optional. Raises CorpusError."""
    value = read_object(path)
    raise_first(check_ontology(Location(path), value))
    domains = {
        domain: tuple(Label(**{**label, "values": tuple(label.get("values", ()))}) for label in labels)
        for domain, labels in value["domains"].items()
    }
    return Ontology(domains=domains)


def check_ontology(at: Location, value: Mapping[str, Any]) -> Iterator[Finding]:
    """Every defect of an ontology."""
    domains = value.get("domains")
    if not isinstance(domains, dict) or not domains:
        problem = "must be a non-empty object"
        yield at.error("ontology-domains-wrong", "domains", problem, "list the labels of every domain")
        return
    for domain, labels in domains.items():
        field = f"domains.{key_name(domain)}"
        if not isinstance(labels, list) or not labels:
            problem = "must be a non-empty list"
            yield at.error("ontology-labels-wrong", field, problem, "list the labels of the domain")
            continue
        for place, label in enumerate(labels):
            texts, values = label, None
            if isinstance(label, dict):
                texts, values = {key: label[key] for key in label if key != "values"}, label.get("values", [])
            yield from check_texts(at, f"{field}[{place}]", texts, ("name", "description"), "ontology-label")
            if isinstance(label, dict) and not (isinstance(values, list) and all(map(is_text, values))):
                remedy = "list the values as text, or leave the field out"
                yield at.error("ontology-values-wrong", f"{field}[{place}].values", "must be a list of texts", remedy)
        names = [label["name"] for label in labels if isinstance(label, dict) and is_text(label.get("name"))]
        if len(set(names)) < len(names):
            yield at.error("ontology-label-twice", field, "names a label twice", "keep one of the two")


def read_manifest(root: Path, ontology: Ontology) -> tuple[Example, ...]:
    """Read and check every row of `manifest.jsonl`. Raises CorpusError."""
    path = root / MANIFEST_FILE
    labels = label_names(ontology.domains)
    audio = AudioFolder(root)
    lines: dict[str, int | None] = {}
    examples = []
    for at, row in iter_objects(path):
        raise_first(check_row(at, row, CORPUS_ROW, labels=labels, audio=audio))
        if row["id"] in lines:
            problem = f"{shown(row['id'])} stands on line {lines[row['id']]} too"
            raise_first([at.error("id-duplicate", "id", problem, "give every example its own id")])
        lines[row["id"]] = at.line
        examples.append(example_from_json(row))
    if not examples:
        raise CorpusError(f"{path}: holds no examples; write the corpus again")
    return tuple(examples)


def read_traces(path: Path, ids: set[str]) -> dict[str, Trace]:
    """Read `traces.jsonl`, `{"id": ..., "trace": {...}}` a line; an example may have none. Raises CorpusError."""
    traces: dict[str, Trace] = {}
    if not path.exists():
        return traces
    for at, row in iter_objects(path):
        name = row.get("id")
        if not is_text(name) or name not in ids:
            problem = f"{shown(name)} is not in {MANIFEST_FILE}"
            raise_first([at.error("trace-id-unknown", "id", problem, "remove the line")])
        if name in traces:
            problem = f"{shown(name)} has a trace already"
            raise_first([at.error("trace-id-duplicate", "id", problem, "keep one of the two")])
        raise_first(_check_trace(at, row.get("trace")))
        traces[row["id"]] = trace_from_json(row["trace"])
    return traces


def _check_trace(at: Location, trace: Any) -> Iterator[Finding]:
    """Every defect in the structure of a trace."""
    again = "annotate the example again"
    if not isinstance(trace, dict) or not is_text(trace.get("transcription")):
        yield at.error("trace-transcription-wrong", "trace.transcription", "must be a non-empty string", again)
        return
    for field, names in (("mentions", ("label", "text")), ("justifications", ("label", "value", "because"))):
        if not isinstance(trace.get(field), list):
            yield at.error(f"trace-{field}-wrong", f"trace.{field}", "must be a list", again)
            continue
        for place, part in enumerate(trace[field]):
            yield from check_texts(at, f"trace.{field}[{place}]", part, names, f"trace-{field}")


def _check_summary(path: Path, summary: Mapping[str, Any]) -> Iterator[Finding]:
    at = Location(path)
    for name in ("name", "fingerprint"):
        yield from check_text(at, name, summary.get(name))
    if not isinstance(summary.get("files", {}), dict):
        yield at.error("corpus-files-wrong", "files", "must be an object", "write the corpus again")
    traces = summary.get("traces")
    if traces is None:
        return
    known = {field.name for field in fields(TracesRef)}
    if not isinstance(traces, dict) or traces.keys() != known or not isinstance(traces["annotator"], dict):
        problem = f"must be an object of {', '.join(sorted(known))}"
        yield at.error("corpus-traces-wrong", "traces", problem, "annotate the corpus again")
        return
    for name in ("file", "fingerprint"):
        yield from check_text(at, f"traces.{name}", traces[name])
    if is_text(traces["file"]) and (wrong := problem_of_path(traces["file"])):
        yield at.error("corpus-traces-wrong", "traces.file", f"{shown(traces['file'])} {wrong.problem}", wrong.remedy)


def _read_corpus(root: Path, summary: Mapping[str, Any]) -> Corpus:
    """Everything that `corpus.json` stands for; the hashes of the files are not compared."""
    ontology = read_ontology(root / ONTOLOGY_FILE)
    examples = read_manifest(root, ontology)
    attached = TracesRef(**summary["traces"]) if summary.get("traces") else None
    traces = read_traces(root / (attached.file if attached else TRACES_FILE), {example.id for example in examples})
    return Corpus(
        root=root,
        name=summary["name"],
        fingerprint=summary["fingerprint"],
        ontology=ontology,
        examples=tuple(AnnotatedExample(example=row, trace=traces.get(row.id)) for row in examples),
        traces=attached,
    )
