"""What the commands on corpora share: a corpus by its name in the store or by its folder, and the number of processes that work on it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from data.executors import Executor, ProcessExecutor, SerialExecutor
from data.manifest import CORPUS_FILE, CorpusError
from orchestrator.layout import DEFAULT_STORE, Store, open_store

SubParsers = argparse._SubParsersAction  # what `add_subparsers` returns; argparse gives the class no public name


def add_store(parser: argparse.ArgumentParser, option: str = "--store") -> None:
    """The option that says which store; its value is a path, see `orchestrator.layout.open_store`."""
    parser.add_argument(
        option,
        dest="store",
        default=os.environ.get("SLOTGRID_STORE", str(DEFAULT_STORE)),
        metavar="STORE",
        help="folder of everything (default: SLOTGRID_STORE, else ./runs)",
    )


def add_corpus(parser: argparse.ArgumentParser) -> None:
    """The argument CORPUS and the option --store: what `find_corpus` reads."""
    parser.add_argument("corpus", metavar="CORPUS", help="a corpus of the store by name, or a corpus folder")
    add_store(parser)


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


def corpus_of(options: argparse.Namespace) -> Path:
    """`find_corpus` of a parsed command line."""
    return find_corpus(options.corpus, open_store(options.store))


def add_workers(parser: argparse.ArgumentParser) -> None:
    """The option --workers: what `executor_of` reads."""
    parser.add_argument("--workers", type=int, metavar="K", help="processes (default: one per core)")


def executor_of(options: argparse.Namespace) -> Executor:
    """Who does the work. Raises ValueError for fewer workers than one."""
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers: {options.workers} is too few; give at least 1")
    return SerialExecutor() if options.workers == 1 else ProcessExecutor(options.workers)
