"""`slotgrid data import`: a corpus as its authors distribute it -> a corpus of the store, and a summary of what it holds and what was left out."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from data.readers.registry import READERS
from orchestrator.commands.corpora import SubParsers, add_store, add_workers, executor_of, store_words
from orchestrator.layout import open_store
from orchestrator.terminal import open_console
from orchestrator.verbs import EXIT_DONE

if TYPE_CHECKING:
    from data.import_report import ImportReport

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def add_command(verbs: SubParsers) -> None:
    """The options of `slotgrid data import`."""
    parser = verbs.add_parser(
        "import",
        help="bring a public corpus or your own",
        description="Read a corpus, check it, and write it to the store with its sound at 16 kHz. Running again resumes.",
        allow_abbrev=False,
    )
    parser.add_argument("format", choices=sorted(READERS), metavar="FORMAT", help=", ".join(sorted(READERS)))
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the folder that the corpus was unpacked into")
    add_store(parser, "--out")
    parser.add_argument("--name", metavar="NAME", help="what the corpus is called from now on (default: FORMAT)")
    parser.add_argument(
        "--ontology", type=Path, metavar="FILE", help="labels and descriptions (default: those of the corpus)"
    )
    parser.add_argument(
        "--allow-shared-sentences",
        action="store_true",
        help="keep a sentence that stands in two splits, with a warning",
    )
    add_workers(parser)
    parser.set_defaults(act=import_to_store)


def import_to_store(options: argparse.Namespace) -> int:
    """`slotgrid data import`: the corpus with a progress bar, what it holds, what was left out, and what to do next."""
    from data.importing import import_corpus
    from data.manifest import read_ontology
    from orchestrator.progress import stage_progress

    name = options.format if options.name is None else options.name
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"--name: {name!r} is no corpus name; use lower-case letters, digits, - and _, as in {options.format}"
        )
    reader, store = READERS[options.format], open_store(options.store)
    console = open_console()
    with stage_progress(console, f"importing {reader.title}") as on_progress:
        report = import_corpus(
            store.corpora / name,
            reader=reader,
            source=options.source.expanduser(),
            executor=executor_of(options),
            name=name,
            ontology=read_ontology(options.ontology) if options.ontology else None,
            allow_shared_sentences=options.allow_shared_sentences,
            on_progress=on_progress,
        )
    _print_report(report, console)
    made = f"{report.corpus.root}, fingerprint {report.corpus.fingerprint[:12]}; licence: {reader.licence}"
    console.print(escape(made), soft_wrap=True)
    where = store_words(options)
    for command in (
        f"slotgrid data stats {name}{where}",
        f"slotgrid data annotate {name}{where}",
        f"python experiments/grid.py plan --corpus {name}{where}",
    ):
        console.print(escape(f"next: {command}"), soft_wrap=True)
    return EXIT_DONE


def _print_report(report: ImportReport, console: Console) -> None:
    splits = Table("split", "examples", "hours", "labels", "domains", box=None, pad_edge=False)
    for column in splits.columns[1:]:
        column.justify = "right"
    for split, held in report.splits.items():
        splits.add_row(split, f"{held.examples:,}", f"{held.hours:.3f}", f"{held.labels:,}", f"{held.domains:,}")
    console.print(splits)
    if report.dropped:
        dropped = Table("dropped", "kind", "the first of them", box=None, pad_edge=False)
        dropped.columns[0].justify = "right"
        for kind, lost in report.dropped.items():
            dropped.add_row(f"{lost.rows:,}", kind, Text(lost.first))
        console.print(dropped)
        console.print(escape(f"each is a line of {report.rejected}"), soft_wrap=True)
    if report.warnings:
        kinds = ", ".join(f"{rows:,} {kind}" for kind, rows in report.warnings.items())
        console.print(escape(f"rows kept with a warning: {kinds}; each is a line of {report.warned}"), soft_wrap=True)
