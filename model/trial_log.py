"""StepInfo ... -> `metrics.jsonl` (the truth every tracker mirrors) and `status.json` (what a progress display shows)."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.atomic import atomic_open, write_json
from data.metric_lines import MetricRow, metric_line, read_metrics
from model.train import StepInfo

_log = logging.getLogger(__name__)

STATUS_INTERVAL_S = 1.0


class TrialLog:
    """Written by rank 0 alone. A step has one row for life, with the time of its first writing: steps that are done again after a kill
    do the same again, and whoever has copied the rows before has nothing to take back.
    """

    def __init__(self, folder: Path, *, steps: int, fresh: bool = False) -> None:
        """Open for appending to the whole rows that are there; `fresh` forgets them."""
        self._metrics = folder / "metrics.jsonl"
        self._status = folder / "status.json"
        self._steps = steps
        self._last_status = 0.0
        self._seconds_per_step: float | None = None
        self._rows: dict[tuple[int, bool], MetricRow] = {}
        if not fresh:
            found = read_metrics(self._metrics)
            for row in found.rows:
                self._rows.setdefault((row.step, row.of_training), row)
            for line in found.damaged_lines:
                _log.warning("%s: line %d is damaged; its step is trained and written again", self._metrics, line)
        self._rewrite()

    def step(self, info: StepInfo, *, log: bool) -> None:
        """Note one finished step: always in the status, and as a metrics line when `log`."""
        self._seconds_per_step = (
            info.seconds if self._seconds_per_step is None else 0.9 * self._seconds_per_step + 0.1 * info.seconds
        )
        if log:
            self._write(
                info.step,
                {
                    "train/loss": info.loss,
                    "train/grad_norm": info.grad_norm,
                    "optim/lr": info.learning_rate,
                    "perf/tokens_per_second": info.tokens / info.seconds,
                    "perf/examples_per_second": info.examples / info.seconds,
                },
            )
        self.status(
            "training",
            force=info.step == self._steps,
            step=info.step,
            steps=self._steps,
            loss=info.loss,
            examples_per_second=info.examples / self._seconds_per_step,
            seconds_left=(self._steps - info.step) * self._seconds_per_step,
        )

    def scores(self, step: int, scores: dict[str, float]) -> None:
        """Note the final scores as one metrics line; the one of an earlier attempt stays where it says the same."""
        noted = self._rows.get((step, False))
        if noted is not None and noted.metrics != scores:
            del self._rows[step, False]
            self._stream.close()
            self._rewrite()
        self._write(step, scores)

    def status(self, phase: str, *, force: bool = False, **fields: Any) -> None:
        """Say where the trial is, at most once a second unless forced."""
        now = time.time()
        if force or now - self._last_status >= STATUS_INTERVAL_S:
            write_json(self._status, {"phase": phase, "time": now, **fields})
            self._last_status = now

    def flush(self) -> None:
        """Put every metrics line on disk: called before a checkpoint is committed, so that no step's line can be missing after a resume."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self._stream.close()

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        row = MetricRow(step=step, time=int(time.time() * 1000), metrics=metrics)
        if (step, row.of_training) not in self._rows:
            self._rows[step, row.of_training] = row
            self._stream.write(metric_line(row))
            self._stream.flush()

    def _rewrite(self) -> None:
        with atomic_open(self._metrics) as stream:
            stream.writelines(metric_line(row) for row in self._rows.values())
        self._stream = self._metrics.open("a", encoding="utf-8")
