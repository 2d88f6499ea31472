"""The tries of one trial, as folders: opening one fences off every earlier one, and each leaves what it took.

attempts/<n>/token          the attempt's secret; a worker whose attempt is no longer the latest stops: before it writes, and within seconds
attempts/<n>/attempt.json   `AttemptRecord`: when it started, when it last committed a checkpoint, when it ended
attempts/<n>/lock           held while attempt.json is changed
attempts/<n>/log            what its workers printed
attempts/<n>/failure.json   `orchestrator.results.Failure`; absent while it runs, when it was killed, and when it ended well
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from data.atomic import atomic_open, read_sealed_json, write_sealed_json
from model.configs import Execution
from orchestrator.identity import record_from_json
from orchestrator.layout import AttemptFolder, TrialFolder

EXIT_SUPERSEDED = 75
"""Of a worker process that `Attempt.watch` ended."""

_WATCH_EVERY_S = 0.5
_LOCKED_WITHIN_S = 30.0
"""Whoever notes something in a record takes milliseconds."""


class AttemptSuperseded(Exception):
    """A newer attempt of the trial was opened: this worker is an orphan of a killed run and must stop writing."""


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """What one try took. Times are seconds since the epoch; None: not reached."""

    devices: float  # GPUs, or CPUs where there are none; trials that share a GPU have a fraction each
    opened: float
    started: float | None = None  # the worker runs: the devices are taken from here on
    checkpointed: float | None = None  # the last committed checkpoint
    ended: float | None = None
    step: int | None = None  # of that checkpoint
    micro_batches: int | None = None  # as of `Execution`; other than declared where memory was short
    evaluation_batch_size: int | None = None
    known: bool = True  # False: the record was lost, and with it what the attempt took until then

    @property
    def device_seconds(self) -> float:
        """Device time taken; 0 for one that never got its devices."""
        return self.devices * max(0.0, self.ended - self.started) if self.started and self.ended else 0.0

    @property
    def unsaved_device_seconds(self) -> float:
        """Device time since the last checkpoint: lost when the attempt did not end well."""
        saved = self.checkpointed or self.started
        return self.devices * max(0.0, self.ended - saved) if saved and self.ended else 0.0


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """An attempt as its own driver and workers hold it."""

    trial: TrialFolder
    number: int
    token: str

    @property
    def folder(self) -> AttemptFolder:
        """Its folder."""
        return self.trial.attempt(self.number)

    def check_current(self) -> None:
        """Raise AttemptSuperseded when a newer attempt of the trial exists, or when the trial's folder or this attempt's token is gone."""
        latest = self.trial.latest_attempt()
        if latest is None:
            raise AttemptSuperseded(f"{self.folder.path}: was removed or set aside; this worker stops")
        if latest.number != self.number:
            raise AttemptSuperseded(f"{self.folder.path}: attempt {latest.number} took over; this worker stops")
        if _read_token(latest) != self.token.encode():
            raise AttemptSuperseded(f"{_token(latest)}: is not this attempt's any more; this worker stops")

    @contextmanager
    def watch(self) -> Iterator[None]:
        """For the length of the block, end this process with `EXIT_SUPERSEDED` within 2 s of being superseded, be it in the middle of a step."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(_WATCH_EVERY_S):
                try:
                    self.check_current()
                except AttemptSuperseded as error:
                    sys.stderr.write(f"{error}\n")
                    sys.stderr.flush()
                    os._exit(EXIT_SUPERSEDED)
                except OSError:  # a mount that hangs or is gone for a moment says nothing
                    continue

        thread = threading.Thread(target=look, name="attempt-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def note(self, event: Literal["started", "checkpointed", "ended"], *, step: int | None = None) -> None:
        """Note in the attempt's record that this happened now; `step`: of the checkpoint. Driver and worker may note at the same time."""
        now = time.time()
        with _locked(self.folder):
            record = read_record(self.folder)
            if event == "started":
                record = replace(record, started=now)
            elif event == "checkpointed":
                record = replace(record, checkpointed=now, step=step)
            else:
                record = replace(record, ended=now)
            write_sealed_json(_record(self.folder), asdict(record))


def open_attempt(trial: TrialFolder, *, devices: float, execution: Execution | None = None) -> Attempt:
    """Make the folder of the next attempt; from now on every earlier one is superseded."""
    previous = trial.latest_attempt()
    if previous is not None:
        close_killed(trial, previous)
    number = previous.number + 1 if previous else 1
    attempt = Attempt(trial=trial, number=number, token=secrets.token_hex(16))
    trial.attempts.mkdir(parents=True, exist_ok=True)
    attempt.folder.path.mkdir()
    with atomic_open(_token(attempt.folder)) as stream:
        stream.write(attempt.token)
    record = AttemptRecord(
        devices=devices,
        opened=time.time(),
        micro_batches=execution.micro_batches if execution else None,
        evaluation_batch_size=execution.evaluation_batch_size if execution else None,
    )
    write_sealed_json(_record(attempt.folder), asdict(record))
    return attempt


def read_record(folder: AttemptFolder) -> AttemptRecord:
    """The attempt's record; where that is damaged or gone one that says so (`known`)."""
    try:
        return record_from_json(AttemptRecord, read_sealed_json(_record(folder)), str(_record(folder)))
    except (FileNotFoundError, ValueError):
        begun = _token(folder) if _token(folder).exists() else folder.path
        return AttemptRecord(devices=0, opened=begun.stat().st_mtime, known=False)


def iter_records(trial: TrialFolder) -> Iterator[AttemptRecord]:
    """The records of all attempts, oldest first, without those that were killed before they began."""
    numbers = sorted(int(entry.name) for entry in trial.attempts.iterdir() if entry.name.isdigit())
    for folder in map(trial.attempt, numbers):
        if _record(folder).exists() or folder.log.exists():
            yield read_record(folder)


def attempt_costs(trial: TrialFolder) -> dict[str, float]:
    """What a trial whose latest attempt ended well took: device seconds, those lost to earlier attempts, attempts.

    Attempts whose record was lost count in none of the seconds; then `attempts_of_unknown_cost` says how many there are.
    """
    records = list(iter_records(trial))
    unknown = sum(not record.known for record in records)
    return {
        "device_seconds": sum(record.device_seconds for record in records),
        "lost_device_seconds": sum(record.unsaved_device_seconds for record in records[:-1]),
        "attempts": float(len(records)),
        **({"attempts_of_unknown_cost": float(unknown)} if unknown else {}),
    }


def close_killed(trial: TrialFolder, previous: AttemptFolder) -> None:
    """Give a killed attempt an end: its last sign of life."""
    with _locked(previous):
        record = read_record(previous)
        if record.ended is None:
            signs = [previous.log, _record(previous), trial.status, trial.metrics]
            ended = max((path.stat().st_mtime for path in signs if path.exists()), default=record.opened)
            write_sealed_json(_record(previous), asdict(replace(record, ended=ended)))


@contextmanager
def _locked(folder: AttemptFolder) -> Iterator[None]:
    """Alone in changing the attempt's record: nothing that another process notes is lost. Raises TimeoutError, an OSError, when that one hangs."""
    path = folder.path / "lock"
    deadline = time.monotonic() + _LOCKED_WITHIN_S
    with path.open("a") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"{path}: another process has kept it for {_LOCKED_WITHIN_S:.0f} s; end that one (fuser {path}) and run again"
                    ) from None
                time.sleep(0.02)
        yield


def _read_token(folder: AttemptFolder) -> bytes:
    return _token(folder).read_bytes() if _token(folder).exists() else b""


def _token(folder: AttemptFolder) -> Path:
    return folder.path / "token"


def _record(folder: AttemptFolder) -> Path:
    return folder.path / "attempt.json"
