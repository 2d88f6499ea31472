"""Family name -> a trial of a few steps on its stand-in, and the ways tests run it."""

import contextlib
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors.torch import load_file

from corpus_samples.synthetic import REF
from data.batching import Batch
from data.records import SupervisionMode
from data.supervision import SupervisionConfig
from model.checkpoint_folder import newest_checkpoint
from model.configs import AdapterConfig, Budget, EvaluationConfig, Execution, LoRAConfig, OptimConfig, TrialConfig
from model.hooks import TrialHooks
from model.speech_llm import SpeechLLM, load_tokenizer
from model.train import build_engine, training_steps
from model.trial import TrialPaths, build_trial_model, open_data, run_trial
from model.trial_data import TrialData
from stand_ins.hub import write_stand_in

MODES: dict[str, SupervisionMode] = {
    "qwen3": "hybrid",
    "llama-3.1": "regular",
    "llama-3.1-instruct": "reasoning",
    "r1": "reasoning",
}


def small_trial(family: str, folder: Path, **changes: Any) -> TrialConfig:
    """A trial on the stand-in of a family, whose checkpoint is written into `folder`. `changes` are fields of `TrialConfig`."""
    fields: dict[str, Any] = {
        "foundation": write_stand_in(folder / family, family),
        "supervision": SupervisionConfig(mode=MODES[family], label_descriptions=False, value_form="spoken"),
        "corpus": REF,
        "budget": Budget(steps=4, batch_size=4),
        "adapter": AdapterConfig(hidden_width=64),
        "lora": LoRAConfig(r=8, alpha=16),
        "optim": OptimConfig(precision="fp32", lora_learning_rate=2e-4, adapter_learning_rate=2e-4),
        "evaluation": EvaluationConfig(max_new_tokens_direct=4, max_new_tokens_think=6, splits=("validation", "test")),
    }
    return TrialConfig(**{**fields, **changes})


def trained_weights(output: Path) -> dict[str, torch.Tensor]:
    """The weights of a trial's newest checkpoint."""
    newest = newest_checkpoint(output / "checkpoints")
    assert newest is not None
    return {name: value.clone() for name, value in load_file(newest / "trainable.safetensors").items()}


def greatest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The greatest difference between two checkpoints' weights."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


class Stopped(Exception):
    """Stands for whatever ends a trial from outside."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One trial to run, to its end or until it has committed the checkpoint of step `stop_at`."""

    config: TrialConfig
    execution: Execution
    paths: TrialPaths
    stop_at: int | None = None


def run_jobs(jobs: list[Job]) -> None:
    """Run trials one after the other in this process."""
    for job in jobs:

        def on_checkpoint(step: int, stop_at: int | None = job.stop_at) -> None:
            if step == stop_at:
                raise Stopped

        with contextlib.suppress(Stopped):
            run_trial(job.config, job.execution, job.paths, hooks=TrialHooks(on_checkpoint=on_checkpoint))


def run_until_killed(job: Job) -> None:
    """Run a trial and end this process without a word once the checkpoint of step `stop_at` is committed."""

    def on_checkpoint(step: int) -> None:
        if step == job.stop_at:
            os._exit(7)

    run_trial(job.config, job.execution, job.paths, hooks=TrialHooks(on_checkpoint=on_checkpoint))


def untrained_model(config: TrialConfig, paths: TrialPaths, execution: Execution | None = None) -> SpeechLLM:
    """The model a trial starts from."""
    return build_trial_model(config, execution or Execution(), trial_data(config, paths))


def trial_data(config: TrialConfig, paths: TrialPaths) -> TrialData:
    """What a trial trains and is evaluated on."""
    return open_data(config, load_tokenizer(config.foundation), paths)


def poisoned_training(
    config: TrialConfig, execution: Execution, paths: TrialPaths, poison: str, *, poisoned_rank: int = 0
) -> tuple[str, bool]:
    """Train with a loss or a gradient that is not finite on one rank, in the last micro-batch of step 2.

    Returns the error and whether the trained weights are those after step 1, bit for bit.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model, data = untrained_model(config, paths, execution), trial_data(config, paths)
    poisoned = False

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf if poisoned and poison == "gradient" else gradient

    model.adapter.norm.weight.register_hook(spoil)
    engine = build_engine(model, config.optim, execution, batch_size=config.budget.batch_size)

    def micro_batches_of(step: int) -> list[Batch]:
        nonlocal poisoned
        poisoned = step == 1 and rank == poisoned_rank
        batches = data.micro_batches(step, rank=rank, world=world, micro_batches=execution.micro_batches)
        if poisoned and poison == "loss":
            batches[-1] = replace(batches[-1], states=batches[-1].states * math.nan)
        return batches

    def weights() -> dict[str, torch.Tensor]:
        parameters = engine.module.trainable_parameters()
        with deepspeed.zero.GatheredParameters(parameters.values()):
            return {name: parameter.detach().clone() for name, parameter in parameters.items()}

    steps = training_steps(engine, micro_batches_of, first_step=0, steps=config.budget.steps, optim=config.optim)
    next(steps)
    before = weights()
    try:
        next(steps)
    except FloatingPointError as error:
        return str(error), greatest_difference(before, weights()) == 0
    raise AssertionError("training went on")


def run_group(jobs: list[Job], poisoned: tuple[TrialConfig, Execution, TrialPaths]) -> dict[str, tuple[str, bool]]:
    """What one group of workers does: trials, then `poisoned_training` with either poison on the second rank."""
    run_jobs(jobs)
    return {poison: poisoned_training(*poisoned, poison, poisoned_rank=1) for poison in ("loss", "gradient")}
