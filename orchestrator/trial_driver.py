"""One trial from its folder to its `result.json`: the Tune trainable that drives it, attempt after attempt (`orchestrator.trial_worker`).

The driver opens an attempt, builds a TorchTrainer for it and waits. When it ends badly, its cause decides (`orchestrator.failures`): another
attempt, which goes on from the last checkpoint, or a failed trial. Files decide everything: Ray's own checkpoints and restore are not used, for
their state files do not survive a kill.

A trial whose order names others as `first` (the canary of its foundation, an alignment stage) begins when those have ended well. The first driver to
come runs them, the others wait for that one without holding devices. While the order's stop file exists nothing is begun or waited for.
"""

from __future__ import annotations

import fcntl
import logging
import math
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data.encoder_states import StateKey
from model.configs import Execution, TrialConfig
from model.hooks import TrialHooks
from orchestrator.attempts import Attempt, AttemptSuperseded, iter_records, open_attempt
from orchestrator.failures import (
    POLICIES,
    Cause,
    Policy,
    ResourcesMissing,
    check_not_held,
    classify,
    decide,
    hold_siblings,
)
from orchestrator.identity import read_config
from orchestrator.layout import TrialFolder
from orchestrator.lease import Claim
from orchestrator.results import Failure, describe_failure, find_failure, read_status, step_reached, write_failure

if TYPE_CHECKING:
    from model.trial import TrialOutcome, TrialPaths

_log = logging.getLogger(__name__)

End = Literal["done", "failed", "interrupted", "superseded"]

Role = Literal["trial", "canary", "alignment"]
"""What an order is to the grid: a cell of it, or what cells wait for."""

RunTrial = Callable[["TrialOrder", TrialConfig, "TrialHooks"], "TrialOutcome | None"]
"""(order, config, hooks) -> the outcome, None on ranks above 0. Runs in the worker."""

_DEATHS: tuple[Cause, ...] = ("worker-died", "node-lost", "out-of-memory")
"""What Ray tells of workers that could not tell it themselves; what the others recorded then is a consequence."""
_POLL_S = 0.5


def run_model_trial(order: TrialOrder, config: TrialConfig, hooks: TrialHooks) -> TrialOutcome | None:
    """Train and evaluate with `model.trial`; imported here so that drivers and the head never load the model's libraries."""
    from model.trial import run_trial

    return run_trial(config, order.execution, order.paths(), hooks=hooks)


