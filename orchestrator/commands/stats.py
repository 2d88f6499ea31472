"""`slotgrid data stats`: what is in a corpus, as tables, stats.json and a sheet to look at."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.atomic import write_json
from data.manifest import open_corpus
from orchestrator.commands.corpora import SubParsers, add_corpus, corpus_of, store_words
from orchestrator.corpus_sheet import draw_sheet
from orchestrator.corpus_stats import SAMPLE, CorpusStats, SplitStats, Spread, measure_corpus
from orchestrator.terminal import open_console
from orchestrator.verbs import EXIT_DONE

STATS_FILE = "stats.json"
SHEET_FILE = "stats.png"
_LABELS = 25  # rows printed; stats.json has all


def add_command(verbs: SubParsers) -> None:
    """The options of `slotgrid data stats`."""
    parser = verbs.add_parser(
        "stats",
        help="hours, lengths, labels, values and target lengths of a corpus",
        description="Show what is in a corpus: hours, lengths, labels, values, target lengths in tokens. Reads no audio, downloads nothing.",
        allow_abbrev=False,
    )
    add_corpus(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"where {STATS_FILE} and {SHEET_FILE} go (default: the corpus folder)"
    )
    parser.add_argument(
        "--sample", type=int, default=SAMPLE, metavar="N", help=f"examples whose tokens are counted (default: {SAMPLE})"
    )
    parser.add_argument("--json", action="store_true", help="print the statistics as JSON")
    parser.set_defaults(act=show_stats)


def show_stats(options: argparse.Namespace) -> int:
    """`slotgrid data stats`: measure, write both files, print the tables and what to do next."""
    if options.sample < 1:
        raise ValueError(f"--sample: {options.sample} is too few; give at least 1")
    root = corpus_of(options)
    corpus = open_corpus(root)
    stats = measure_corpus(corpus, sample=options.sample)
    folder: Path = options.out or root
    write_json(folder / STATS_FILE, asdict(stats))
    draw_sheet(folder / SHEET_FILE, corpus, stats)
    if options.json:
        sys.stdout.write(json.dumps(asdict(stats), indent=1, ensure_ascii=False) + "\n")
        return EXIT_DONE
    console = open_console()
    print_stats(stats, console)
    lines = [f"written: {folder / STATS_FILE}, {folder / SHEET_FILE}", f"next: look at {folder / SHEET_FILE}"]
    train = next((part for part in stats.splits if part.split == "train"), None)
    if train and train.with_trace < train.examples:
        missing = train.examples - train.with_trace
        command = f"slotgrid data annotate {shlex.quote(options.corpus)}{store_words(options)}"
        lines[1] += f"; {missing:,} training examples have no reasoning trace: {command}"
    for line in lines:
        console.print(escape(line), soft_wrap=True)
    return EXIT_DONE


def print_stats(stats: CorpusStats, console: Console) -> None:
    """The tables."""
    title = (
        f"{stats.name}: {stats.examples:,} examples, {stats.hours:,.2f} h, {stats.with_trace:,} with a reasoning trace"
    )
    console.print(escape(title), soft_wrap=True)
    console.print(_splits_table(stats))
    console.print(_lengths_table(stats))
    console.print(_counts_table(stats))
    console.print(_labels_table(stats))
    if (more := len(stats.labels) - _LABELS) > 0:
        console.print(f"and {more} more labels in {STATS_FILE}")
    console.print(_tokens_table(stats))
    if absent := [part.foundation for part in stats.tokens if part.direct_target is None]:
        console.print(f"not here, so not counted: {', '.join(absent)}")


def _splits_table(stats: CorpusStats) -> Table:
    table = _table(
        "split", "examples", "hours", "speakers", "domains", "traces", "slots", "distinct values", "unseen in train"
    )
    for part in stats.splits:
        unseen = "-"
        if part.unseen_values is not None and part.unseen_slots is not None and part.slots:
            unseen = f"{part.unseen_values:,} ({part.unseen_slots / part.slots:.0%} of slots)"
        table.add_row(
            part.split,
            f"{part.examples:,}",
            f"{part.hours:.2f}",
            _speakers(part),
            f"{len(part.domains)}",
            f"{part.with_trace:,}",
            f"{part.slots:,}",
            f"{part.values:,}",
            unseen,
        )
    return table


def _speakers(part: SplitStats) -> str:
    if not part.speakers:
        return "-"
    return f"{part.speakers:,}" + (f" ({part.train_speakers:,} of train)" if part.train_speakers else "")


def _lengths_table(stats: CorpusStats) -> Table:
    table = _table("length", "split", "mean", "least", "5 %", "median", "95 %", "most")
    for part in stats.splits:
        table.add_row("duration, s", part.split, *_spread(part.duration_s, 1))
    for part in stats.splits:
        table.add_row("transcript, words", part.split, *_spread(part.transcript_words))
    for part in stats.splits:
        table.add_row("audio tokens", part.split, *_spread(part.audio_tokens))
    return table


def _counts_table(stats: CorpusStats) -> Table:
    """How many examples have how many previous turns and slots: "0: 38, 1: 53"."""
    table = _table("split", "examples by previous turns", "examples by slots")
    for part in stats.splits:
        counts = (part.context_turns, part.slots_per_example)
        table.add_row(part.split, *(", ".join(f"{n}: {often:,}" for n, often in count.items()) for count in counts))
    return table


def _labels_table(stats: CorpusStats) -> Table:
    table = _table("label", "slots", "distinct values")
    for label in stats.labels[:_LABELS]:
        table.add_row(escape(label.label), f"{label.count:,}", f"{label.values:,}")
    return table


def _tokens_table(stats: CorpusStats) -> Table:
    table = _table(
        "foundation", f"tokens of {stats.sample:,} examples", "mean", "least", "5 %", "median", "95 %", "most"
    )
    for part in stats.tokens:
        for name, spread in (
            ("prompt", part.prompt),
            ("answer at once", part.direct_target),
            ("reasoning trace and answer", part.think_target),
        ):
            if spread:
                table.add_row(part.foundation, name, *_spread(spread))
    return table


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        named = column in ("split", "length", "label", "foundation") or column.startswith(("tokens of", "examples by"))
        table.add_column(column, justify="left" if named else "right")
    return table


def _spread(spread: Spread, digits: int = 0) -> list[str]:
    rest = (spread.least, spread.p05, spread.median, spread.p95, spread.most)
    return [f"{spread.mean:.1f}", *(f"{number:.{digits}f}" for number in rest)]
