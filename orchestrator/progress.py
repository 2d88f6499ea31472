"""status.json files -> what a person watching sees: a line per running trial and one for the grid; plain lines where there is no terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from orchestrator.attempts import AttemptRecord, read_record
from orchestrator.layout import RunFolder, TrialFolder
from orchestrator.results import find_failure, read_status

REFRESH_S = 1.0
PLAIN_EVERY_S = 20.0
"""Between two lines of a running trial where there is no terminal (CI logs)."""
_ENDED = ("stopped", "done", "failed")


@dataclass(frozen=True, kw_only=True)
class TrialProgress:
    """Where one trial stands, as its files tell."""

    trial_id: str
    phase: str  # "", "waiting", "starting", "loading", "training", "evaluating", "stopped", "done", "failed"
    step: int = 0
    steps: int = 0
    loss: float | None = None
    examples_per_second: float | None = None
    seconds_left: float | None = None
    elapsed_s: float = 0.0  # since its worker started; in all when it has ended
    reason: str = ""  # failed: why

    @property
    def running(self) -> bool:
        """Whether it holds devices or waits for them."""
        return self.phase not in ("", *_ENDED)

    @property
    def saves(self) -> bool:
        """Whether it has done work since its last checkpoint that it can save when it is asked to stop."""
        return self.phase in ("training", "evaluating")

    @property
    def step_seconds(self) -> float:
        """How long one of its steps takes, by its own estimate; 0 where it has none."""
        return self.seconds_left / max(1, self.steps - self.step) if self.seconds_left else 0.0

    def describe(self) -> str:
        """One line: "training 120/600  loss 1.234  16.2 examples/s  0:00:31 left"."""
        parts = [self.phase]
        if self.steps:
            parts[0] += f" {self.step}/{self.steps}"
        if self.loss is not None and self.phase == "training":
            parts.append(f"loss {self.loss:.3f}")
        if self.examples_per_second is not None and self.phase == "training":
            parts.append(f"{self.examples_per_second:.1f} examples/s")
        if self.seconds_left is not None and self.phase == "training":
            parts.append(f"{_clock(self.seconds_left)} left")
        if self.reason:
            parts.append(self.reason)
        if self.phase in _ENDED and self.elapsed_s:
            parts.append(f"after {_clock(self.elapsed_s)}")
        return "  ".join(parts)


def read_progress(folder: TrialFolder, *, since: float, now: float) -> TrialProgress:
    """Read where a trial stands from the files of its latest attempt; unless it is done, an attempt opened before `since` is history."""
    name, attempt = folder.path.name, folder.latest_attempt()
    if attempt is None or not (attempt.path / "attempt.json").exists():
        return TrialProgress(trial_id=name, phase="done" if folder.result.exists() else "")
    record = read_record(attempt)
    elapsed = _elapsed(record, now)
    if folder.result.exists():
        return TrialProgress(trial_id=name, phase="done", elapsed_s=elapsed)
    if record.opened < since:
        return TrialProgress(trial_id=name, phase="")
    if failure := find_failure(attempt):
        phase, then = ("waiting", ", and is to go on") if failure.goes_on else ("failed", "")
        return TrialProgress(trial_id=name, phase=phase, elapsed_s=elapsed, reason=failure.line[:200] + then)
    if record.started is None:
        return TrialProgress(trial_id=name, phase="waiting")
    status = read_status(folder)
    earlier = status.get("time", 0.0) < record.started  # of an earlier attempt
    if record.ended is not None and (earlier or status.get("phase") != "done"):  # "done": its result is being written
        step, steps = (0, 0) if earlier else (status.get("step", 0), status.get("steps", 0))
        return TrialProgress(trial_id=name, phase="stopped", step=step, steps=steps, elapsed_s=elapsed)
    if earlier:
        return TrialProgress(trial_id=name, phase="starting", elapsed_s=elapsed)
    return TrialProgress(
        trial_id=name,
        phase=status["phase"] if status["phase"] != "done" else "evaluating",
        step=status.get("step", 0),
        steps=status.get("steps", 0),
        loss=status.get("loss"),
        examples_per_second=status.get("examples_per_second"),
        seconds_left=status.get("seconds_left"),
        elapsed_s=elapsed,
    )


def seconds_left(progress: Sequence[TrialProgress], *, concurrent: int) -> float | None:
    """An estimate for the whole grid from the trials that have ended and those that train; None while nothing is known.

    A trial takes as long as the mean of the ended ones; before one has ended, as long as a training one's pace says.
    """
    ended = [trial.elapsed_s for trial in progress if trial.phase == "done" and trial.elapsed_s]
    paces = [trial.elapsed_s + trial.seconds_left for trial in progress if trial.seconds_left is not None]
    known = ended or paces
    if not known:
        return None
    typical = sum(known) / len(known)
    running = [max(trial.seconds_left or 0.0, typical - trial.elapsed_s) for trial in progress if trial.running]
    pending = sum(trial.phase == "" for trial in progress)
    return max([(sum(running) + pending * typical) / max(1, concurrent), *running])


class GridProgress:
    """Shows a grid while it runs, from a thread of its own."""

    def __init__(
        self,
        run: RunFolder,
        trial_ids: Sequence[str],
        console: Console,
        *,
        concurrent: int,
        before: Mapping[str, TrialFolder] | None = None,
    ) -> None:
        """`trial_ids`: all of the grid, in its order; those done before count as done. `before`: what they wait for, by name: shown, not counted."""
        self._run, self._ids, self._console, self._concurrent = run, trial_ids, console, concurrent
        self._before = before or {}
        self._since = time.time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        # What ended before this run is no news.
        self._told = {trial.trial_id: trial.phase for trial in self.read() if trial.phase == "done"}
        self._told_at: dict[str, float] = {}

    def __enter__(self) -> GridProgress:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> list[TrialProgress]:
        now = time.time()
        return [read_progress(self._run.trial(name), since=self._since, now=now) for name in self._ids]

    def read(self) -> list[TrialProgress]:
        """Where they are now: what trials wait for, then the trials."""
        now = time.time()
        before = [
            replace(read_progress(folder, since=self._since, now=now), trial_id=name)
            for name, folder in self._before.items()
        ]
        return [*before, *self._read()]

    def _watch(self) -> None:
        if not self._console.is_terminal:
            while not self._stop.wait(REFRESH_S):
                self._tell(self.read())
            self._tell(self.read())
            return
        with Live(console=self._console, transient=True, auto_refresh=False) as live:
            while not self._stop.wait(REFRESH_S):
                progress = self.read()
                self._tell([trial for trial in progress if trial.phase in _ENDED])
                live.update(self._render(progress), refresh=True)
        self._tell([trial for trial in self.read() if trial.phase in _ENDED])

    def _render(self, progress: Sequence[TrialProgress]) -> Group:
        table = Table.grid(padding=(0, 2))
        for trial in progress:
            if trial.running:
                table.add_row(Text(trial.trial_id, style="bold"), Text(trial.describe()))
        return Group(table, Text(self.summary(progress[len(self._before) :])))

    def summary(self, progress: Sequence[TrialProgress]) -> str:
        """The grid's line: "3 done, 1 failed, 2 running of 12 trials, about 0:14:10 left"."""
        count = {
            "done": sum(trial.phase == "done" for trial in progress),
            "failed": sum(trial.phase == "failed" for trial in progress),
            "running": sum(trial.running for trial in progress),
        }
        left = seconds_left(progress, concurrent=self._concurrent)
        states = ", ".join(f"{number} {state}" for state, number in count.items() if number or state != "failed")
        return f"{states} of {len(progress)} trials" + (f", about {_clock(left)} left" if left else "")

    def _tell(self, progress: Sequence[TrialProgress]) -> None:
        """Print a line for each trial whose phase changed, and now and then for one that goes on."""
        now = time.monotonic()
        for trial in progress:
            changed = self._told.get(trial.trial_id, "") != trial.phase
            due = trial.running and now - self._told_at.get(trial.trial_id, now) >= PLAIN_EVERY_S
            if changed or due:
                line = f"{time.strftime('%H:%M:%S')} {trial.trial_id}  {trial.describe()}"
                self._console.print(Text(line), soft_wrap=True)
                if trial.phase in _ENDED and not self._console.is_terminal:
                    self._console.print(
                        Text(f"{time.strftime('%H:%M:%S')} {self.summary(self._read())}"), soft_wrap=True
                    )
            if changed or due or trial.trial_id not in self._told_at:
                self._told[trial.trial_id], self._told_at[trial.trial_id] = trial.phase, now


OnProgress = Callable[[int, int], None]
"""Called with (done, in all)."""


@contextmanager
def stage_progress(console: Console, title: str) -> Iterator[OnProgress]:
    """A bar with an estimate for one preparation stage, gone when it ends; a line every few seconds where there is no terminal."""
    started = time.monotonic()
    if console.is_terminal:
        columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        last = [started]

        def on_progress(done: int, total: int) -> None:
            now = time.monotonic()
            if now - last[0] >= PLAIN_EVERY_S:
                last[0] = now
                left = (now - started) / done * (total - done) if done else None
                console.print(f"{title}: {done:,} of {total:,}" + (f", about {_clock(left)} left" if left else ""))

        yield on_progress


def _elapsed(record: AttemptRecord, now: float) -> float:
    return (record.ended or now) - record.started if record.started else 0.0


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
