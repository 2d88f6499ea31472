"""The states of a grid -> its failures, those of one origin together: what a run's summary and the report say once, not once a trial."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from orchestrator.failures import Cause, next_action
from orchestrator.layout import AttemptFolder
from orchestrator.ledger import TrialState
from orchestrator.results import Failure, find_failure

_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>.+)$', re.MULTILINE)
_SHOWN_TRIALS = 6


@dataclass(frozen=True, kw_only=True)
class FailureGroup:
    """Failed trials whose last attempts ended by the same cause with the same exception at the same place."""

    cause: Cause
    trials: tuple[str, ...]  # their ids
    failure: Failure  # of the first
    attempt: AttemptFolder  # of the first

    @property
    def where(self) -> str:
        """The place in the code, "model/train.py:88 in step"; empty where no exception tells."""
        return _last_frame(self.failure.traceback)

    @property
    def title(self) -> str:
        """Who failed and why, in one line."""
        names = ", ".join(self.trials[:_SHOWN_TRIALS])
        more = len(self.trials) - _SHOWN_TRIALS
        return f"{names}{f' and {more} more' if more > 0 else ''}: {self.failure.line}"

    @property
    def traceback(self) -> str:
        """What the author of the code needs; empty where the message says it all."""
        return self.failure.traceback.rstrip() if self.cause == "code" else ""

    @property
    def next_action(self) -> str:
        """What the user can do, in words."""
        return next_action(self.cause, self.trials[0])


def group_failures(states: Sequence[TrialState]) -> list[FailureGroup]:
    """The failed trials by origin, in the order of their first ones."""
    groups: dict[tuple[str, str, str], FailureGroup] = {}
    for state in states:
        attempt = state.folder.latest_attempt()
        failure = find_failure(attempt) if state.state == "failed" and attempt else None
        if attempt is None or failure is None:
            continue
        # Without a place in the code the message tells two origins apart; a canary's names the trial itself.
        origin = _last_frame(failure.traceback) or failure.message.replace(state.id, "")
        key = (failure.cause, failure.error, origin)
        before = groups.get(key)
        groups[key] = FailureGroup(
            cause=failure.cause,
            trials=(*before.trials, state.id) if before else (state.id,),
            failure=before.failure if before else failure,
            attempt=before.attempt if before else attempt,
        )
    return list(groups.values())


def print_failures(states: Sequence[TrialState], console: Console) -> None:
    """Tell every group once: who, why, what to do, the log, and for an error in the code one traceback."""
    for group in group_failures(states):
        console.print(f"[red]failed:[/] {escape(group.title)}", soft_wrap=True)
        console.print(escape(f"  next: {group.next_action}"), soft_wrap=True)
        console.print(escape(f"  log: {group.attempt.log}"), soft_wrap=True)
        if group.traceback:
            console.print(escape(group.traceback), soft_wrap=True, highlight=False)


def _last_frame(traceback: str) -> str:
    frames = list(_FRAME.finditer(traceback))
    return "{file}:{line} in {function}".format(**frames[-1].groupdict()) if frames else ""
