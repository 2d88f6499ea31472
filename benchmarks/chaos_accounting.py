"""A run folder as it stands -> what was lost: steps done again, results that differ from an undisturbed run's, MLflow points that are not the files'.

Nothing here asks the code under test whether it did well: positions are read from the trial's files while it runs, and results compared by bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data.atomic import iter_whole_lines
from data.metric_lines import read_metrics
from orchestrator.attempts import read_record
from orchestrator.layout import RunFolder, TrialFolder
from orchestrator.results import read_status

NOT_COMPARED = ("perf/",)
"""Metrics that measure the machine: they differ between two runs of the same thing."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a trial's folder tells at one moment."""

    attempt: int = 0  # the latest; 0: none
    phase: str = ""  # what that attempt's status says; "": nothing yet
    step: int = 0  # the step it says it trained last, 0 in other phases
    committed: int = 0  # the step of the newest checkpoint
    commit: int = 0  # tells two checkpoints of the same step apart
    saving: bool = False  # this attempt is writing the one after it
    answers: int = 0  # predictions on disk
    done: bool = False

    def describe(self, steps: int) -> str:
        """For people: "training 5/12"."""
        if self.done:
            return "done"
        if self.saving:
            return f"saving after {self.committed}/{steps}"
        return f"training {self.step}/{steps}" if self.phase == "training" else self.phase or "starting"


def look(folder: TrialFolder) -> Look:
    """Read where a trial stands. A file that is damaged, half there or on its way tells nothing."""
    latest = folder.latest_attempt()
    try:
        started = read_record(latest).started if latest else None
    except FileNotFoundError:  # just being opened
        started = None
    status = read_status(folder)
    phase = str(status.get("phase", "")) if started and status.get("time", 0.0) >= started else ""
    committed, commit = _newest_checkpoint(folder.checkpoints)
    return Look(
        attempt=latest.number if latest else 0,
        phase=phase,
        step=int(status.get("step", 0)) if phase == "training" else 0,
        committed=committed,
        commit=commit,
        saving=phase == "training" and _is_saving(folder.checkpoints, since=started or 0.0),
        answers=_answers(folder.path),
        done=folder.result.exists(),
    )


def _newest_checkpoint(folder: Path) -> tuple[int, int]:
    """The step of the newest that was committed, by its name, and the inode of its commit; what is in it is not looked at."""
    found = [(0, 0)]
    for path in folder.glob("step-*/commit.json"):
        step = path.parent.name.removeprefix("step-")
        with suppress(FileNotFoundError):
            if step.isdigit():
                found.append((int(step), path.stat().st_ino))
    return max(found)


