"""The lease that lets one driver at a time work on a run folder: `lease.json` says who, a file lock and a heartbeat that he lives.

No clock is trusted: on one machine the kernel's lock decides, and of a driver on another machine whose heartbeat looks old, or lies in the
future, it is watched whether it moves before it is taken for dead. Where the lease is written is a `LeasePlace`: a file, or an object
(`orchestrator.bucket`).
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Protocol

from data.atomic import read_sealed_json, rewrite_sealed_json, write_sealed_json
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
        if self == UNKNOWN:
            return "a process unknown, for the file is damaged"
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}, since {since}"


class LeaseHeldError(ValueError):
    """Another driver is at work on the run folder."""


class LeaseLostError(ValueError):
    """Another driver took the run folder over while this one made no sign of life."""


class LeasePlace(Protocol):
    """Where a lease is written; `str` names it in messages. All may raise OSError."""

    @property
    def look_every_s(self) -> float:
        """Between two looks whether somebody else has taken over."""

    def read(self) -> Holder | None:
        """Who is written down; None: nobody. `UNKNOWN` where that is damaged."""

    def write(self, holder: Holder) -> None:
        """Write it down, whole or not at all."""

    def renew(self, holder: Holder) -> None:
        """Write a newer heartbeat. Whoever calls this has just read that `holder` holds the lease, but may have slept since."""

    def remove(self) -> None:
        """Nobody holds it any more."""


@dataclass(frozen=True)
class LeaseFile:
    """A lease in a sealed file."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def look_every_s(self) -> float:
        """Reading a small file costs nothing."""
        return _LOOK_EVERY_S

    def read(self) -> Holder | None:
        """The file's content."""
        try:
            return record_from_json(Holder, read_sealed_json(self.path), str(self.path))
        except FileNotFoundError:
            return None
        except ValueError:
            return UNKNOWN

    def write(self, holder: Holder) -> None:
        """Replace the file."""
        write_sealed_json(self.path, asdict(holder))

    def renew(self, holder: Holder) -> None:
        """Write into the file itself, so that a driver that sleeps in the middle of this never replaces another one's lease when it wakes."""
        with suppress(FileNotFoundError):
            rewrite_sealed_json(self.path, asdict(holder), replaces=lambda value: value.get("token") == holder.token)

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink()


@dataclass(frozen=True)
class Claim:
    """For which driver a process works: it can be passed on, and asked wherever the place is seen."""

    place: LeasePlace
    token: str

    def is_lost(self) -> bool:
        """Whether that driver holds the lease no more; a damaged one is his still."""
        holder = self.place.read()
        return holder is None or holder.token not in (self.token, UNKNOWN.token)


class Lease:
    """The right to drive a run folder, renewed in the background; open it with `hold_lease`.

    `lost` is set within seconds of another driver's taking over: whoever holds the lease must stop then.
    """

    def __init__(self, place: LeasePlace, *, within: Lease | None = None) -> None:
        """`within`: a wider lease that is held, too; whoever loses that has lost this one."""
        self._place, self._within = place, within
        self._ended = threading.Event()
        self.lost: threading.Event = within.lost if within else threading.Event()
        now = time.time()
        self.holder = Holder(
            pid=os.getpid(), host=socket.gethostname(), token=uuid.uuid4().hex, since=now, heartbeat=now
        )
        place.write(self.holder)
        self._thread = threading.Thread(target=self._renew, name="lease-heartbeat", daemon=True)
        self._thread.start()

    @property
    def claim(self) -> Claim:
        """This lease, as other processes can ask after it."""
        return Claim(self._place, self.holder.token)

    def check(self) -> None:
        """Raise LeaseLostError when another driver has taken over; call it before starting anything costly."""
        if self._within:
            try:
                self._within.check()
            except OSError as error:  # a place that cannot be reached says nothing, and its heartbeat goes on asking
                _log.warning("%s", error)
        holder = self._place.read()
        if self.lost.is_set() or not self._is_mine(holder):
            by = holder.describe() if holder and not self._is_mine(holder) else "somebody who has ended"
            raise LeaseLostError(
                f"{self._place}: taken over by {by} while this process made no sign of life; "
                "this driver must stop, the other one finishes the grid"
            )

    def _is_mine(self, holder: Holder | None) -> bool:
        """A damaged lease counts as this one's: who takes over writes a whole one, and the next heartbeat mends it."""
        return holder is not None and holder.token in (self.holder.token, UNKNOWN.token)

    def _renew(self) -> None:
        written, level = time.monotonic(), logging.WARNING
        while not self._ended.wait(self._place.look_every_s):
            try:
                if not self._is_mine(self._place.read()):
                    self.lost.set()  # writing now would hide it
                    return
                if time.monotonic() - written >= HEARTBEAT_S:
                    self._place.renew(replace(self.holder, heartbeat=time.time()))
                    written = time.monotonic()
                level = logging.WARNING
            except OSError as error:  # a full disk: the trials will say so themselves, and the next beat may succeed
                _log.log(level, "%s: heartbeat not written (%s)", self._place, error)
                level = logging.DEBUG  # once is enough

    def release(self) -> None:
        """Give the folder back."""
        self._ended.set()
        self._thread.join()
        try:
            if not self.lost.is_set() and self._is_mine(self._place.read()):
                self._place.remove()
        except OSError as error:  # it expires by itself
            _log.warning("%s: the lease could not be given back (%s)", self._place, error)


