"""A run folder's files -> the state of every trial, and the lease that lets one driver at a time work on the folder.

States come from files alone, never from Ray or MLflow, so running twice is resuming and a folder may be copied elsewhere.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal

from data.atomic import write_json
from model.configs import TrialConfig
from orchestrator.identity import (
    changed_fields,
    fingerprint,
    json_fingerprint,
    read_config_json,
    read_document,
    record_from_json,
    trial_id,
)
from orchestrator.layout import RunFolder, TrialFolder
from orchestrator.results import TrialResult, read_failure, read_result

State = Literal["pending", "interrupted", "failed", "done", "stale"]

_log = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
LEASE_EXPIRES_S = 60.0
"""A holder on another machine that has not renewed its lease for this long is taken for dead."""


@dataclass(frozen=True, kw_only=True)
class TrialState:
    """Where one trial of a grid stands."""

    trial: TrialConfig
    state: State
    folder: TrialFolder
    changed: tuple[str, ...] = ()  # stale: the fields that differ from what is on disk
    last_step: int = 0  # the optimizer step it last told of
    failure: str = ""  # failed: the reason, in one line
    result: TrialResult | None = None  # done

    @property
    def id(self) -> str:
        """The trial's id."""
        return trial_id(self.trial)


def read_states(run: RunFolder, trials: Sequence[TrialConfig]) -> list[TrialState]:
    """The state of every trial, in the order given. Raises ValueError naming the file when one is damaged."""
    return [read_state(run.trial(trial_id(trial)), trial) for trial in trials]


def read_state(folder: TrialFolder, trial: TrialConfig) -> TrialState:
    """The state of one trial.

    pending: nothing of it on disk. interrupted: begun and not ended. failed: its latest attempt left a failure. done: it has a
    result. stale: what is on disk was computed from another config.
    """
    if not folder.config.is_file():
        return TrialState(trial=trial, state="pending", folder=folder)
    on_disk = read_config_json(folder.config)
    if json_fingerprint(on_disk) != fingerprint(trial):
        return TrialState(trial=trial, state="stale", folder=folder, changed=tuple(changed_fields(on_disk, trial)))
    if folder.result.is_file():
        return _finished(folder, trial)
    step = _last_step(folder)
    attempt = folder.latest_attempt()
    if attempt is not None and attempt.failure.is_file():
        line = read_failure(attempt).line
        return TrialState(trial=trial, state="failed", folder=folder, last_step=step, failure=line)
    begun = attempt is not None or folder.checkpoints.is_dir()
    return TrialState(trial=trial, state="interrupted" if begun else "pending", folder=folder, last_step=step)


def _finished(folder: TrialFolder, trial: TrialConfig) -> TrialState:
    result = read_result(folder)
    if result.fingerprint != fingerprint(trial):
        changed = (f"fingerprint of {folder.result.name}: {result.fingerprint[:12]} -> {fingerprint(trial)[:12]}",)
        return TrialState(trial=trial, state="stale", folder=folder, changed=changed)
    return TrialState(trial=trial, state="done", folder=folder, last_step=trial.budget.steps, result=result)


def _last_step(folder: TrialFolder) -> int:
    """The step in `status.json`: for people, so a missing or odd one is no error."""
    try:
        step = json.loads(folder.status.read_text(encoding="utf-8"))["step"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0
    return step if isinstance(step, int) else 0


def move_stale_aside(folder: TrialFolder) -> Path:
    """Rename a stale trial's folder to `<trial id>.stale-<n>`, n counting up from 1, and return the new path."""
    number = 1
    while (target := folder.path.with_name(f"{folder.path.name}.stale-{number}")).exists():
        number += 1
    return folder.path.rename(target)


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
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}, since {since}"


class LeaseHeldError(ValueError):
    """Another driver is at work on the run folder."""


class LeaseLostError(ValueError):
    """Another driver took the run folder over while this one made no sign of life."""


class Lease:
    """The right to drive a run folder, renewed in the background; open it with `hold_lease`."""

    def __init__(self, run: RunFolder, lock: IO[str]) -> None:
        self._run, self._lock = run, lock
        self._ended = threading.Event()
        now = time.time()
        self.holder = Holder(
            pid=os.getpid(), host=socket.gethostname(), token=uuid.uuid4().hex, since=now, heartbeat=now
        )
        write_json(run.lease, asdict(self.holder))
        self._thread = threading.Thread(target=self._renew, name="lease-heartbeat", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LeaseLostError when another driver has taken over; call it before starting anything costly."""
        holder = _read_lease(self._run)
        if holder is None or holder.token != self.holder.token:
            raise LeaseLostError(
                f"{self._run.lease}: taken over by {holder.describe() if holder else 'somebody who has ended'} while this "
                "process made no sign of life; this driver must stop, the other one finishes the grid"
            )

    def _renew(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                holder = _read_lease(self._run)
                if holder is None or holder.token != self.holder.token:
                    return  # lost: `check` says so; writing now would hide it
                write_json(self._run.lease, asdict(self.holder) | {"heartbeat": time.time()})
            except OSError as error:  # a full disk: the trials will say so themselves, and the next beat may succeed
                _log.warning("%s: heartbeat not written (%s)", self._run.lease, error)

    def release(self) -> None:
        """Give the folder back."""
        self._ended.set()
        self._thread.join()
        holder = _read_lease(self._run)
        if holder is not None and holder.token == self.holder.token:
            self._run.lease.unlink()
        self._lock.close()


@contextmanager
def hold_lease(run: RunFolder) -> Iterator[Lease]:
    """Drive `run` for the length of the block. Raises LeaseHeldError, naming the holder, while another driver lives.

    On one machine a file lock decides: the kernel drops a dead process's lock, so its lease is taken over at once. A driver on
    another machine counts as dead when its heartbeat is `LEASE_EXPIRES_S` old.
    """
    lock = _lock(run, wait_s=1.0)
    holder = _read_lease(run)
    if lock is None or (holder is not None and _alive_elsewhere(holder)):
        if lock is not None:
            lock.close()
        who = holder.describe() if holder else "a process that is just starting"
        raise LeaseHeldError(
            f"{run.lease}: another driver is at work here ({who}); wait for it, or stop it with Ctrl-C there; "
            "`status` shows how far it is"
        )
    lease = Lease(run, lock)
    try:
        yield lease
    finally:
        lease.release()


def read_holder(run: RunFolder) -> Holder | None:
    """Who drives `run` at this moment, None when nobody does."""
    holder = _read_lease(run)
    if holder is None or _alive_elsewhere(holder):
        return holder
    if holder.host != socket.gethostname():
        return None
    lock = _lock(run, wait_s=0)
    if lock is None:
        return holder
    lock.close()
    return None


def _alive_elsewhere(holder: Holder) -> bool:
    return holder.host != socket.gethostname() and time.time() - holder.heartbeat < LEASE_EXPIRES_S


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


def _read_lease(run: RunFolder) -> Holder | None:
    try:
        value = read_document(run.lease, "delete this file if no driver is at work")
    except FileNotFoundError:
        return None
    return record_from_json(Holder, value, str(run.lease))
