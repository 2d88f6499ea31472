"""What the mirror reads and what it writes to: curves as a trial leaves them, MLflow's runs as they are found, a server that can be killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.atomic import atomic_open
from data.metric_lines import MetricRow, metric_line, read_metrics
from orchestrator.experiment import Experiment
from orchestrator.layout import TrialFolder

EXPERIMENT = Experiment(name="mirrored", hypothesis="Mirrors do not lie.", declare=lambda scale, seeds: [])


def write_curve(folder: TrialFolder, steps: Iterable[int], *, time_ms: int) -> None:
    """Append rows of training, as `TrialLog` does."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.metrics.open("a", encoding="utf-8") as stream:
        for step in steps:
            row = MetricRow(step=step, time=time_ms + step, metrics={"train/loss": 1 / step, "optim/lr": 0.1})
            stream.write(metric_line(row))


def rewrite_curve(folder: TrialFolder, *, without: Iterable[int] = ()) -> None:
    """Put another file with the same rows in the place of the curve, as `TrialLog` does when an attempt begins."""
    rows = [row for row in read_metrics(folder.metrics).rows if row.step not in without]
    with atomic_open(folder.metrics) as stream:
        stream.writelines(map(metric_line, rows))


def runs(uri: str, *, deleted: bool = False) -> dict[str, Any]:
    """MLflow's runs of the experiment by name; never two of one name."""
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT.name)
    assert experiment
    view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    found = client.search_runs([experiment.experiment_id], run_view_type=view)
    names = [run.info.run_name for run in found]
    assert len(set(names)) == len(names), names
    return {run.info.run_name: run for run in found}


def curve(uri: str, run: Any, name: str) -> list[tuple[int, int]]:
    """Step and time of every point of a metric."""
    from mlflow import MlflowClient

    points = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.timestamp) for point in points)


class Server:
    """`mlflow server` on loopback over a database and an artifact folder, to be killed and started again at the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        database, artifacts = self._folder / "server.db", self._folder / "server-artifacts"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(artifacts)]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--workers", "1"], stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
            else:
                return
        raise TimeoutError((self._folder / "server.log").read_text(encoding="utf-8")[-2000:])

    def kill(self) -> None:
        """kill -9, with the processes that it started."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
