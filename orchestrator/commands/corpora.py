"""What the commands on corpora share: a corpus by its name in the store or by its folder, and the number of processes that work on it."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from data.executors import Executor, ProcessExecutor, SerialExecutor
from orchestrator.corpora import find_corpus
from orchestrator.layout import DEFAULT_STORE, open_store

SubParsers = argparse._SubParsersAction  # what `add_subparsers` returns; argparse gives the class no public name


def add_store(parser: argparse.ArgumentParser, *more_names: str) -> None:
    """The option --store, and other names of it: which store, a path for `orchestrator.layout.open_store`."""
    parser.add_argument(
        "--store",
        *more_names,
        default=_usual_store(),
        metavar="STORE",
        help="folder of everything (default: SLOTGRID_STORE, else ./runs)",
    )


def store_words(options: argparse.Namespace) -> str:
    """What the next command has to say of the store: nothing where it is the usual one."""
    return "" if options.store == _usual_store() else f" --store {shlex.quote(options.store)}"


def _usual_store() -> str:
    return os.environ.get("SLOTGRID_STORE", str(DEFAULT_STORE))


def add_corpus(parser: argparse.ArgumentParser) -> None:
    """The argument CORPUS and the option --store: what `corpus_of` reads."""
    parser.add_argument("corpus", metavar="CORPUS", help="a corpus of the store by name, or a corpus folder")
    add_store(parser)


def corpus_of(options: argparse.Namespace) -> Path:
    """The folder of the corpus that a command line names. Raises CorpusError."""
    return find_corpus(options.corpus, open_store(options.store))


def add_workers(parser: argparse.ArgumentParser) -> None:
    """The option --workers: what `executor_of` reads."""
    parser.add_argument("--workers", type=int, metavar="K", help="processes (default: one per core)")


def executor_of(options: argparse.Namespace) -> Executor:
    """Who does the work. Raises ValueError for fewer workers than one."""
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers: {options.workers} is too few; give at least 1")
    return SerialExecutor() if options.workers == 1 else ProcessExecutor(options.workers)
