"""`slotgrid data validate`: check a manifest, tell every bad row, and put the good rows and the bad ones into two files."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from orchestrator.commands.corpora import SubParsers, add_store, add_workers, executor_of
from orchestrator.corpora import find_corpus
from orchestrator.layout import open_store
from orchestrator.terminal import open_console
from orchestrator.verbs import EXIT_DONE, EXIT_ERROR

if TYPE_CHECKING:
    from data.validate import ValidationReport

_PRINTED = 200  # findings; errors come first


def add_command(verbs: SubParsers) -> None:
    """The options of `slotgrid data validate`."""
    parser = verbs.add_parser(
        "validate",
        help="check a manifest, yours or a corpus's",
        description="Tell every bad row of a manifest with its remedy. The manifest stays as it is; good rows and rejected ones are written "
        "to a folder beside it. Exit code 2 when a row is rejected.",
        allow_abbrev=False,
    )
    help_ = "a manifest.jsonl, the folder that holds it, or a corpus of the store by its name"
    parser.add_argument("manifest", metavar="MANIFEST", help=help_)
    add_store(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where manifest.jsonl (good rows) and rejected.jsonl go (default: the folder validated/ beside the manifest)",
    )
    parser.add_argument(
        "--ontology", type=Path, metavar="FILE", help="the labels of every domain (default: ontology.json beside it)"
    )
    parser.add_argument(
        "--allow-shared-sentences",
        action="store_true",
        help="a sentence that stands in two splits is a warning, not an error",
    )
    parser.add_argument(
        "--decode-audio", action="store_true", help="decode every sound too: slower, finds damaged and silent ones"
    )
    add_workers(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON, all findings in it")
    parser.set_defaults(act=validate_manifest)


def validate_manifest(options: argparse.Namespace) -> int:
    """`slotgrid data validate`: the findings, a summary by kind, and what to do next. Exit code 2 when there is an error."""
    from data.validate import validate
    from orchestrator.progress import stage_progress

    console = open_console()
    with stage_progress(open_console(file=sys.stderr) if options.json else console, "checking") as on_progress:
        report = validate(
            _manifest_of(options),
            out=options.out,
            ontology=options.ontology,
            allow_shared_sentences=options.allow_shared_sentences,
            decoder=executor_of(options) if options.decode_audio else None,
            on_progress=on_progress,
        )
    if options.json:
        sys.stdout.write(json.dumps(_report_to_json(report), indent=1, ensure_ascii=False) + "\n")
    else:
        _print_report(report, console)
    return EXIT_ERROR if report.errors else EXIT_DONE


def _manifest_of(options: argparse.Namespace) -> Path:
    """A path that exists, or looks like one; else the corpus of that name. Raises CorpusError."""
    path = Path(options.manifest).expanduser()
    is_path = path.exists() or path.name != options.manifest
    return path if is_path else find_corpus(options.manifest, open_store(options.store))


def _print_report(report: ValidationReport, console: Console) -> None:
    def tell(line: str) -> None:
        console.print(escape(line), soft_wrap=True)

    findings = [*report.errors, *report.warnings]
    for finding in findings[:_PRINTED]:
        tell(f"{finding.severity}: {finding}")
    if len(findings) > _PRINTED:
        tell(
            f"and {len(findings) - _PRINTED:,} more: rejected rows are in {report.rejected_file}, --json prints every finding"
        )
    for (severity, kind), count in Counter((found.severity, found.kind) for found in findings).most_common():
        tell(f"{count:>8,}  {severity:<7}  {kind}")
    splits = ", ".join(f"{count:,} {split}" for split, count in report.splits.items())
    tell(
        f"{report.rows:,} rows: {report.good:,} good{f' ({splits})' if splits else ''}, {report.rows - report.good:,} rejected"
    )
    tell(f"good rows: {report.good_file}; rejected rows: {report.rejected_file}")
    folder = report.manifest.parent
    if report.finished:
        remedy = (
            "restore the corpus, or write it again"
            if report.errors
            else f"slotgrid data stats {shlex.quote(str(folder))}"
        )
    elif report.errors or "split-absent" in report.by_kind:
        remedy = f"correct {report.manifest} and validate again; an import leaves the rejected rows out"
    else:
        remedy = f"slotgrid data import jsonl {shlex.quote(str(folder))} --name NAME"
    tell(f"next: {remedy}")


def _report_to_json(report: ValidationReport) -> dict[str, Any]:
    from data.validate import finding_to_json

    return {
        "manifest": str(report.manifest),
        "good_file": str(report.good_file),
        "rejected_file": str(report.rejected_file),
        "rows": report.rows,
        "good": report.good,
        "rejected": report.rows - report.good,
        "splits": dict(report.splits),
        "by_kind": report.by_kind,
        "findings": [
            {"file": str(finding.file), "line": finding.line, "id": finding.example_id, **finding_to_json(finding)}
            for finding in report.findings
        ],
    }
