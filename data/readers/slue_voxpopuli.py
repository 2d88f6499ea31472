"""SLUE-VoxPopuli NER: `slue-voxpopuli_{fine-tune,dev,test}.tsv` and ogg files -> one row per sentence of the European Parliament.

SLUE (Shon et al. 2022) marks named entities in `normalized_text` as a Python list in the column `normalized_ner`, `[['DATE', 12, 5], ...]`:
a type, the first character (not token) and the number of characters. As in the benchmark, the 18 types of OntoNotes are combined into the
7 labels of `COMBINED`, and entities of the other types are left out. A column `normalized_combined_ner`, which copies from the Hugging Face
hub have, is taken instead where it is there.

fine-tune is our train split, dev our validation split. The labels of the test split came out in 2024; the older download has
`slue-voxpopuli_test_blind.tsv` without them. Then the dev sentences are divided between validation and test, half and half, by a hash of
the sentence, so that both are fixed, and one warning says so: such a test score is not the benchmark's.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.audio_folder import AudioFolder
from data.findings import Finding
from data.json_lines import CorpusError, Location
from data.readers.source import AudioSource, Reader, SourceRow, Unusable, plain_slot
from data.readers.tables import iter_table
from data.readers.texts import cuts_word
from data.records import SlotValue, Split

COMBINED = {
    "WHEN": ("DATE", "TIME"),
    "QUANT": ("CARDINAL", "ORDINAL", "QUANTITY", "MONEY", "PERCENT"),
    "PLACE": ("GPE", "LOC"),
    "NORP": ("NORP",),
    "ORG": ("ORG",),
    "LAW": ("LAW",),
    "PERSON": ("PERSON",),
}
LEFT_OUT = ("FAC", "EVENT", "WORK_OF_ART", "PRODUCT", "LANGUAGE")
_LABELS: dict[str, str | None] = {
    **{name: label for label, names in COMBINED.items() for name in (label, *names)},
    **dict.fromkeys(LEFT_OUT),
}
DESCRIPTIONS = {
    "WHEN": "a date, a time of day, or a period",
    "QUANT": "a number, an amount of money, a percentage, a quantity, or a position in an order",
    "PLACE": "a country, a city, a region, or another place",
    "NORP": "a nationality, or a religious or political group",
    "ORG": "a company, an institution, a committee, or another organisation",
    "LAW": "a named law, treaty, or article of one",
    "PERSON": "the name of a person",
}
DOMAIN = "parliament"
NO_ENTITIES = ("", "None", "nan", "[]")


def read(root: Path) -> Iterator[SourceRow | Finding]:
    """The rows of fine-tune, dev and test. CorpusError when `slue-voxpopuli_fine-tune.tsv` is not in `root`."""
    if not _table(root, "fine-tune").is_file():
        raise CorpusError(f"{_table(root, 'fine-tune')}: is missing; give the folder slue-voxpopuli that holds it")
    return _iter_rows(root)


def _iter_rows(root: Path) -> Iterator[SourceRow | Finding]:
    audio = AudioFolder(root, links=True)
    has_test = _table(root, "test").is_file()
    yield from _iter_table_rows(root, "fine-tune", lambda sentence: "train", audio)
    if not has_test:
        problem = "does not exist: the test split has no labels, so half of the dev sentences become the test split"
        remedy = "download the corpus with the test labels to measure on the benchmark's test split"
        yield Location(_table(root, "test")).warning("test-labels-missing", None, problem, remedy)
    yield from _iter_table_rows(root, "dev", (lambda sentence: "validation") if has_test else draw_half, audio)
    if has_test:
        yield from _iter_table_rows(root, "test", lambda sentence: "test", audio)


def draw_half(sentence: str) -> Split:
    """The split of a dev sentence where the test split has no labels: always the same for one sentence."""
    digest = hashlib.sha256(f"slotgrid slue-voxpopuli dev|{sentence}".encode()).digest()
    return "validation" if digest[0] < 128 else "test"


def _table(root: Path, part: str) -> Path:
    return root / f"slue-voxpopuli_{part}.tsv"


def _iter_table_rows(
    root: Path, part: str, split_of: Callable[[str], Split], audio: AudioFolder
) -> Iterator[SourceRow | Finding]:
    path = _table(root, part)
    if not path.is_file():
        problem, remedy = "does not exist: its split is not read", "copy the authors' file there"
        yield Location(path).warning("split-missing", None, problem, remedy)
        return
    for line in iter_table(path, ("id", "normalized_text", "normalized_ner")):
        if isinstance(line, Finding):
            yield line
            continue
        at, cells = line
        cells = {name: _unquote(cell) for name, cell in cells.items()}
        at = replace(at, example_id=cells["id"].strip() or None)
        try:
            yield _row(at, cells, part, split_of, audio)
        except Unusable as error:
            yield error.finding(at)


def _row(
    at: Location, cells: Mapping[str, str], part: str, split_of: Callable[[str], Split], audio: AudioFolder
) -> SourceRow:
    if not at.example_id:
        raise Unusable("id-missing", "id", "is empty", "write the name of the ogg file")
    text = cells["normalized_text"]
    if not text.strip():
        raise Unusable("transcript-missing", "normalized_text", "is empty", "fill it, or remove the line")
    column = "normalized_combined_ner" if "normalized_combined_ner" in cells else "normalized_ner"
    slots = _read_slots(cells[column], text, column)
    place = f"{part}/{at.example_id}.ogg"
    if found := audio.problem(place):
        problem, remedy = f"{place!r} {found.problem}", "restore the file, or remove the line"
        raise Unusable("audio-missing", "id", problem, remedy)
    speaker = cells.get("speaker_id", "").strip()
    return SourceRow(
        file=at.file,
        line=at.line,
        id=at.example_id,
        split=split_of(" ".join(text.casefold().split())),
        domain=DOMAIN,
        transcript=text.strip(),
        slots=slots,
        audio=AudioSource(path=place),
        speaker="" if speaker == "None" else speaker,
    )


def _unquote(cell: str) -> str:
    """A cell as the authors' tools read it: pandas writes a cell that holds quotes as "... ""so"" ..."."""
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"') if quoted else cell