def _is_saving(folder: Path, *, since: float) -> bool:
    """Whether a checkpoint is being written that was begun after `since`: killed writers leave theirs."""
    for path in folder.glob(".writing-*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime >= since:
                return True
    return False


def _answers(folder: Path) -> int:
    """The predictions of all inference modes, whole files or parts; lines that are cut off do not count."""
    whole: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    for path in folder.glob("predictions-*.jsonl"):
        mode, *part = path.name.removeprefix("predictions-").removesuffix(".jsonl").split(".")
        with suppress(FileNotFoundError, ValueError):
            if part:
                parts[mode] += sum(len(row["predictions"]) for row in iter_whole_lines(path))
            else:
                whole[mode] = path.read_bytes().count(b"\n")
    return (whole | parts).total()


@dataclass(kw_only=True)
class Section:
    """What one attempt trained: steps `first`..`last`, as far as it was seen."""

    attempt: int
    first: int
    last: int
    committed: int = 0  # the newest checkpoint when it was last seen

    @property
    def resumed(self) -> int:
        """The step that it went on from."""
        return self.first - 1


@dataclass(kw_only=True)
class Loss:
    """Work that was done twice: `attempt` went on from step `resumed`, though the one before had reached `reached`."""

    attempt: int
    resumed: int
    reached: int
    committed: int  # the newest checkpoint that there was
    excused: int  # steps that damage to the trial's files may cost beside

    @property
    def redone(self) -> int:
        """Optimizer steps done again."""
        return max(0, self.reached - self.resumed)

    def breach(self, interval: int) -> str:
        """How this breaks the promise of at most one checkpoint interval; "" when it does not."""
        if self.resumed + self.excused < self.committed:
            return f"went on from step {self.resumed} though step {self.committed} was committed"
        return f"{self.redone} steps done again" if self.redone > interval + self.excused else ""


@dataclass(kw_only=True)
class TrialWatch:
    """Looks at one trial, in order -> what each attempt trained, and what was lost between two of them."""

    interval: int  # optimizer steps between two checkpoints
    steps: int
    last: Look = field(default_factory=Look)
    sections: list[Section] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    answers_lost: int = 0
    damaged: bool = False  # some file of the trial, on purpose: answers may be among what is lost
    excused: int = 0  # steps that may be done again for it, when the next attempt begins to train
    given_up: tuple[int, int] = (0, 0)
    """Step and commit of a checkpoint that was passed over, and stays until another is committed."""

    def see(self, now: Look) -> Loss | None:
        """Take one look in; returns what was lost when it shows that a new attempt has begun to train."""
        now = self._without_given_up(now)
        before, self.last = self.last, now
        if not self.damaged:
            self.answers_lost += max(0, before.answers - now.answers)
        current = self.sections[-1] if self.sections else None
        first = self._first_step(before, now)
        if current and (first is None or current.attempt == now.attempt):
            current.last = max(current.last, self._reached(now))
            current.committed = max(current.committed, now.committed)
            if first is not None:  # a later sign of where it began, e.g. a status that was seen late
                current.first = min(current.first, first)
            return None
        if first is None:
            return None
        committed = max(current.committed, before.committed) if current else 0
        if first - 1 < committed == now.committed:
            self.given_up = (now.committed, now.commit)
            self.last = now = replace(now, committed=first - 1)
        section = Section(attempt=now.attempt, first=first, last=self._reached(now), committed=now.committed)
        self.sections.append(section)
        if current is None:
            return None
        loss = Loss(
            attempt=now.attempt,
            resumed=section.resumed,
            reached=current.last,
            committed=committed,
            excused=self.excused,
        )
        self.excused = 0
        self.losses.append(loss)
        return loss

    def _without_given_up(self, now: Look) -> Look:
        """The look as if a checkpoint that was passed over had never been; the section began at the one before it."""
        if (now.committed, now.commit) == self.given_up and self.sections:
            return replace(now, committed=self.sections[-1].resumed)
        return now

    def _reached(self, now: Look) -> int:
        """The highest step that the files prove."""
        saved = min(now.committed // self.interval * self.interval + self.interval, self.steps) if now.saving else 0
        return max(now.step, now.committed, saved)

    def _first_step(self, before: Look, now: Look) -> int | None:
        """The first step that this look proves its attempt to have trained; None when it proves none."""
        signs = [now.step] if now.phase == "training" else []
        if before.attempt == now.attempt and before.committed < now.committed:
            signs.append((now.committed - 1) // self.interval * self.interval + 1)
        return min(signs, default=None)


def training_rows(folder: TrialFolder) -> list[dict[str, Any]]:
    """The rows of a trial's metrics file without what differs from run to run: [{"step": 1, "metrics": {...}}, ...]."""
    return [
        {"step": row.step, "metrics": {k: v for k, v in row.metrics.items() if not k.startswith(NOT_COMPARED)}}
        for row in sorted(read_metrics(folder.metrics).rows, key=lambda row: (row.step, not row.of_training))
    ]


def differences(reference: RunFolder, run: RunFolder) -> list[str]:
    """What a finished run has otherwise than the undisturbed one: empty when results, predictions and training metrics are the same."""
    found = []
    if _bytes(reference.results_csv) != _bytes(run.results_csv):
        found.append(f"{run.results_csv} differs from {reference.results_csv}")
    for expected in sorted(reference.trials.iterdir()):
        trial = run.trial(expected.name)
        for path in sorted(expected.glob("predictions-*.jsonl")):
            if _bytes(path) != _bytes(trial.path / path.name):
                found.append(f"{trial.path / path.name} differs from {path}")
        if training_rows(TrialFolder(expected)) != training_rows(trial):
            found.append(f"{trial.metrics} has other steps or values than {TrialFolder(expected).metrics}")
    return found


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


Point = tuple[str, int]
"""(metric name, step)"""


@dataclass(kw_only=True)
class MirrorCheck:
    """MLflow's points against the files', over some trials."""

    points: int = 0  # in the files
    lost: list[str] = field(default_factory=list)  # in the files and not in MLflow
    doubled: list[str] = field(default_factory=list)  # more than once in MLflow
    changed: list[str] = field(default_factory=list)  # of another value or time than in the files
    strange: list[str] = field(default_factory=list)  # in MLflow alone
    runs: list[str] = field(default_factory=list)  # MLflow runs that are too many, too few or not ended

    @property
    def breaches(self) -> list[str]:
        """One line for everything that is not as it should be."""
        kinds = {"lost": self.lost, "doubled": self.doubled, "changed": self.changed, "strange": self.strange}
        points = [f"MLflow: {kind} point {point}" for kind, items in kinds.items() for point in items]
        return points + [f"MLflow: {line}" for line in self.runs]

    def add(self, other: MirrorCheck) -> None:
        """Sum up."""
        self.points += other.points
        for name in ("lost", "doubled", "changed", "strange", "runs"):
            getattr(self, name).extend(getattr(other, name))


def file_points(folder: TrialFolder) -> dict[Point, tuple[float, int]]:
    """(value, time in ms) of every point of a trial's metrics file."""
    return {
        (name, row.step): (value, row.time)
        for row in read_metrics(folder.metrics).rows
        for name, value in row.metrics.items()
    }


def compare_points(
    trial: str,
    files: Mapping[Point, tuple[float, int]],
    mirrored: Iterable[tuple[str, int, float, int]],
    *,
    results: Mapping[str, float],
) -> MirrorCheck:
    """Compare one trial's points. `mirrored`: (name, step, value, time) as MLflow tells; `results`: what its result adds, of any time and once."""
    check = MirrorCheck(points=len(files))
    found: dict[Point, list[tuple[float, int]]] = {}
    for name, step, value, time_ms in mirrored:
        found.setdefault((name, step), []).append((value, time_ms))
    check.lost += [f"{trial} {name} step {step}" for name, step in files.keys() - found.keys()]
    names = Counter(name for name, _ in found)
    for (name, step), values in found.items():
        where = f"{trial} {name} step {step}"
        if len(values) > 1:
            check.doubled.append(where)
        if (name, step) in files:
            if values[0] != files[name, step]:
                check.changed.append(f"{where}: {values[0]} instead of {files[name, step]}")
        elif name not in results:
            check.strange.append(where)
        elif values[0][0] != results[name] or names[name] > 1:
            check.changed.append(f"{where}: {values[0][0]} instead of {results[name]}")
    recorded = {name for name, _ in files}
    check.lost += [f"{trial} {name}" for name in results if name not in names and name not in recorded]
    return check