@contextmanager
def hold_lease(run: RunFolder, *, watch_s: float = WATCH_S, within: Lease | None = None) -> Iterator[Lease]:
    """Drive `run` for the length of the block. Raises LeaseHeldError, naming the holder, while another driver lives.

    On one machine a file lock decides: the kernel drops a dead process's lock, so its lease is taken over at once, whatever the clock or a
    damaged lease.json say. A driver on another machine counts as dead when its heartbeat is not fresh and does not move for `watch_s` seconds.
    `within`: a wider lease that is held, too.
    """
    place = LeaseFile(run.lease)
    with (
        hold_lock(run.lease.with_suffix(".lock"), place),
        hold_place(place, is_dead=_is_of_this_machine, watch_s=watch_s, within=within) as lease,
    ):
        yield lease


@contextmanager
def hold_lock(path: Path, place: LeasePlace) -> Iterator[None]:
    """Hold a file lock of this machine. Raises LeaseHeldError, naming who is written down at `place`, while another process has it."""
    lock = lock_file(path, wait_s=1.0)
    if lock is None:
        raise LeaseHeldError(_held(place, place.read()))
    with lock:
        yield


@contextmanager
def hold_place(
    place: LeasePlace,
    *,
    is_dead: Callable[[Holder], bool],
    watch_s: float = WATCH_S,
    settle_s: float = 0.0,
    within: Lease | None = None,
) -> Iterator[Lease]:
    """Hold the lease at `place` for the length of the block. Raises LeaseHeldError while another driver lives.

    `is_dead`: of whom it is known that he is. `settle_s`: for a place that two may write at the same moment. Who wrote first finds the other's
    name after this wait and gives up, so one wins, as long as no write takes longer than the wait.
    """
    if holder := _alive(place, is_dead, watch_s):
        raise LeaseHeldError(_held(place, holder))
    lease = Lease(place, within=within)
    try:
        if settle_s:
            time.sleep(settle_s)
            holder = place.read()
            if holder is None or holder.token != lease.holder.token:
                lease.lost.set()  # it is not ours to remove
                raise LeaseHeldError(_held(place, holder))
        yield lease
    finally:
        lease.release()


def _held(place: LeasePlace, holder: Holder | None) -> str:
    who = holder.describe() if holder else "a process that is just starting"
    return (
        f"{place}: another driver is at work here ({who}); wait for it, or stop it with Ctrl-C there; "
        "`status` shows how far it is"
    )


def read_holder(run: RunFolder) -> Holder | None:
    """Who drives `run` at this moment, None when nobody does, as far as one look can tell."""
    holder = LeaseFile(run.lease).read()
    if holder is None or (not _is_of_this_machine(holder) and is_fresh(holder)):
        return holder
    if holder.host not in (socket.gethostname(), UNKNOWN.host):
        return None
    lock = lock_file(run.lease.with_suffix(".lock"), wait_s=0)
    if lock is None:
        return holder
    lock.close()
    return None


def _alive(place: LeasePlace, is_dead: Callable[[Holder], bool], watch_s: float) -> Holder | None:
    """The driver that is written down at `place`, when it lives."""
    first = place.read()
    if first is None or is_dead(first):
        return None
    if is_fresh(first):
        return first
    _log.warning("%s: tells of %s; watching for up to %.0f s whether that lives", place, first.describe(), watch_s)
    deadline = time.monotonic() + watch_s
    while time.monotonic() < deadline:
        time.sleep(min(place.look_every_s, watch_s / 4))
        if (holder := place.read()) != first:
            return holder
    return None


def _is_of_this_machine(holder: Holder) -> bool:
    """With this machine's lock in hand such a one is dead."""
    return holder.host == socket.gethostname()


def is_fresh(holder: Holder) -> bool:
    """Whether a heartbeat is young enough to be taken at its word."""
    return 0 <= time.time() - holder.heartbeat < LEASE_EXPIRES_S


def lock_file(path: Path, wait_s: float) -> IO[str] | None:
    """A file lock of this machine, until it is closed; None while another process holds it. `wait_s` outlasts a `status` that just looks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = path.open("a", encoding="utf-8")
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


UNKNOWN = Holder(pid=0, host="?", token="?", since=0.0, heartbeat=0.0)
"""Who holds a lease that is damaged: perhaps a driver, whose next heartbeat mends it."""
