"""A grid's trials -> one canary per foundation, as a trial of a few steps that they wait for; in its worker, `model.canary` -> that trial's outcome.

A canary is run by the machinery of trials: attempts, log, config.json with a fingerprint over everything that it depends on, result.json when it has
passed. It is no cell of the grid: it lies below `canaries/`, and neither results.csv nor the tracker knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data.records import INFERENCE_MODES, SupervisionMode
from model.configs import Budget, EncoderConfig, EvaluationConfig, Execution, TrialConfig
from orchestrator.identity import fingerprint, write_config
from orchestrator.layout import RunFolder
from orchestrator.ledger import read_state, set_damaged_aside
from orchestrator.prepare import PreparedData
from orchestrator.trial_driver import TrialOrder

if TYPE_CHECKING:
    from model.hooks import TrialHooks
    from model.trial import TrialOutcome

EXAMPLES = 8
STEPS = 60
"""At most. Trained models know eight answers by heart after 10 to 40 steps, a small one with random weights after 60."""
LORA_RATE_FACTOR = 2.5
"""Times the trial's own rate of LoRA: eight answers are to be learned, nothing is to be generalised."""


class CanaryFailed(RuntimeError):
    """A check of the canary failed; report.json shows all of them."""


def canary_config(trials: Sequence[TrialConfig]) -> TrialConfig:
    """What the canary of one foundation computes, from the foundation's trials.

    Supervision is hybrid where the trials' modes differ, so that both inference modes are asked for. There is no alignment: it comes later, and
    eight answers are learned by heart without. All else is as in the trials.
    """
    modes = {trial.mode for trial in trials}
    mode: SupervisionMode = modes.pop() if len(modes) == 1 else "hybrid"
    trial = next(
        (trial for trial in trials if "think" in trial.inference_modes), trials[0]
    )  # its corpus names the traces
    return replace(
        trial,
        supervision=replace(trial.supervision, mode=mode),
        budget=Budget(steps=STEPS, batch_size=EXAMPLES * len(INFERENCE_MODES[mode])),
        seed=0,
        optim=replace(trial.optim, lora_learning_rate=LORA_RATE_FACTOR * trial.optim.lora_learning_rate),
        evaluation=EvaluationConfig(),  # it is not the trial's that is asked
        alignment=None,
    )


def canary_execution(execution: Execution, canary: TrialConfig, trial: TrialConfig) -> Execution:
    """One worker, but for weights that are sharded because no device holds them (ZeRO-3); micro-batches no larger than the trial's."""
    workers, stage = (execution.workers, 3) if execution.zero_stage == 3 else (1, 0)
    micro_batches = micro_batches_like(execution, trial, canary.budget.batch_size, workers=workers)
    return replace(execution, workers=workers, zero_stage=stage, micro_batches=micro_batches)


def micro_batches_like(execution: Execution, trial: TrialConfig, batch_size: int, *, workers: int) -> int:
    """The fewest micro-batches of another batch that are no larger than the trial's: as much as fits the device."""
    mine, largest = batch_size // workers, trial.budget.batch_size // (execution.workers * execution.micro_batches)
    return next((n for n in range(1, mine + 1) if mine % n == 0 and mine // n <= max(1, largest)), 1)


def order_canaries(
    run: RunFolder,
    trials: Sequence[TrialConfig],
    execution_of: Callable[[TrialConfig], Execution],
    prepared: Mapping[EncoderConfig, PreparedData],
    *,
    names: Sequence[str],
    storage: Path,
) -> dict[str, TrialOrder]:
    """The canaries of the foundations called `names` that have not passed yet, by foundation; their folders are made."""
    orders = {}
    for name in dict.fromkeys(names):
        of_foundation = [trial for trial in trials if trial.foundation.name == name]
        config = canary_config(of_foundation)
        folder = run.canary(name)
        state = read_state(folder, config)
        if state.state == "done":
            continue
        if state.state == "stale":
            folder.result.unlink(missing_ok=True)  # passed as something else; the attempts' numbers go on
        set_damaged_aside(state)
        write_config(folder.config, config)
        latest = folder.latest_attempt()
        data = prepared[config.encoder]
        orders[name] = TrialOrder(
            trial_id=f"canary-{name}",
            folder=folder.path,
            fingerprint=fingerprint(config),
            execution=canary_execution(execution_of(of_foundation[0]), config, of_foundation[0]),
            corpus=data.corpus,
            encoder_states=data.encoder_states,
            encoder_key=data.encoder_key,
            ray_storage=storage,
            run_trial=run_canary_trial,
            role="canary",
            earlier_attempts=latest.number if latest else 0,
        )
    return orders


def run_canary_trial(order: TrialOrder, config: TrialConfig, hooks: TrialHooks) -> TrialOutcome | None:
    """Run the canary in this worker; the outcome of one that passed. Raises CanaryFailed with the reason of one that did not."""
    from model.canary import run_canary
    from model.trial import TrialOutcome

    report = run_canary(config, order.execution, order.paths(), hooks=hooks)
    if not report.passed:
        raise CanaryFailed(report.reason)
    figures = {check.name: check.figure for check in report.checks if check.figure is not None}
    return TrialOutcome(
        headline_inference_mode=config.inference_modes[0],
        scores={
            "eval/partial_f1": figures["fills the right slots"],
            **figures,
        },  # a result needs a headline; nobody compares this one
        validation_scores={},
        counts={"train": config.budget.batch_size},
        seconds={"canary": report.seconds},
    )
