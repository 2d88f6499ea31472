"""`metrics.jsonl` and `result.json` of one trial -> the points that a tracker is sent, each with a time that never changes.

A row of `metrics.jsonl` is for life: steps that are done again after a kill leave no second row (`model.trial_log`). So the file is read forward, a
batch at a time, also while it grows, and what has arrived is known by its number of rows and their hash, which tell whether the file still begins
with it: a damaged row that was trained again, or a folder that was reset by hand, is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.metric_lines import MetricRow, parse_metric_line
from orchestrator.results import TrialResult

LARGEST_BATCH = 1000
"""Points; MLflow's limit for one request."""


@dataclass(frozen=True, kw_only=True)
class MetricPoint:
    """One point of a curve. `time_ms` was fixed when the value was made: sending the same point again adds nothing."""

    name: str
    value: float
    step: int
    time_ms: int


@dataclass
class _Position:
    """How far a file has been read. `digest` is over the rows' content, so that a file may be copied or written anew."""

    offset: int = 0
    rows: int = 0
    last_ms: int = 0
    names: set[str] = field(default_factory=set)
    digest: Any = field(default_factory=hashlib.sha256)

    def copy(self) -> _Position:
        return _Position(self.offset, self.rows, self.last_ms, set(self.names), self.digest.copy())

    def add(self, row: MetricRow) -> None:
        self.rows += 1
        self.last_ms = row.time
        self.names.update(row.metrics)
        self.digest.update(json.dumps([row.step, row.time, row.metrics], sort_keys=True).encode())


class Curves:
    """Reads the rows of one `metrics.jsonl` once, forward, while another process appends to it or replaces it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._at = _Position()

    @property
    def rows(self) -> int:
        """The number of rows sent."""
        return self._at.rows

    @property
    def digest(self) -> str:
        """The hash of the rows sent."""
        return str(self._at.digest.hexdigest())

    @property
    def names(self) -> set[str]:
        """The metrics that the rows sent hold."""
        return self._at.names

    @property
    def last_ms(self) -> int:
        """When the last row sent was made, in milliseconds since the epoch; 0 without one."""
        return self._at.last_ms

    def is_replaced(self) -> bool:
        """Whether the file is no longer the one that was read, or was cut."""
        if not self._path.exists():
            return self._at.rows > 0
        stat = self._path.stat()
        return self._at.offset > 0 and (stat.st_ino != self._inode or stat.st_size < self._at.offset)

    def start_over(self) -> None:
        """Read from the first row on: nothing counts as sent."""
        self._at = _Position()

    def skip(self, rows: int, digest: str) -> bool:
        """Start behind the first `rows` rows. False, and at the first row, when the file does not begin with rows of this hash."""
        self.start_over()
        at = _Position()
        for end, row in self._iter_from(0):
            if at.rows == rows:
                break
            at.offset = end
            if row is not None:
                at.add(row)
        if at.rows != rows or at.digest.hexdigest() != digest:
            return False
        self._at = at
        return True

    def batches(self) -> Iterator[list[MetricPoint]]:
        """The points of the rows that are new, whole rows together. A batch counts as sent when the next is asked for."""
        at, batch = self._at.copy(), list[MetricPoint]()
        for end, row in self._iter_from(at.offset):
            if row is not None:
                points = row_points(row)
                if batch and len(batch) + len(points) > LARGEST_BATCH:
                    yield batch
                    self._at, batch = at.copy(), []
                batch += points
                at.add(row)
            at.offset = end
        if batch:
            yield batch
        self._at = at

    def _iter_from(self, offset: int) -> Iterator[tuple[int, MetricRow | None]]:
        """The rows from a place in the file on, None for a damaged one, each with the place behind it."""
        if not self._path.exists():
            return
        with self._path.open("rb") as stream:
            inode = os.fstat(stream.fileno()).st_ino
            if offset and inode != self._inode:
                return  # replaced a moment ago: the place means nothing in this file, and `is_replaced` says so next time
            self._inode = inode
            stream.seek(offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    return  # still being written
                offset += len(line)
                yield offset, parse_metric_line(line)


def row_points(row: MetricRow) -> list[MetricPoint]:
    """The points of one row."""
    return [MetricPoint(name=name, value=value, step=row.step, time_ms=row.time) for name, value in row.metrics.items()]


def result_points(result: TrialResult, *, step: int, names: set[str], last_ms: int) -> list[MetricPoint]:
    """What the result adds to the curves, at the trial's last step. `names`, `last_ms`: what the curves hold, see `Curves`."""
    costs = {f"cost/{name}": value for name, value in result.costs.items()}
    time_ms = int(result.finished * 1000) or last_ms
    return [
        MetricPoint(name=name, value=value, step=step, time_ms=time_ms)
        for name, value in (result.scores | result.validation_scores | costs).items()
        if name not in names
    ]
