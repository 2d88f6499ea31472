"""What the rounds of a chaos run share: the faults that were struck, what became of each, every broken promise; and the undisturbed run."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos_accounting import Loss, MirrorCheck
from benchmarks.chaos_faults import Fault
from benchmarks.chaos_processes import ROOT, MlflowServer, Session
from orchestrator.layout import Store

EXPERIMENT = "grid"
GRID = ROOT / "experiments" / "grid.py"
HANG_S = 240.0
"""A run that shows no sign of life for this long hangs: Ray's start and a trial's imports take up to a minute where the machine is busy."""


def grid_command(store: Store, tracking_uri: str, *words: str, script: Path = GRID) -> list[str]:
    """What a user types for a grid of smoke scale; `words`: the verb and its options, none for `run`."""
    where = ("--scale", "smoke", "--store", str(store.root), "--tracking-uri", tracking_uri)
    return [sys.executable, str(script), *words, *where]


@dataclass(kw_only=True)
class Strike:
    """A fault that was struck, and what became of it."""

    number: int
    round: int
    fault: Fault
    at: float  # time.monotonic()
    trials: dict[str, str]  # where each stood
    what: str
    attempts: dict[str, int]
    recovered_s: float | None = (
        None  # until a new attempt of a trial worked, or the grid was done; None: struck again before
    )
    ended_s: float | None = None  # until the run noticed and ended; None: it went on
    redone: dict[str, int] = field(default_factory=dict)  # optimizer steps done again, by trial


@dataclass(kw_only=True)
class Chaos:
    """What all rounds share."""

    folder: Path
    server: MlflowServer
    kills: int
    faults: Iterator[Fault]
    rng: random.Random
    on_event: Callable[[str], None]
    hang_s: float = HANG_S
    strikes: list[Strike] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)
    mirror: MirrorCheck = field(default_factory=MirrorCheck)
    mirrored_late: int = 0  # rounds whose mirror was whole only after the same command was run once more
    starts: int = 0
    silence_s_most: float = 0.0  # the longest that a run showed no sign of life
    pending: Fault | None = None

    @property
    def reference(self) -> Store:
        """The undisturbed run's."""
        return Store(self.folder / "reference")

    @property
    def killed(self) -> int:
        """Kills so far."""
        return sum(strike.fault.is_kill for strike in self.strikes)

    def next_fault(self) -> Fault | None:
        """The fault that waits for its moment; None when there were enough kills."""
        if self.pending is None and self.killed < self.kills:
            self.pending = next(self.faults)
        return self.pending

    def strike_no_more(self) -> None:
        """As if there had been enough kills."""
        self.kills, self.pending = self.killed, None

    def breach(self, line: str) -> None:
        """Note a broken promise."""
        self.breaches.append(line)
        self.on_event(f"BROKEN: {line}")


def run_reference(chaos: Chaos) -> float:
    """The undisturbed run; returns its seconds. Raises RuntimeError when it does not end well by itself."""
    store = chaos.reference
    session = Session(grid_command(store, chaos.server.uri), cwd=chaos.folder, log=chaos.folder / "reference.log")
    try:
        code = session.wait(1800)
    finally:
        session.kill()
    if code != 0:
        raise RuntimeError(f"the undisturbed run ended with exit code {code}; see {session.log}")
    return time.monotonic() - session.started
