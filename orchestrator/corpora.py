"""The corpus of a grid: the synthetic one of its scale, made when it is missing, or a finished corpus that somebody imported.

Reads `corpus.json` only: declaring and planning open no manifest and no audio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.callcentre.synthesize import CORPUS_NAME, SyntheticCorpusConfig
from data.manifest import CORPUS_FILE, NEEDED_SPLITS, TRACES_FILE, CorpusError, corpus_summary
from data.records import SPLITS, Split
from model.configs import CorpusRef
from orchestrator.layout import Store


@dataclass(frozen=True, kw_only=True)
class ImportedCorpus:
    """A finished corpus folder. The grid reads it and never writes to it."""

    root: Path
    ref: CorpusRef  # with the traces that are attached at the moment
    counts: Mapping[Split, int]  # examples per split
    has_traces: bool
    without_trace: int  # examples whose trace was refused; a mode that thinks does not train on them

    def count(self, split: Split) -> int:
        """How many examples a split has."""
        return self.counts.get(split, 0)

    @property
    def examples(self) -> int:
        """How many examples there are over all splits."""
        return sum(self.counts.values())

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that have examples."""
        return tuple(split for split in SPLITS if self.count(split))


GridCorpus = SyntheticCorpusConfig | ImportedCorpus


def corpus_ref(corpus: GridCorpus) -> CorpusRef:
    """The corpus as a trial's identity names it, traces included."""
    if isinstance(corpus, ImportedCorpus):
        return corpus.ref
    return CorpusRef(name=CORPUS_NAME, fingerprint=corpus.fingerprint())


def corpus_folder(corpus: GridCorpus, store: Store) -> Path:
    """Where the corpus lies, or will lie when it has been made."""
    return corpus.root if isinstance(corpus, ImportedCorpus) else store.corpus(corpus_ref(corpus))


def find_corpus(corpus: str, store: Store) -> Path:
    """The folder of a finished corpus: `corpus` is a folder, or a name in the store. Raises CorpusError that lists what the store has."""
    for folder in (Path(corpus).expanduser(), store.corpora / corpus):
        if (folder / CORPUS_FILE).is_file():
            return folder.absolute()
    there = sorted(path.parent.name for path in store.corpora.glob(f"*/{CORPUS_FILE}"))
    known = f"the store has {', '.join(there)}" if there else "the store has none"
    raise CorpusError(
        f"{corpus}: is no corpus folder and no corpus of {store.root} ({known}); `slotgrid data import --help` says how to make one"
    )


def describe_corpus(root: Path) -> ImportedCorpus:
    """A finished corpus as a grid's corpus. Raises CorpusError when it lacks a split that every trial needs."""
    summary = corpus_summary(root)
    splits = summary.get("splits") or {}
    counts = {split: int(splits.get(split, 0)) for split in SPLITS}
    if empty := [split for split in NEEDED_SPLITS if not counts[split]]:
        raise CorpusError(
            f"{root / CORPUS_FILE}, field splits: no example in {' and '.join(empty)}; a grid trains, validates and tests: import it again "
            "with these splits filled"
        )
    traces: Mapping[str, Any] = summary.get("traces") or {}
    file = root / traces.get("file", TRACES_FILE)
    return ImportedCorpus(
        root=root,
        ref=CorpusRef(name=summary["name"], fingerprint=summary["fingerprint"], traces=traces.get("fingerprint")),
        counts=counts,
        has_traces=file.is_file() and file.stat().st_size > 0,
        without_trace=int(traces.get("quarantined", 0)),
    )
