"""Turns a corpus as its authors distribute it, read by one of `data.readers`, into a corpus folder: sound at 16 kHz, checked rows, an ontology.

    reader rows -> sounds (`data.source_audio`) -> checks of each row -> checks across rows -> ontology -> corpus.json, written last

A row that cannot be used is a finding in `rejected.jsonl` and takes no other row with it. Running again goes on where a killed run stopped.
The same source gives the same bytes, whoever does the work. Importing this module loads no audio library and no numpy.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from data.atomic import write_json, write_jsonl
from data.audio_folder import AudioFolder
from data.cross_checks import check_across, row_key
from data.executors import Executor
from data.findings import Finding
from data.folder_lock import locked_folder
from data.import_report import REJECTED_FILE, WARNINGS_FILE, ImportReport, hours, read_report
from data.json_lines import CorpusError, Location
from data.manifest import CORPUS_FILE, NEEDED_SPLITS, write_corpus
from data.manifest_rows import CORPUS_ROW, label_names
from data.ontology import build_ontology
from data.readers.source import Reader, SourceRow, draw_split
from data.records import SPLITS, AnnotatedExample, Example, Ontology, to_json
from data.row_content import check_whole_row
from data.source_audio import CHUNK, SoundTask, audio_path, store_sounds
from data.validate import OUT_FOLDER

MARKER_FILE = "import.json"
"""Says from the first moment which corpus a folder is becoming."""

Progress = Callable[[int, int], None]


def import_corpus(
    root: Path,
    *,
    reader: Reader,
    source: Path,
    executor: Executor,
    name: str,
    ontology: Ontology | None = None,
    allow_shared_sentences: bool = False,
    on_progress: Progress | None = None,
) -> ImportReport:
    """Write the corpus below `root`, or what is missing of it, and report; a finished one is only opened.

    `ontology` None: the corpus's own, else it is built from the rows. `on_progress` gets (rows done, rows in all). Raises CorpusError when
    `source` is not a corpus of this format, when `root` holds another corpus, and when no row is left of a split that every trial needs;
    OSError when the disk is full.
    """
    if not source.is_dir():
        raise CorpusError(f"{source}: is no folder; give the folder that the corpus was unpacked into")
    made_from = _made_from(root, reader, source, name, ontology, allow_shared_sentences)
    if report := _open_finished(root, made_from):
        return report
    found = list(reader.read(source))
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked_folder(root):
            if report := _open_finished(root, made_from):
                return report
            write_json(root / MARKER_FILE, made_from)
            outcomes = _store_sounds(root, source, found, executor, on_progress or (lambda done, total: None))
            work = _Import(root, reader, source, ontology or reader.read_ontology(source), allow_shared_sentences)
            work.sift(found, outcomes)
            work.write(name)
            return read_report(root)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        problem = f"no space left while importing {len(found)} rows"  # the command line adds the remedy
        raise OSError(error.errno, problem, str(root)) from error


class _Import:
    """Rows and their stored sounds on the way to a corpus: what is kept, and what was found."""

    def __init__(
        self, root: Path, reader: Reader, source: Path, ontology: Ontology | None, allow_shared_sentences: bool
    ) -> None:
        self._root, self._reader, self._source = root, reader, source
        self._ontology, self._allow_shared = ontology, allow_shared_sentences
        # Each with the place of its row, so that they are told in the order of the files.
        self._findings: list[tuple[int, Finding]] = []
        self._kept: list[tuple[int, SourceRow, Example]] = []

    def sift(self, found: Sequence[SourceRow | Finding], outcomes: Iterable[Mapping[str, Any]]) -> None:
        """Keep what can be used: by row, then across rows, then by domain."""
        sounds = iter(outcomes)
        labels = label_names(self._ontology.domains) if self._ontology else None
        folder = AudioFolder(self._root)
        for place, row in enumerate(found):
            if isinstance(row, Finding):
                self._findings.append((place, row))
                continue
            at, sound = Location(row.file, row.line, row.id), next(sounds)
            if "kind" in sound:
                defects = [at.error(sound["kind"], "audio", sound["problem"], sound["remedy"])]
            else:
                example = _example(row, sound)
                defects = check_whole_row(at, to_json(example), CORPUS_ROW, labels=labels, audio=folder)
            self._findings += ((place, defect) for defect in defects)
            if not any(defect.severity == "error" for defect in defects):
                self._kept.append((place, row, example))
        self._compare_rows()
        if self._ontology is None:
            self._build_ontology()

    def write(self, name: str) -> None:
        """Write `rejected.jsonl` and `warnings.jsonl`, then the corpus. Raises CorpusError when a split that every trial needs is empty."""
        findings = sorted(self._findings, key=lambda found: found[0])
        errors = [found for found in findings if found[1].severity == "error"]
        lost = {place for place, _ in errors}
        warnings = [found for found in findings if found[1].severity == "warning" and found[0] not in lost]
        write_jsonl(self._root / REJECTED_FILE, (self._finding_row(finding) for _, finding in errors))
        write_jsonl(self._root / WARNINGS_FILE, (self._finding_row(finding) for _, finding in warnings))
        dropped = _count(errors)
        examples = [example for _, _, example in self._kept]
        self._check_splits(examples, dropped)
        assert self._ontology
        write_corpus(
            self._root,
            name=name,
            fingerprint=_fingerprint(examples, self._ontology),
            ontology=self._ontology,
            examples=[AnnotatedExample(example=example, trace=None) for example in examples],
            details={
                "format": self._reader.name,
                "title": self._reader.title,
                "licence": self._reader.licence,
                "source": _writable(self._source.resolve().name),
                "slotgrid": _version(),
                "labels": len(self._ontology.labels()),
                "hours_per_split": {split: round(hours(examples, split), 4) for split in SPLITS},
                "dropped": dropped,
                "warnings": _count(warnings),
            },
        )

    def _compare_rows(self) -> None:
        keys = [
            row_key(
                file=row.file,
                line=row.line,
                id=row.id,
                split=example.split,
                audio=example.audio_sha256,
                transcript=example.transcript,
                context=example.context,
                dialogue=row.dialogue,
            )
            for _, row, example in self._kept
        ]
        found = check_across(keys, allow_shared_sentences=self._allow_shared)
        self._findings += ((self._kept[place][0], finding) for place, finding in found)
        lost = {place for place, finding in found if finding.severity == "error"}
        self._kept = [kept for place, kept in enumerate(self._kept) if place not in lost]

    def _build_ontology(self) -> None:
        """The ontology of the rows; those of a domain without any label go, for nothing can be asked of them."""
        built = build_ontology((example for _, _, example in self._kept), self._reader.descriptions)
        self._ontology = Ontology(domains={domain: labels for domain, labels in built.domains.items() if labels})
        remedy = "name the labels of the domain with --ontology"
        for place, row, example in self._kept:
            if example.domain not in self._ontology.domains:
                problem = f"no row of domain {example.domain!r} fills a slot, so nothing can be asked of it"
                at = Location(row.file, row.line, row.id)
                self._findings.append((place, at.error("domain-without-labels", "domain", problem, remedy)))
        self._kept = [kept for kept in self._kept if kept[2].domain in self._ontology.domains]

    def _check_splits(self, examples: Sequence[Example], dropped: Mapping[str, int]) -> None:
        there = {example.split for example in examples}
        if empty := [split for split in NEEDED_SPLITS if split not in there]:
            lost = (
                f"dropped: {', '.join(f'{count} {kind}' for kind, count in dropped.items())}"
                if dropped
                else "none was dropped"
            )
            see = f"see {self._root / REJECTED_FILE}, correct the source" if dropped else "add rows of those splits"
            raise CorpusError(
                f"{self._source}: no example is left for {' and '.join(empty)} ({len(examples)} examples in all; {lost}); {see} and run again"
            )

    def _finding_row(self, finding: Finding) -> dict[str, Any]:
        file = finding.file.relative_to(self._source) if finding.file.is_relative_to(self._source) else finding.file
        return {
            "id": _writable(finding.example_id) if finding.example_id is not None else None,
            "file": _writable(file.as_posix()),
            "line": finding.line,
            "field": finding.field,
            "kind": finding.kind,
            "problem": finding.problem,
            "remedy": finding.remedy,
        }


def _store_sounds(
    root: Path, source: Path, found: Sequence[SourceRow | Finding], executor: Executor, on_progress: Progress
) -> list[dict[str, Any]]:
    """What became of the sound of every row, in the order of the rows."""
    sounds = [row.audio for row in found if isinstance(row, SourceRow)]
    tasks = [
        SoundTask(root=root, source=source, number=number, sounds=tuple(sounds[first : first + CHUNK]))
        for number, first in enumerate(range(0, len(sounds), CHUNK))
    ]
    outcomes: dict[int, list[dict[str, Any]]] = {}
    done = 0
    for number, rows in executor.map_unordered(store_sounds, tasks):
        outcomes[number] = rows
        on_progress(done := done + len(rows), len(sounds))
    for leftover in (root / "audio").glob("*/.*"):  # of a killed run; the lock says that nobody is writing them
        leftover.unlink()
    return [row for number in range(len(tasks)) for row in outcomes[number]]


def _example(row: SourceRow, sound: Mapping[str, Any]) -> Example:
    return Example(
        id=row.id,
        split=row.split or draw_split(row.group),
        domain=row.domain,
        audio=audio_path(sound["audio_sha256"]),
        audio_sha256=sound["audio_sha256"],
        duration_s=sound["duration_s"],
        transcript=row.transcript,
        slots=row.slots,
        context=row.context,
        speaker=row.speaker,
    )


def _count(findings: Iterable[tuple[int, Finding]]) -> dict[str, int]:
    """Rows by kind of finding, the most frequent kind first."""
    kinds = dict.fromkeys((place, finding.kind) for place, finding in findings)
    return dict(Counter(kind for _, kind in kinds).most_common())


def _writable(text: str) -> str:
    """Names of files and ids can hold what UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


