"""A trial's files and its MLflow run -> where their points differ. Equal means: the same (metric, step, value, time), each once.

NaN equals NaN; infinities count as the largest numbers, as SQL databases keep them. Memory: 24 bytes a point of the trial, and the points of one
metric as MLflow returns them.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from data.metric_lines import parse_metric_line
from model.configs import TrialConfig
from orchestrator.layout import TrialFolder
from orchestrator.mirror_points import MetricPoint, result_points, row_points
from orchestrator.mlflow_tracker import MlflowTracker
from orchestrator.results import read_result

DifferenceKind = Literal["missing", "doubled", "foreign"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Points of one metric in which MLflow differs. missing: only in the files; doubled: a second one at a step; foreign: only in MLflow."""

    kind: DifferenceKind
    metric: str
    points: int
    first_step: int


_Point = tuple[float, float, float | None]  # step, milliseconds since the epoch, value as a tracker keeps it


class _FilePoints:
    """The points of a trial's files by metric: step, time and value in turn."""

    def __init__(self, folder: TrialFolder, trial: TrialConfig) -> None:
        self.by_name: dict[str, array[float]] = {}
        self.damaged = False
        last_ms = 0
        for line in folder.metrics.open("rb") if folder.metrics.exists() else ():
            row = parse_metric_line(line) if line.endswith(b"\n") else None
            if row is not None:
                last_ms = row.time
                self._add(row_points(row))
            self.damaged |= row is None
        if folder.result.exists():
            names = set(self.by_name)
            self._add(result_points(read_result(folder), step=trial.budget.steps, names=names, last_ms=last_ms))

    def _add(self, points: Iterable[MetricPoint]) -> None:
        for point in points:
            self.by_name.setdefault(point.name, array("d")).extend((point.step, point.time_ms, point.value))

    def of(self, name: str) -> list[_Point]:
        """Every point of a metric, in the order of the file."""
        flat = iter(self.by_name.get(name, ()))
        return [(step, time_ms, _stored(value)) for step, time_ms, value in zip(flat, flat, flat, strict=True)]


def compare_with_files(
    tracker: MlflowTracker, run_id: str, folder: TrialFolder, trial: TrialConfig
) -> list[Difference]:
    """Where the run's points are not those of the files; empty when they are equal. Raises ValueError for a damaged `result.json`.

    Points that only MLflow has are no difference when lines of `metrics.jsonl` are damaged: they may be those lines'.
    """
    files = _FilePoints(folder, trial)
    differences = []
    for name in sorted(files.by_name.keys() | tracker.metric_names(run_id)):
        ours = files.of(name)
        theirs = Counter((float(p.step), float(p.time_ms), _stored(p.value)) for p in tracker.history(run_id, name))
        known_steps = {step for step, _, _ in ours}
        missing = [int(point[0]) for point in ours if point not in theirs]
        theirs.subtract(ours)
        extra = [int(point[0]) for point, count in theirs.items() for _ in range(count)]
        doubled = [step for step in extra if step in known_steps]
        foreign = [] if files.damaged else [step for step in extra if step not in known_steps]
        kinds: dict[DifferenceKind, list[int]] = {"missing": missing, "doubled": doubled, "foreign": foreign}
        differences += [
            Difference(kind=kind, metric=name, points=len(steps), first_step=min(steps))
            for kind, steps in kinds.items()
            if steps
        ]
    return differences


def _stored(value: float) -> float | None:
    """A value as MLflow's databases keep it, None for NaN, which equals nothing."""
    largest = sys.float_info.max
    return None if math.isnan(value) else max(-largest, min(largest, value))
