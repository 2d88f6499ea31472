"""`slotgrid listening RUN`: does the best trial of a run listen, or guess from the prompt?"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.markup import escape

from orchestrator.commands.corpora import SubParsers
from orchestrator.terminal import open_console
from orchestrator.verbs import EXIT_DONE


def add_command(areas: SubParsers) -> None:
    """The options of `slotgrid listening`."""
    parser = areas.add_parser(
        "listening",
        help="does the best trial of a run listen, or guess from the prompt?",
        description="Score a finished trial once more untrained, and with the audio of the test utterances shuffled.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, e.g. runs/grid-tiny")
    parser.add_argument("--trial", metavar="ID", help="which trial (default: the one with the best score)")
    parser.set_defaults(act=show_listening)


def show_listening(options: argparse.Namespace) -> int:
    """`slotgrid listening`: a trial's test score beside its two controls."""
    from orchestrator.listening import check_listening

    console = open_console()
    with console.status("scoring the controls"):
        listening = check_listening(options.run, options.trial)
    lines = (
        f"{listening.trial_id}, partial F1 on test: {listening.trained:.3f}",
        f"  untrained:      {listening.untrained:.3f}",
        f"  audio shuffled: {listening.shuffled:.3f} ({listening.lost:.0%} of the score is gone)",
        f"next: {options.run / 'report.md'} holds the comparison of all trials",
    )
    for line in lines:
        console.print(escape(line), soft_wrap=True)
    return EXIT_DONE
