"""The tries of one trial, as folders: opening one fences off every earlier one, and each leaves what it took.

attempts/<n>/token          the attempt's secret; a worker whose attempt is no longer the latest stops at its next checkpoint
attempts/<n>/attempt.json   `AttemptRecord`: when it started, when it last committed a checkpoint, when it ended
attempts/<n>/log            what its workers printed
attempts/<n>/failure.json   `orchestrator.results.Failure`; absent while it runs, when it was killed, and when it ended well
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from data.atomic import atomic_open, write_json
from orchestrator.layout import AttemptFolder, TrialFolder


class AttemptSuperseded(Exception):
    """A newer attempt of the trial was opened: this worker is an orphan of a killed run and must stop writing."""


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """What one try took. Times are seconds since the epoch; None: not reached."""

    devices: int  # GPUs, or CPUs where there are none
    opened: float
    started: float | None = None  # the worker runs: the devices are taken from here on
    checkpointed: float | None = None  # the last committed checkpoint
    ended: float | None = None

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
        """Raise AttemptSuperseded when a newer attempt of the trial exists."""
        latest = self.trial.latest_attempt()
        if latest is None or latest.number != self.number or _token(latest).read_text(encoding="utf-8") != self.token:
            newer = latest.number if latest else None
            raise AttemptSuperseded(f"{self.folder.path}: attempt {newer} took over; this worker stops")

    def note(self, event: Literal["started", "checkpointed", "ended"]) -> None:
        """Note in the attempt's record that this happened now."""
        record = read_record(self.folder)
        now = time.time()
        if event == "started":
            record = replace(record, started=now)
        elif event == "checkpointed":
            record = replace(record, checkpointed=now)
        else:
            record = replace(record, ended=now)
        write_json(_record(self.folder), asdict(record))


def open_attempt(trial: TrialFolder, *, devices: int) -> Attempt:
    """Make the folder of the next attempt; from now on every earlier one is superseded."""
    previous = trial.latest_attempt()
    if previous is not None:
        _close_killed(trial, previous)
    number = previous.number + 1 if previous else 1
    attempt = Attempt(trial=trial, number=number, token=secrets.token_hex(16))
    trial.attempts.mkdir(parents=True, exist_ok=True)
    attempt.folder.path.mkdir()
    with atomic_open(_token(attempt.folder)) as stream:
        stream.write(attempt.token)
    write_json(_record(attempt.folder), asdict(AttemptRecord(devices=devices, opened=time.time())))
    return attempt


def read_record(folder: AttemptFolder) -> AttemptRecord:
    """The attempt's record. Raises FileNotFoundError when it was killed before its record was written."""
    return AttemptRecord(**json.loads(_record(folder).read_text(encoding="utf-8")))


def iter_records(trial: TrialFolder) -> Iterator[AttemptRecord]:
    """The records of all attempts, oldest first."""
    numbers = sorted(int(entry.name) for entry in trial.attempts.iterdir() if entry.name.isdigit())
    for number in numbers:
        if _record(trial.attempt(number)).exists():
            yield read_record(trial.attempt(number))


def attempt_costs(trial: TrialFolder) -> dict[str, float]:
    """What a trial whose latest attempt ended well took: device seconds, those lost to earlier attempts, attempts."""
    records = list(iter_records(trial))
    return {
        "device_seconds": sum(record.device_seconds for record in records),
        "lost_device_seconds": sum(record.unsaved_device_seconds for record in records[:-1]),
        "attempts": float(len(records)),
    }


def _close_killed(trial: TrialFolder, previous: AttemptFolder) -> None:
    """Give a killed attempt an end: its last sign of life."""
    if not _record(previous).exists():
        return
    record = read_record(previous)
    if record.ended is None:
        signs = [previous.log, _record(previous), trial.status, trial.metrics]
        ended = max((path.stat().st_mtime for path in signs if path.exists()), default=record.opened)
        write_json(_record(previous), asdict(replace(record, ended=ended)))


def _token(folder: AttemptFolder) -> Path:
    return folder.path / "token"


def _record(folder: AttemptFolder) -> Path:
    return folder.path / "attempt.json"
