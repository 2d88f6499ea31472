"""A command line -> a process session whose members can be told apart and killed: a run of the grid with its own Ray, an MLflow server.

Every command starts a session of its own (setsid), and all that it starts, orphans too, stay in it: what is killed is found by session id and name,
so a stranger's Ray on the same machine is never touched.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
_TITLES = {
    "worker": ("ray::RayTrainWorker",),
    "driver": ("ray::ImplicitFunc.train",),
    "controller": ("ray::TrainController",),
    "raylet": ("/raylet",),
    "gcs": ("/gcs_server",),
}
"""How the first word of a process's command line begins (Ray's titles) or ends (its programs)."""

_DROPPED = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "SLOTGRID_STORE", "SLOTGRID_DEBUG")


def environment() -> dict[str, str]:
    """This process's own, without what would let a run reach another Ray, MLflow or the network."""
    kept = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")]))
    return kept | {"SLOTGRID_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "MLFLOW_DISABLE_TELEMETRY": "1"}


class Session:
    """A command and everything that it started."""

    def __init__(self, command: Sequence[str], *, cwd: Path, log: Path, more: Mapping[str, str] | None = None) -> None:
        """Start it; what it prints is appended to `log`. `more`: environment beside `environment()`."""
        cwd.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment() | dict(more or {}),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.log = log
        self.pid = self._process.pid  # the session's id as well
        self.started = time.monotonic()

    @property
    def returncode(self) -> int | None:
        """The command's exit code (negative: the signal that killed it), None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the command's end; None when it runs on."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self._process.poll()

    def members(self) -> list[int]:
        """The processes of the session that live (zombies do not)."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found

    def find(self, kind: str) -> list[int]:
        """The session's processes of one kind: "head" (the command itself), or one of Ray's; sorted."""
        members = self.members()
        if kind == "head":
            return [self.pid] if self.pid in members else []
        return sorted(pid for pid in members if _is_titled(title(pid).split(" ")[0], _TITLES[kind]))

    def kill(self) -> None:
        """kill -9 of every member, and wait until they are gone."""
        deadline = time.monotonic() + 30
        while members := self.members():
            assert time.monotonic() < deadline, f"processes {members} do not die"
            for pid in members:
                kill(pid)
            self._process.poll()
            time.sleep(0.05)
        self._process.wait()


def kill(pid: int) -> None:
    """kill -9, of a process that may be gone already."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def trial_of_worker(pid: int, trials: Path) -> str:
    """The id of the trial whose attempt's log a worker prints to; "" before it does."""
    with suppress(OSError):
        output = Path(f"/proc/{pid}/fd/1").readlink()
        if output.is_relative_to(trials):
            return output.relative_to(trials).parts[0]
    return ""


def title(pid: int) -> str:
    """The command line of a process; "" when it is gone."""
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


def _is_titled(word: str, titles: tuple[str, ...]) -> bool:
    return any(word.endswith(title) if title.startswith("/") else word.startswith(title) for title in titles)


class MlflowServer:
    """An MLflow server on 127.0.0.1 over sqlite, that can be killed and started again over the same database."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._port = folder, _free_port()
        self._session: Session | None = None
        self.uri = f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Of the server's first process; 0 when it was killed."""
        return self._session.pid if self._session else 0

    def start(self) -> None:
        """Start it where it is not running; returns at once."""
        if self._session is None:
            options = {
                "--backend-store-uri": f"sqlite:///{self._folder / 'mlflow.db'}",
                "--artifacts-destination": str(self._folder / "artifacts"),
                "--host": "127.0.0.1",
                "--port": str(self._port),
                "--workers": "1",
            }
            command = [sys.executable, "-m", "mlflow", "server", *(word for pair in options.items() for word in pair)]
            more = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            self._session = Session(command, cwd=self._folder, log=self._folder / "server.log", more=more)

    def wait(self, timeout_s: float = 120.0) -> None:
        """Wait until it answers. Raises RuntimeError, naming its log, when it does not."""
        self.start()
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            time.sleep(0.2)
        raise RuntimeError(f"the MLflow server does not answer at {self.uri}; see {self._folder / 'server.log'}")

    def kill(self) -> None:
        """kill -9 of the server and its workers."""
        if self._session is not None:
            self._session.kill()
            self._session = None


@contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    """A server that answers, for the block."""
    server = MlflowServer(folder)
    try:
        server.wait()
        yield server
    finally:
        server.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
