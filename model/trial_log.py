"""StepInfo ... -> `metrics.jsonl` (the truth every tracker mirrors) and `status.json` (what a progress display shows)."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from data.atomic import atomic_open, iter_whole_lines, write_json
from model.train import StepInfo

STATUS_INTERVAL_S = 1.0


class TrialLog:
    """Written by rank 0 alone. A metric's time is fixed when its line is written, so sending it twice adds nothing anywhere."""

    def __init__(self, folder: Path, *, steps: int, resume_step: int) -> None:
        """Open for appending; what is done again now is dropped: steps after `resume_step`, final scores, a half-written line."""
        self._metrics = folder / "metrics.jsonl"
        self._status = folder / "status.json"
        self._steps = steps
        self._last_status = 0.0
        self._seconds_per_step: float | None = None
        kept = (
            [r for r in iter_whole_lines(self._metrics) if r["step"] <= resume_step and "train/loss" in r["metrics"]]
            if self._metrics.exists()
            else []
        )
        with atomic_open(self._metrics) as stream:
            stream.writelines(json.dumps(row) + "\n" for row in kept)
        self._stream = self._metrics.open("a", encoding="utf-8")

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
        """Note the final scores as one metrics line."""
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

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        self._stream.write(json.dumps({"step": step, "time": int(time.time() * 1000), "metrics": metrics}) + "\n")
        self._stream.flush()
