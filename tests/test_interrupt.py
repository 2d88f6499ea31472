"""Ctrl-C on a real terminal, SIGTERM, a closed terminal: running trials save first, nothing is left behind, the rerun ends as if nothing had been."""

import contextlib
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from data.atomic import write_sealed_json
from orchestrator.attempts import open_attempt
from orchestrator.layout import RunFolder
from orchestrator.lease import Holder
from stand_ins.grids import SCRIPT, environment, grid, run_folder, start_smoke_grid

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CTRL_C = b"\x03"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Terminal:
    """The smoke grid in a pseudo-terminal of its own, whose Ctrl-C goes to the whole foreground process group as in a real one."""

    def __init__(self, folder: Path, *, errors: Path | None = None) -> None:
        """`errors`: where standard error goes instead, as with `2> errors`."""
        self._master, slave = pty.openpty()
        self._before = termios.tcgetattr(slave)
        self._text = bytearray()
        with errors.open("w") if errors else contextlib.nullcontext(slave) as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), "--scale", "smoke"],
                cwd=folder,
                env=environment() | {"TERM": "xterm", "COLUMNS": "200"},
                stdin=slave,
                stdout=slave,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=_as_a_shell_does,
            )
        self._slave = slave  # kept open: the terminal outlives the command
        self._gone = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while not self._gone.is_set():
            if select.select([self._master], [], [], 0.1)[0]:
                self._text += os.read(self._master, 65536)

    @property
    def text(self) -> str:
        return self._text.decode(errors="replace")

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def is_as_before(self) -> bool:
        """Whether the terminal echoes and breaks lines as it did, and shows its cursor."""
        same = termios.tcgetattr(self._slave) == self._before
        return same and self.text.rfind(SHOW_CURSOR) >= self.text.rfind(HIDE_CURSOR)

    def hang_up(self) -> None:
        """Close the window: the kernel sends SIGHUP to the foreground process group, and what is written from now on fails."""
        if not self._gone.is_set():
            self._gone.set()
            self._reader.join()
            os.close(self._master)

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.hang_up()
        os.close(self._slave)


@pytest.fixture
def terminal(unfinished: Path) -> Iterator[Terminal]:
    terminal = Terminal(unfinished)
    yield terminal
    terminal.close()


