"""The only home of `import mlflow`: finds or makes the runs of a grid, writes to them and reads them back.

MLflow's client blocks for minutes on a dead server and keeps its own queue in memory, so every call here is synchronous with short
timeouts. Any method may raise what MLflow raises; the caller decides.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.atomic import atomic_open
from orchestrator.mirror_points import LARGEST_BATCH, MetricPoint

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

PARENT, KEY = "mlflow.parentRunId", "slotgrid.key"
"""Tags: the run under which MLflow compares this one; which folder it mirrors."""

_SQLITE = "sqlite:///"
_CHECKED_WITHIN_S = 30.0
"""A database that takes longer to be read through counts as whole: about 10 GB."""
_LONGEST_PARAM = 6000  # characters; MLflow's limit
_SHORT_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


class TrackerClosed(Exception):
    """Nothing more is to be written: whoever started this has given up waiting."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as the tracker has it."""

    id: str
    name: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]


class MlflowTracker:
    """One MLflow experiment on one tracking server or database."""

    def __init__(self, uri: str, experiment: str, *, artifact_root: Path | None) -> None:
        """Connect; a missing database gets its schema and a missing experiment is made. `artifact_root`: for a database of our own."""
        if database := _database(uri):
            database.parent.mkdir(parents=True, exist_ok=True)
        self._client = _client(uri)
        self._closed = threading.Event()
        known = self._client.get_experiment_by_name(experiment)
        location = artifact_root.as_uri() if artifact_root else None
        self._experiment_id = known.experiment_id if known else self._client.create_experiment(experiment, location)

    def ping(self) -> None:
        """Raise when the tracker does not answer."""
        self._client.get_experiment(self._experiment_id)

    def close(self) -> None:
        """Let whoever still writes, in another thread, stop with TrackerClosed."""
        self._closed.set()

    def open_run(
        self,
        id_file: Path,
        *,
        name: str,
        tags: Mapping[str, str],
        first_tags: Mapping[str, str],
        params: Mapping[str, Any],
    ) -> str:
        """The run that `id_file` names, set running again, or a new one; `id_file` is written as soon as the run exists.

        A run that a killed process made and did not note is found again by a key that lies beside `id_file` before. `first_tags` are
        given to a new run only.
        """
        key = read_key(id_file)
        if not key:
            key = secrets.token_hex(16)
            _write_text(_key_file(id_file), key)
        run = self.find(id_file) or next(iter(self.runs(f"tags.`{KEY}` = '{key}'")), None)
        if run is None:
            made = self._client.create_run(self._experiment_id, run_name=name, tags={**first_tags, **tags, KEY: key})
            run = _record(made)
        elif run.status != "RUNNING":
            self._client.update_run(run.id, status="RUNNING")
        if _read_word(id_file) != run.id:
            _write_text(id_file, run.id)
        self.tag(run.id, {tag: value for tag, value in {**tags, KEY: key}.items() if run.tags.get(tag) != value})
        self._log_params(run, params)
        return run.id

    def send(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Send points. Those that have arrived before, with the same time, are not doubled. Raises TrackerClosed after `close`."""
        from mlflow.entities import Metric

        for start in range(0, len(points), LARGEST_BATCH):
            if self._closed.is_set():
                raise TrackerClosed
            batch = points[start : start + LARGEST_BATCH]
            self._client.log_batch(run_id, metrics=[Metric(p.name, p.value, p.time_ms, p.step) for p in batch])

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

    def end_abandoned(self, run: RunRecord) -> None:
        """Close a run that still counts as running: its process was killed and nothing goes on with it."""
        if run.status == "RUNNING":
            self.tag(run.id, {"state": "interrupted"})
            self.end(run.id, "KILLED")

    def retire(self, run: RunRecord) -> None:
        """Take the run of a trial that was set aside out of the comparison: closed, tagged stale, no longer under the grid's run."""
        if run.status == "RUNNING":
            self.end(run.id, "KILLED")
        if run.tags.get("state") != "stale":
            self.tag(run.id, {"state": "stale"})
        if PARENT in run.tags:
            self._client.delete_tag(run.id, PARENT)

    def discard(self, run_id: str, reason: str) -> None:
        """Delete a run the way MLflow does: it can be restored there until somebody empties MLflow's trash. `reason` becomes its state."""
        self.tag(run_id, {"state": reason})
        self.end(run_id, "KILLED")
        self._client.delete_run(run_id)

    def find(self, id_file: Path) -> RunRecord | None:
        """The run that the file names, if this tracker has it and it is not deleted."""
        from mlflow.exceptions import MlflowException

        run_id = _read_word(id_file)
        if not run_id:
            return None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # another tracker's, or a database that was deleted
                return None
            raise
        return _record(run) if run.info.lifecycle_stage == "active" else None

    def runs(self, filter_string: str) -> Iterator[RunRecord]:
        """The runs of the experiment that are not deleted and pass the filter (in MLflow's language), newest first."""
        token = None
        while True:
            page = self._client.search_runs([self._experiment_id], filter_string, page_token=token)
            yield from map(_record, page)
            token = page.token
            if not token:
                return

    def metric_names(self, run_id: str) -> set[str]:
        """The metrics that a run has any point of."""
        return set(self._client.get_run(run_id).data.metrics)

    def history(self, run_id: str, name: str) -> list[MetricPoint]:
        """Every point of one metric that has arrived."""
        points = self._client.get_metric_history(run_id, name)
        return [MetricPoint(name=name, value=p.value, step=p.step, time_ms=p.timestamp) for p in points]

    def artifacts(self, run_id: str) -> dict[str, int]:
        """The files beside a run and their sizes in bytes."""
        return {file.path: file.file_size for file in self._client.list_artifacts(run_id) if not file.is_dir}

    def _log_params(self, run: RunRecord, params: Mapping[str, Any]) -> None:
        """Log those that are missing: params cannot be changed, and a killed process may have logged some."""
        from mlflow.entities import Param

        missing = [Param(name, param_text(value)) for name, value in params.items() if name not in run.params]
        for start in range(0, len(missing), 100):
            self._client.log_batch(run.id, params=missing[start : start + 100])


def has_experiment(uri: str, experiment: str) -> bool:
    """Whether the tracker knows the experiment. Nothing is made; a database that is not there is one that knows nothing."""
    database = _database(uri)
    if database and not database.exists():
        return False
    return _client(uri).get_experiment_by_name(experiment) is not None


def read_key(id_file: Path) -> str:
    """The key by which the run of a folder is found when its id was lost; "" where it is absent or damaged."""
    key = _read_word(_key_file(id_file))
    return key if re.fullmatch(r"[0-9a-f]{32}", key) else ""


def database_problem(uri: str) -> str:
    """What is wrong with the database file that `uri` names, and the remedy; "" for a whole one and for other trackers. Nothing is changed.

    SQLite reads it through and looks whether it can be written to. What was changed within a value is seen by comparing with the files alone.
    """
    database = _database(uri)
    if not database or not database.exists():
        return ""
    deadline = time.monotonic() + _CHECKED_WITHIN_S
    try:
        with closing(sqlite3.connect(database, timeout=5.0)) as connection:
            connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE slotgrid_can_write (id)")
            connection.rollback()
    except (
        sqlite3.OperationalError
    ) as error:  # locked, no permission, a full disk: nothing that another database would mend
        problem = str(error) if "readonly" in str(error) and os.access(database, os.W_OK) else "ok"
    except sqlite3.DatabaseError as error:
        problem = str(error)
    if problem == "ok":
        return ""
    return (
        f"the database is damaged ({problem.splitlines()[-1]}): move {database}* away, and each experiment's "
        "next run, or doctor --repair, fills a new one from the files"
    )


def _database(uri: str) -> Path | None:
    """The database file of a tracker that is one."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def _key_file(id_file: Path) -> Path:
    return id_file.with_name("mlflow_key")


def _read_word(file: Path) -> str:
    """The letters and digits that a file holds; "" where it is absent or holds anything else."""
    content = file.read_bytes().strip() if file.exists() else b""
    return content.decode() if content.isalnum() else ""


def param_text(value: Any) -> str:
    """A parameter as MLflow keeps it."""
    return str(value)[:_LONGEST_PARAM]


def _client(uri: str) -> Any:
    for name, value in (_SHORT_TIMEOUTS | _QUIET).items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints the tracebacks of what it raises
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _record(run: Any) -> RunRecord:
    return RunRecord(
        id=str(run.info.run_id),
        name=str(run.info.run_name),
        status=str(run.info.status),
        tags=dict(run.data.tags),
        params=dict(run.data.params),
    )


def _write_text(path: Path, text: str) -> None:
    with atomic_open(path) as stream:
        stream.write(text)