def _version() -> str:
    try:
        return metadata.version("slotgrid")
    except metadata.PackageNotFoundError:  # run from a checkout
        return "not installed"


def _fingerprint(examples: Sequence[Example], ontology: Ontology) -> str:
    """Names what the corpus holds, wherever it lies: the content of its manifest and of its ontology."""
    content = hashlib.sha256()
    for record in (*examples, ontology):
        content.update(json.dumps(to_json(record), ensure_ascii=False).encode() + b"\n")
    return content.hexdigest()


def _made_from(
    root: Path, reader: Reader, source: Path, name: str, ontology: Ontology | None, allow_shared_sentences: bool
) -> dict[str, Any]:
    """What an import is made from: the content of the marker file."""
    return {
        "format": reader.name,
        "name": name,
        "source": _writable(str(source.resolve())),
        "files": _listing(source.resolve(), root.resolve()),
        "ontology": hashlib.sha256(json.dumps(to_json(ontology)).encode()).hexdigest() if ontology else None,
        "allow_shared_sentences": allow_shared_sentences,
    }


def _listing(source: Path, root: Path) -> str:
    """Names the files of a folder by path, size and time of change, without reading them. What we write into it ourselves does not count: a store,
    and what `data.validate` found.
    """
    ours = {source / OUT_FOLDER}
    if root.is_relative_to(source) and root != source:
        ours.add(source / root.relative_to(source).parts[0])
    content = hashlib.sha256()
    for folder, folders, files in os.walk(source):
        folders[:] = sorted(name for name in folders if Path(folder, name) not in ours)
        for name in sorted(files):
            path = Path(folder, name)
            stat = path.lstat()
            entry = f"{path.relative_to(source).as_posix()}|{stat.st_size}|{stat.st_mtime_ns}\n"
            content.update(entry.encode("utf-8", "surrogateescape"))
    return content.hexdigest()


