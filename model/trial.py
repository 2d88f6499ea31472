"""TrialConfig -> trained weights, predictions and scores, in an output folder: one grid cell from start to end.

Knows neither Ray nor MLflow: inside a Ray Train worker it joins the process group that is there, in a plain process it makes one of a single
process, so that a trial can be run and debugged by hand. What it writes below the output folder: `metrics.jsonl`, `status.json`,
`checkpoints/` and `predictions-<inference mode>.jsonl`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from data.atomic import iter_whole_lines, write_jsonl
from data.encoder_states import StateKey
from data.records import InferenceMode, Prediction, Split, prediction_from_json, to_json
from data.scoring import Score, score
from model.checkpoints import load_optimizer, load_trainable, newest_checkpoint, save_checkpoint
from model.configs import Execution, TrialConfig
from model.generate import Item, generate_predictions
from model.speech_llm import SpeechLLM, build_speech_llm, load_tokenizer
from model.train import build_engine, training_steps
from model.trial_data import Hear, TrialData
from model.trial_log import TrialLog

_log = logging.getLogger(__name__)

Decision = TypeVar("Decision")

LOG_EVERY = 10
"""Optimizer steps between two lines of metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class TrialPaths:
    """Where a trial finds its prepared data and puts what it makes."""

    corpus: Path
    encoder_states: Path
    encoder_key: StateKey
    output: Path


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """The scores of a finished trial. `scores` are on the test split; `eval/partial_f1` is the headline inference mode's."""

    headline_inference_mode: InferenceMode  # the one that did better on validation
    scores: dict[str, float]
    validation_scores: dict[str, float]
    counts: dict[str, int]
    seconds: dict[str, float]


def run_trial(
    config: TrialConfig,
    execution: Execution,
    paths: TrialPaths,
    *,
    on_checkpoint: Callable[[int], None] = lambda step: None,
) -> TrialOutcome | None:
    """Train from the newest checkpoint (or from nothing), evaluate, score. Returns None on every rank but 0.

    `on_checkpoint(step)` is called on every rank after a checkpoint is committed; what it raises ends the trial there.
    """
    torch.set_num_threads(execution.cpus_per_worker)
    join_process_group(use_gpu=execution.use_gpu)
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    started = time.perf_counter()
    tokenizer = load_tokenizer(config.foundation)
    trial_data = open_data(config, tokenizer, paths)
    model = build_trial_model(config, execution, trial_data)
    checkpoint = _from_rank_zero(lambda: newest_checkpoint(paths.output / "checkpoints"))
    if checkpoint:
        load_trainable(model, checkpoint)
    engine = build_engine(model, config.optim, execution, batch_size=config.budget.batch_size)
    first_step = load_optimizer(engine, checkpoint, rank=rank) if checkpoint else 0
    log = TrialLog(paths.output, steps=config.budget.steps, resume_step=first_step) if rank == 0 else None
    loaded = time.perf_counter()

    def micro_batches_of(step: int) -> list[Any]:
        return trial_data.micro_batches(step, rank=rank, world=world, micro_batches=execution.micro_batches)

    for info in training_steps(
        engine, micro_batches_of, first_step=first_step, steps=config.budget.steps, optim=config.optim
    ):
        last = info.step == config.budget.steps
        if log:
            log.step(info, log=info.step % LOG_EVERY == 0 or info.step == 1 or last)
        if last or info.step % execution.checkpoint_every == 0:
            if log:
                log.flush()
            save_checkpoint(engine, paths.output / "checkpoints", step=info.step, rank=rank, world=world)
            on_checkpoint(info.step)
    trained = time.perf_counter()

    predictions = _evaluate(config, execution, engine.module, tokenizer, trial_data, paths.output, log)
    if log is None:
        return None
    outcome = _outcome(
        config,
        predictions,
        {"load": loaded - started, "train": trained - loaded, "evaluate": time.perf_counter() - trained},
    )
    log.scores(config.budget.steps, outcome.scores)
    log.status("done", force=True, step=config.budget.steps, steps=config.budget.steps)
    log.close()
    return outcome


