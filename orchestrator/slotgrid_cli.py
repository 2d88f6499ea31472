"""The console script `slotgrid`: work outside any experiment file. Each command is a file under orchestrator/commands/ and a line here.

Exit codes as for experiments: 0 done, 2 a usage or data error told in one line, 3 interrupted with the command that resumes.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.cli import OneLineParser, report_error
from orchestrator.commands import (
    annotate,
    export,
    import_corpus,
    listening,
    predict,
    score,
    stats,
    synthesize,
    validate,
)
from orchestrator.verbs import EXIT_INTERRUPTED

AddCommand = Callable[[Any], None]
_DATA: tuple[AddCommand, ...] = (
    import_corpus.add_command,
    validate.add_command,
    annotate.add_command,
    stats.add_command,
    synthesize.add_command,
)
_AREAS: tuple[AddCommand, ...] = (
    score.add_command,
    listening.add_command,
    export.add_command,
    predict.add_command,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks for and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser().parse_args(arguments)
        act: Callable[[argparse.Namespace], int] = options.act
        return act(options)
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted; to resume: {shlex.join(['slotgrid', *arguments])}\n")
        return EXIT_INTERRUPTED
    except (ValueError, OSError) as error:
        return report_error(error)


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="slotgrid", description="Work on slotgrid's data and runs.", allow_abbrev=False)
    areas = parser.add_subparsers(required=True, parser_class=OneLineParser)
    data = areas.add_parser("data", help="corpora", description="Make, check and look at corpora.", allow_abbrev=False)
    verbs = data.add_subparsers(required=True, parser_class=OneLineParser)
    for add_command in _DATA:
        add_command(verbs)
    for add_command in _AREAS:
        add_command(areas)
    for parsers in (areas, verbs):
        parsers.metavar = "|".join(parsers.choices)  # what a missing or wrong command is told
    return parser


if __name__ == "__main__":
    sys.exit(main())
