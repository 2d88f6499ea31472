"""`slotgrid data synthesize`: write a synthetic call-centre corpus."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.markup import escape

from data.records import SPLITS
from orchestrator.commands.corpora import SubParsers, add_workers, executor_of
from orchestrator.terminal import open_console
from orchestrator.verbs import EXIT_DONE


def add_command(verbs: SubParsers) -> None:
    """The options of `slotgrid data synthesize`."""
    parser = verbs.add_parser(
        "synthesize",
        help="write a synthetic call-centre corpus",
        description="Voice a synthetic call-centre corpus with gold slots and reasoning traces. Running again resumes.",
        allow_abbrev=False,
    )
    parser.add_argument("--examples", type=int, required=True, metavar="N", help="over all splits, 80/5/8/4/3 percent")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the corpus folder")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another corpus (default: 0)")
    add_workers(parser)
    parser.set_defaults(act=synthesize_corpus)


def synthesize_corpus(options: argparse.Namespace) -> int:
    """`slotgrid data synthesize`: the corpus with a progress bar, what it holds, and what to do next."""
    from data.callcentre.synthesize import SyntheticCorpusConfig, synthesize
    from orchestrator.progress import stage_progress

    config = SyntheticCorpusConfig.of_size(options.examples, options.seed)
    executor = executor_of(options)
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
