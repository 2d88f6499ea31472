"""One trial's folder -> its MLflow run, over all its attempts: params once, every point once, artifacts and a final state when it ends.

`mlflow_mirror.json` in the folder says how far the tracker has it: which rows of `metrics.jsonl` have arrived and, once the run is closed, in which
state. It is a help, not a truth: without it, or when the file no longer begins with those rows, the run is compared with the files point for
point. MLflow cannot delete a point, so a run that holds one that the files do not is deleted as a whole and a new one is filled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from data.atomic import file_sha256, read_sealed_json, write_sealed_json
from model.configs import TrialConfig
from orchestrator.identity import config_to_json, fingerprint, json_fingerprint, read_config_json, trial_id
from orchestrator.layout import TrialFolder, public_uri
from orchestrator.ledger import metrics_are_whole
from orchestrator.mirror_points import Curves, result_points
from orchestrator.mlflow_tracker import PARENT, MlflowTracker, RunStatus
from orchestrator.point_check import compare_with_files
from orchestrator.results import find_failure, read_result

RunState = Literal["running", "interrupted", "failed", "done"]
STATUS: dict[RunState, RunStatus] = {"interrupted": "KILLED", "failed": "FAILED", "done": "FINISHED"}

_MARKER = "mlflow_mirror.json"


class TrialMirror:
    """Keeps one MLflow run like one trial's folder."""

    def __init__(self, folder: TrialFolder, trial: TrialConfig, *, uri: str) -> None:
        """`uri`: of the tracker; attempts that begin from now on count as live."""
        self.folder, self.trial = folder, trial
        self._uri = public_uri(uri)
        self._earlier_attempts = _attempts(folder)
        self._curves = Curves(folder.metrics)
        self._run_id: str | None = None  # while this process has the run open
        self._closed: tuple[Any, ...] = ()  # what the folder looked like when the run was closed

    def state(self, *, live: bool) -> RunState | None:
        """What the run is to show, None where there is nothing to mirror: not begun, or computed from another configuration.

        `live`: this process drives the trial's attempts. Raises ValueError for a damaged `config.json`.
        """
        attempt = self.folder.latest_attempt()
        if not self.folder.config.exists() or (attempt is None and not self.folder.result.exists()):
            return None
        if json_fingerprint(read_config_json(self.folder.config)) != fingerprint(self.trial):
            return None
        if self.folder.result.exists() or attempt is None:
            return "done"
        if (failure := find_failure(attempt)) and not failure.goes_on:
            return "failed"
        return "running" if live and attempt.number > self._earlier_attempts else "interrupted"

    def is_complete(self) -> bool:
        """Whether the tracker has everything, by the marker. Reads files only; the trial must not be running."""
        state = self.state(live=False)
        return state is None or self._is_marked(state)

    def update(self, tracker: MlflowTracker, parent: str, tags: Mapping[str, str], *, live: bool) -> None:
        """Send what is new; close the run when the trial has ended or nobody drives it.

        Raises ValueError for a damaged config or result, and what MLflow raises; in both cases the next call goes on from here.
        """
        look = (_attempts(self.folder), _stat(self.folder.result), _stat(self._failure()), live)
        if look == self._closed:
            return
        state = self.state(live=live)
        if state is None or (self._run_id is None and state != "running" and self._is_marked(state)):
            self._closed = look if state else ()
            return
        run_id = self._open(tracker, parent, tags)
        self._send(tracker, run_id)
        if state == "done":
            self._send_result(tracker, run_id)
        if state != "running":
            tracker.add_artifacts(run_id, trial_files(self.folder))
            tracker.tag(run_id, {"state": state})
            tracker.end(run_id, STATUS[state])
            self._run_id = None  # a retry sets it running again
            self._mark(run_id, state, result=_sha256(self.folder.result))
            self._closed = look

    def expected_tags(self, parent: str) -> dict[str, str]:
        """The tags that follow from the trial."""
        return {
            PARENT: parent,
            "kind": self.trial.foundation.kind,
            "foundation": self.trial.foundation.name,
            "mode": self.trial.mode,
            "seed": str(self.trial.seed),
            "fingerprint": fingerprint(self.trial),
        }

    def expected_params(self) -> dict[str, Any]:
        """What MLflow compares runs by: the configuration, flat."""
        return flatten(config_to_json(self.trial))

    def reopen(self) -> None:
        """Let the next update find the run anew: it may have been deleted."""
        self._run_id = None

    def forget(self) -> None:
        """Let the next update compare the run with the files, whatever was noted."""
        (self.folder.path / _MARKER).unlink(missing_ok=True)
        self._closed = ()
        self.reopen()

    def _open(self, tracker: MlflowTracker, parent: str, tags: Mapping[str, str]) -> str:
        """The trial's run, running, and the curves at the first row that it lacks."""
        if self._run_id is not None and not self._curves.is_replaced():
            return self._run_id

        def open_run() -> str:
            return tracker.open_run(
                self.folder.mlflow_run_id,
                name=trial_id(self.trial),
                tags=self.expected_tags(parent) | {"state": "running"},
                first_tags=tags,
                params=self.expected_params(),
            )

        run_id = open_run()
        if not self._go_on(run_id):
            self._curves.start_over()
            if tracker.metric_names(run_id) and any(
                difference.kind != "missing"
                for difference in compare_with_files(tracker, run_id, self.folder, self.trial)
            ):
                tracker.discard(run_id, "replaced")
                run_id = open_run()
        self._run_id = run_id
        return run_id

    def _go_on(self, run_id: str) -> bool:
        """Go past the rows that the marker says have arrived. False when it says nothing about these files and this run."""
        marker = self._marker()
        known = marker.get("uri") == self._uri and marker.get("run_id") == run_id
        if not known or marker["result"] not in (None, _sha256(self.folder.result)):
            return False
        return self._curves.skip(marker["rows"], marker["digest"])

    def _send(self, tracker: MlflowTracker, run_id: str) -> None:
        batches = 0
        for batch in self._curves.batches():
            if batches:
                self._mark(run_id, "running")  # up to the batch before
            tracker.send(run_id, batch)
            batches += 1
        if batches:
            self._mark(run_id, "running")

    def _send_result(self, tracker: MlflowTracker, run_id: str) -> None:
        result, curves = read_result(self.folder), self._curves
        names = set(curves.names)
        if not metrics_are_whole(
            self.folder, result
        ):  # the scores' row may be lost, which has another time than the result
            names |= tracker.metric_names(run_id)
        points = result_points(result, step=self.trial.budget.steps, names=names, last_ms=curves.last_ms)
        self._mark(
            run_id, "running", result=_sha256(self.folder.result)
        )  # before: another result's points must not join these
        tracker.send(run_id, points)

    def _mark(self, run_id: str, state: RunState, *, result: str | None = None) -> None:
        """Note how far the run is; `result`: the hash of the result whose points it has."""
        curves = self._curves
        write_sealed_json(
            self.folder.path / _MARKER,
            {
                "uri": self._uri,
                "run_id": run_id,
                "rows": curves.rows,
                "digest": curves.digest,
                "result": result,
                "state": state,
                "attempt": _attempts(self.folder),
            },
        )

    def _is_marked(self, state: RunState) -> bool:
        """Whether the run was closed in this state, of this attempt, with this result."""
        now = {
            "uri": self._uri,
            "state": state,
            "attempt": _attempts(self.folder),
            "result": _sha256(self.folder.result),
        }
        return self._marker().items() >= now.items()

    def _marker(self) -> dict[str, Any]:
        """What is noted; nothing where that is damaged: it can be found out anew."""
        try:
            return read_sealed_json(self.folder.path / _MARKER)
        except (FileNotFoundError, ValueError):
            return {}

    def _failure(self) -> Path:
        attempt = self.folder.latest_attempt()
        return attempt.failure if attempt else self.folder.path / "failure.json"


def trial_files(folder: TrialFolder) -> list[Path]:
    """What is kept beside a trial's run."""
    attempt = folder.latest_attempt()
    logs = [attempt.failure, attempt.log] if attempt else []
    files = [folder.config, folder.result, *sorted(folder.path.glob("predictions-*.jsonl")), *logs]
    return [file for file in files if file.exists()]


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested JSON as dotted names."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= flatten(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {prefix + name: item}
    return flat


def _attempts(folder: TrialFolder) -> int:
    attempt = folder.latest_attempt()
    return attempt.number if attempt else 0


def _sha256(path: Path) -> str | None:
    return file_sha256(path) if path.exists() else None


def _stat(path: Path) -> tuple[int, int] | None:
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None
