"""One attempt in the workers of Ray Train: a trial's order -> its result, its failure, or nothing when it was asked to stop.

Each worker sends all it prints to the attempt's log, keeps to the order's hooks (a newer attempt fences it off, a stop file ends it) and writes down
why it failed; rank 0 writes the result.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.checkpoint_folder import prune_checkpoints
from model.configs import TrialConfig
from model.hooks import TrialHooks, TrialInterrupted
from orchestrator.attempts import Attempt, AttemptSuperseded, attempt_costs
from orchestrator.failures import check_not_held
from orchestrator.identity import fingerprint, read_config
from orchestrator.layout import TrialFolder
from orchestrator.ledger import hash_files
from orchestrator.provenance import describe_environment
from orchestrator.redaction import RedactingStream
from orchestrator.results import TrialResult, describe_failure, write_failure, write_result
from orchestrator.trial_driver import TrialOrder

if TYPE_CHECKING:
    from model.trial import TrialOutcome

_log = logging.getLogger(__name__)

_LOOK_S = 1.0
"""Between two looks for the stop file, which may lie on a mount."""


class TrialFailed(RuntimeError):
    """An attempt ended badly and its failure.json says why."""


def train_worker(loop: dict[str, Any]) -> None:
    """Ray Train's `train_loop_per_worker`: run the trial in this process.

    Raises TrialFailed after an exception was recorded in the attempt's failure.json, AttemptSuperseded when a newer attempt took over.
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
            attempt.note("checkpointed", step=step)
        train.report({"step": step})

    hooks = TrialHooks(
        before_write=attempt.check_current, on_checkpoint=on_checkpoint, should_stop=_stop_asked_for(order)
    )
    try:
        with attempt.watch():
            _work(order, attempt, rank, hooks, begins=loop["begins"])
    except AttemptSuperseded:
        raise
    except TrialInterrupted as interrupted:
        _log.info("%s", interrupted)
        if rank == 0:
            attempt.note("ended")
    except Exception as error:
        # The trial's boundary: the one place where any error becomes a record. Whether the trial has failed is for the driver to decide.
        traceback.print_exc()
        if not attempt.folder.failure.exists():  # another rank's error may be the cause of this one
            failure = describe_failure(error, TrialFolder(order.folder))
            write_failure(attempt.folder, replace(failure, goes_on=True))
        raise TrialFailed(f"{order.trial_id}: {type(error).__name__}") from None


def _work(order: TrialOrder, attempt: Attempt, rank: int, hooks: TrialHooks, *, begins: bool) -> None:
    from model.process_group import agreed, join_process_group

    folder = TrialFolder(order.folder)
    config = read_config(folder.config)
    assert fingerprint(config) == order.fingerprint, f"{folder.config} changed since the run was planned"
    # It may have waited for its devices while a sibling failed or the run was stopped.
    join_process_group(use_gpu=order.execution.use_gpu)
    if begins:
        agreed(partial(check_not_held, order.ray_storage, config.foundation.name))
    if agreed(hooks.should_stop):
        raise TrialInterrupted("stopped before it began")
    outcome = order.run_trial(order, config, hooks)
    if rank == 0:
        assert outcome is not None
        attempt.check_current()
        attempt.note("ended")
        write_result(folder, _result(order, config, outcome))
        prune_checkpoints(folder.checkpoints, order.execution.keep_checkpoints)


def _stop_asked_for(order: TrialOrder) -> Callable[[], bool]:
    """Whether the order's stop file is there; it is looked for now and then."""
    looked, stopping = -_LOOK_S, False

    def should_stop() -> bool:
        nonlocal looked, stopping
        if time.monotonic() - looked >= _LOOK_S:
            looked, stopping = time.monotonic(), order.stopping
        return stopping

    return should_stop


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
        provenance={**describe_environment(), "execution": asdict(order.execution)},
        files=hash_files(TrialFolder(order.folder)),
        finished=time.time(),
    )


def _redirect_output(log: Path) -> None:
    """Send everything this worker process prints to a file: from Python without secrets, from below as it is, to the last word of a crash.

    The process ends with the attempt: nothing is restored.
    """
    stream = log.open("a", encoding="utf-8", buffering=1)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = redacting = RedactingStream(stream)
    faulthandler.enable(stream)
    logging.basicConfig(
        stream=redacting, level=logging.INFO, force=True, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
