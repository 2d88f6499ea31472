"""A grid's trials -> one alignment per foundation and seed, as a trial that they wait for and whose adapter they start from.

An alignment is run by the machinery of trials: attempts, log, config.json with a fingerprint over everything that it depends on, checkpoints,
result.json when it is done. It is no cell of the grid: it lies below `alignments/`, and neither results.csv nor the tracker knows it. The
supervision mode is nothing that it depends on, so that the modes of a foundation begin with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data.atomic import file_sha256, read_sealed_json
from data.supervision import SupervisionConfig
from model.configs import EncoderConfig, EvaluationConfig, Execution, LoRAConfig, OptimConfig, TrialConfig
from orchestrator.identity import fingerprint, trial_id, write_config
from orchestrator.layout import RunFolder, TrialFolder
from orchestrator.ledger import TrialState, move_stale_aside, read_state, set_damaged_aside
from orchestrator.results import HEADLINE

if TYPE_CHECKING:
    from model.hooks import TrialHooks
    from model.trial import TrialOutcome
    from orchestrator.prepare import PreparedData
    from orchestrator.trial_driver import TrialOrder


def alignment_config(trial: TrialConfig) -> TrialConfig:
    """What the alignment of a trial computes: the same for all trials that differ in nothing that it depends on.

    It depends on foundation, seed, corpus (not its traces), encoder, adapter, precision and its own budget and rate. What it does not know
    (supervision, LoRA, evaluation, metric) is set to one value for all.
    """
    assert trial.alignment, "this trial has no alignment"
    return replace(
        trial,
        supervision=SupervisionConfig(mode="regular"),
        corpus=replace(trial.corpus, traces=None),
        budget=trial.alignment.budget,
        lora=LoRAConfig(),
        optim=replace(
            trial.optim,
            adapter_learning_rate=trial.alignment.adapter_learning_rate,
            lora_learning_rate=OptimConfig().lora_learning_rate,
        ),
        evaluation=EvaluationConfig(),
        metric_version=0,
    )


def alignment_folder(run: RunFolder, trial: TrialConfig) -> TrialFolder:
    """The folder of the alignment that a trial starts from."""
    return run.alignment(trial.foundation.name, trial.seed)


def aligned_adapter(run: RunFolder, trial: TrialConfig) -> Path | None:
    """The adapter that a trial starts from, there or yet to be trained; None for a trial without an alignment."""
    return alignment_folder(run, trial).adapter if trial.alignment else None


def read_alignments(run: RunFolder, trials: Sequence[TrialConfig]) -> dict[str, TrialState]:
    """Where the alignments of these trials stand, by folder name, e.g. "qwen3-4b.seed0".

    Raises ValueError when two trials of a foundation and seed ask for different alignments.
    """
    first: dict[str, TrialConfig] = {}
    states: dict[str, TrialState] = {}
    for trial in trials:
        if trial.alignment is None:
            continue
        folder, config = alignment_folder(run, trial), alignment_config(trial)
        name = folder.path.name
        if name not in first:
            first[name] = trial
            states[name] = read_state(folder, config)
        elif states[name].trial != config:
            raise ValueError(
                f"{trial_id(trial)}: alignment: is not the one of {trial_id(first[name])}, and the trials of one foundation and seed share "
                "theirs; declare the same alignment, encoder, adapter and corpus for both, or put them into two experiments"
            )
    return states


def order_alignments(
    run: RunFolder,
    trials: Sequence[TrialConfig],
    execution_of: Callable[[TrialConfig], Execution],
    prepared: Mapping[EncoderConfig, PreparedData],
    *,
    storage: Path,
) -> dict[str, TrialOrder]:
    """What the trials to run must wait for, by trial id: trials that share an alignment share its order. Their folders are made.

    A trial whose alignment is done, and its adapter whole, is not in it. A stale alignment is set aside here, where its trials are rerun.
    Raises as `read_alignments`.
    """
    states = read_alignments(run, trials)
    orders: dict[str, TrialOrder | None] = {}
    awaited: dict[str, TrialOrder] = {}
    for trial in trials:
        if trial.alignment is None:
            continue
        name = alignment_folder(run, trial).path.name
        if name not in orders:
            orders[name] = _order(states[name], trial, execution_of(trial), prepared[trial.encoder], storage)
        if order := orders[name]:
            awaited[trial_id(trial)] = order
    return awaited


def _order(
    state: TrialState, trial: TrialConfig, execution: Execution, data: PreparedData, storage: Path
) -> TrialOrder | None:
    """What trains an alignment; None for one that is done."""
    # Below these lie arrays and audio, and the plan, which imports this module, must stay quick.
    from orchestrator.canaries import micro_batches_like
    from orchestrator.trial_driver import TrialOrder

    folder, config = state.folder, state.trial
    if state.state == "done" and _adapter_is_whole(folder):
        return None
    if state.state == "stale":
        move_stale_aside(folder, state.changed)
    set_damaged_aside(state)
    folder.result.unlink(missing_ok=True)  # its adapter is damaged: made again from the last checkpoint
    write_config(folder.config, config)
    latest = folder.latest_attempt()
    micro_batches = micro_batches_like(execution, trial, config.budget.batch_size, workers=execution.workers)
    return TrialOrder(
        trial_id=f"alignment-{folder.path.name}",
        folder=folder.path,
        fingerprint=fingerprint(config),
        execution=replace(execution, micro_batches=micro_batches),
        corpus=data.corpus,
        encoder_states=data.encoder_states,
        encoder_key=data.encoder_key,
        ray_storage=storage,
        run_trial=run_alignment_trial,
        role="alignment",
        earlier_attempts=latest.number if latest else 0,
    )


def _adapter_is_whole(folder: TrialFolder) -> bool:
    try:
        return file_sha256(folder.adapter) == read_sealed_json(folder.alignment).get("adapter_sha256")
    except (FileNotFoundError, ValueError):
        return False


def run_alignment_trial(order: TrialOrder, config: TrialConfig, hooks: TrialHooks) -> TrialOutcome | None:
    """Run the alignment in this worker; None on ranks above 0."""
    from model.alignment import run_alignment
    from model.trial import TrialOutcome

    outcome = run_alignment(config, order.execution, order.paths(), hooks=hooks)
    if outcome is None:
        return None
    return TrialOutcome(
        headline_inference_mode="direct",
        scores={HEADLINE: 0.0},  # a result needs a headline; no slot is filled here, and nobody compares this one
        validation_scores={
            "validation/loss_before": outcome.validation_loss_before,
            "validation/loss": outcome.validation_loss,
        },
        counts={"validation": outcome.validation_examples},
        seconds={"alignment": outcome.seconds},
    )
