"""A Speech-MASSIVE folder (parquet shards, one folder per locale) -> one row per recording.

Slots come from `annot_utt` ("weck mich um [time : fünf uhr]"), which keeps neighbours of one label apart as the labels per token do not.
The audio stays in the parquet file: only columns of text are read. Source: https://huggingface.co/datasets/FBK-MT/Speech-MASSIVE (Lee et al.
2024), test split in https://huggingface.co/datasets/FBK-MT/Speech-MASSIVE-test.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from data.findings import Finding
from data.json_lines import CorpusError, Location, shown
from data.readers.source import AudioSource, Reader, SourceRow, Unusable, plain_slot
from data.readers.texts import clean_text
from data.records import SlotValue, Split

REQUIRED = ("id", "locale", "partition", "scenario_str", "utt", "annot_utt")
OPTIONAL = ("labels", "path", "speaker_id")
AUDIO = "audio"
PARTITIONS: dict[str, Split] = {
    "train": "train",
    "train_115": "train",  # the few-shot part
    "dev": "validation",
    "validation": "validation",
    "test": "test",
}
NO_LABEL = "Other"
ALL_LOCALES = "all"  # the folder that holds every locale once more

_SLOT = re.compile(r"\[([^\[\]:]+):([^\[\]]*)\]")


def read(root: Path) -> Iterator[SourceRow | Finding]:
    """The rows of all shards below the folder, file by file; id "<locale>-<id>-<recording>", domain the scenario.

    `line` of a row or finding is its row in the parquet file, from 1. The folder "all" is read only where there is no folder of a locale.
    """
    import pyarrow
    from pyarrow import parquet

    found = sorted(path for path in root.rglob("*.parquet") if not _is_hidden(path.relative_to(root)))
    found = [path for path in found if path.parent.name != ALL_LOCALES] or found
    shards: list[Path] = []
    findings: list[Finding] = []
    for path in found:
        try:
            names = parquet.read_schema(path).names
        except (pyarrow.ArrowException, OSError) as error:
            findings.append(_of_file(path, "parquet-unreadable", f"cannot be read as parquet ({_one_line(error)})"))
            continue
        if missing := [column for column in (*REQUIRED, AUDIO) if column not in names]:
            findings.append(_of_file(path, "column-missing", f"has no column {missing[0]!r}"))
        else:
            shards.append(path)
    if not shards:
        problem = str(findings[0]) if findings else f"{root}: no parquet file lies below it"
        raise CorpusError(f"{problem}; Speech-MASSIVE is looked for as <locale>/<split>-00000-of-00001.parquet")
    yield from findings
    for path in shards:
        yield from _read_shard(root, path)


def _read_shard(root: Path, path: Path) -> Iterator[SourceRow | Finding]:
    import pyarrow
    from pyarrow import parquet

    with parquet.ParquetFile(path) as shard:
        columns = [name for name in (*REQUIRED, *OPTIONAL) if name in shard.schema_arrow.names]
        names = _label_names(shard.schema_arrow.metadata or {})
        place = 0
        for group in range(shard.num_row_groups):
            size = shard.metadata.row_group(group).num_rows
            try:
                table = shard.read_row_group(group, columns=columns)
            except (pyarrow.ArrowException, OSError) as error:
                problem = f"rows {place + 1} to {place + size} cannot be read ({_one_line(error)})"
                yield _of_file(path, "parquet-unreadable", problem)
                place += size
                continue
            for offset in range(size):
                yield from _read_row(root, path, place, table.slice(offset, 1), names)
                place += 1


def _read_row(root: Path, path: Path, place: int, row: Any, names: list[str]) -> Iterator[SourceRow | Finding]:
    """The row `place` of a file, from 0: a table of one row. A warning comes before its row."""
    at = Location(path, place + 1)
    try:
        values = _values(row)
        values["id"] = str(values["id"]) if isinstance(values["id"], int) else values["id"]
        texts = {column: clean_text(values[column], column) for column in REQUIRED}
        split = _split(texts["partition"], path)
        slots = _slots(texts["annot_utt"], texts["utt"])
    except Unusable as error:
        yield error.finding(at)
        return
    speaker = str(values.get("speaker_id") or "")
    recording = PurePosixPath(str(values.get("path") or "")).stem or speaker or str(place)
    example_id = f"{texts['locale']}-{texts['id']}-{recording}"
    tagged = {_label(tag, names) for tag in values.get("labels") or ()} - {NO_LABEL}
    annotated = {slot.label for slot in slots}
    if values.get("labels") and tagged != annotated:
        problem = f"name {sorted(tagged)}, and annot_utt names {sorted(annotated)}"
        remedy = "annot_utt is taken; correct one of the two"
        yield replace(at, example_id=example_id).warning("labels-disagree", "labels", problem, remedy)
    yield SourceRow(
        file=path,
        line=at.line,
        id=example_id,
        split=split,
        domain=texts["scenario_str"],
        transcript=texts["utt"],
        slots=slots,
        audio=AudioSource(path=path.relative_to(root).as_posix(), parquet_row=place),
        speaker=speaker,
    )


def _slots(annotated: str, sentence: str) -> tuple[SlotValue, ...]:
    """The bracketed words of the annotated sentence, left to right."""
    slots = tuple(plain_slot(label.strip(), value.strip()) for label, value in _SLOT.findall(annotated))
    plain = _SLOT.sub(lambda match: match[2], annotated)
    if "[" in plain or "]" in plain or not all(slot.label and slot.spoken for slot in slots):
        problem = f"{shown(annotated)} has a bracket that is not of the form [label : words]"
        raise Unusable("annotation-brackets", "annot_utt", problem, "correct it")
    if _letters(plain) != _letters(sentence):
        problem = f"{shown(annotated)} is not the sentence {shown(sentence)} with brackets"
        raise Unusable("annotation-disagrees", "annot_utt", problem, "correct one of the two")
    return slots


def _letters(text: str) -> str:
    """What two spellings of a sentence share: spaces (which some scripts do without), case and the form of apostrophes do not count."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def _split(partition: str, path: Path) -> Split:
    """The split of a row; the name of its file must say the same, where it names one."""
    of_file = PARTITIONS.get(path.name.split("-")[0].removesuffix(".parquet"))
    split = PARTITIONS.get(partition)
    if split is None:
        problem = f"{shown(partition)} is unknown"
        raise Unusable("split-unknown", "partition", problem, f"use one of {', '.join(PARTITIONS)}")
    if of_file not in (None, split):
        problem = f"{shown(partition)} in a file of split {of_file}"
        raise Unusable("split-disagrees", "partition", problem, "move the row, or rename the file")
    return split


def _label_names(metadata: Mapping[bytes, bytes]) -> list[str]:
    """The names behind labels that are numbers, as the `datasets` library leaves them in a file; none where labels are texts."""
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"]["labels"]
        return [str(name) for name in feature["feature"]["names"]]
    except (ValueError, KeyError, TypeError):
        return []


def _label(tag: Any, names: list[str]) -> str:
    return names[tag] if isinstance(tag, int) and 0 <= tag < len(names) else str(tag)


def _values(row: Any) -> dict[str, Any]:
    try:
        values: dict[str, Any] = row.to_pylist()[0]
    except UnicodeDecodeError as error:
        raise Unusable(
            "line-not-utf8", None, f"holds a text that is not UTF-8 ({error.reason})", "copy the file again"
        ) from error
    return values


def _of_file(path: Path, kind: str, problem: str) -> Finding:
    return Location(path).error(kind, None, problem, "download the file again")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


READER = Reader(name="speech-massive", title="Speech-MASSIVE", licence="CC BY-NC-SA 4.0", read=read)
