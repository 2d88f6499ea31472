"""What a trial asks of whoever runs it: may I still write, shall I stop, and that a checkpoint is committed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrialHooks:
    """What a trial asks of whoever runs it. The defaults are those of a plain process; what a hook raises ends the trial there."""

    before_write: Callable[[], None] = lambda: None
    """On rank 0, before a checkpoint, predictions or scores are written: the place to stop a worker that somebody has replaced."""
    on_checkpoint: Callable[[int], None] = lambda step: None
    """On every rank, with the step, after a checkpoint is committed."""
    should_stop: Callable[[], bool] = lambda: False
    """On rank 0, between steps and between batches of answers: whether to save what there is and raise `TrialInterrupted`."""


class TrialInterrupted(Exception):
    """The trial was asked to stop, and did after it had saved everything: run again, it goes on from there."""
