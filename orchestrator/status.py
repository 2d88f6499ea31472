"""A plan and the run folder -> where everything stands: a row for each trial, canary and alignment, with its attempts and what to do about a failure.

Reads files only, also while another process runs the grid.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.attempts import iter_records
from orchestrator.failures import next_action
from orchestrator.ledger import TrialState, read_state
from orchestrator.plan import Plan, coloured, plan_to_json
from orchestrator.results import read_status

_FRESH_S = 120.0
"""What a trial's worker said longer ago is no news, even while a driver is at work."""


@dataclass(frozen=True, kw_only=True)
class StatusRow:
    """Where one thing stands that attempts are made at."""

    role: Literal["trial", "canary", "alignment"]
    name: str
    state: str  # as of the ledger
    last_step: int
    steps: int
    attempts: int  # so far
    lost_device_seconds: float  # device time of earlier attempts after their last checkpoints
    cause: str | None  # failed: the kind of reason ...
    failure: str  # ... in one line ...
    next_action: str  # ... and what to do about it
    changed: tuple[str, ...]  # stale: the fields that differ
    note: str  # what is damaged, and what follows from it


def read_status_rows(plan: Plan) -> list[StatusRow]:
    """The canaries that the grid has begun with, its alignments, then its trials."""
    canaries = [_row("canary", name, state) for name, state in _canaries(plan)]
    alignments = [_row("alignment", name, state) for name, state in plan.alignments.items()]
    return [*canaries, *alignments, *(_row("trial", state.id, state) for state in plan.states)]


def _canaries(plan: Plan) -> Iterator[tuple[str, TrialState]]:
    """The state of each foundation's canary that was begun."""
    from orchestrator.canaries import canary_config  # audio and arrays

    for name in dict.fromkeys(state.trial.foundation.name for state in plan.states):
        if (folder := plan.run.canary(name)).config.exists():
            trials = [state.trial for state in plan.states if state.trial.foundation.name == name]
            yield name, read_state(folder, canary_config(trials))


def _row(role: Literal["trial", "canary", "alignment"], name: str, state: TrialState) -> StatusRow:
    records = list(iter_records(state.folder)) if state.folder.attempts.is_dir() else []
    latest = state.folder.latest_attempt()
    spent = records[:-1] if state.state == "done" else records
    return StatusRow(
        role=role,
        name=name,
        state=state.state,
        last_step=state.last_step,
        steps=state.trial.budget.steps,
        attempts=latest.number if latest else 0,
        lost_device_seconds=sum(record.unsaved_device_seconds for record in spent),
        cause=state.cause,
        failure=state.failure,
        next_action=next_action(state.cause, name) if state.cause else "",
        changed=state.changed,
        note=state.note,
    )


def status_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as of now, and for each trial, canary and alignment its attempts and what to do."""
    return {**plan_to_json(plan), "status": [asdict(row) for row in read_status_rows(plan)]}


def print_status(plan: Plan, console: Console, *, driven: bool) -> None:
    """A table of everything, then what to do about each kind of failure. `driven`: a driver is at work."""
    rows = read_status_rows(plan)
    phases = {state.id: phase for state in plan.states if driven and (phase := _phase(state))}
    table = Table("", "state", "steps", "attempts", "lost", "")
    for row in rows:
        name = row.name if row.role == "trial" else f"{row.role} {row.name}"
        steps = f"{row.last_step:,} of {row.steps:,}" if row.last_step else f"{row.steps:,}"
        lost = str(timedelta(seconds=round(row.lost_device_seconds))) if row.lost_device_seconds >= 1 else ""
        note = phases.get(row.name, "") or "; ".join(row.changed) or row.failure or row.note
        table.add_row(name, coloured(row.state), steps, str(row.attempts or ""), lost, escape(note))
    console.print(table)
    for cause, action in _actions(rows).items():
        console.print(escape(f"{cause}: {action}"), soft_wrap=True)


def _actions(rows: list[StatusRow]) -> dict[str, str]:
    """What to do about each cause, once."""
    return {row.cause: row.next_action for row in reversed(rows) if row.cause}


def _phase(state: TrialState) -> str:
    """What an unfinished trial is doing, by its `status.json`; empty when that is old."""
    path = state.folder.status
    if state.state == "done" or not path.is_file() or time.time() - path.stat().st_mtime > _FRESH_S:
        return ""
    status = read_status(state.folder)
    left = status.get("seconds_left")
    minutes = f", {left / 60:.0f} min left" if isinstance(left, int | float) else ""
    return str(status.get("phase", "running")) + minutes