def _as_a_shell_does() -> None:
    """In the new process: take the terminal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def wait_until(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline, "it hung"
        time.sleep(0.05)


def statuses(folder: Path) -> dict[str, dict]:
    """What the workers of the trials said last."""
    return {path.parent.name: json.loads(path.read_text()) for path in run_folder(folder).glob("trials/*/status.json")}


def trains(folder: Path) -> bool:
    return any(status["phase"] == "training" for status in statuses(folder).values())


def processes_of(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def assert_saved_where_it_stopped(folder: Path) -> None:
    """Every trial that trained has a whole checkpoint of its last step, and at least one trial has something left to do."""
    run = run_folder(folder)
    trained = 0
    for name in statuses(folder):
        trial = run / "trials" / name
        steps = [json.loads(line)["step"] for line in (trial / "metrics.jsonl").read_text().splitlines()]
        commits = sorted((trial / "checkpoints").glob("step-*/commit.json"))
        if commits:
            trained += 1
            assert json.loads(commits[-1].read_text())["step"] >= max(steps), f"{name}: steps were lost"
    assert trained and len(list(run.glob("trials/*/result.json"))) < 2
    assert not list(run.glob("trials/*/attempts/*/failure.json")), "a stop is no failure"


def test_ctrl_c_saves_and_the_rerun_ends_as_the_undisturbed_run(
    smoke: Path, unfinished: Path, terminal: Terminal
) -> None:
    wait_until(lambda: trains(unfinished), terminal.process)
    children = processes_of(terminal.process)
    terminal.press(CTRL_C)
    begun = time.monotonic()
    assert terminal.process.wait(timeout=60) == 3
    print(f"one Ctrl-C: {time.monotonic() - begun:.1f} s")
    assert "stopping: every trial saves a checkpoint first" in terminal.text
    assert "to resume: python" in terminal.text and "Traceback" not in terminal.text
    assert terminal.is_as_before()
    assert psutil.wait_procs(children, timeout=15)[1] == [], "processes are left behind"
    assert_saved_where_it_stopped(unfinished)
    assert (run_folder(unfinished) / "report.md").exists()

    done = grid("--scale", "smoke", cwd=unfinished)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (run_folder(unfinished) / "results.csv").read_bytes() == (run_folder(smoke) / "results.csv").read_bytes()


def test_ctrl_c_twice_ends_at_once(unfinished: Path, terminal: Terminal) -> None:
    wait_until(lambda: trains(unfinished), terminal.process)
    children = processes_of(terminal.process)
    terminal.press(CTRL_C)
    time.sleep(0.1)
    terminal.press(CTRL_C)
    begun = time.monotonic()
    assert terminal.process.wait(timeout=30) == 3
    print(f"two Ctrl-C: {time.monotonic() - begun:.1f} s")
    assert "to resume: python" in terminal.text and terminal.is_as_before()
    assert psutil.wait_procs(children, timeout=15)[1] == [], "processes are left behind"
    status = grid("status", "--scale", "smoke", cwd=unfinished)
    assert status.returncode == 0 and "interrupted" in status.stdout and "nobody is at work" in status.stdout


def test_ctrl_c_before_trials_run_ends_at_once(unfinished: Path, terminal: Terminal) -> None:
    wait_until(lambda: "starting Ray" in terminal.text, terminal.process)
    terminal.press(CTRL_C)
    assert terminal.process.wait(timeout=30) == 3
    assert "to resume: python" in terminal.text and terminal.is_as_before()
    assert not (run_folder(unfinished) / "stop.json").exists()


def test_a_closed_terminal_saves_too(unfinished: Path) -> None:
    """A window that is closed, an ssh connection that drops."""
    errors = unfinished / "errors.txt"
    with contextlib.closing(Terminal(unfinished, errors=errors)) as terminal:
        wait_until(lambda: trains(unfinished), terminal.process)
        children = processes_of(terminal.process)
        terminal.hang_up()
        code = terminal.process.wait(timeout=60)
    assert code == 3, f"nobody reads the message, but a script may read the exit code; {errors.read_text()}"
    assert psutil.wait_procs(children, timeout=15)[1] == [], "processes are left behind"
    assert_saved_where_it_stopped(unfinished)
    assert (run_folder(unfinished) / "report.md").exists()


@pytest.mark.parametrize(
    "to_all",
    [pytest.param(False, marks=pytest.mark.full, id="to the process"), pytest.param(True, id="to all processes")],
)
def test_sigterm_saves_too(unfinished: Path, to_all: bool) -> None:
    """What a batch system sends: to the process that it started, to its process group, or to all that came of it, as systemd does."""
    with start_smoke_grid(unfinished) as process:
        wait_until(lambda: trains(unfinished), process)
        children = processes_of(process)
        if to_all:
            os.killpg(process.pid, signal.SIGTERM)
            for child in children:
                child.send_signal(signal.SIGTERM)
        else:
            process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 3, out[-3000:]
    assert "stopping: every trial saves a checkpoint first" in out and "to resume: python" in out
    assert psutil.wait_procs(children, timeout=15)[1] == [], "processes are left behind"
    assert_saved_where_it_stopped(unfinished)


def files_of(run: Path) -> dict[Path, tuple[int, int]]:
    """Inode and time of every file but the lease's."""
    found = {}
    for path in run.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and not path.name.startswith("lease."):
                found[path] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


@pytest.mark.parametrize("trials_end", [False, True], ids=["its trials are fenced off", "its trials ended before"])
def test_a_driver_that_slept_through_its_lease_leaves_everything_to_the_other(
    smoke: Path, unfinished: Path, trials_end: bool
) -> None:
    """A laptop that was closed, a paused machine: meanwhile a driver on another machine has taken over."""
    with start_smoke_grid(unfinished) as process:
        run = RunFolder(run_folder(unfinished))
        wait_until(lambda: len(statuses(unfinished)) == 2, process)  # all train, or have trained
        names = sorted(statuses(unfinished))
        children = processes_of(process)
        process.send_signal(signal.SIGSTOP)
        if trials_end:
            wait_until(lambda: all(run.trial(name).result.exists() for name in names), process)
        other = Holder(pid=1, host="elsewhere", token="other", since=time.time(), heartbeat=time.time())
        write_sealed_json(run.lease, asdict(other))
        lease = run.lease.read_bytes()
        shutil.rmtree(run.path / "ray")
        (run.path / "ray" / "other").mkdir(parents=True)
        (run.path / "ray" / "other" / "state").touch()
        attempts = [open_attempt(run.trial(name), devices=1) for name in names]
        before = None  # until its workers are fenced off, and its trials' drivers wait for it
        while before != (before := files_of(run.path)):
            time.sleep(5)
        process.send_signal(signal.SIGCONT)
        begun = time.monotonic()
        out, _ = process.communicate(timeout=60)
    print(f"after SIGCONT: {time.monotonic() - begun:.1f} s")
    assert process.returncode == 2, out[-3000:]
    assert "taken over by process 1 on elsewhere" in out and "Traceback" not in out
    after = files_of(run.path)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert not changed and run.lease.read_bytes() == lease
    for attempt in attempts:
        attempt.check_current()
    assert psutil.wait_procs(children, timeout=15)[1] == [], "processes are left behind"

    run.lease.unlink()  # the other one is killed
    done = grid("--scale", "smoke", cwd=unfinished)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert run.results_csv.read_bytes() == (run_folder(smoke) / "results.csv").read_bytes()
