"""A run folder's files -> the state of every trial.

States come from files alone, never from Ray or MLflow, so running twice is resuming and a folder may be copied elsewhere. What a done trial
rests on is checked against the hashes in its `result.json`: a damaged result or damaged predictions make it interrupted, and are set aside.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.atomic import DamagedFileError, file_sha256, set_aside, write_json
from data.metric_lines import read_metrics
from model.configs import TrialConfig
from orchestrator.failures import Cause
from orchestrator.identity import (
    changed_fields,
    fingerprint,
    json_fingerprint,
    read_config_json,
    trial_id,
)
from orchestrator.layout import RunFolder, TrialFolder
from orchestrator.results import TrialResult, find_failure, read_result, read_status

State = Literal["pending", "interrupted", "failed", "done", "stale"]


@dataclass(frozen=True, kw_only=True)
class TrialState:
    """Where one trial of a grid stands."""

    trial: TrialConfig
    state: State
    folder: TrialFolder
    changed: tuple[str, ...] = ()  # stale: the fields that differ from what is on disk
    last_step: int = 0  # the optimizer step it last told of
    failure: str = ""  # failed: the reason, in one line
    cause: Cause | None = None  # failed: what kind of reason
    result: TrialResult | None = None  # done
    note: str = ""  # what is damaged, and what follows from it
    damaged: tuple[Path, ...] = ()  # what is set aside before the trial goes on

    @property
    def id(self) -> str:
        """The trial's id."""
        return trial_id(self.trial)


def read_states(run: RunFolder, trials: Sequence[TrialConfig]) -> list[TrialState]:
    """The state of every trial, in the order given. Raises ValueError naming file and remedy when a `config.json` is damaged or gone."""
    return [read_state(run.trial(trial_id(trial)), trial) for trial in trials]


def read_state(folder: TrialFolder, trial: TrialConfig) -> TrialState:
    """The state of one trial.

    pending: nothing of it on disk. interrupted: begun and not ended, or ended and what it rests on is damaged. failed: its latest attempt
    left a failure. done: it has a result. stale: what is on disk was computed from another config.
    """
    if not folder.config.is_file():
        if _begun(folder) or folder.result.exists():
            raise ValueError(
                f"{folder.config}: missing, so nothing says what the rest of the folder was computed from; "
                "put it back, or move the trial's folder away and run again"
            )
        return TrialState(trial=trial, state="pending", folder=folder)
    on_disk = read_config_json(folder.config)
    if json_fingerprint(on_disk) != fingerprint(trial):
        return TrialState(trial=trial, state="stale", folder=folder, changed=tuple(changed_fields(on_disk, trial)))
    if folder.result.is_file():
        return _finished(folder, trial)
    step = _last_step(folder)
    attempt = folder.latest_attempt()
    failure = find_failure(attempt) if attempt is not None else None
    if failure is not None and not failure.goes_on:
        return TrialState(
            trial=trial, state="failed", folder=folder, last_step=step, failure=failure.line, cause=failure.cause
        )
    return TrialState(trial=trial, state="interrupted" if _begun(folder) else "pending", folder=folder, last_step=step)


def _begun(folder: TrialFolder) -> bool:
    return folder.latest_attempt() is not None or folder.checkpoints.is_dir()


def _finished(folder: TrialFolder, trial: TrialConfig) -> TrialState:
    """The state of a trial with a result: done, unless it is another config's or what it rests on is damaged."""
    steps = trial.budget.steps
    try:
        result = read_result(folder)
    except DamagedFileError:
        note = f"{folder.result.name} is damaged: made again from the last checkpoint"
        return TrialState(
            trial=trial, state="interrupted", folder=folder, last_step=steps, note=note, damaged=(folder.result,)
        )
    if result.fingerprint != fingerprint(trial):
        changed = (f"fingerprint of {folder.result.name}: {result.fingerprint[:12]} -> {fingerprint(trial)[:12]}",)
        return TrialState(trial=trial, state="stale", folder=folder, changed=changed)
    changed_files = {
        name: what for name, sha256 in result.files.items() if (what := _change(folder.path / name, sha256))
    }
    note = "; ".join(f"{name} {what}" for name, what in changed_files.items())
    answers = tuple(folder.path / name for name in changed_files if name != folder.metrics.name)
    if answers:
        note += ": answered again from the last checkpoint"
        damaged = (*answers, folder.result)  # the result last: as long as it is there, it tells of the others
        return TrialState(trial=trial, state="interrupted", folder=folder, last_step=steps, note=note, damaged=damaged)
    if note:
        lines = read_metrics(folder.metrics).damaged_lines
        where = f" (line {', '.join(map(str, lines))})" if lines else ""
        note += f"{where}: the scores do not rest on it; to train its steps again delete {folder.result.name} and run"
    return TrialState(trial=trial, state="done", folder=folder, last_step=steps, result=result, note=note)


def _change(path: Path, sha256: str) -> str:
    """What happened to a file that had this hash: "is missing", "is damaged", or "" for nothing."""
    if not path.exists():
        return "is missing"
    return "" if file_sha256(path) == sha256 else "is damaged"


def metrics_are_whole(folder: TrialFolder, result: TrialResult) -> bool:
    """Whether a done trial's `metrics.jsonl` is the file that its result was made with."""
    sha256 = result.files.get(folder.metrics.name)
    return sha256 is None or not _change(folder.metrics, sha256)


def hash_files(folder: TrialFolder) -> dict[str, str]:
    """The hashes that a result keeps of what it rests on: the trial's predictions and metrics."""
    paths = [*sorted(folder.path.glob("predictions-*.jsonl")), folder.metrics]
    return {path.name: file_sha256(path) for path in paths if path.exists()}


def _last_step(folder: TrialFolder) -> int:
    """The step in `status.json`: for people, so a missing or odd one is no error."""
    step = read_status(folder).get("step")
    return step if isinstance(step, int) else 0


def move_stale_aside(folder: TrialFolder, changed: Sequence[str] = ()) -> Path:
    """Rename a stale trial's folder to `<trial id>.stale-<n>`, n counting up from 1, and return the new path.

    Its `stale.json` says since when, and which fields had changed.
    """
    write_json(folder.path / "stale.json", {"since": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "changed": list(changed)})
    number = 1
    while (target := folder.path.with_name(f"{folder.path.name}.stale-{number}")).exists():
        number += 1
    return folder.path.rename(target)


def set_damaged_aside(state: TrialState) -> list[Path]:
    """Rename the damaged files of a trial that is to go on to `<name>.damaged-<n>`, with the result that rested on them; returns the new paths."""
    return [set_aside(path) for path in state.damaged if path.exists()]
