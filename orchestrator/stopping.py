"""Ctrl-C, SIGTERM, a closed terminal or a lost lease -> how a run ends: every running trial saves a checkpoint first, or everything ends at once.

    first signal while trials run                    `stop.json` appears: running trials save and end, no new one begins
    second signal; any signal before and after;      KeyboardInterrupt in the main thread
    a lost lease; a trial that does not save
    Ray, MLflow or a disk that does not let go       the process ends without them after `LAST_RESORT_S`

Who signals often signals more than this process, and more than once. Terminals and batch systems mean the whole process group; Ray's processes hear
nothing of it (`orchestrator.ray_session`). `timeout` sends SIGTERM to its child and then to the child's group; a terminal that is closed sends
SIGHUP, and the shell in it does so again: these count as one signal.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import signal
import socket
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType

from rich.console import Console

from data.atomic import write_json
from orchestrator.layout import RunFolder
from orchestrator.progress import TrialProgress
from orchestrator.verbs import EXIT_INTERRUPTED

_log = logging.getLogger(__name__)

POLL_S = 0.25
PATIENCE_S = 45.0
"""For running trials to finish their step and save; more where their steps are longer."""
LAST_RESORT_S = 45.0
"""From the decision to end at once to the end of the process, whatever hangs."""
_KICK_S = 3.0
"""Between two interrupts of a main thread that has not left the trials: one that arrives in a callback of Ray is swallowed there."""
_SAVING_S = 5.0
"""What saving a checkpoint and ending the workers takes, roughly; for the estimate that is printed."""
_ECHO_S = 1.0
"""A SIGTERM this soon after another is the same one; people press Ctrl-C twice, programs send SIGTERM twice."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopping:
    """Takes the signals for the length of its block. In a thread other than the main one, where Python allows no handlers, it does nothing."""

    def __init__(self, run: RunFolder, console: Console, *, lost: Callable[[], bool]) -> None:
        """`lost`: whether another driver has taken the run folder over."""
        self._run, self._console, self._lost = run, console, lost
        self._heard: dict[int, float] = {}  # signal -> when it last came, by the monotonic clock
        self._at_once = False  # whether the next signal ends everything, though it is the first
        self._leaving: float | None = None  # since when, by the monotonic clock
        self._kicked = 0.0
        self._deadline: float | None = None  # for trials that save
        self._read: Callable[[], Sequence[TrialProgress]] | None = None  # while trials run
        self._saving: list[TrialProgress] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stopping", daemon=True)
        self._main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Stopping:
        self._run.stop.unlink(missing_ok=True)
        if self._main:
            self._before = [signal.getsignal(number) for number in _SIGNALS]
            self.listen()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._main:
            self._ended.set()
            for number, handler in zip(_SIGNALS, self._before, strict=True):
                signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        """Whether somebody asked the run to stop."""
        return bool(self._heard)

    def listen(self) -> None:
        """Take the signals; again after Ray has started, which sets a handler of its own for SIGTERM. Ignored ones (nohup, &) stay so."""
        for number in _SIGNALS:
            ignored = number != signal.SIGTERM and signal.getsignal(number) == signal.SIG_IGN
            if self._main and not ignored:
                signal.signal(number, self._handle)

    @contextmanager
    def trials(self, read: Callable[[], Sequence[TrialProgress]]) -> Iterator[None]:
        """The block in which trials run: here the first signal lets them save. `read` tells where they are."""
        self._read = read
        try:
            yield
        finally:
            with self._lock:
                self._read = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals, in the main thread. The rest is the watching thread's: a handler must not wait for a lock."""
        now, before = time.monotonic(), self._heard
        self._heard = {**before, number: now}
        if number == signal.SIGHUP:
            _leave_closed_terminal()
            if number in before:
                return
        elif number == signal.SIGTERM and not self._at_once and now - before.get(number, -math.inf) < _ECHO_S:
            return
        again = number != signal.SIGHUP and bool(before)
        if self._at_once or self._read is None or again:
            self._kicked = now
            self._leaving = self._leaving or now
            raise KeyboardInterrupt

    def _watch(self) -> None:
        while not self._ended.wait(POLL_S):
            with self._lock:
                self._look(time.monotonic())

    def _look(self, now: float) -> None:
        if self._leaving is not None and now - self._leaving > LAST_RESORT_S:
            self._give_up()
        if self._read is None:
            return
        if self._leaving is not None or self._lost():
            self._interrupt(now)
        elif self.requested and self._deadline is None:
            self._ask_to_save(now)
        elif self._deadline is not None and not self._find_saving():
            self._interrupt(now)
        elif self._deadline is not None and now > self._deadline:
            self._say("not every trial has saved in time; stopping at once, the checkpoints before are kept")
            self._interrupt(now)

    def _ask_to_save(self, now: float) -> None:
        saving = self._find_saving()
        seconds = max((trial.step_seconds for trial in saving), default=0.0) + _SAVING_S
        self._deadline = now + max(PATIENCE_S, 3 * seconds)
        try:
            write_json(self._run.stop, {"time": time.time(), "host": socket.gethostname(), "pid": os.getpid()})
        except OSError as error:
            self._say(f"stopping at once: trials cannot be asked to save ({error})")
            self._interrupt(now)
            return
        if saving:
            self._say(
                f"stopping: every trial saves a checkpoint first, about {seconds:.0f} s; Ctrl-C again stops at once"
            )
        else:
            self._say("stopping: no trial has anything new to save")

    def _find_saving(self) -> list[TrialProgress]:
        """The running trials that have something to save; those found before where a file cannot be read at this moment."""
        assert self._read is not None
        try:
            self._saving = [trial for trial in self._read() if trial.saves]
        except (OSError, ValueError) as error:
            _log.warning("while stopping: %s", error)
        return self._saving

    def _interrupt(self, now: float) -> None:
        """Raise KeyboardInterrupt in the main thread."""
        self._at_once = True
        if now - self._kicked > _KICK_S:
            self._kicked = now
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _give_up(self) -> None:
        """End the process without its cleaning up. The kernel ends Ray's processes with it; the lease ends with it too."""
        self._console.show_cursor()
        sys.stderr.write(
            f"\nstill not ended after {LAST_RESORT_S:.0f} s: ending without waiting; run the same command again to resume\n"
        )
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


def _leave_closed_terminal() -> None:
    """Let what is still printed to a terminal that is gone vanish, instead of ending the run with an error of its own."""
    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)
