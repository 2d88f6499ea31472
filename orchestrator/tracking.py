"""Trial folders -> MLflow: one parent run per grid, one child per trial. The files are the truth, MLflow is a mirror of them.

Only the head process speaks to MLflow, from a thread of its own: a tracker that is slow, down or full never holds up a trial. What could not be
sent is sent by the next pass or by the next run. `mlflow_mirror.json`, written last, says that a folder is mirrored whole.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.atomic import file_sha256, iter_whole_lines, write_json
from model.configs import TrialConfig
from orchestrator.corpora import corpus_ref
from orchestrator.experiment import Experiment
from orchestrator.identity import config_to_json, fingerprint, read_document, trial_id
from orchestrator.layout import RunFolder, Store, TrialFolder, public_uri
from orchestrator.mlflow_tracker import MetricPoint, MlflowTracker, RunStatus
from orchestrator.provenance import code_revision
from orchestrator.results import read_result
from orchestrator.scales import Scale

PASS_EVERY_S = 5.0
RETRY_EVERY_S = 30.0
"""After a pass that failed."""

_log = logging.getLogger(__name__)


def tracking_uri(option: str | None, store: Store) -> str:
    """Where to mirror to: the command line's word, else MLFLOW_TRACKING_URI, else a database in the store."""
    return option or os.environ.get("MLFLOW_TRACKING_URI") or store.mlflow_uri


