"""Turns a manifest, a lab's own or a finished corpus's, into the list of everything that is wrong with it, and into its good rows.

lines -> checks of each row -> (sounds, where asked for) -> checks across rows -> manifest.jsonl (the good lines, byte for byte), rejected.jsonl
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data.atomic import atomic_open, file_sha256
from data.audio_folder import AudioFolder
from data.cross_checks import RowKey, check_across, row_key
from data.executors import Executor
from data.findings import Finding
from data.json_lines import CorpusError, Location, iter_lines, parse_object
from data.manifest import CORPUS_FILE, MANIFEST_FILE, NEEDED_SPLITS, check_ontology, corpus_summary
from data.manifest_rows import CORPUS_ROW, ONTOLOGY_FILE, SOURCE_ROW, Labels, RowForm
from data.readers.jsonl import read_line
from data.readers.source import AudioSource, SourceRow, draw_split
from data.records import SPLITS, Split

OUT_FOLDER = "validated"
REJECTED_FILE = "rejected.jsonl"

_TELL_EVERY = 1000  # rows
_CHUNK = 64  # sounds of a task
_SAME_DURATION_S = 0.05

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """What is wrong with a manifest, and where its rows went."""

    manifest: Path
    finished: bool  # it is the manifest of a finished corpus, so every field is asked for
    good_file: Path  # the good lines, byte for byte
    rejected_file: Path  # the others as text, one JSON object a line, with what was found
    rows: int  # lines of the manifest
    splits: Mapping[Split, int]  # good rows
    findings: tuple[Finding, ...]  # those of whole files first, then by line

    @property
    def errors(self) -> list[Finding]:
        """What keeps rows, or the whole corpus, out."""
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """What is told and keeps nothing out."""
        return [finding for finding in self.findings if finding.severity == "warning"]

    @property
    def good(self) -> int:
        """Rows without an error."""
        return sum(self.splits.values())

    @property
    def by_kind(self) -> dict[str, int]:
        """How often each kind of finding was found, the most frequent first."""
        return dict(Counter(finding.kind for finding in self.findings).most_common())


@dataclass(frozen=True, kw_only=True)
class _Sound:
    """What is heard of one row, and what its manifest says of it."""

    at: Location
    root: Path
    audio: AudioSource
    sha256: str | None
    duration_s: float | None


def validate(
    manifest: Path,
    *,
    out: Path | None = None,
    ontology: Path | None = None,
    allow_shared_sentences: bool = False,
    decoder: Executor | None = None,
    on_progress: Progress | None = None,
) -> ValidationReport:
    """Check a manifest file, or the one in a folder, and write what is good and what is not below `out` (`validated/` beside the manifest).

    `ontology`: instead of the folder's ontology.json. `decoder`: who decodes every sound; None: files are looked for, not decoded. `on_progress`
    gets (rows done, rows in all), first for the rows and then for the sounds. Raises CorpusError when there is no manifest.
    """
    path = manifest / MANIFEST_FILE if manifest.is_dir() else manifest
    out = out or path.parent / OUT_FOLDER
    if (out / MANIFEST_FILE).resolve() == path.resolve():
        raise CorpusError(f"{out}: the good rows would be written over the manifest; choose another folder")
    on_progress = on_progress or (lambda done, total: None)
    rows = _count_lines(path)
    finished = path.name == MANIFEST_FILE and (path.parent / CORPUS_FILE).is_file()
    labels, findings = _read_labels(path.parent, ontology, required=finished)
    keys, sounds = [], []
    for row, value, found in _iter_rows(path, rows, CORPUS_ROW if finished else SOURCE_ROW, labels, on_progress):
        findings += found
        if row:
            keys.append(_key(row, value))
            if decoder:
                sounds.append(_sound(path.parent, row, value))
    if decoder:
        keys, found = _hear_all(keys, sounds, decoder, on_progress)
        findings += found
    across = check_across(keys, allow_shared_sentences=allow_shared_sentences)
    findings += (finding for _, finding in across)
    lost = {place for place, finding in across if finding.severity == "error"}
    splits = Counter(key.split for place, key in enumerate(keys) if place not in lost)
    findings += _check_whole(path, splits, finished)
    report = ValidationReport(
        manifest=path,
        finished=finished,
        good_file=out / MANIFEST_FILE,
        rejected_file=out / REJECTED_FILE,
        rows=rows,
        splits={split: splits[split] for split in SPLITS if splits[split]},
        findings=tuple(sorted(findings, key=lambda finding: finding.line or 0)),
    )
    _write(report)
    return report


def _iter_rows(
    path: Path, rows: int, form: RowForm, labels: Labels | None, on_progress: Progress
) -> Iterator[tuple[SourceRow | None, dict[str, Any], list[Finding]]]:
    audio = AudioFolder(path.parent)
    for number, (at, line) in enumerate(iter_lines(path), start=1):
        yield read_line(at, line, form, labels=labels, audio=audio)
        if number % _TELL_EVERY == 0 or number == rows:
            on_progress(number, rows)


def _count_lines(path: Path) -> int:
    if not path.is_file():
        raise CorpusError(f"{path}: is missing; give a manifest, or a folder that holds {MANIFEST_FILE}")
    with path.open("rb") as stream:
        return sum(1 for _ in stream)


def _read_labels(folder: Path, ontology: Path | None, *, required: bool) -> tuple[Labels | None, list[Finding]]:
    """The labels to check against, None where there are none or the file that lists them is in error itself."""
    path = ontology or folder / ONTOLOGY_FILE
    if ontology and not path.is_file():
        raise CorpusError(f"{path}: is missing; give the file that lists the labels of every domain")
    if not path.is_file():
        remedy = "restore it, or write the corpus again"
        return None, [Location(path).error("ontology-absent", None, "is missing", remedy)] if required else []
    value, findings = parse_object(Location(path), path.read_bytes())
    findings += check_ontology(Location(path), value) if value or not findings else ()
    if findings:
        return None, findings
    return {domain: frozenset(label["name"] for label in labels) for domain, labels in value["domains"].items()}, []


def _key(row: SourceRow, value: Mapping[str, Any]) -> RowKey:
    audio = row.audio
    return row_key(
        file=row.file,
        line=row.line,
        id=row.id,
        split=row.split or draw_split(row.group),
        audio=value.get("audio_sha256") or f"{PurePosixPath(audio.path)}|{audio.channel}|{audio.start_s}|{audio.end_s}",
        transcript=row.transcript,
        context=row.context,
        dialogue=row.dialogue,
    )


def _check_whole(path: Path, splits: Mapping[Split, int], finished: bool) -> Iterator[Finding]:
    """What is wrong with the corpus as a whole."""
    if not any(splits.values()):
        yield Location(path).error("manifest-empty", None, "holds no good row", "correct the rows")
        return
    for split in NEEDED_SPLITS:
        if not splits[split]:
            problem = f"holds no good row of split {split}, which every trial needs"
            remedy = "add rows of it, or leave `split` out everywhere so that it is drawn"
            yield Location(path).warning("split-absent", "split", problem, remedy)
    if finished:
        for file, expected in corpus_summary(path.parent).get("files", {}).items():
            there = path.parent / file
            if not there.is_file() or file_sha256(there) != expected:
                problem = f"changed since {CORPUS_FILE} was written"
                yield Location(there).error("file-changed", None, problem, "restore it, or write it again")


def _write(report: ValidationReport) -> None:
    """The good lines as they are; the others as text, with what was found."""
    findings: dict[int | None, list[Finding]] = defaultdict(list)
    for finding in report.findings:
        if finding.file == report.manifest:
            findings[finding.line].append(finding)
    with (
        report.manifest.open("rb") as source,
        atomic_open(report.good_file, "wb") as good,
        atomic_open(report.rejected_file) as rejected,
    ):
        for number, line in enumerate(source, start=1):
            found = findings.get(number, [])
            if not any(finding.severity == "error" for finding in found):
                good.write(line)
                continue
            row = {
                "line": number,
                "findings": [finding_to_json(finding) for finding in found],
                "text": line.decode("utf-8", "backslashreplace").rstrip("\r\n"),
            }
            rejected.write(json.dumps(row, ensure_ascii=False) + "\n")


def finding_to_json(finding: Finding) -> dict[str, Any]:
    """A finding as JSON, without its file and line."""
    return {name: getattr(finding, name) for name in ("kind", "severity", "field", "problem", "remedy")}


def _sound(root: Path, row: SourceRow, value: Mapping[str, Any]) -> _Sound:
    return _Sound(
        at=Location(row.file, row.line, row.id),
        root=root,
        audio=row.audio,
        sha256=value.get("audio_sha256"),
        duration_s=value.get("duration_s"),
    )


def _hear_all(
    keys: Sequence[RowKey], sounds: Sequence[_Sound], decoder: Executor, on_progress: Progress
) -> tuple[list[RowKey], list[Finding]]:
    """Decode every sound: the keys of the rows that can be heard, now with the true hash of their sound, and what was found."""
    chunks = [(start, sounds[start : start + _CHUNK]) for start in range(0, len(sounds), _CHUNK)]
    heard: dict[int, tuple[str | None, list[Finding]]] = {}
    for start, results in decoder.map_unordered(_hear, chunks):
        heard.update(enumerate(results, start=start))
        on_progress(len(heard), len(sounds))
    kept, findings = [], []
    for place, key in enumerate(keys):
        sha256, found = heard[place]
        findings += found
        if sha256:
            kept.append(key._replace(audio=bytes.fromhex(sha256)))
    return kept, findings


def _hear(chunk: tuple[int, Sequence[_Sound]]) -> tuple[int, list[tuple[str | None, list[Finding]]]]:
    """Decode a chunk of sounds: (start of the chunk, hash and findings of each); no hash for a sound that is in error."""
    from data.audio import SAMPLE_RATE, AudioError, AudioFile, pcm_sha256  # here, because it needs numpy

    start, sounds = chunk
    results: list[tuple[str | None, list[Finding]]] = []
    for sound in sounds:
        audio, found = sound.audio, []
        try:
            with AudioFile(sound.root / audio.path, audio.path) as file:
                samples = file.read_utterance(channel=audio.channel, start_s=audio.start_s, end_s=audio.end_s)
        except AudioError as error:
            problem = f"{audio.path!r} {error.problem}"
            results.append((None, [sound.at.error(error.kind, "audio", problem, error.remedy)]))
            continue
        sha256, seconds = pcm_sha256(samples), len(samples) / SAMPLE_RATE
        if sound.sha256 not in (None, sha256):
            problem, remedy = f"the sound has the hash {sha256[:12]}...", "check that it is the right file"
            found.append(sound.at.error("audio-sha256-differs", "audio_sha256", problem, remedy))
        if sound.duration_s is not None and abs(sound.duration_s - seconds) > _SAME_DURATION_S:
            problem = f"{sound.duration_s:g} s, but the sound is {seconds:.2f} s long"
            found.append(sound.at.warning("duration-differs", "duration_s", problem, "measure the file again"))
        bad = any(finding.severity == "error" for finding in found)
        results.append((None if bad else sha256, found))
    return start, results
