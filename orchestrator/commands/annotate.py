"""`slotgrid data annotate`: reasoning traces for a corpus, by a language model or by rule, with their price known before and while they are made."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data.records import SPLITS
from orchestrator.commands.corpora import SubParsers, add_corpus, corpus_of, store_words
from orchestrator.progress import PLAIN_EVERY_S
from orchestrator.terminal import open_console
from orchestrator.verbs import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED

if TYPE_CHECKING:
    from data.annotation.costs import Estimate
    from data.annotation.live import OnProgress
    from data.annotation.report import AnnotationReport
    from data.annotation.settings import Where
    from data.annotation.work import Progress as AnnotationProgress

_OF_MODELS = (
    "model",
    "api",
    "base_url",
    "no_store",
    "batch",
    "concurrency",
    "timeout",
    "max_output_tokens",
    "max_cost",
    "price",
    "yes",
)
"""Options that mean nothing to the rule annotator."""


def add_command(verbs: SubParsers) -> None:
    """The options of `slotgrid data annotate`."""
    parser = verbs.add_parser(
        "annotate",
        help="write reasoning traces for a corpus",
        description=(
            "Write reasoning traces for a corpus from its transcripts and gold slots. The key is read from OPENAI_API_KEY. Whatever was paid for is "
            "kept: running again goes on where it stopped, and asks for nothing twice."
        ),
        allow_abbrev=False,
    )
    add_corpus(parser)
    add = parser.add_argument
    add(
        "--annotator",
        choices=("openai", "rule"),
        default="openai",
        help="a language model (default), or a rule: free, plainer",
    )
    add("--model", default="gpt-4o", metavar="M", help="as the server names it (default: gpt-4o)")
    add("--api", choices=("chat", "responses"), default="chat", help="chat completions (default) or responses")
    add("--base-url", metavar="URL", help="an OpenAI-compatible server (default: OPENAI_BASE_URL, else OpenAI's)")
    add(
        "--no-store",
        action="store_true",
        help="for servers that cannot keep answers: those on their way at a kill are asked for again",
    )
    add("--batch", action="store_true", help="through the Batch API: half the price, within a day")
    add("--concurrency", type=int, default=32, metavar="N", help="requests at once (default: 32)")
    add("--timeout", type=float, default=120.0, metavar="S", help="seconds to wait for one answer (default: 120)")
    add(
        "--max-output-tokens",
        type=int,
        default=1024,
        metavar="N",
        help="of one answer, hidden reasoning included (default: 1024)",
    )
    add("--max-cost", metavar="USD", help="stop before this is spent, over all runs for this corpus and annotator")
    add(
        "--price",
        nargs=2,
        metavar=("IN", "OUT"),
        help="dollars per million tokens, for models that we have no price of",
    )
    add(
        "--splits",
        nargs="+",
        choices=SPLITS,
        default=["train"],
        metavar="SPLIT",
        help="default: train; traces are not used elsewhere",
    )
    add("--limit", type=int, metavar="N", help="only the first N examples, to look at: the corpus stays as it is")
    add("--yes", action="store_true", help="do not ask before spending")
    parser.set_defaults(act=annotate_corpus, usual={name: parser.get_default(name) for name in _OF_MODELS})


def annotate_corpus(options: argparse.Namespace) -> int:
    """`slotgrid data annotate`: the estimate, the traces with a progress bar, what became of them, and what to do next."""
    from data.manifest import open_corpus

    console = open_console()
    root = corpus_of(options)
    splits = tuple(split for split in SPLITS if split in options.splits)
    if options.annotator == "rule":
        from data.annotation.report import annotate_by_rule

        if strange := [name for name in _OF_MODELS if getattr(options, name) != options.usual[name]]:
            raise ValueError(
                f"--{strange[0].replace('_', '-')}: is for language models; leave it out with --annotator rule"
            )
        folder, report = annotate_by_rule(open_corpus(root), splits, limit=options.limit)
        return _tell(console, options, folder, report)

    from data.annotation.requests import AnnotatorConfig
    from data.annotation.settings import Listener, read_key

    config = AnnotatorConfig(model=options.model, api=options.api, max_output_tokens=options.max_output_tokens)
    where = _where(options)
    read_key()  # told before the corpus is read, which may take a while
    from data.annotate import annotate

    with _progress(console, f"annotating with {config.model}") as on_progress:
        listener = Listener(
            confirm=lambda estimate: _confirm(console, options, where, estimate),
            on_progress=on_progress,
            on_note=lambda line: _say(console, f"note: {line}"),
        )
        done = annotate(open_corpus(root), config, where, splits=splits, limit=options.limit, listener=listener)
    if done is None:
        _say(console, "nothing was sent")
        return EXIT_INTERRUPTED
    return _tell(console, options, *done)


def _where(options: argparse.Namespace) -> Where:
    """Server, pace, price and limit of a command line. Raises ValueError."""
    from data.annotation.costs import Price, list_price
    from data.annotation.live import Pace
    from data.annotation.settings import DEFAULT_URL, Where

    price = list_price(options.model)
    if options.price is not None:
        tokens_in, tokens_out = (_amount("--price", text) for text in options.price)
        price = Price(tokens_in=tokens_in, tokens_out=tokens_out)
    if price is None:
        raise ValueError(
            f"--model {options.model}: we have no price of it; give --price IN OUT, dollars per million tokens (0 0 for a server of your own)"
        )
    return Where(
        url=options.base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL,
        stored=not options.no_store,
        batched=options.batch,
        pace=Pace(concurrency=options.concurrency, timeout_s=options.timeout),
        price=price,
        max_cost=None if options.max_cost is None else _amount("--max-cost", options.max_cost),
    )


def _amount(option: str, text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{option}: {text!r} is no number; give dollars, like 2.50") from None


def _confirm(console: Console, options: argparse.Namespace, where: Where, estimate: Estimate) -> bool:
    """Show what is about to be spent and ask. Raises ValueError where nobody can be asked."""
    from data.annotation.costs import PRICES_AS_OF, dollars

    way = "Batch API, half price" if where.batched else "live"
    of = "--price" if options.price else PRICES_AS_OF
    _say(console, f"{options.model} at {where.host} ({options.api}, {way}): {estimate.requests:,} examples to ask")
    _say(
        console,
        f"estimate: {estimate.tokens_in:,} tokens in, {estimate.tokens_out:,} out, {dollars(estimate.cost)} ({estimate.how}; prices: {of}); "
        "rejected answers are asked for again on top",
    )
    if estimate.spent:
        _say(console, f"spent before: {dollars(estimate.spent)}")
    if where.max_cost is not None:
        _say(console, f"limit: {dollars(where.max_cost)} over all runs, kept whatever happens")
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise ValueError("this spends money and nobody can be asked here; add --yes")
    return console.input("go on? [y/N] ", markup=False).strip().lower() in ("y", "yes")


@contextmanager
def _progress(console: Console, title: str) -> Iterator[OnProgress]:
    """A bar with tokens and dollars, gone when it ends; a line now and then where there is no terminal. It begins with the first call."""
    if console.is_terminal:
        columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
        task = bar.add_task(title, total=None)

        def show(state: AnnotationProgress) -> None:
            bar.start()  # not before the question, whose answer it would draw over
            text = escape(f"{title}: {_spent(state)}")
            bar.update(task, description=text, completed=state.done, total=state.examples)

        try:
            yield show
        finally:
            bar.stop()
    else:
        last = time.monotonic()

        def tell(state: AnnotationProgress) -> None:
            nonlocal last
            if time.monotonic() - last >= PLAIN_EVERY_S:
                last = time.monotonic()
                _say(console, f"{title}: {state.done:,} of {state.examples:,}, {_spent(state)}")

        yield tell


def _spent(state: AnnotationProgress) -> str:
    from data.annotation.costs import dollars

    tokens = f"{state.tokens_in + state.tokens_out:,} tokens, {dollars(state.cost)}"
    rejected = f", {state.rejected:,} answers rejected" if state.rejected else ""
    return tokens + rejected + (f"; waiting for {state.waiting}" if state.waiting else "")


def _tell(console: Console, options: argparse.Namespace, folder: Path, report: AnnotationReport) -> int:
    """What became of the examples, what it cost, and the next step."""
    from data.annotation.costs import dollars

    _say(
        console,
        f"{report.accepted:,} of {report.examples:,} examples have a trace ({report.accepted / report.examples:.1%})",
    )
    again = [f"{count:,} at attempt {attempt}" for attempt, count in report.accepted_at.items() if attempt != "1"]
    if again:
        _say(console, f"  accepted only after a rejected answer: {', '.join(again)}")
    if report.quarantined:
        _say(console, f"  {report.quarantined:,} quarantined, with their reasons in {folder / 'quarantined.jsonl'}")
    for name, problems in (("refused by the server", report.refused), ("not answered", report.unanswered)):
        if problems:
            example, problem = next(iter(problems.items()))
            _say(console, f"  {len(problems):,} {name}, the first {example}: {problem}")
    if report.rejections:
        _say(
            console,
            f"  rejected answers: {', '.join(f'{count:,} {kind}' for kind, count in report.rejections.items())}",
        )
    if report.answers:
        lost = (
            f", {dollars(report.of_it_lost_usd)} of it for answers that never arrived" if report.of_it_lost_usd else ""
        )
        tokens = f"{report.tokens_in:,} tokens in, {report.tokens_out:,} out"
        _say(console, f"{report.answers:,} answers over all runs: {tokens}, {dollars(report.cost_usd)}{lost}")
    corpus = f"{shlex.quote(options.corpus)}{store_words(options)}"
    if report.too_dear:
        _say(
            console,
            f"stopped before --max-cost {options.max_cost}; next: the same command with a higher one asks for the rest only",
        )
    elif not report.finished:
        _say(console, "next: the same command asks for the rest only")
    elif not report.attached:
        _say(console, f"next: look at {folder / 'partial.jsonl'}; without --limit the corpus gets its traces")
    else:
        _say(console, f"next: slotgrid data stats {corpus}")
        _say(console, f"next: python experiments/grid.py plan --corpus {corpus}")
    return EXIT_DONE if report.finished else EXIT_FAILED


def _say(console: Console, text: str) -> None:
    console.print(escape(text), soft_wrap=True)
