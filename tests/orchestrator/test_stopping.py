"""Signals and a lost lease: what is saved first, what ends at once, and that nothing keeps a run from ending."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from data.atomic import write_json
from orchestrator import stopping
from orchestrator.attempts import Attempt, open_attempt
from orchestrator.layout import RunFolder
from orchestrator.progress import TrialProgress, read_progress
from orchestrator.stopping import Stopping

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def attempt(run: RunFolder) -> Attempt:
    """A trial that trains."""
    attempt = open_attempt(run.trial("one"), devices=1)
    attempt.note("started")
    status = {"phase": "training", "step": 7, "steps": 10, "seconds_left": 6.0, "time": time.time() + 1}
    write_json(run.trial("one").status, status)
    return attempt


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick watch."""
    monkeypatch.setattr(stopping, "POLL_S", 0.02)


class Watched:
    """A `Stopping` over one trial, and what it printed."""

    def __init__(self, run: RunFolder) -> None:
        self.run, self.out, self.lost = run, io.StringIO(), False
        self.stopping = Stopping(run, Console(file=self.out, width=200), lost=lambda: self.lost)

    def read(self) -> list[TrialProgress]:
        return [read_progress(self.run.trial("one"), since=0, now=time.time())]

    @property
    def text(self) -> str:
        return self.out.getvalue()


@pytest.fixture
def watched(run: RunFolder) -> Watched:
    return Watched(run)


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_lets_trials_save_and_then_ends_the_run(
    watched: Watched, attempt: Attempt, number: signal.Signals
) -> None:
    with pytest.raises(KeyboardInterrupt), watched.stopping as stopping, stopping.trials(watched.read):
        os.kill(os.getpid(), number)
        wait_for(watched.run.stop.exists)
        time.sleep(0.2)  # nothing is interrupted while the trial works
        assert watched.text == (
            "stopping: every trial saves a checkpoint first, about 7 s; Ctrl-C again stops at once\n"
        )
        attempt.note("ended")
        assert watched.read()[0].describe().startswith("stopped 7/10")
        time.sleep(20)
        raise AssertionError("it went on after every trial had saved")


def test_the_second_signal_ends_the_run_at_once(watched: Watched, attempt: Attempt) -> None:
    with pytest.raises(KeyboardInterrupt), watched.stopping as stopping, stopping.trials(watched.read):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
        raise AssertionError("it went on")


@pytest.mark.parametrize("numbers", [(signal.SIGTERM,) * 2, (signal.SIGHUP,) * 2, (signal.SIGTERM, signal.SIGHUP)])
def test_what_a_program_sends_twice_is_one_signal(
    watched: Watched, attempt: Attempt, numbers: tuple[signal.Signals, ...]
) -> None:
    """`timeout` sends SIGTERM to its child and to the child's group; the kernel and the shell send SIGHUP; systemd sends both."""
    with pytest.raises(KeyboardInterrupt), watched.stopping as stopping, stopping.trials(watched.read):
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        wait_for(watched.run.stop.exists)
        time.sleep(0.2)  # the trial saves
        os.kill(os.getpid(), signal.SIGINT)  # somebody who means it
        time.sleep(20)
        raise AssertionError("it went on")


def test_after_a_hangup_what_is_left_is_done_in_peace(watched: Watched) -> None:
    with pytest.raises(KeyboardInterrupt), watched.stopping:
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(20)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)  # the shell's
            watched.run.path.mkdir(parents=True, exist_ok=True)
            watched.run.report_md.write_text("# report")
    assert watched.run.report_md.exists()


def test_with_nothing_to_save_it_ends_at_once(watched: Watched, run: RunFolder) -> None:
    open_attempt(run.trial("one"), devices=1).note("started")
    with pytest.raises(KeyboardInterrupt), watched.stopping as stopping, stopping.trials(watched.read):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
        raise AssertionError("it went on")
    assert watched.text == "stopping: no trial has anything new to save\n" and run.stop.exists()


def test_before_trials_run_and_after_one_signal_is_enough(watched: Watched) -> None:
    with pytest.raises(KeyboardInterrupt), watched.stopping:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
    assert not watched.run.stop.exists() and watched.text == ""


def test_a_lost_lease_ends_the_run_at_once_and_asks_nobody_to_save(watched: Watched, attempt: Attempt) -> None:
    with pytest.raises(KeyboardInterrupt), watched.stopping as stopping, stopping.trials(watched.read):
        watched.lost = True
        time.sleep(20)
        raise AssertionError("it went on")
    assert not watched.run.stop.exists(), "the trials are the other driver's now"


def test_a_trial_that_does_not_save_is_not_waited_for_for_ever(
    watched: Watched, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "PATIENCE_S", 0.1)
    monkeypatch.setattr(stopping, "_SAVING_S", -1.9)
    with pytest.raises(KeyboardInterrupt), watched.stopping as guard, guard.trials(watched.read):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
        raise AssertionError("it went on")
    assert "not every trial has saved in time" in watched.text


def test_an_interrupt_that_is_swallowed_comes_again(
    watched: Watched, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python prints and drops an exception that a signal raises within a callback."""
    monkeypatch.setattr(stopping, "_KICK_S", 0.1)
    with pytest.raises(KeyboardInterrupt), watched.stopping as guard, guard.trials(watched.read):
        watched.lost = True
        try:
            time.sleep(20)
        except KeyboardInterrupt:
            time.sleep(20)
        raise AssertionError("it went on")


def test_a_full_disk_is_no_reason_to_go_on(watched: Watched, attempt: Attempt) -> None:
    with pytest.raises(KeyboardInterrupt), watched.stopping as guard, guard.trials(watched.read):
        watched.run.stop.mkdir()  # stands in for a disk that takes no file
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
        raise AssertionError("it went on")
    assert "stopping at once: trials cannot be asked to save" in watched.text


def test_the_handlers_before_are_back_and_an_old_stop_file_is_gone(watched: Watched, run: RunFolder) -> None:
    before = signal.getsignal(signal.SIGINT)
    write_json(run.stop, {})
    with watched.stopping as guard:
        assert not run.stop.exists() and not guard.requested
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_is_run_by_nohup_goes_on(watched: Watched, number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with watched.stopping as guard:
            guard.listen()
            os.kill(os.getpid(), number)
            assert not guard.requested
    finally:
        signal.signal(number, before)


def test_beside_the_main_thread_it_does_nothing(run: RunFolder, attempt: Attempt) -> None:
    """A notebook, a test: Python lets only the main thread set handlers."""
    done = []

    def work() -> None:
        watched = Watched(run)
        with watched.stopping as guard, guard.trials(watched.read):
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


def test_a_process_that_hangs_after_the_signal_ends_all_the_same(run: RunFolder) -> None:
    code = """
import signal, sys, time
from pathlib import Path
from rich.console import Console
from orchestrator import stopping
from orchestrator.layout import RunFolder

signal.signal(signal.SIGINT, signal.default_int_handler)
stopping.LAST_RESORT_S = 0.5
with stopping.Stopping(RunFolder(Path(sys.argv[1])), Console(), lost=lambda: False):
    while True:
        try:
            print("ready", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            pass
"""
    command = [sys.executable, "-c", code, str(run.path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 3
    assert "run the same command again to resume" in err and "Traceback" not in err
