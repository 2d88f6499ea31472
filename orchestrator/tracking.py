"""Run folder -> MLflow: one parent run per grid, one child per trial. The files are the truth, MLflow is a mirror of them.

Only the head process speaks to MLflow, from a thread of its own: a tracker that is slow, down or full never holds up a trial, and what could not be
sent is sent by the next pass, by the next run, or by `doctor --repair`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

from data.atomic import file_sha256, read_sealed_json, write_sealed_json
from model.configs import TrialConfig
from orchestrator.corpora import corpus_ref
from orchestrator.experiment import Experiment
from orchestrator.identity import trial_id
from orchestrator.layout import RunFolder, Store, TrialFolder, public_uri
from orchestrator.lease import LeaseLostError
from orchestrator.mlflow_tracker import MlflowTracker, RunStatus, TrackerClosed, database_problem
from orchestrator.provenance import code_revision
from orchestrator.redaction import redact
from orchestrator.scales import Scale
from orchestrator.trial_mirror import TrialMirror

PASS_EVERY_S = 5.0
RETRY_EVERY_S = 30.0
"""After a pass that failed."""
GRID_STATE: dict[RunStatus, str] = {"FINISHED": "done", "FAILED": "failed", "KILLED": "interrupted"}

_MARKER = "mlflow_mirror.json"
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
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`trials`: the whole grid, also where only a part of it is run. `warn` is told, once, in one line, when the tracker cannot be reached.

        `check` raises LeaseLostError when another driver has taken the folder over: then nothing more is mirrored from here.
        """
        self.uri = uri
        self._experiment = experiment
        self._scale = scale
        self._run = store.runs(experiment.name, scale.label)
        self._artifact_root = artifact_root(uri, store)
        self._warn, self._check = warn, check
        self._warned = False
        self._tracker: MlflowTracker | None = None
        self._parent = ""
        self._tags: dict[str, str] = {}
        self.children = {
            trial_id(trial): TrialMirror(self._run.trial(trial_id(trial)), trial, uri=uri) for trial in trials
        }
        self._stop = threading.Event()
        self._final: RunStatus | None = None
        self._arrived = False
        self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)

    def is_complete(self) -> bool:
        """Whether nothing has changed since everything was mirrored to this tracker. Reads files only."""
        return self._read_marker() == self._marker() and all(child.is_complete() for child in self.children.values())

    @property
    def public_uri(self) -> str:
        """The tracker's address, as it may be printed."""
        return public_uri(self.uri)

    def grid_status(self) -> RunStatus:
        """How the grid's run is to be closed, by the files: FINISHED when every trial is done, FAILED when one failed, else KILLED."""
        states = set()
        for child in self.children.values():
            try:
                states.add(child.state(live=False))
            except ValueError:  # a damaged config: not done, whatever it was
                states.add("failed")
        if states <= {"done"}:
            return "FINISHED"
        return "FAILED" if "failed" in states else "KILLED"

    def start(self) -> None:
        """Begin to mirror in the background."""
        self._thread.start()

    def finish(self, status: RunStatus, *, patience_s: float = 60.0) -> bool:
        """Mirror what is left, close every run and stop, within `patience_s`. True when all of it arrived.

        A run whose trial is neither done nor failed is closed as KILLED, to be set running again when it is continued.
        """
        self._final = status
        self._stop.set()
        if self._thread.ident is None:
            self._thread.start()
        self._thread.join(patience_s)
        if self._thread.is_alive():
            if self._tracker:
                self._tracker.close()
            self._tell(f"it has not taken everything within {patience_s:.0f} s")
            return False
        return self._arrived

    def catch_up(self, status: RunStatus) -> None:
        """Do what `finish` does in this thread, however long it takes. Raises what MLflow raises, and ValueError for a damaged file."""
        self._pass(final=status)

    def _work(self) -> None:
        wait = 0.0
        while not self._stop.wait(wait):
            wait = PASS_EVERY_S if self._attempt(lambda: self._pass(final=None)) else RETRY_EVERY_S
        self._arrived = self._attempt(lambda: self._pass(final=self._final))

    def _attempt(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except (TrackerClosed, LeaseLostError):
            return False  # `finish`, or the whole run, has told
        except Exception as error:
            # The mirror's boundary. MLflow's backends raise classes of their own (requests, sqlalchemy, botocore ...): no trial may fail for them.
            self._tell(failure_line(error, self.uri))
            return False
        return True

    def _tell(self, reason: str) -> None:
        _log.debug("MLflow pass failed: %s", reason)
        if not self._warned:
            self._warned = True
            remedy = (
                database_problem(self.uri)
                or f"{reason[:200]}; the next run (or `doctor --repair`) sends what is missing"
            )
            self._warn(f"MLflow at {public_uri(self.uri)}: {remedy}; the grid goes on, its files are kept")

    def _pass(self, *, final: RunStatus | None) -> None:
        """Mirror whatever is new. `final`: also close every run, the parent with this status."""
        self._check()
        tracker = self._open()
        problem: Exception | None = None
        for child in self.children.values():
            try:
                child.update(tracker, self._parent, self._tags, live=final is None)
            except TrackerClosed:
                raise
            except Exception as error:
                # One trial's files are damaged or its run is not to be written: the others are mirrored, as long as the tracker answers at all.
                problem = error
                child.reopen()
                tracker.ping()
        if final:
            tracker.add_artifacts(self._parent, report_files(self._run))
            tracker.tag(self._parent, {"state": GRID_STATE[final]})
            tracker.end(self._parent, final)
        if problem:
            raise problem
        if final:
            write_sealed_json(self._run.path / _MARKER, self._marker())

    def _open(self) -> MlflowTracker:
        if self._tracker is None:
            tracker = MlflowTracker(self.uri, self._experiment.name, artifact_root=self._artifact_root)
            corpus = corpus_ref(self._scale.corpus).name
            self._tags = {"scale": self._scale.name, "corpus": corpus, "git_revision": code_revision()}
            self._parent = tracker.open_run(
                self._run.mlflow_run_id,
                name=self._run.path.name,
                tags={"state": "running"},
                first_tags=self._tags | {"mlflow.note.content": self._experiment.hypothesis},
                params={},
            )
            for folder in other_folders(self._run, self.children):
                if run := tracker.find(folder.mlflow_run_id):
                    if is_set_aside(folder):
                        tracker.retire(run)
                    else:
                        tracker.end_abandoned(run)
            self._tracker = tracker
        return self._tracker

    def _marker(self) -> dict[str, Any]:
        report = {path.name: file_sha256(path) for path in report_files(self._run)}
        return {"uri": public_uri(self.uri), "report": report}

    def _read_marker(self) -> dict[str, Any]:
        try:
            return read_sealed_json(self._run.path / _MARKER)
        except (FileNotFoundError, ValueError):  # damaged: everything is looked at again
            return {}


def artifact_root(uri: str, store: Store) -> Path | None:
    """The artifact folder of a database of our own; None for a tracker that has its own ways."""
    return store.mlflow_artifacts if uri == store.mlflow_uri else None


def failure_line(error: Exception, uri: str) -> str:
    """What a tracker's exception says, in one line without user name and password."""
    lines = [
        line for line in str(error).splitlines() if not line.startswith("(raised as a result of ")
    ]  # SQLAlchemy's advice
    text = lines[0] if lines else type(error).__name__
    return redact(text.replace(uri, public_uri(uri)))


def other_folders(run: RunFolder, trials: Container[str]) -> list[TrialFolder]:
    """The trial folders of the run that belong to none of these trial ids."""
    return [TrialFolder(path) for path in sorted(run.trials.glob("*/")) if path.name not in trials]


def is_set_aside(folder: TrialFolder) -> bool:
    """Whether `--rerun-stale` renamed this folder (`orchestrator.ledger`)."""
    return ".stale-" in folder.path.name


def report_files(run: RunFolder) -> list[Path]:
    """What is kept beside the parent run."""
    return [path for path in (run.report_md, run.results_csv, run.costs_csv, run.heatmap) if path.exists()]