def score_checkpoint(
    config: TrialConfig,
    execution: Execution,
    paths: TrialPaths,
    *,
    mode: InferenceMode,
    trained: bool = True,
    hear: Hear | None = None,
) -> Score:
    """Score the test split once more in this process: with the trial's last checkpoint or untrained, hearing the right audio or not.

    A model that listens falls when `hear` gives it other examples' audio (see `TrialData.evaluation_items`). Nothing is written.
    """
    torch.set_num_threads(execution.cpus_per_worker)
    tokenizer = load_tokenizer(config.foundation)
    trial_data = open_data(config, tokenizer, paths)
    model = build_trial_model(config, execution, trial_data)
    if trained:
        checkpoint = newest_checkpoint(paths.output / "checkpoints")
        if checkpoint is None:
            raise ValueError(f"{paths.output}: no whole checkpoint to score; run the trial first")
        load_trainable(model, checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    predictions = generate_predictions(
        model,
        tokenizer,
        trial_data.evaluation_items("test", mode, hear=hear),
        kind=config.foundation.kind,
        split="test",
        max_new_tokens=config.evaluation.max_new_tokens(mode),
        batch_size=execution.evaluation_batch_size,
    )
    return score(predictions)


def _evaluate(
    config: TrialConfig,
    execution: Execution,
    model: SpeechLLM,
    tokenizer: Any,
    trial_data: TrialData,
    output: Path,
    log: TrialLog | None,
) -> list[Prediction]:
    """Generate what is not on disk yet, each rank its share; one file per inference mode, written whole by rank 0."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    everything: list[Prediction] = []
    for mode in config.inference_modes:
        path = output / f"predictions-{mode}.jsonl"
        items_of = {split: trial_data.evaluation_items(split, mode) for split in config.evaluation.splits}
        stored = _from_rank_zero(partial(_stored_predictions, path, items_of))
        if stored is not None:
            everything += stored
            continue
        answered: list[Prediction] = []
        for split, items in items_of.items():
            places = range(
                rank, -(-len(items) // world) * world, world
            )  # as many on every rank: the last ones answer a first one again

            def on_progress(done: int, total: int, split: Split = split, mode: InferenceMode = mode) -> None:
                if log:
                    log.status("evaluating", split=split, mode=mode, step=done, steps=total)

            mine = generate_predictions(
                model,
                tokenizer,
                [items[place % len(items)] for place in places],
                kind=config.foundation.kind,
                split=split,
                max_new_tokens=config.evaluation.max_new_tokens(mode),
                batch_size=execution.evaluation_batch_size,
                synced=execution.zero_stage == 3,
                on_progress=on_progress,
            )
            answered += _gathered(mine, len(items), world)
        if rank == 0:
            write_jsonl(path, map(to_json, answered))
        everything += answered
    return everything


def _stored_predictions(path: Path, items_of: dict[Split, list[Item]]) -> list[Prediction] | None:
    """What an earlier attempt generated, None when there is nothing or when it is not one prediction per item."""
    if not path.exists():
        return None
    expected = [(split, supervised.example_id) for split, items in items_of.items() for supervised, *_ in items]
    try:
        stored = [prediction_from_json(row) for row in iter_whole_lines(path)]
    except (ValueError, TypeError, KeyError) as error:
        _log.warning("%s: is damaged (%s); generated again", path, error)
        return None
    if [(prediction.split, prediction.example_id) for prediction in stored] != expected:
        _log.warning("%s: does not hold one prediction per example; generated again", path)
        return None
    return stored


def _outcome(config: TrialConfig, predictions: list[Prediction], seconds: dict[str, float]) -> TrialOutcome:
    """Score each inference mode on each split; the mode that did better on validation gives the headline on test."""

    def scored(split: Split, mode: InferenceMode) -> Score:
        return score(p for p in predictions if p.split == split and p.mode == mode)

    test = {mode: scored("test", mode) for mode in config.inference_modes}
    validation = {mode: scored("validation", mode) for mode in config.inference_modes}
    headline = max(config.inference_modes, key=lambda mode: validation[mode].partial_f1)
    harder = {
        split: scored(split, headline) for split in config.evaluation.splits if split not in ("validation", "test")
    }
    return TrialOutcome(
        headline_inference_mode=headline,
        scores={
            "eval/partial_f1": test[headline].partial_f1,
            **_named(test),
            **{f"{split}/partial_f1": s.partial_f1 for split, s in harder.items()},
        },
        validation_scores={
            "validation/partial_f1": validation[headline].partial_f1,
            **_named(validation, "validation"),
        },
        counts={"test": test[headline].counts.examples, "validation": validation[headline].counts.examples},
        seconds=seconds,
    )


def _named(scores: dict[InferenceMode, Score], prefix: str = "eval") -> dict[str, float]:
    return {f"{prefix}/{mode}/{name}": value for mode, s in scores.items() for name, value in s.metrics().items()}


def _gathered(mine: list[Prediction], count: int, world: int) -> list[Prediction]:
    """Every rank's answers in the order of the items, of which rank r answered r, r + world, ..."""
    shares: list[list[Prediction]] = [mine] * world
    if world > 1:
        torch.distributed.all_gather_object(shares, mine)
    return [shares[place % world][place // world] for place in range(count)]


def _from_rank_zero(decide: Callable[[], Decision]) -> Decision:
    """What rank 0 decides, on every rank: two ranks that look at a shared mount may see different files."""
    if torch.distributed.get_world_size() == 1:
        return decide()
    decision: list[Any] = [decide() if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(decision, src=0)
    return decision[0]


def open_data(config: TrialConfig, tokenizer: Any, paths: TrialPaths) -> TrialData:
    """What a trial trains and is evaluated on. Raises ValueError as `TrialData` does."""
    return TrialData(
        config, tokenizer, corpus=paths.corpus, encoder_states=paths.encoder_states, encoder_key=paths.encoder_key
    )


def build_trial_model(config: TrialConfig, execution: Execution, trial_data: TrialData) -> SpeechLLM:
    """The untrained speechLLM of a trial; its adapter knows the statistics of the train split's encoder states."""
    mean, std = trial_data.state_statistics()
    return build_speech_llm(
        config.foundation,
        state_mean=torch.from_numpy(mean),
        state_std=torch.from_numpy(std),
        adapter=config.adapter,
        lora=config.lora,
        precision=config.optim.precision,
        seed=config.seed,
        execution=execution,
    )


def join_process_group(*, use_gpu: bool) -> None:
    """Use Ray Train's process group; in a plain process make one of a single member, which needs no port."""
    if not torch.distributed.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it; Ray Train and other launchers set it
        backend = "nccl" if use_gpu else "gloo"
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
