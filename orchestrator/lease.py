"""The lease that lets one driver at a time work on a run folder: `lease.json` says who, a file lock and a heartbeat that he lives.

No clock is trusted: on one machine the kernel's lock decides, and of a driver on another machine whose heartbeat looks old, or lies in the
future, it is watched whether it moves before it is taken for dead.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO

from data.atomic import read_sealed_json, write_sealed_json
from orchestrator.identity import record_from_json
from orchestrator.layout import RunFolder

_log = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
LEASE_EXPIRES_S = 60.0
"""A heartbeat of another machine younger than this is taken at its word."""
WATCH_S = 25.0
"""How long any other is watched: more than two heartbeats."""
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who drives a run folder: the content of `lease.json`. Times in seconds since the epoch."""

    pid: int
    host: str
    token: str
    since: float
    heartbeat: float

    def describe(self) -> str:
        """For an error message: process, machine, since when."""
        if self == _UNKNOWN:
            return "a process unknown, for the file is damaged"
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}, since {since}"


class LeaseHeldError(ValueError):
    """Another driver is at work on the run folder."""


class LeaseLostError(ValueError):
    """Another driver took the run folder over while this one made no sign of life."""


class Lease:
    """The right to drive a run folder, renewed in the background; open it with `hold_lease`.

    `lost` is set within seconds of another driver's taking over: whoever holds the lease must stop then.
    """

    def __init__(self, run: RunFolder, lock: IO[str]) -> None:
        self._run, self._lock = run, lock
        self._ended = threading.Event()
        self.lost = threading.Event()
        now = time.time()
        self.holder = Holder(
            pid=os.getpid(), host=socket.gethostname(), token=uuid.uuid4().hex, since=now, heartbeat=now
        )
        self._write()
        self._thread = threading.Thread(target=self._renew, name="lease-heartbeat", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LeaseLostError when another driver has taken over; call it before starting anything costly."""
        holder = _read_lease(self._run)
        if self.lost.is_set() or not self._is_mine(holder):
            by = holder.describe() if holder and not self._is_mine(holder) else "somebody who has ended"
            raise LeaseLostError(
                f"{self._run.lease}: taken over by {by} while this process made no sign of life; "
                "this driver must stop, the other one finishes the grid"
            )

    def _is_mine(self, holder: Holder | None) -> bool:
        """A damaged lease counts as this one's: who takes over writes a whole one, and the next heartbeat mends it."""
        return holder is not None and holder.token in (self.holder.token, _UNKNOWN.token)

    def _write(self) -> None:
        write_sealed_json(self._run.lease, asdict(self.holder) | {"heartbeat": time.time()})

    def _renew(self) -> None:
        written = time.monotonic()
        while not self._ended.wait(_LOOK_EVERY_S):
            try:
                if not self._is_mine(_read_lease(self._run)):
                    self.lost.set()  # writing now would hide it
                    return
                if time.monotonic() - written >= HEARTBEAT_S:
                    self._write()
                    written = time.monotonic()
            except OSError as error:  # a full disk: the trials will say so themselves, and the next beat may succeed
                _log.warning("%s: heartbeat not written (%s)", self._run.lease, error)

    def release(self) -> None:
        """Give the folder back."""
        self._ended.set()
        self._thread.join()
        if self._is_mine(_read_lease(self._run)) and not self.lost.is_set():
            self._run.lease.unlink()
        self._lock.close()


@contextmanager
def hold_lease(run: RunFolder, *, watch_s: float = WATCH_S) -> Iterator[Lease]:
    """Drive `run` for the length of the block. Raises LeaseHeldError, naming the holder, while another driver lives.

    On one machine a file lock decides: the kernel drops a dead process's lock, so its lease is taken over at once, whatever the clock or a
    damaged lease.json say. A driver on another machine counts as dead when its heartbeat is not fresh and does not move for `watch_s` seconds.
    """
    lock = _lock(run, wait_s=1.0)
    try:
        holder = _read_lease(run) if lock is None else _alive_elsewhere(run, watch_s)
        if lock is None or holder is not None:
            who = holder.describe() if holder else "a process that is just starting"
            raise LeaseHeldError(
                f"{run.lease}: another driver is at work here ({who}); wait for it, or stop it with Ctrl-C there; "
                "`status` shows how far it is"
            )
        lease = Lease(run, lock)
    except BaseException:
        if lock is not None:
            lock.close()
        raise
    try:
        yield lease
    finally:
        lease.release()


def read_holder(run: RunFolder) -> Holder | None:
    """Who drives `run` at this moment, None when nobody does, as far as one look can tell."""
    holder = _read_lease(run)
    if holder is None or _is_fresh_elsewhere(holder):
        return holder
    if holder.host not in (socket.gethostname(), _UNKNOWN.host):
        return None
    lock = _lock(run, wait_s=0)
    if lock is None:
        return holder
    lock.close()
    return None


def _alive_elsewhere(run: RunFolder, watch_s: float) -> Holder | None:
    """The driver on another machine, when it lives. To be called with this machine's lock: no driver of this one does."""
    first = _read_lease(run)
    if first is None or first.host == socket.gethostname():
        return None
    if _is_fresh_elsewhere(first):
        return first
    _log.warning("%s: tells of %s; watching for up to %.0f s whether that lives", run.lease, first.describe(), watch_s)
    deadline = time.monotonic() + watch_s
    while time.monotonic() < deadline:
        time.sleep(min(_LOOK_EVERY_S, watch_s / 4))
        if (holder := _read_lease(run)) != first:
            return holder
    return None


def _is_fresh_elsewhere(holder: Holder) -> bool:
    return holder.host != socket.gethostname() and 0 <= time.time() - holder.heartbeat < LEASE_EXPIRES_S


def _lock(run: RunFolder, wait_s: float) -> IO[str] | None:
    """The folder's file lock, or None while another process holds it. `wait_s` outlasts a `status` that just looks."""
    run.path.mkdir(parents=True, exist_ok=True)
    stream = run.lease.with_suffix(".lock").open("a", encoding="utf-8")
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                stream.close()
                return None
            time.sleep(0.05)
        else:
            return stream


_UNKNOWN = Holder(pid=0, host="?", token="?", since=0.0, heartbeat=0.0)
"""Who holds a lease that is damaged: perhaps a driver, whose next heartbeat mends it."""


def _read_lease(run: RunFolder) -> Holder | None:
    try:
        return record_from_json(Holder, read_sealed_json(run.lease), str(run.lease))
    except FileNotFoundError:
        return None
    except ValueError:
        return _UNKNOWN
