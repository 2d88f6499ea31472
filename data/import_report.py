"""Turns a folder that `data.importing` finished into the report of the import: what every split holds, and what was left out and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data.atomic import iter_whole_lines
from data.manifest import Corpus, corpus_summary, open_corpus
from data.records import SPLITS, Example, Split

REJECTED_FILE = "rejected.jsonl"
WARNINGS_FILE = "warnings.jsonl"


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """What one split of an imported corpus holds."""

    examples: int
    hours: float
    labels: int  # that are filled at least once
    domains: int


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """The rows that one kind of defect kept out."""

    rows: int  # or files, where whole ones cannot be read
    first: str  # of them: where it stands and what is wrong; empty when somebody has removed `rejected.jsonl`


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What an import gave and what it left out."""

    corpus: Corpus
    splits: Mapping[Split, SplitSummary]  # those that hold examples
    dropped: Mapping[str, Dropped]  # by kind of finding, the most frequent first
    warnings: Mapping[str, int]  # by kind of finding

    @property
    def rejected(self) -> Path:
        """One line for every finding that kept its row out."""
        return self.corpus.root / REJECTED_FILE

    @property
    def warned(self) -> Path:
        """One line for every warning of a row that is kept."""
        return self.corpus.root / WARNINGS_FILE


def read_report(root: Path) -> ImportReport:
    """The report of a finished import, from its files."""
    corpus, summary = open_corpus(root), corpus_summary(root)
    examples = [row.example for row in corpus.examples]
    splits = {}
    for split in SPLITS:
        if rows := [example for example in examples if example.split == split]:
            splits[split] = SplitSummary(
                examples=len(rows),
                hours=hours(rows, split),
                labels=len({slot.label for row in rows for slot in row.slots}),
                domains=len({row.domain for row in rows}),
            )
    first: dict[str, str] = {}
    for row in iter_whole_lines(root / REJECTED_FILE) if (root / REJECTED_FILE).exists() else ():
        where = row["file"] + (f", line {row['line']}" if row["line"] else "")
        where += f", field {row['field']}" if row["field"] else ""
        first.setdefault(row["kind"], f"{where}: {row['problem']}")
    dropped = {kind: Dropped(rows=rows, first=first.get(kind, "")) for kind, rows in summary["dropped"].items()}
    return ImportReport(corpus=corpus, splits=splits, dropped=dropped, warnings=summary["warnings"])


def hours(examples: Iterable[Example], split: Split) -> float:
    """The length of one split's speech, unrounded."""
    return sum(example.duration_s for example in examples if example.split == split) / 3600
