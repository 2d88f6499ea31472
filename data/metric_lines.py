"""Metric rows <-> the lines of `metrics.jsonl`, each with its own checksum (`data.checked_lines`).

{"step": 10, "time": 1718000000000, "metrics": {"train/loss": 1.5}, "crc32": "8d3a1b0c"}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data.checked_lines import checked_line, parse_checked_line

LOG_EVERY = 10
"""Optimizer steps between two rows of training."""


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """What was measured after one optimizer step. `time` is fixed when the row is made: sending a row twice adds nothing anywhere."""

    step: int
    time: int  # milliseconds since the epoch
    metrics: Mapping[str, float]

    @property
    def of_training(self) -> bool:
        """Whether it is about an optimizer step; the other kind holds the scores after the last one."""
        return "train/loss" in self.metrics


@dataclass(frozen=True)
class MetricsFile:
    """What a `metrics.jsonl` holds."""

    rows: tuple[MetricRow, ...]  # the good ones
    damaged_lines: tuple[int, ...]  # from 1; a last line that a kill cut off is not among them


def is_logged(step: int, *, steps: int) -> bool:
    """Whether a training of `steps` steps leaves a row for this one: the first, the last, and every `LOG_EVERY`-th."""
    return step in (1, steps) or step % LOG_EVERY == 0


def metric_line(row: MetricRow) -> str:
    """The row as a line, with its line feed."""
    return checked_line({"step": row.step, "time": row.time, "metrics": dict(row.metrics)})


def parse_metric_line(line: bytes) -> MetricRow | None:
    """The row of a line, without its line feed or with it; None when any byte of it was changed."""
    row = parse_checked_line(line)
    return MetricRow(**row) if row is not None else None


def read_metrics(path: Path) -> MetricsFile:
    """Every good row of the file, in its order, and where it is damaged; nothing when it is absent."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    rows = [parse_metric_line(line) for line in lines]
    return MetricsFile(
        rows=tuple(row for row in rows if row is not None),
        damaged_lines=tuple(number for number, row in enumerate(rows, start=1) if row is None),
    )
