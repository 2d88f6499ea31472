"""TrialConfig -> trained weights, predictions and scores, in an output folder: one grid cell from start to end.

Knows neither Ray nor MLflow: inside a Ray Train worker it joins the process group that is there, in a plain process it makes one of a single
process, so that a trial can be run and debugged by hand. What it writes below the output folder: `metrics.jsonl`, `status.json`,
`checkpoints/` and `predictions-<inference mode>.jsonl`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.encoder_states import StateKey
from data.records import InferenceMode, Prediction, Split
from data.scoring import Score, score
from model.checkpoint_folder import checkpoint_to_resume, newest_checkpoint
from model.checkpoints import load_adapter, load_optimizer, load_trainable
from model.configs import Execution, TrialConfig
from model.evaluate import evaluate
from model.generate import generate_predictions
from model.hooks import TrialHooks
from model.process_group import agreed, join_process_group
from model.speech_llm import SpeechLLM, build_speech_llm, load_tokenizer
from model.stage import train_stage
from model.train import build_engine
from model.trial_data import Hear, TrialData
from model.trial_log import TrialLog


@dataclass(frozen=True, kw_only=True)
class TrialPaths:
    """Where a trial finds its prepared data and puts what it makes."""

    corpus: Path
    encoder_states: Path
    encoder_key: StateKey
    output: Path
    aligned_adapter: Path | None = None  # safetensors; where the config asks for an alignment stage


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
    hooks: TrialHooks | None = None,
) -> TrialOutcome | None:
    """Train from the newest checkpoint (or from nothing), evaluate, score. Returns None on every rank but 0.

    Raises TrialInterrupted on every rank when `hooks.should_stop` said so, and whatever a hook raises.
    """
    hooks = hooks or TrialHooks()
    torch.set_num_threads(execution.cpus_per_worker)
    join_process_group(use_gpu=execution.use_gpu)
    rank = torch.distributed.get_rank()
    started = time.perf_counter()
    tokenizer = load_tokenizer(config.foundation)
    trial_data = open_data(config, tokenizer, paths)
    model = build_trial_model(config, execution, trial_data)
    checkpoint = agreed(lambda: checkpoint_to_resume(paths.output, steps=config.budget.steps))
    if checkpoint:
        load_trainable(model, checkpoint)
    elif config.alignment:
        assert paths.aligned_adapter, "the alignment stage comes first"
        load_adapter(model, paths.aligned_adapter)
    engine = build_engine(model, config.optim, execution, batch_size=config.budget.batch_size)
    first_step = load_optimizer(engine, checkpoint, rank=rank, steps=config.budget.steps) if checkpoint else 0
    log = TrialLog(paths.output, steps=config.budget.steps) if rank == 0 else None
    loaded = time.perf_counter()

    train_stage(config, execution, engine, trial_data, paths.output, first_step=first_step, hooks=hooks, log=log)
    trained = time.perf_counter()

    predictions = evaluate(config, execution, engine.module, tokenizer, trial_data, paths.output, hooks=hooks, log=log)
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
        constrained=config.evaluation.constrained,
    )
    return score(predictions)


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
