"""An `Explanation` -> what `explain TRIAL` prints: for people with a marker before every line, in colour on a terminal; for programs JSON."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from model.configs import TrialConfig
from orchestrator.explanation import DataCounts, Explanation, Mark, Rendering, Schedule, ShownExample
from orchestrator.identity import fingerprint, trial_id

_MARKERS: dict[Mark, tuple[str, str]] = {"masked": ("M", "dim"), "audio": ("A", "cyan"), "trained": ("T", "green")}
_LINE_BREAK = "↵"


def find_trial(trials: Sequence[TrialConfig], name: str | None) -> TrialConfig:
    """The trial of that id. Raises ValueError that lists the nearest ids for an unknown one, and when none is named."""
    by_id = {trial_id(trial): trial for trial in trials}
    if name is None:
        raise ValueError(f"explain: name a trial, e.g. {next(iter(by_id))}; `plan` lists them")
    if name not in by_id:
        near = difflib.get_close_matches(name, by_id, n=4, cutoff=0.3) or list(by_id)[:4]
        raise ValueError(f"explain: there is no trial {name!r}; the nearest are {', '.join(near)}; `plan` lists all")
    return by_id[name]


def explanation_to_json(explanation: Explanation) -> dict[str, Any]:
    """The explanation for programs: token by token."""
    value = asdict(explanation)
    del value["trial"]
    for example in value["rendering"]["examples"] if value["rendering"] else ():
        del example["text"]
    foundation = asdict(explanation.trial.foundation)
    head = {
        "trial_id": explanation.trial_id,
        "fingerprint": fingerprint(explanation.trial),
        "foundation": foundation,
        "supervision": asdict(explanation.trial.supervision),
    }
    return {**head, **value}


def print_explanation(explanation: Explanation, console: Console) -> None:
    """The explanation for people."""
    trial, audio = explanation.trial, explanation.audio
    foundation = trial.foundation
    console.print(
        f"[bold]{explanation.trial_id}[/]: {escape(foundation.source)} ({foundation.kind}), {trial.mode} supervision",
        soft_wrap=True,
    )
    console.print(escape(f"example {explanation.example_id} of {explanation.example_from}"), soft_wrap=True)
    assumed = ", assumed until there is audio" if audio.assumed else ""
    console.print(
        f"audio: {audio.seconds:.2f} s{assumed} -> {audio.encoder_frames} encoder frames -> {audio.embeddings} embeddings "
        f"({audio.stack_factor} frames each)",
        soft_wrap=True,
    )
    if explanation.rendering:
        _print_rendering(explanation.rendering, console)
    if explanation.parameters:
        console.print(_parameters_table(explanation))
    console.print(_data_line(explanation.data, trial), soft_wrap=True)
    console.print(_schedule_line(explanation.schedule), soft_wrap=True)


def _print_rendering(rendering: Rendering, console: Console) -> None:
    special = ", ".join(f"{role} {text} ({token_id})" for role, (text, token_id) in rendering.special_tokens.items())
    console.print(Text(f"special tokens: {special}"), soft_wrap=True)
    trained, *others = (f"{text} ({token_id})" for text, token_id in rendering.stops_at)
    also = "".join(f"{end}, " for end in others)
    console.print(
        Text(f"stops at: {trained}, which is trained; also at {also}</response> or the token budget"), soft_wrap=True
    )
    console.print(Text("marks: M masked prompt, A audio, T trained"), soft_wrap=True)
    for example in rendering.examples:
        _print_example(example, console)


def _print_example(example: ShownExample, console: Console) -> None:
    masked, audio, trained = (example.columns[mark] for mark in ("masked", "audio", "trained"))
    console.print(
        f"\n[bold]{example.mode}[/]: {masked + audio + trained} columns = {masked} masked + {audio} audio + {trained} trained; "
        f"budget {example.max_new_tokens} new tokens",
        soft_wrap=True,
    )
    for mark, text in example.text:
        marker, style = _MARKERS[mark]
        for line in text.splitlines(keepends=True):
            shown = line.replace("\n", _LINE_BREAK)
            console.print(Text(f"  {marker} | {shown}", style=style), soft_wrap=True)
    if trained > example.max_new_tokens:
        console.print(
            "  [yellow]this target is longer than the budget: evaluation would cut such an answer[/]", soft_wrap=True
        )


def _parameters_table(explanation: Explanation) -> Table:
    parameters = explanation.parameters
    assert parameters
    everything = parameters.trained + parameters.frozen
    table = Table("parameters", "count", "share of all")
    for column in table.columns[1:]:
        column.justify = "right"
    rows = [*parameters.parts.items(), ("trained", parameters.trained), ("frozen", parameters.frozen)]
    for name, count in rows:
        table.add_row(name, f"{count:,}", f"{count / everything:.2%}")
    return table


def _data_line(data: DataCounts, trial: TrialConfig) -> str:
    splits = ", ".join(f"{split} {count:,}" for split, count in data.splits.items())
    without = data.splits.get("train", 0) - data.train_with_trace
    items = " + ".join(f"{count:,} {mode}" for mode, count in data.items.items())
    left_out = " (not trained on)" if without and "think" in trial.inference_modes else ""
    state = "prepared" if data.prepared else "to be made"
    return (
        f"data ({state}): {splits}; train: {data.train_with_trace:,} with a reasoning trace, {without:,} without{left_out}; "
        f"one pass: {items}"
    )


def _schedule_line(schedule: Schedule) -> str:
    rates = ", ".join(f"{group} {peak:g} -> {last:g}" for group, (peak, last) in schedule.learning_rates.items())
    return (
        f"schedule: {schedule.steps:,} steps of {schedule.batch_size} examples, {schedule.passes:g} passes; AdamW, {schedule.precision}; "
        f"learning rates {rates} (cosine) after {schedule.warmup_steps:,} warmup steps; gradients clipped at {schedule.max_grad_norm:g}"
    )
