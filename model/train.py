"""Batches -> StepInfo, one optimizer step each: the training loop, on one screen. Saving, evaluating and logging stand outside it.

DeepSpeed is the engine on every machine: bf16, NCCL and ZeRO on GPUs; fp32, gloo and stage 0 on a CPU, where its shared-memory extension is
switched off (compiling it costs minutes, and a kill in the middle leaves a lock that hangs every later start).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch

from data.batching import Batch
from model.configs import Execution, OptimConfig
from model.speech_llm import SpeechLLM


@dataclass(frozen=True, kw_only=True)
class StepInfo:
    """What one optimizer step did. `step` counts finished steps, so the first is 1."""

    step: int
    loss: float  # nats per target token, mean over the global batch
    grad_norm: float  # before clipping
    learning_rate: float  # of the adapter's group
    tokens: int  # columns of the global batch that are not padding
    examples: int
    seconds: float


def learning_rate_factor(step: int, *, steps: int, config: OptimConfig) -> float:
    """Linear warmup, then a cosine down to `final_fraction`; `step` counts finished steps, in 0..steps."""
    warmup = max(1, round(steps * config.warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return config.final_fraction + (1 - config.final_fraction) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_engine(model: SpeechLLM, optim: OptimConfig, execution: Execution, *, batch_size: int) -> Any:
    """A DeepSpeed engine over the trainable parameters. torch.distributed must be initialised.

    The learning rate is a function of the step alone and set by `training_steps`, so there is no scheduler state to lose.
    """
    if optim.precision == "bf16" and execution.zero_stage == 0:
        raise ValueError(
            "execution.zero_stage: 0 keeps no fp32 master weights that could be saved; use 1 or 2 with bf16"
        )
    groups: dict[str, list[torch.nn.Parameter]] = {"adapter": [], "lora": []}
    for name, parameter in model.trainable_parameters().items():
        groups["adapter" if name.startswith("adapter.") else "lora"].append(parameter)
    peaks = {"adapter": optim.adapter_learning_rate, "lora": optim.lora_learning_rate}
    optimizer = torch.optim.AdamW(
        [{"params": groups[name], "lr": peaks[name], "peak_lr": peaks[name]} for name in groups],
        betas=(optim.beta1, optim.beta2),
        weight_decay=optim.weight_decay,
    )
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    world = torch.distributed.get_world_size()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "train_batch_size": batch_size,
            "train_micro_batch_size_per_gpu": batch_size // (world * execution.micro_batches),
            "gradient_accumulation_steps": execution.micro_batches,
            "gradient_clipping": optim.max_grad_norm,
            "bf16": {"enabled": optim.precision == "bf16"},
            "zero_optimization": {"stage": execution.zero_stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        },
    )
    return engine


def training_steps(
    engine: Any, micro_batches_of: Callable[[int], list[Batch]], *, first_step: int, steps: int, optim: OptimConfig
) -> Iterator[StepInfo]:
    """Run optimizer steps first_step..steps-1 and yield what each did. Raises FloatingPointError on a loss that is not finite."""
    engine.train()
    for step in range(first_step, steps):
        started = time.perf_counter()
        factor = learning_rate_factor(step, steps=steps, config=optim)
        for group in engine.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        total, tokens, examples, grad_norm = 0.0, 0.0, 0.0, 0.0
        batches = micro_batches_of(step)
        for batch in batches:
            loss = engine(batch.to(engine.device))
            if not math.isfinite(loss.item()):
                raise FloatingPointError(
                    f"step {step + 1}: the loss is {loss.item()}; examples {', '.join(batch.example_ids)}"
                )
            engine.backward(loss)
            if batch is batches[-1] and not engine.zero_optimization():
                grad_norm = _grad_norm(engine)
            engine.step()
            total += loss.item() / len(batches)
            tokens += int(batch.attention_mask.sum())
            examples += len(batch.example_ids)
        total, tokens, examples = _summed_over_workers([total, tokens, examples], engine.device)
        yield StepInfo(
            step=step + 1,
            loss=total / torch.distributed.get_world_size(),
            grad_norm=float(engine.get_global_grad_norm() or grad_norm),
            learning_rate=engine.optimizer.param_groups[0]["lr"],
            tokens=int(tokens),
            examples=int(examples),
            seconds=time.perf_counter() - started,
        )


def _grad_norm(engine: Any) -> float:
    """The norm of all gradients under ZeRO 0, whose optimizer does not keep it."""
    gradients = [p.grad for p in engine.module.trainable_parameters().values() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def _summed_over_workers(values: list[float], device: torch.device) -> list[float]:
    if torch.distributed.get_world_size() == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return [float(value) for value in total]