def _read_slots(cell: str, text: str, column: str) -> tuple[SlotValue, ...]:
    """The slots of an entity cell in the order of the sentence. Raises Unusable."""
    if cell.strip() in NO_ENTITIES:
        return ()
    try:
        entities = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        entities = None
    if not isinstance(entities, list | tuple):
        problem, remedy = f"is not a list of [type, start, length]: {cell[:200]!r}", "restore the authors' cell"
        raise Unusable("entities-broken", column, problem, remedy)
    found: set[tuple[int, int, str]] = set()
    for entity in entities:
        if not _is_entity(entity):
            problem, remedy = f"holds {str(entity)[:200]!r}, not [type, start, length]", "restore the authors' cell"
            raise Unusable("entity-broken", column, problem, remedy)
        name, start, length = entity
        if name not in _LABELS:
            problem, remedy = f"holds the unknown type {name!r}", f"use one of {', '.join(_LABELS)}"
            raise Unusable("entity-type-unknown", column, problem, remedy)
        remedy = "give the first character, from 0, and the number of characters in normalized_text"
        if start < 0 or length <= 0 or start + length > len(text):
            problem = f"{entity} lies outside the {len(text)} characters of normalized_text"
            raise Unusable("span-out-of-range", column, problem, remedy)
        if cuts_word(text, start, start + length):
            problem = f"{entity} cuts a word of normalized_text: {text[start : start + length]!r}"
            raise Unusable("span-cuts-word", column, problem, remedy)
        if label := _LABELS[name]:
            found.add((start, start + length, label))
    return tuple(plain_slot(label, text[start:end].strip()) for start, end, label in sorted(found))


def _is_entity(entity: Any) -> bool:
    """Whether it is a type and two whole numbers."""
    return (
        isinstance(entity, list | tuple)
        and [type(part) for part in entity] == [str, int, int]  # not isinstance: True is an int
    )


READER = Reader(name="slue-voxpopuli", title="SLUE-VoxPopuli NER", licence="CC0", read=read, descriptions=DESCRIPTIONS)
