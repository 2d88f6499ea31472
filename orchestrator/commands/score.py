"""`slotgrid score`: score anyone's file of predictions, and see where it goes wrong."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.commands.corpora import SubParsers
from orchestrator.terminal import open_console
from orchestrator.verbs import EXIT_DONE, EXIT_ERROR

SCORES_FILE, ERRORS_FILE = "scores.json", "errors.jsonl"

_SHOWN_ROWS = 20  # of a breakdown; scores.json has all
_SHOWN_DEFECTS = 20
_COUNTS = ("examples", "references", "predicted")


def add_command(areas: SubParsers) -> None:
    """The options of `slotgrid score`."""
    parser = areas.add_parser(
        "score",
        help="score a file of predictions",
        description=(
            "Score predictions against references: partial match, exact and SLU-F1, per label and domain, and every kind of error. "
            "Reads a trial's predictions-<mode>.jsonl, SLURP's files, and lines of {id, slots}. docs/metric.md defines the scores."
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "--predictions", type=Path, required=True, metavar="FILE", help="what was predicted, JSON lines"
    )
    parser.add_argument(
        "--references",
        type=Path,
        metavar="FILE",
        help="what was to be found; a trial's predictions hold it, and take a corpus manifest.jsonl for the domains",
    )
    parser.add_argument(
        "--format",
        choices=("auto", "slotgrid", "slurp", "jsonl"),
        default="auto",
        help="of the predictions (default: auto, by the first line)",
    )
    parser.add_argument("--split", metavar="NAME", help="of a trial's predictions (default: test)")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"write {SCORES_FILE} and {ERRORS_FILE} here")
    parser.add_argument("--json", action="store_true", help=f"{SCORES_FILE} on standard output, and nothing else")
    parser.set_defaults(act=score_predictions)


def score_predictions(options: argparse.Namespace) -> int:
    """`slotgrid score`: the tables, and the files where they are asked for. Defects of the files are told one a line."""
    from data.atomic import write_json, write_jsonl
    from data.score_files import DefectsError, read_cases
    from data.score_sheet import build_sheet, iter_errors

    file_format = None if options.format == "auto" else options.format
    try:
        case_set = read_cases(options.predictions, options.references, file_format=file_format, split=options.split)
    except DefectsError as error:
        return _tell_defects(error.findings)
    sheet = build_sheet(case_set)
    if options.out:
        write_json(options.out / SCORES_FILE, sheet)
        write_jsonl(options.out / ERRORS_FILE, iter_errors(case_set))
    if options.json:
        sys.stdout.write(json.dumps(sheet, indent=1, ensure_ascii=False) + "\n")
        return EXIT_DONE
    console = open_console()
    _print_sheet(console, sheet)
    _say(console, _next_line(options))
    return EXIT_DONE


def _tell_defects(findings: list[Any]) -> int:
    shown = [f"{finding}" for finding in findings[:_SHOWN_DEFECTS]]
    if len(findings) > len(shown):
        shown.append(f"and {len(findings) - len(shown)} more")
    sys.stderr.write("".join(f"{line}\n" for line in [*shown, f"nothing was scored: {len(findings)} defects"]))
    return EXIT_ERROR


def _print_sheet(console: Console, sheet: Mapping[str, Any]) -> None:
    for warning in sheet["warnings"]:
        _say(console, f"warning: {warning}")
    title = f"{sheet['examples']} examples, {sheet['answered']} answered; format {sheet['format']}, metric version {sheet['metric_version']}"
    _say(console, title)
    scores = Table("score", "value")
    for name, value in sheet["scores"].items():
        scores.add_row(escape(name), _number(name, value))
    console.print(scores)
    if "official_script" in sheet:
        console.print(_official_table(sheet["official_script"]))
    _print_breakdown(console, "label", sheet["per_label"])
    _print_breakdown(console, "domain", sheet["per_domain"])
    outcomes = Table("what became of the values", "count")
    for kind, count in sheet["outcomes"].items():
        outcomes.add_row(kind.replace("_", " "), str(count))
    console.print(outcomes)


def _official_table(official: Mapping[str, Any]) -> Table:
    """What SLURP's own script would print for the same files."""
    table = Table(f"SLURP's script, {official['examples']} answered", "precision", "recall", "F1")
    for name, value in official.items():
        if isinstance(value, float):
            table.add_row(name, *[f"{value:.4f}"] * 3)
        elif isinstance(value, dict):
            table.add_row(name, *(f"{value[part]:.4f}" for part in ("precision", "recall", "f1")))
    return table


def _print_breakdown(console: Console, what: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """The rows with the most references, as many as fit a screen."""
    if not rows:
        return
    columns = list(next(iter(rows.values())))
    table = Table(what, *(column.replace("_", " ") for column in columns))
    ordered = sorted(rows, key=lambda name: (-rows[name]["references"], name))
    for name in ordered[:_SHOWN_ROWS]:
        table.add_row(escape(name), *(_number(column, rows[name][column]) for column in columns))
    console.print(table)
    if len(ordered) > _SHOWN_ROWS:
        _say(console, f"and {len(ordered) - _SHOWN_ROWS} more {what}s with fewer references; --json has all")


def _number(name: str, value: float) -> str:
    return str(value) if name in _COUNTS else f"{value:.4f}"


def _next_line(options: argparse.Namespace) -> str:
    if options.out:
        return (
            f"next: look at {options.out / ERRORS_FILE} for every wrong value; docs/metric.md says what the scores mean"
        )
    return "next: add --out DIR to get every wrong value; docs/metric.md says what the scores mean"


def _say(console: Console, text: str) -> None:
    console.print(escape(text), soft_wrap=True)
