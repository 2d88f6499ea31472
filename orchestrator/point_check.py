"""A trial's files and its MLflow run -> where their points differ. Equal means: the same (metric, step, value, time), each once.

NaN equals NaN; infinities count as the largest numbers, as SQL databases keep them. Memory: 24 bytes a point of the trial, and the points of one
metric as MLflow returns them. A done trial's damaged `metrics.jsonl` can be made of MLflow's points again, when they are all there.
"""

from __future__ import annotations

import hashlib
import math
import sys
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from data.metric_lines import MetricRow, metric_line, parse_metric_line, read_metrics
from model.configs import TrialConfig
from orchestrator.layout import TrialFolder
from orchestrator.ledger import metrics_are_whole
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

    def __init__(self, folder: TrialFolder, trial: TrialConfig, *, sent: Collection[str]) -> None:
        """`sent`: the metrics that the tracker has any point of; a damaged file may have lost the rows of theirs."""
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
            result, names = read_result(folder), set(self.by_name)
            self.damaged |= not metrics_are_whole(folder, result)
            names |= set(sent) if self.damaged else set()
            self._add(result_points(result, step=trial.budget.steps, names=names, last_ms=last_ms))

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

    Points that only MLflow has are no difference when `metrics.jsonl` is damaged: they may be those of the lines that were lost.
    """
    sent = tracker.metric_names(run_id)
    files = _FilePoints(folder, trial, sent=sent)
    differences = []
    for name in sorted(files.by_name.keys() | sent):
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


def rebuild_metrics(tracker: MlflowTracker, run_id: str, folder: TrialFolder) -> str | None:
    """A done trial's `metrics.jsonl`, made of the run's points: byte for byte the file whose hash the result names, or None.

    None also where the file is whole. Raises ValueError for a damaged `result.json`.
    """
    result = read_result(folder)
    if metrics_are_whole(folder, result):
        return None
    rows: defaultdict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    for name in tracker.metric_names(run_id):
        for point in tracker.history(run_id, name):
            if point.time_ms != int(result.finished * 1000):  # else of the result, not of a row
                value = result.scores.get(name)  # 0 and 0.0 are the same value, and not the same bytes
                rows[point.time_ms, point.step][name] = point.value if value != point.value else value
    # The names of a row stand in the order of other rows like it, of this trial and its siblings, or of the result.
    like = [row for path in folder.path.parent.glob("*/metrics.jsonl") for row in read_metrics(path).rows[:1]]
    names = [*result.scores, *(name for row in like for name in row.metrics)]
    place = {name: number for number, name in enumerate(dict.fromkeys(names))}
    text = "".join(
        metric_line(
            MetricRow(step=step, time=time_ms, metrics={name: row[name] for name in sorted(row, key=place.__getitem__)})
        )
        for (time_ms, step), row in sorted(rows.items())
        if row.keys() <= place.keys()
    )
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return text if sha256 == result.files[folder.metrics.name] else None


def _stored(value: float) -> float | None:
    """A value as MLflow's databases keep it, None for NaN, which equals nothing."""
    largest = sys.float_info.max
    return None if math.isnan(value) else max(-largest, min(largest, value))
