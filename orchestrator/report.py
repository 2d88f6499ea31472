"""Trial states and results -> `results.csv`, `costs.csv`, `report.md` and `heatmap.png`. Failed and missing trials are rows and cells too."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from data.atomic import atomic_open
from data.records import SUPERVISION_MODES, SupervisionMode
from model.configs import FOUNDATION_KINDS, Foundation, TrialConfig
from orchestrator.experiment import Experiment
from orchestrator.failure_groups import FailureGroup, group_failures
from orchestrator.failures import next_action
from orchestrator.identity import fingerprint
from orchestrator.layout import RunFolder
from orchestrator.ledger import State, TrialState, read_states
from orchestrator.results import HEADLINE
from orchestrator.scales import Scale

_WORST_FIRST: tuple[State, ...] = ("failed", "stale", "interrupted", "pending", "done")
_DETAILS = (
    "partial_precision",
    "partial_recall",
    "exact_f1",
    "slu_f1",
    "parse_failure_rate",
    "repair_rate",
    "truncation_rate",
    "mode_obedience",
)
"""The scores of the headline inference mode that explain a trial's F1 in the report."""

HEADLINE_NOTE = (
    "Partial-match F1 on the test split. A hybrid-trained model is asked in both inference modes; its headline is the one that "
    "did better on the validation split. The paper does not publish its partial-match rule: this one is ours (docs/metric.md), "
    "so no number here may be set beside the paper's as if it were the same."
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One foundation under one supervision mode, over the seeds."""

    foundation: Foundation
    mode: SupervisionMode
    states: tuple[TrialState, ...]  # one per seed; empty when the grid leaves the cell out

    @property
    def scores(self) -> list[float]:
        """The headline score of every finished seed."""
        return [state.result.scores[HEADLINE] for state in self.states if state.result is not None]

    @property
    def mean(self) -> float | None:
        """Over the finished seeds; None without any."""
        return fmean(self.scores) if self.scores else None

    @property
    def state(self) -> State | None:
        """The state that needs attention most; None for a cell that the grid leaves out."""
        present = {state.state for state in self.states}
        return next((state for state in _WORST_FIRST if state in present), None)

    @property
    def text(self) -> str:
        """The cell in words: a mean, its spread over seeds, and what is not there."""
        if self.mean is None:
            return self.state or "-"
        text = f"{self.mean:.3f}"
        if len(self.scores) > 1:
            text += f" ± {stdev(self.scores):.3f}"
        if self.state != "done":
            left = sum(state.state == self.state for state in self.states)
            text += f" ({len(self.scores)} of {len(self.states)} seeds, {left} {self.state})"
        return text


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The table of a run: rows are foundations ordered by kind, columns supervision modes."""

    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    modes: tuple[SupervisionMode, ...]

    @property
    def best(self) -> Cell | None:
        """The cell with the highest mean; None while no trial is done."""
        cells = [cell for _, cells in self.rows for cell in cells if cell.mean is not None]
        return max(cells, key=lambda cell: cell.mean or 0.0, default=None)


def compare(states: Sequence[TrialState]) -> Comparison:
    """Arrange trial states as a table. A row is called by its kind where every kind has one foundation, else by its foundation."""
    foundations = sorted(
        dict.fromkeys(state.trial.foundation for state in states), key=lambda f: FOUNDATION_KINDS.index(f.kind)
    )
    modes = tuple(mode for mode in SUPERVISION_MODES if any(state.trial.mode == mode for state in states))
    by_kind = len({foundation.kind for foundation in foundations}) == len(foundations)
    rows = []
    for foundation in foundations:
        cells = tuple(
            Cell(
                foundation=foundation,
                mode=mode,
                states=tuple(s for s in states if s.trial.foundation == foundation and s.trial.mode == mode),
            )
            for mode in modes
        )
        rows.append((foundation.kind if by_kind else f"{foundation.name} ({foundation.kind})", cells))
    return Comparison(rows=tuple(rows), modes=modes)


def write_report(experiment: Experiment, scale: Scale, run: RunFolder, trials: Sequence[TrialConfig]) -> list[Path]:
    """Write the four files from what lies in the run folder now, and return their paths, `report.md` first."""
    from orchestrator.heatmap import draw_heatmap

    states = read_states(run, trials)
    comparison = compare(states)
    _write_csv(run.results_csv, [_result_row(state) for state in states])
    _write_csv(run.costs_csv, [_cost_row(state) for state in states])
    draw_heatmap(
        run.heatmap, comparison, title=f"{experiment.name}, scale {scale.label}: partial-match F1 on the test split"
    )
    with atomic_open(run.report_md) as stream:
        stream.write("\n".join(_markdown(experiment, scale, run, states, comparison)) + "\n")
    return [run.report_md, run.results_csv, run.costs_csv, run.heatmap]


def _result_row(state: TrialState) -> dict[str, Any]:
    """What is the same whenever and wherever the trial is computed."""
    row: dict[str, Any] = {
        "trial_id": state.id,
        "foundation": state.trial.foundation.name,
        "kind": state.trial.foundation.kind,
        "mode": state.trial.mode,
        "seed": state.trial.seed,
        "state": state.state,
        "fingerprint": fingerprint(state.trial),
        "headline_inference_mode": "",
        HEADLINE: "",
    }
    if state.result is not None:
        row["headline_inference_mode"] = state.result.headline_inference_mode
        row |= dict(sorted(state.result.scores.items()))
        row |= dict(sorted(state.result.validation_scores.items()))
    return row


def _cost_row(state: TrialState) -> dict[str, Any]:
    costs = dict(sorted(state.result.costs.items())) if state.result is not None else {}
    return {"trial_id": state.id, "state": state.state, **costs}


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line per row; columns in the order of their first appearance, empty where a row has no value."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_open(path) as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _markdown(
    experiment: Experiment, scale: Scale, run: RunFolder, states: Sequence[TrialState], comparison: Comparison
) -> Iterable[str]:
    done = sum(state.state == "done" for state in states)
    yield f"# {experiment.name}, scale {scale.label}: {done} of {len(states)} trials done"
    yield f"\nScale: {scale.summary}."
    yield f"\n## Partial-match F1\n\n{HEADLINE_NOTE}\n"
    yield from _table(["", *comparison.modes], _comparison_rows(comparison))
    yield f"\n{_best_line(comparison)}"
    yield f"\n![partial-match F1 per kind and mode]({run.heatmap.name})"
    yield "\n## Trials\n"
    yield "Rates of the headline inference mode, on the test split; the last column is partial F1 on sentence patterns never trained.\n"
    yield from _table(
        ["trial", "state", "asked", "partial F1", *(n.replace("_", " ") for n in _DETAILS), "unseen patterns"],
        map(_detail_row, states),
    )
    if groups := group_failures(states):
        yield "\n## Failed\n"
        yield from _failures(run, states, groups)
    if stale := [state for state in states if state.state == "stale"]:
        yield "\n## Stale: computed from another configuration\n"
        yield from (f"- {state.id}: {_escape('; '.join(state.changed))}" for state in stale)
    yield f"\n## Hypothesis\n\n```text\n{experiment.hypothesis.strip()}\n```"