@dataclass(frozen=True, kw_only=True)
class TrialOrder:
    """What a driver is told: where the trial's folder and its prepared data lie, and how to run it. What to compute lies in the folder."""

    trial_id: str
    folder: Path
    fingerprint: str
    execution: Execution
    corpus: Path
    encoder_states: Path
    encoder_key: StateKey
    ray_storage: Path  # below the run folder; removed after the run
    run_trial: RunTrial = run_model_trial
    role: Role = "trial"
    first: tuple[TrialOrder, ...] = ()  # what must have ended well before, in this order; several trials may share it
    aligned_adapter: Path | None = None  # what an alignment stage leaves
    stop_file: Path | None = None  # while it exists, nothing new is begun and what runs saves and stops
    claim: Claim | None = (
        None  # of the run's driver: without the lease no attempt is opened, it would fence off another driver's
    )
    earlier_attempts: int = 0  # of a canary, of an alignment stage: those before this run, whose failures are history
    policies: Mapping[Cause, Policy] = field(default_factory=lambda: POLICIES)

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop."""
        return self.stop_file is not None and self.stop_file.exists()

    @property
    def devices(self) -> float:
        """GPUs, or CPUs where there are none, that the trial takes."""
        execution = self.execution
        return execution.workers * (gpus_per_worker(execution) if execution.use_gpu else execution.cpus_per_worker)

    def paths(self) -> TrialPaths:
        """The order's places as the model knows them; for the worker alone, it loads the model's libraries."""
        from model.trial import TrialPaths

        return TrialPaths(
            corpus=self.corpus,
            encoder_states=self.encoder_states,
            encoder_key=self.encoder_key,
            output=self.folder,
            aligned_adapter=self.aligned_adapter,
        )


def gpus_per_worker(execution: Execution) -> float:
    """The share of a GPU that a worker asks Ray for; Ray counts in ten-thousandths, of which seven times a rounded-up seventh were too many."""
    return math.floor(10_000 / execution.trials_per_gpu) / 10_000 if execution.use_gpu else 0.0


def drive_trial(order: TrialOrder) -> End:
    """Run attempts of one trial until one ends well, it has failed, was asked to stop or is superseded. Never raises for a failed trial."""
    try:
        for before in order.first:
            end = _end_of(replace(before, stop_file=order.stop_file, claim=order.claim))
            if end == "failed":
                _fail_with(order, before)
            if end != "done":
                return end
        return _run_attempts(order)
    except OSError as error:
        if classify(error) != "disk-full":
            raise
        _log.error("%s: not even its failure could be written down (%s)", order.trial_id, error)
        return "failed"


def _end_of(before: TrialOrder) -> End:
    """How what other trials wait for ended. Run by whichever driver comes first; where that one is killed, by the next."""
    folder = TrialFolder(before.folder)
    with _one_at_a_time(folder, before) as mine:
        if folder.result.exists():
            return "done"
        latest = folder.latest_attempt()
        if (
            latest
            and latest.number > before.earlier_attempts
            and (failure := find_failure(latest))
            and not failure.goes_on
        ):
            return "failed"
        return _run_attempts(before) if mine else "interrupted"


@contextmanager
def _one_at_a_time(folder: TrialFolder, order: TrialOrder) -> Iterator[bool]:
    """Wait for the drivers before this one; False when the run stops first.

    All drivers run on one machine, whose kernel takes the lock from a killed one.
    """
    with (folder.path / "lock").open("a", encoding="utf-8") as stream:
        mine = False
        while not mine and not order.stopping:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = True
            except BlockingIOError:
                time.sleep(_POLL_S)
        yield mine


def _fail_with(order: TrialOrder, before: TrialOrder) -> None:
    """The failure row of a trial that waited for one that failed; no device time was spent on it."""
    assert before.role != "trial"
    latest, trial = TrialFolder(before.folder).latest_attempt(), TrialFolder(order.folder)
    why = find_failure(latest) if latest else None
    assert latest and why, f"{before.folder}: failed without a failure"
    if why.cause == "canary":
        message = f"{why.message[:400]}; compare the chat template with `explain {order.trial_id}`"
    else:
        message = f"{before.trial_id}: {why.line}"[:500]
    attempt = open_attempt(trial, devices=order.devices)
    attempt.note("ended")
    attempt.folder.log.write_text(f"not started: {message}\nsee {latest.log}\n", encoding="utf-8")
    failure = Failure(
        cause=before.role,
        error=why.error,
        message=message,
        host=socket.gethostname(),
        step=step_reached(trial),
        time=time.time(),
    )
    write_failure(attempt.folder, failure)


def _run_attempts(order: TrialOrder) -> End:
    trial = TrialFolder(order.folder)
    config = read_config(trial.config)
    execution = resumed_execution(order, config.budget.batch_size)
    idle: Counter[Cause] = Counter()
    begins, had_devices = order.role == "trial", False
    while not order.stopping and not (order.claim and order.claim.is_lost()):
        got_to = _progress(trial)
        attempt = open_attempt(trial, devices=order.devices, execution=execution)
        end = _attempt(replace(order, execution=execution), attempt, config, begins=begins)
        if not isinstance(end, Failure):
            return end
        if end.cause == "resources" and had_devices:
            end = replace(end, cause="node-lost")  # they were there: they may come back
        had_devices = had_devices or end.cause != "resources"
        if _progress(trial) > got_to:
            idle.clear()
        else:
            idle[end.cause] += 1
        policy = order.policies[end.cause]
        decision = decide(
            policy,
            idle=idle[end.cause],
            declared=order.execution,
            current=execution,
            batch_size=config.budget.batch_size,
            evaluating=_evaluates(trial),
        )
        if decision.execution is None:
            if policy.holds and order.role == "trial":
                hold_siblings(order.ray_storage, config.foundation.name, f"{order.trial_id} failed ({end.line})")
            write_failure(attempt.folder, replace(end, goes_on=False))
            return "failed"
        write_failure(attempt.folder, replace(end, goes_on=True))
        execution, begins = decision.execution, False
        _wait(decision.wait_s, order)
    return "interrupted"


def _attempt(order: TrialOrder, attempt: Attempt, config: TrialConfig, *, begins: bool) -> End | Failure:
    """Run one attempt to its end; the failure of one that ended badly."""
    trial = TrialFolder(order.folder)
    try:
        if begins:
            check_not_held(order.ray_storage, config.foundation.name)
        _check_resources(order.execution)
        _fit(order, attempt, begins=begins)
    except Exception as error:
        # Whatever fit() raises (Ray has several classes for it) ends this attempt, not the grid: it becomes the trial's failure row.
        if _superseded(attempt):
            return "superseded"
        attempt.note("ended")
        told = None if classify(error) in _DEATHS else find_failure(attempt.folder)
        if told is None and order.stopping:
            return "interrupted"  # the end of a run takes away the workers that have nothing to save
        return told or describe_failure(error, trial)
    return "done" if trial.result.exists() else "interrupted"


def _fit(order: TrialOrder, attempt: Attempt, *, begins: bool) -> None:
    """Run one attempt on Ray Train and wait for its end."""
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer

    from orchestrator.trial_worker import train_worker

    execution = order.execution
    resources: dict[str, float] = {"CPU": execution.cpus_per_worker}
    if execution.use_gpu:
        resources["GPU"] = gpus_per_worker(execution)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"order": order, "attempt": attempt, "begins": begins},
        torch_config=TorchConfig(backend="nccl" if execution.use_gpu else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=execution.workers, use_gpu=execution.use_gpu, resources_per_worker=resources
        ),
        run_config=train.RunConfig(
            name=f"{order.trial_id}-{order.fingerprint[:8]}-attempt{attempt.number}",
            storage_path=str(order.ray_storage),
            # The defaults retry some failures without end. Retrying is the driver's business: each try is an attempt with a record.
            failure_config=train.FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
        ),
    )
    trainer.fit()


def _check_resources(execution: Execution) -> None:
    """Raise ResourcesMissing when the cluster cannot have what the trial needs: Ray would wait for ever."""
    import ray

    from orchestrator.ray_session import describe_cluster
    from orchestrator.schedule import concurrent_trials

    try:
        concurrent_trials(describe_cluster(ray.get_runtime_context().gcs_address, local=False), execution)
    except ValueError as error:
        raise ResourcesMissing(str(error)) from None


def resumed_execution(order: TrialOrder, batch_size: int) -> Execution:
    """How the next attempt runs: as declared, in halves where memory was short in the attempts before.

    Where it was short for good the trial begins as declared again: the user has made room (`run --retry out-of-memory`).
    """
    trial = TrialFolder(order.folder)
    latest = trial.latest_attempt()
    if latest is None:
        return order.execution
    failures = [find_failure(trial.attempt(number)) for number in range(1, latest.number + 1)]
    short = [failure for failure in failures if failure and failure.cause == "out-of-memory"]
    sizes = [record for record in iter_records(trial) if record.micro_batches and record.evaluation_batch_size]
    if not short or not short[-1].goes_on or not sizes:
        return order.execution
    declared, last = order.execution, sizes[-1]
    micro_batches = max(declared.micro_batches, last.micro_batches or 0)
    if batch_size % (declared.workers * micro_batches):
        micro_batches = declared.micro_batches
    evaluated = min(declared.evaluation_batch_size, last.evaluation_batch_size or declared.evaluation_batch_size)
    return replace(declared, micro_batches=micro_batches, evaluation_batch_size=evaluated)


def _progress(trial: TrialFolder) -> tuple[int, int, int]:
    """How far a trial has got for good: the last committed step, the finished inference modes, the bytes of answers. More of it is progress."""
    begun = trial.attempts.is_dir()
    step = max((record.step or 0 for record in iter_records(trial)), default=0) if begun else 0
    finished = len(list(trial.path.glob("predictions-*.commit.json")))
    return step, finished, sum(path.stat().st_size for path in trial.path.glob("predictions-*.jsonl"))


def _evaluates(trial: TrialFolder) -> bool:
    """Whether all training steps are done, as the trial last told."""
    status = read_status(trial)
    return status.get("phase") == "evaluating" or status.get("step", 0) == status.get("steps")


def _wait(seconds: float, order: TrialOrder) -> None:
    """Wait, without devices, or until the run stops."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not order.stopping:
        time.sleep(min(_POLL_S, seconds))


def _superseded(attempt: Attempt) -> bool:
    try:
        attempt.check_current()
    except AttemptSuperseded:
        return True
    return False