def _open_finished(root: Path, made_from: Mapping[str, Any]) -> ImportReport | None:
    """The report of a finished import, None when there is something to do. CorpusError when `root` is, or is becoming, another corpus.

    An unfinished import may go on with other options or a mended source: every sound that has changed since is stored again.
    """
    finished, marker = (root / CORPUS_FILE).exists(), root / MARKER_FILE
    if not finished and not marker.exists():
        return None
    before = json.loads(marker.read_bytes()) if marker.exists() else {}
    matters = (
        ("format", "name", "files", "ontology", "allow_shared_sentences") if finished else ("format", "name", "source")
    )
    changed = [field for field in matters if before.get(field) != made_from[field]]
    if changed:
        told = [
            f"{field} {before[field]} -> {made_from[field]}"
            if field in ("format", "name", "source")
            else f"the {field} have changed since"
            if field == "files"
            else f"other {field}"
            for field in changed
            if before
        ]
        raise CorpusError(
            f"{root}: holds another corpus ({', '.join(told) or 'not an imported one'}); choose another --name, "
            "or delete what is in it but annotations/, which may have been paid for"
        )
    if not finished:
        return None
    try:
        return read_report(root)
    except CorpusError as error:
        # Never mended in silence: somebody may have edited it on purpose.
        raise CorpusError(
            f"{error}; or delete {root / CORPUS_FILE} and run again: only what is damaged is imported anew"
        ) from error
