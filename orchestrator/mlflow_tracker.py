"""The only home of `import mlflow`: finds or makes the runs of a grid and writes to them, each point once.

MLflow's client blocks for minutes on a dead server and keeps its own queue in memory, so every call here is synchronous with short
timeouts, and what has arrived is asked of the tracker, never assumed. Any method may raise what MLflow raises; the caller decides.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.atomic import atomic_open

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

_LARGEST_BATCH = 1000  # metrics; MLflow's limit for one request
_LONGEST_PARAM = 6000  # characters; MLflow's limit

_SHORT_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


@dataclass(frozen=True, kw_only=True)
class MetricPoint:
    """One point of a curve. `time_ms` was fixed when the value was made: sending the same point again adds nothing."""

    name: str
    value: float
    step: int
    time_ms: int


class MlflowTracker:
    """One MLflow experiment on one tracking server or database."""

    def __init__(self, uri: str, experiment: str, *, artifact_root: Path | None) -> None:
        """Connect; a missing database gets its schema and a missing experiment is made. `artifact_root`: for a database of our own."""
        for name, value in (_SHORT_TIMEOUTS | _QUIET).items():
            os.environ.setdefault(name, value)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        known = self._client.get_experiment_by_name(experiment)
        location = artifact_root.as_uri() if artifact_root else None
        self._experiment_id = known.experiment_id if known else self._client.create_experiment(experiment, location)
        self._last_steps: dict[str, dict[str, int]] = {}  # run id -> metric name -> the last step that arrived

    def open_run(self, id_file: Path, *, name: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
        """The run that `id_file` names, set running again, or a new one; `id_file` is written as soon as the run exists.

        A run that a killed process made and did not note is found again by a key that lies beside `id_file` before.
        """
        key_file = id_file.with_name("mlflow_key")
        if not key_file.exists():
            _write_text(key_file, secrets.token_hex(16))
        key = key_file.read_text(encoding="utf-8")
        run_id = self._known_run(id_file) or self._run_by_key(key)
        if run_id is None:
            run = self._client.create_run(self._experiment_id, run_name=name, tags={**tags, "slotgrid.key": key})
            run_id = str(run.info.run_id)
        else:
            self._client.update_run(run_id, status="RUNNING")
        if not id_file.exists() or id_file.read_text(encoding="utf-8").strip() != run_id:
            _write_text(id_file, run_id)
        self._log_params(run_id, params)
        self._last_steps[run_id] = self._arrived(run_id)
        return run_id

    def send(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Send the points whose step is past what has arrived under their name."""
        from mlflow.entities import Metric

        last = self._last_steps[run_id]
        new = [point for point in points if point.step > last.get(point.name, -1)]
        for start in range(0, len(new), _LARGEST_BATCH):
            batch = new[start : start + _LARGEST_BATCH]
            self._client.log_batch(run_id, metrics=[Metric(p.name, p.value, p.time_ms, p.step) for p in batch])
            for point in batch:
                last[point.name] = max(point.step, last.get(point.name, -1))

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags."""
        for name, value in tags.items():
            self._client.set_tag(run_id, name, value)

    def add_artifacts(self, run_id: str, files: Sequence[Path]) -> None:
        """Copy those of the files that exist beside the run; an earlier copy is overwritten."""
        for file in files:
            if file.exists():
                self._client.log_artifact(run_id, str(file))

    def end(self, run_id: str, status: RunStatus) -> None:
        """Close the run."""
        self._client.set_terminated(run_id, status)

    def end_abandoned(self, id_file: Path) -> None:
        """Close the run that `id_file` names if it still counts as running: its process was killed and nothing goes on with it."""
        run_id = self._known_run(id_file)
        if run_id and self._client.get_run(run_id).info.status == "RUNNING":
            self.tag(run_id, {"state": "interrupted"})
            self.end(run_id, "KILLED")

    def _known_run(self, id_file: Path) -> str | None:
        """The run that the file names, if this tracker has it."""
        from mlflow.exceptions import MlflowException

        if not id_file.exists():
            return None
        run_id = id_file.read_text(encoding="utf-8").strip()
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # another tracker's, or a database that was deleted
                return None
            raise
        return run_id if run.info.lifecycle_stage == "active" else None

    def _run_by_key(self, key: str) -> str | None:
        found = self._client.search_runs([self._experiment_id], f"tags.`slotgrid.key` = '{key}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Log those that are missing: params cannot be changed, and a killed process may have logged some."""
        from mlflow.entities import Param

        known = self._client.get_run(run_id).data.params
        missing = [Param(name, str(value)[:_LONGEST_PARAM]) for name, value in params.items() if name not in known]
        for start in range(0, len(missing), 100):
            self._client.log_batch(run_id, params=missing[start : start + 100])

    def _arrived(self, run_id: str) -> dict[str, int]:
        names = self._client.get_run(run_id).data.metrics
        return {name: max(point.step for point in self._client.get_metric_history(run_id, name)) for name in names}


def _write_text(path: Path, text: str) -> None:
    with atomic_open(path) as stream:
        stream.write(text)
