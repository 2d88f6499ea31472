"""The console script `slotgrid`: work outside any experiment file: `slotgrid data synthesize`, `slotgrid listening`.

Exit codes as for experiments: 0 done, 2 a usage or data error told in one line, 3 interrupted with the command that resumes.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.markup import escape

from data.records import SPLITS
from orchestrator.cli import OneLineParser, report_error
from orchestrator.terminal import open_console
from orchestrator.verbs import EXIT_DONE, EXIT_INTERRUPTED


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
    areas = parser.add_subparsers(required=True, metavar="data|listening", parser_class=OneLineParser)
    data = areas.add_parser("data", help="corpora", allow_abbrev=False)
    verbs = data.add_subparsers(required=True, metavar="synthesize", parser_class=OneLineParser)
    synthesize = verbs.add_parser(
        "synthesize",
        help="write a synthetic call-centre corpus",
        description="Voice a synthetic call-centre corpus with gold slots and reasoning traces. Running again resumes.",
        allow_abbrev=False,
    )
    synthesize.add_argument(
        "--examples", type=int, required=True, metavar="N", help="over all splits, 80/5/8/4/3 percent"
    )
    synthesize.add_argument("--out", type=Path, required=True, metavar="DIR", help="the corpus folder")
    synthesize.add_argument("--seed", type=int, default=0, help="another seed is another corpus (default: 0)")
    synthesize.add_argument("--workers", type=int, metavar="K", help="processes (default: one per core)")
    synthesize.set_defaults(act=synthesize_corpus)
    listening = areas.add_parser(
        "listening",
        help="does the best trial of a run listen, or guess from the prompt?",
        description="Score a finished trial once more untrained, and with the audio of the test utterances shuffled.",
        allow_abbrev=False,
    )
    listening.add_argument("run", type=Path, metavar="RUN", help="a run folder, e.g. runs/grid-tiny")
    listening.add_argument("--trial", metavar="ID", help="which trial (default: the one with the best score)")
    listening.set_defaults(act=show_listening)
    return parser


def synthesize_corpus(options: argparse.Namespace) -> int:
    """`slotgrid data synthesize`: the corpus with a progress bar, what it holds, and what to do next."""
    from data.callcentre.synthesize import SyntheticCorpusConfig, synthesize
    from data.executors import Executor, ProcessExecutor, SerialExecutor
    from orchestrator.progress import stage_progress

    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers: {options.workers} is too few; give at least 1")
    config = SyntheticCorpusConfig.of_size(options.examples, options.seed)
    executor: Executor = SerialExecutor() if options.workers == 1 else ProcessExecutor(options.workers)
    console = open_console()
    with stage_progress(console, f"voicing {config.examples:,} utterances") as on_progress:
        corpus = synthesize(options.out, config=config, executor=executor, on_progress=on_progress)
    seconds = sum(row.example.duration_s for row in corpus.examples)
    splits = ", ".join(f"{config.count(split)} {split}" for split in SPLITS)
    lines = (
        f"{len(corpus.examples)} examples ({splits}), {seconds / 3600:.2f} h of speech, fingerprint {corpus.fingerprint[:12]}",
        f"next: look at {options.out / 'manifest.jsonl'}, listen to {options.out / 'audio'}; "
        "experiments make the corpus of their scale by themselves",
    )
    for line in lines:
        console.print(escape(line), soft_wrap=True)
    return EXIT_DONE


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


if __name__ == "__main__":
    sys.exit(main())