class Mirror:
    """Keeps MLflow like the run folder, from `start` to `finish`."""

    def __init__(
        self,
        experiment: Experiment,
        scale: Scale,
        trials: Sequence[TrialConfig],
        store: Store,
        *,
        uri: str,
        warn: Callable[[str], None],
    ) -> None:
        """`warn` is told, once, in one line, when the tracker cannot be reached."""
        self.uri = uri
        self._experiment = experiment
        self._scale = scale
        self._run = store.runs(experiment.name, scale.label)
        self._trials = {trial_id(trial): trial for trial in trials}
        self._artifact_root = store.mlflow_artifacts if uri == store.mlflow_uri else None
        self._warn = warn
        self._warned = False
        self._tracker: MlflowTracker | None = None
        self._parent: str = ""
        self._children: dict[str, str] = {}  # trial id -> MLflow run id, of runs opened by this process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)

    def is_complete(self) -> bool:
        """Whether nothing has changed since everything was mirrored to this tracker. Reads files only."""
        ended = [self._run.trial(name) for name in self._trials if _ended(self._run.trial(name))]
        return _is_marked(self._run.path, self._parent_marker()) and all(
            _is_marked(folder.path, _trial_marker(folder, self.uri)) for folder in ended
        )

    def start(self) -> None:
        """Begin to mirror in the background."""
        self._thread.start()

    def finish(self, status: RunStatus, *, patience_s: float = 60.0) -> bool:
        """Stop the background thread, mirror what is left, close every run. True when all of it arrived.

        A run whose trial is neither done nor failed is closed as KILLED, to be set running again when it is continued.
        """
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(patience_s)
            if self._thread.is_alive():
                self._tell("it does not answer")
                return False
        return self._attempt(lambda: self._pass(final=status))

    def _work(self) -> None:
        wait = 0.0
        while not self._stop.wait(wait):
            wait = PASS_EVERY_S if self._attempt(lambda: self._pass(final=None)) else RETRY_EVERY_S

    def _attempt(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:
            # The mirror's boundary. MLflow's backends raise classes of their own (requests, sqlalchemy, botocore ...): no trial may fail for them.
            _log.debug("MLflow pass failed", exc_info=True)
            self._tell(str(error).splitlines()[0] if str(error) else type(error).__name__)
            return False
        return True

    def _tell(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            shown = public_uri(self.uri)
            self._warn(
                f"MLflow at {shown}: {reason[:200].replace(self.uri, shown)}; "
                "the grid goes on, its files are kept, and the next run sends what is missing"
            )

    def _pass(self, *, final: RunStatus | None) -> None:
        """Mirror whatever is new. `final`: also close every run, the parent with this status."""
        tracker = self._open()
        for name, trial in self._trials.items():
            folder = self._run.trial(name)
            if not folder.config.exists() or _is_marked(folder.path, _trial_marker(folder, self.uri)):
                continue
            ended = _ended(folder)
            if folder.latest_attempt() is None and not ended:
                continue
            run_id = self._open_child(tracker, folder, trial)
            tracker.send(run_id, list(_metric_points(folder, trial)))
            if ended:
                self._close_child(tracker, run_id, folder, ended)
            elif final:
                tracker.tag(run_id, {"state": "interrupted"})
                tracker.end(run_id, "KILLED")
        if final:
            tracker.add_artifacts(self._parent, _report_files(self._run))
            tracker.tag(
                self._parent, {"state": {"FINISHED": "done", "FAILED": "failed", "KILLED": "interrupted"}[final]}
            )
            tracker.end(self._parent, final)
            write_json(self._run.path / _MARKER, self._parent_marker())

    def _open(self) -> MlflowTracker:
        if self._tracker is None:
            tracker = MlflowTracker(self.uri, self._experiment.name, artifact_root=self._artifact_root)
            self._parent = tracker.open_run(
                self._run.mlflow_run_id,
                name=self._run.path.name,
                tags=self._tags() | {"state": "running", "mlflow.note.content": self._experiment.hypothesis},
                params={},
            )
            for folder in self._run.trials.glob("*/"):
                if folder.name not in self._trials:  # set aside as stale, or left out by --only
                    tracker.end_abandoned(TrialFolder(folder).mlflow_run_id)
            self._tracker = tracker
        return self._tracker

    def _open_child(self, tracker: MlflowTracker, folder: TrialFolder, trial: TrialConfig) -> str:
        name = trial_id(trial)
        if name not in self._children:
            tags = {
                "mlflow.parentRunId": self._parent,
                "kind": trial.foundation.kind,
                "foundation": trial.foundation.name,
                "mode": trial.mode,
                "seed": str(trial.seed),
                "fingerprint": fingerprint(trial),
                "state": "running",
            } | self._tags()
            run_id = tracker.open_run(
                folder.mlflow_run_id,
                name=name,
                tags=tags,
                params=flatten(config_to_json(trial)),
            )
            tracker.tag(run_id, {"state": "running", "mlflow.parentRunId": self._parent})
            self._children[name] = run_id
        return self._children[name]

    def _close_child(self, tracker: MlflowTracker, run_id: str, folder: TrialFolder, ended: str) -> None:
        tracker.add_artifacts(run_id, _trial_files(folder))
        tracker.tag(run_id, {"state": ended})
        tracker.end(run_id, "FINISHED" if ended == "done" else "FAILED")
        del self._children[trial_id(self._trials[folder.path.name])]  # a retry sets it running again
        write_json(folder.path / _MARKER, _trial_marker(folder, self.uri))

    def _tags(self) -> dict[str, str]:
        corpus = corpus_ref(self._scale.corpus).name
        return {"scale": self._scale.name, "corpus": corpus, "git_revision": code_revision()}

    def _parent_marker(self) -> dict[str, Any]:
        report = {path.name: file_sha256(path) for path in _report_files(self._run) if path.exists()}
        return {"uri": public_uri(self.uri), "report": report}


_MARKER = "mlflow_mirror.json"


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested JSON as dotted names: what MLflow compares runs by."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= flatten(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {prefix + name: item}
    return flat


def _ended(folder: TrialFolder) -> str:
    """ "done", "failed", or "" while it can still go on."""
    if folder.result.exists():
        return "done"
    attempt = folder.latest_attempt()
    return "failed" if attempt and attempt.failure.exists() else ""


def _trial_marker(folder: TrialFolder, uri: str) -> dict[str, Any]:
    """What must be on disk for a trial to count as mirrored: changes with its state, its attempt and the tracker."""
    attempt = folder.latest_attempt()
    result = file_sha256(folder.result) if folder.result.exists() else None
    return {
        "uri": public_uri(uri),
        "state": _ended(folder),
        "attempt": attempt.number if attempt else 0,
        "result": result,
    }


def _is_marked(folder: Path, marker: Mapping[str, Any]) -> bool:
    path = folder / _MARKER
    return path.exists() and read_document(path, "delete this file and run again") == marker


def _metric_points(folder: TrialFolder, trial: TrialConfig) -> Sequence[MetricPoint]:
    """Every point of the trial: its curves, then what its result adds. Redone steps keep their number, so each arrives once."""
    rows = list(iter_whole_lines(folder.metrics)) if folder.metrics.exists() else []
    points = [
        MetricPoint(name=name, value=value, step=row["step"], time_ms=row["time"])
        for row in rows
        for name, value in row["metrics"].items()
    ]
    if folder.result.exists():
        result = read_result(folder)
        costs = {f"cost/{name}": value for name, value in result.costs.items()}
        time_ms = int(folder.result.stat().st_mtime * 1000)
        known = {point.name for point in points}
        points += [
            MetricPoint(name=name, value=value, step=trial.budget.steps, time_ms=time_ms)
            for name, value in (result.scores | result.validation_scores | costs).items()
            if name not in known
        ]
    return points


def _trial_files(folder: TrialFolder) -> list[Path]:
    attempt = folder.latest_attempt()
    logs = [attempt.failure, attempt.log] if attempt else []
    return [folder.config, folder.result, *sorted(folder.path.glob("predictions-*.jsonl")), *logs]


def _report_files(run: RunFolder) -> list[Path]:
    return [run.report_md, run.results_csv, run.costs_csv, run.heatmap]
