"""The contract of every reader: a corpus as its authors distribute it -> `SourceRow`s, each with the audio it points at, not yet decoded.

A reader knows the format and nothing else. What all corpora share happens after it, in `data.importing`: decoding and cutting audio, the checks
across rows, the ontology, splits for rows that have none, and writing the corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data.cross_checks import plain_sentence
from data.findings import Finding
from data.json_lines import Location
from data.records import Ontology, SlotValue, Split, Turn


@dataclass(frozen=True, kw_only=True)
class AudioSource:
    """Where the sound of one row lies: a file, or a row of a parquet file, and which channel and part of it."""

    path: str  # below the folder that is read, forward slashes; never absolute, never leaving it
    channel: int | None = None  # from 0; None: the file must be mono
    start_s: float = 0.0
    end_s: float | None = None  # None: to the end
    parquet_row: int | None = (
        None  # `path` is a parquet file: the row, from 0, whose `audio` column holds {"bytes", "path"}
    )


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """One spoken turn as a corpus gives it. Texts are stripped and not empty; labels are the corpus's own names."""

    file: Path  # where the row stands, for findings
    line: int | None
    id: str  # unique in the corpus, stable from one import to the next
    split: Split | None  # the authors' split; None: drawn from `group`
    domain: str
    transcript: str
    slots: tuple[SlotValue, ...]  # in order of mention where the corpus says it
    audio: AudioSource
    context: tuple[Turn, ...] = ()  # previous turns, oldest first
    speaker: str = ""
    dialogue: str = ""  # that the turn belongs to, where the corpus names it

    @property
    def group(self) -> str:
        """What decides on the split where there is none: rows of one dialogue, or of one sentence, are never drawn into two."""
        return self.dialogue or plain_sentence(self.transcript)


class Unusable(Exception):
    """A row, or a part of one, that cannot be used; the message is the problem."""

    def __init__(self, kind: str, field: str | None, problem: str, remedy: str = "restore the authors' file") -> None:
        super().__init__(problem)
        self.kind, self.field, self.problem, self.remedy = kind, field, problem, remedy

    def finding(self, at: Location, within: str = "") -> Finding:
        """The error of the row; `within`: what its field lies below."""
        return at.error(self.kind, f"{within}{self.field or ''}" or None, self.problem, self.remedy)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One corpus format."""

    name: str  # as on the command line: "slurp"
    title: str  # as people write it: "SLURP"
    licence: str  # of the corpus, for the summary
    read: Callable[[Path], Iterator[SourceRow | Finding]]
    """Rows in the order of the files, and a Finding for each row that cannot be used; good rows are never lost because of bad ones. Raises
    `CorpusError` before the first row when the folder is not this corpus, naming the file that is looked for."""
    descriptions: Mapping[str, str] = field(default_factory=dict)  # of labels, where the name alone does not say it
    read_ontology: Callable[[Path], Ontology | None] = lambda root: (
        None
    )  # where the corpus brings one; else it is built from the rows


def plain_slot(label: str, value: str) -> SlotValue:
    """A slot of a corpus that knows one form of a value: the words of its transcript."""
    return SlotValue(label=label, spoken=value, surface=value, canonical=value)


def draw_split(group: str) -> Split:
    """The split of a group that has none: 80 % train, 10 % validation, 10 % test, by a hash of the group's name, so that it never changes."""
    place = int.from_bytes(hashlib.sha256(f"slotgrid split|{group}".encode()).digest()[:8]) / 2**64
    return "train" if place < 0.8 else "validation" if place < 0.9 else "test"
