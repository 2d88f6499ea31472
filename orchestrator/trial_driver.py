"""One trial from its folder to its `result.json`: the Tune trainable that drives it, and the loop that runs in each Ray Train worker.

The driver opens an attempt, builds a TorchTrainer for it and waits. A worker that raises records why and the trial has failed; a worker that dies
without a word (killed, out of memory, its node gone) is replaced by a new attempt, which goes on from the last checkpoint. Files decide everything:
Ray's own checkpoints and restore are not used, for their state files do not survive a kill.

A trial whose order names a canary (`orchestrator.canaries`) begins when that has passed. The first driver to come runs it, the others wait for that
one without holding devices.
"""

from __future__ import annotations

import faulthandler
import fcntl
import json
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.encoder_states import StateKey
from model.configs import Execution, TrialConfig
from model.hooks import TrialHooks
from orchestrator.attempts import Attempt, AttemptSuperseded, attempt_costs, open_attempt
from orchestrator.identity import fingerprint, read_config
from orchestrator.layout import TrialFolder
from orchestrator.provenance import describe_environment
from orchestrator.results import Failure, TrialResult, read_failure, write_failure, write_result

if TYPE_CHECKING:
    from model.trial import TrialOutcome

RETRIES_OF_A_DEAD_WORKER = 2
"""New attempts in one run after workers that died without a word; an error in the code is not retried."""

RunTrial = Callable[["TrialOrder", TrialConfig, "TrialHooks"], "TrialOutcome | None"]
"""(order, config, hooks) -> the outcome, None on ranks above 0. Runs in the worker."""


def run_model_trial(order: TrialOrder, config: TrialConfig, hooks: TrialHooks) -> TrialOutcome | None:
    """Train and evaluate with `model.trial`; imported here so that drivers and the head never load the model's libraries."""
    from model.trial import TrialPaths, run_trial

    paths = TrialPaths(
        corpus=order.corpus,
        encoder_states=order.encoder_states,
        encoder_key=order.encoder_key,
        output=order.folder,
        aligned_adapter=order.aligned_adapter,
    )
    return run_trial(config, order.execution, paths, hooks=hooks)


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
    canary: TrialOrder | None = None  # what must have passed first: a trial like any other, of a few steps
    aligned_adapter: Path | None = None  # what an alignment stage leaves
    stop_file: Path | None = None  # while it exists, nothing new is begun and what runs saves and stops
    earlier_attempts: int = 0  # of a canary: those before this run, whose failures are history


class TrialFailed(RuntimeError):
    """An attempt ended badly and its failure.json says why."""


def drive_trial(order: TrialOrder) -> str:
    """Run attempts of one trial until one ends well ("done"), fails ("failed") or is superseded. Never raises for a failed trial."""
    if order.canary is None:
        return _run_attempts(order)
    verdict = _wait_for_canary(order.canary)
    if verdict == "done":
        return _run_attempts(order)
    if verdict == "failed":
        _fail_for_canary(order, order.canary)
    return verdict


def _wait_for_canary(canary: TrialOrder) -> str:
    """The canary's end: "done", "failed" or "superseded". Run by whichever driver comes first; where that one is killed, by the next."""
    folder = TrialFolder(canary.folder)
    with _one_at_a_time(folder):
        if folder.result.exists():
            return "done"
        latest = folder.latest_attempt()
        if latest and latest.number > canary.earlier_attempts and latest.failure.exists():
            return "failed"
        return _run_attempts(canary)


@contextmanager
def _one_at_a_time(folder: TrialFolder) -> Iterator[None]:
    """Wait for the drivers before this one. All drivers run on one machine, whose kernel takes the lock from a killed one."""
    with (folder.path / "lock").open("a", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _fail_for_canary(order: TrialOrder, canary: TrialOrder) -> None:
    """The trial's failure row; no device time was spent on it."""
    latest, trial = TrialFolder(canary.folder).latest_attempt(), TrialFolder(order.folder)
    assert latest is not None
    why = read_failure(latest)
    learned = why.cause == "CanaryFailed"
    remedy = f"; compare the chat template with `explain {order.trial_id}`" if learned else ""
    message = (why.message if learned else why.line)[:400] + remedy
    attempt = open_attempt(trial, devices=order.execution.workers * _devices_per_worker(order))
    attempt.note("ended")
    attempt.folder.log.write_text(f"not started: {message}\nsee {latest.log}\n", encoding="utf-8")
    failure = Failure(
        cause="Canary", message=message, host=socket.gethostname(), step=_step_reached(trial), time=time.time()
    )
    write_failure(attempt.folder, failure)


def _run_attempts(order: TrialOrder) -> str:
    for _ in range(1 + RETRIES_OF_A_DEAD_WORKER):
        attempt = open_attempt(TrialFolder(order.folder), devices=order.execution.workers * _devices_per_worker(order))
        try:
            _fit(order, attempt)
        except Exception as error:
            # Whatever fit() raises (Ray has several classes for it) ends this attempt, not the grid: it becomes the trial's failure row.
            attempt.note("ended")
            dead = _dead_worker(error)
            if dead is None and _superseded(attempt):
                return "superseded"
            if dead is None and attempt.folder.failure.exists():
                return "failed"
            trial = TrialFolder(order.folder)
            write_failure(attempt.folder, _worker_died(dead, trial) if dead else describe_failure(error, trial))
            if dead is None:
                return "failed"
        else:
            return "done"
    return "failed"


def _fit(order: TrialOrder, attempt: Attempt) -> None:
    """Run one attempt on Ray Train and wait for its end."""
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer

    execution = order.execution
    resources: dict[str, float] = {"CPU": execution.cpus_per_worker}
    if execution.use_gpu:
        resources["GPU"] = 1
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"order": order, "attempt": attempt},
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