def _comparison_rows(comparison: Comparison) -> Iterable[list[str]]:
    for label, cells in comparison.rows:
        yield [label, *(f"**{cell.text}**" if cell is comparison.best else cell.text for cell in cells)]


def _best_line(comparison: Comparison) -> str:
    best = comparison.best
    if best is None:
        return "Best: no trial is done yet."
    return f"Best: {best.foundation.name} ({best.foundation.kind}) under {best.mode} supervision, {best.text}."


def _detail_row(state: TrialState) -> list[str]:
    if state.result is None:
        return [state.id, state.state, *["-"] * (3 + len(_DETAILS))]
    mode, scores = state.result.headline_inference_mode, state.result.scores
    rates = [*(scores.get(f"eval/{mode}/{name}") for name in _DETAILS), scores.get("test_frame/partial_f1")]
    return [
        state.id,
        "done",
        mode,
        f"{scores[HEADLINE]:.3f}",
        *("-" if rate is None else f"{rate:.3f}" for rate in rates),
    ]


def _failures(run: RunFolder, states: Sequence[TrialState], groups: Sequence[FailureGroup]) -> Iterable[str]:
    """A row per failed trial, then one traceback per error in the code."""
    rows = []
    for state in states:
        if state.state == "failed" and state.cause and (attempt := state.folder.latest_attempt()):
            log = f"`{attempt.log.relative_to(run.path)}`"
            step, action = str(state.last_step), next_action(state.cause, state.id)
            rows.append([state.id, state.cause, step, _escape(state.failure), _escape(action), log])
    yield from _table(["trial", "cause", "step", "why", "next", "log"], rows)
    for group in groups:
        if group.traceback:
            yield f"\n{_escape(group.title)} ({group.where})\n\n````text\n{group.traceback}\n````"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
