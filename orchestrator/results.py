"""What a trial leaves for the comparison: `result.json` of a trial that ended well, `failure.json` of an attempt that did not."""

from __future__ import annotations

import logging
import socket
import time
import traceback
from dataclasses import asdict, dataclass, field
from typing import Any

from data.atomic import read_sealed_json, write_sealed_json
from data.records import InferenceMode, SupervisionMode
from model.configs import FoundationKind
from orchestrator.failures import Cause, classify, telling_error
from orchestrator.identity import read_document, record_from_json
from orchestrator.layout import AttemptFolder, TrialFolder
from orchestrator.redaction import redact

_log = logging.getLogger(__name__)

HEADLINE = "eval/partial_f1"
"""On the test split, in the inference mode that did better on the validation split."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One finished grid cell. Scores are fractions from 0 to 1; `costs` and `provenance` differ from run to run, the rest does not."""

    trial_id: str
    fingerprint: str
    foundation: str
    kind: FoundationKind
    mode: SupervisionMode
    seed: int
    headline_inference_mode: InferenceMode
    scores: dict[str, float]  # test split: eval/partial_f1 (the headline), eval/<inference mode>/<name>
    validation_scores: dict[str, float]  # validation split: validation/partial_f1, validation/<inference mode>/<name>
    counts: dict[str, Any] = field(default_factory=dict)  # what the scores are made of
    costs: dict[str, float] = field(default_factory=dict)  # device_seconds, lost_device_seconds, ... in seconds
    provenance: dict[str, Any] = field(default_factory=dict)  # git revision, library versions, hardware
    files: dict[str, str] = field(default_factory=dict)  # name -> sha256 of the trial's predictions and metrics
    finished: float = 0.0  # when the result was made, in seconds since the epoch

    def __post_init__(self) -> None:
        if HEADLINE not in self.scores:
            raise ValueError(f"scores: {HEADLINE} is missing; the evaluation must score the test split")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an attempt ended badly. Texts hold no secrets (`orchestrator.redaction`)."""

    cause: Cause
    error: str  # the exception's class
    message: str  # one line
    traceback: str = ""
    host: str = ""
    step: int | None = None  # the optimizer step it had reached, when known
    time: float | None = None  # seconds since the epoch
    goes_on: bool = False  # another attempt was to follow in the same run: the trial has not failed

    @property
    def line(self) -> str:
        """Cause and message, for a table's cell; the class of an error in the code says as much as its message."""
        return ": ".join(filter(None, [self.cause, self.error if self.cause == "code" else "", self.message]))


def describe_failure(error: BaseException, trial: TrialFolder) -> Failure:
    """An exception that ended an attempt, as the record that ledger and report show."""
    cause, telling = classify(error), telling_error(error)
    return Failure(
        cause=cause,
        error=type(telling).__name__,
        message=redact(_message(cause, telling) or _message(cause, error))[:500],
        traceback=redact("".join(traceback.format_exception(error))),
        host=socket.gethostname(),
        step=step_reached(trial),
        time=time.time(),
    )


def _message(cause: Cause, error: BaseException) -> str:
    """What an exception says, in one line; without the ids that Ray puts on lines of their own."""
    if cause == "worker-died" and hasattr(error, "actor_init_failed"):  # Ray's words for it are many
        return "a worker process ended without a word: killed, out of memory, or crashed; see the end of the log"
    return " ".join(" ".join(line for line in str(error).splitlines() if not line.startswith("\t")).split())


def step_reached(trial: TrialFolder) -> int | None:
    """The optimizer step that a training trial last told of; None when it did not train."""
    status = read_status(trial)
    return status.get("step") if status.get("phase") == "training" else None


def read_status(trial: TrialFolder) -> dict[str, Any]:
    """What `status.json` says; nothing when it is absent or damaged, for it only serves people and guesses."""
    try:
        return read_document(trial.status, "")
    except (FileNotFoundError, ValueError):
        return {}


def write_result(folder: TrialFolder, result: TrialResult) -> None:
    """Write `result.json`, whole or not at all: the trial is done from now on."""
    write_sealed_json(folder.result, asdict(result))


def read_result(folder: TrialFolder) -> TrialResult:
    """Read `result.json`. Raises ValueError naming the file and what to do: DamagedFileError, or when another version wrote it.

    FileNotFoundError when it is absent.
    """
    value = read_sealed_json(folder.result)
    try:
        return record_from_json(TrialResult, value, str(folder.result))
    except ValueError as error:
        remedy = "delete this file and run again: the trial is then evaluated from its last checkpoint"
        raise ValueError(f"{error}; {remedy}") from error


def write_failure(attempt: AttemptFolder, failure: Failure) -> None:
    """Write `failure.json` of one attempt."""
    write_sealed_json(attempt.failure, asdict(failure))


def find_failure(attempt: AttemptFolder) -> Failure | None:
    """Why an attempt ended badly; None when it left no failure, or a damaged one: then nothing says that it failed, and it is tried again."""
    try:
        return record_from_json(Failure, read_sealed_json(attempt.failure), str(attempt.failure))
    except FileNotFoundError:
        return None
    except ValueError as error:
        _log.warning("%s; the attempt counts as interrupted", error)
        return None