def train_worker(loop: dict[str, Any]) -> None:
    """Ray Train's `train_loop_per_worker`: run the trial in this process; rank 0 writes the result.

    Raises TrialFailed after an exception was recorded in the attempt's failure.json.
    """
    from ray import train

    order: TrialOrder = loop["order"]
    attempt: Attempt = loop["attempt"]
    rank = train.get_context().get_world_rank()
    _redirect_output(attempt.folder.log if rank == 0 else attempt.folder.log.with_name(f"log-rank{rank}"))
    if rank == 0:
        attempt.note("started")

    def on_checkpoint(step: int) -> None:
        attempt.check_current()
        if rank == 0:
            attempt.note("checkpointed")
        train.report({"step": step})

    try:
        _work(order, attempt, rank, TrialHooks(before_write=attempt.check_current, on_checkpoint=on_checkpoint))
    except AttemptSuperseded:
        raise
    except Exception as error:
        # The trial's boundary: the one place where any error becomes a record.
        traceback.print_exc()
        if not attempt.folder.failure.exists():  # another rank's error may be the cause of this one
            write_failure(attempt.folder, describe_failure(error, TrialFolder(order.folder)))
        raise TrialFailed(f"{order.trial_id}: {type(error).__name__}: {error}") from None


def _work(order: TrialOrder, attempt: Attempt, rank: int, hooks: TrialHooks) -> None:
    folder = TrialFolder(order.folder)
    config = read_config(folder.config)
    assert fingerprint(config) == order.fingerprint, f"{folder.config} changed since the run was planned"
    outcome = order.run_trial(order, config, hooks)
    if rank == 0:
        assert outcome is not None
        attempt.check_current()
        attempt.note("ended")
        write_result(folder, _result(order, config, outcome))


def _result(order: TrialOrder, config: TrialConfig, outcome: TrialOutcome) -> TrialResult:
    seconds = {f"{phase}_seconds": value for phase, value in outcome.seconds.items()}
    return TrialResult(
        trial_id=order.trial_id,
        fingerprint=order.fingerprint,
        foundation=config.foundation.name,
        kind=config.foundation.kind,
        mode=config.mode,
        seed=config.seed,
        headline_inference_mode=outcome.headline_inference_mode,
        scores=outcome.scores,
        validation_scores=outcome.validation_scores,
        counts=dict(outcome.counts),
        costs={**attempt_costs(TrialFolder(order.folder)), **seconds},
        provenance=describe_environment(),
    )


def describe_failure(error: BaseException, trial: TrialFolder) -> Failure:
    """An exception as the record that ledger and report show."""
    text = " ".join(str(error).split())
    return Failure(
        cause=type(error).__name__,
        message=text[:500],
        traceback="".join(traceback.format_exception(error)),
        host=socket.gethostname(),
        step=_step_reached(trial),
        time=time.time(),
    )


def _worker_died(error: BaseException, trial: TrialFolder) -> Failure:
    """The record of a worker process that was ended from outside."""
    return replace(
        describe_failure(error, trial),
        cause="WorkerDied",
        message="a worker process ended without a word: killed, out of memory, or its machine gone; see the attempt's log",
    )


def _dead_worker(error: BaseException) -> BaseException | None:
    """The death of a worker process among what fit() raised, None when every worker lived to raise its own exception."""
    from ray.exceptions import RayActorError

    failures = getattr(error, "worker_failures", {}).values()
    causes = [getattr(failure, "health_check_failure", failure) for failure in failures]
    return next((cause for cause in causes if isinstance(cause, RayActorError)), None)


def _superseded(attempt: Attempt) -> bool:
    try:
        attempt.check_current()
    except AttemptSuperseded:
        return True
    return False


def _step_reached(trial: TrialFolder) -> int | None:
    if not trial.status.exists():
        return None
    status = json.loads(trial.status.read_text(encoding="utf-8"))
    return status.get("step") if status.get("phase") == "training" else None


def _devices_per_worker(order: TrialOrder) -> int:
    return 1 if order.execution.use_gpu else order.execution.cpus_per_worker


def _redirect_output(log: Path) -> None:
    """Send everything this worker process prints, in Python or below, to a file. The process ends with the attempt: nothing is restored."""
    stream = log.open("a", encoding="utf-8", buffering=1)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    faulthandler.enable(stream)
    logging.basicConfig(
        stream=stream, level=logging.INFO, force=True, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
