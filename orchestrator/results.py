"""What a trial leaves for the comparison: `result.json` of a trial that ended well, `failure.json` of an attempt that did not."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from data.atomic import write_json
from data.records import InferenceMode, SupervisionMode
from model.configs import FoundationKind
from orchestrator.identity import read_document, record_from_json
from orchestrator.layout import AttemptFolder, TrialFolder

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

    def __post_init__(self) -> None:
        if HEADLINE not in self.scores:
            raise ValueError(f"scores: {HEADLINE} is missing; the evaluation must score the test split")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an attempt ended badly."""

    cause: str  # the exception's class, or what ended the worker
    message: str  # one line
    traceback: str = ""
    host: str = ""
    step: int | None = None  # the optimizer step it had reached, when known
    time: float | None = None  # seconds since the epoch

    @property
    def line(self) -> str:
        """Cause and message, for a table's cell."""
        return f"{self.cause}: {self.message}" if self.message else self.cause


def write_result(folder: TrialFolder, result: TrialResult) -> None:
    """Write `result.json`, whole or not at all: the trial is done from now on."""
    write_json(folder.result, asdict(result))


def read_result(folder: TrialFolder) -> TrialResult:
    """Read `result.json`. Raises ValueError naming the file and what to do when it is damaged, FileNotFoundError when absent."""
    remedy = "delete this file and run again: the trial is then evaluated from its last checkpoint"
    value = read_document(folder.result, remedy)
    try:
        return record_from_json(TrialResult, value, str(folder.result))
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from error


def write_failure(attempt: AttemptFolder, failure: Failure) -> None:
    """Write `failure.json` of one attempt."""
    write_json(attempt.failure, asdict(failure))


def read_failure(attempt: AttemptFolder) -> Failure:
    """Read `failure.json`. Raises ValueError naming the file when it is damaged."""
    value = read_document(attempt.failure, "delete this file and run again")
    return record_from_json(Failure, value, str(attempt.failure))
