"""Batches -> StepInfo, one optimizer step each: the training loop, on one screen. Saving, evaluating and logging stand outside it.

DeepSpeed is the engine on every machine: NCCL on GPUs, gloo on a CPU, where its shared-memory extension is switched off (compiling it costs
minutes, and a kill in the middle leaves a lock that hangs every later start). It only ever sees fp32 trained weights (`model.speech_llm`), so its
own mixed precision stays off and every ZeRO stage does the same arithmetic.
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
from model.prefetch import iter_step_batches
from model.speech_llm import SpeechLLM

REDUCE_BUCKET = 500_000_000
"""The most gradients that one buffer of DeepSpeed holds (its default)."""
SHARED_MEMORY = 0.9
"""Of a GPU, what the trials that share it may allocate together: the limit does not count their CUDA contexts."""


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
    if execution.trials_per_gpu > 1:  # one that grows runs out of memory itself, not its neighbours
        torch.cuda.set_per_process_memory_fraction(SHARED_MEMORY / execution.trials_per_gpu)
    groups: dict[str, list[torch.nn.Parameter]] = {"adapter": [], "lora": []}
    for name, parameter in model.trainable_parameters().items():
        groups["adapter" if name.startswith("adapter.") else "lora"].append(parameter)
    peaks = {"adapter": optim.adapter_learning_rate, "lora": optim.lora_learning_rate}
    optimizer = torch.optim.AdamW(
        # an alignment stage trains no LoRA, and DeepSpeed knows no empty group
        [{"params": groups[name], "lr": peaks[name], "peak_lr": peaks[name]} for name in groups if groups[name]],
        betas=(optim.beta1, optim.beta2),
        weight_decay=optim.weight_decay,
        fused=execution.use_gpu,  # one kernel for all weights; a CPU keeps the arithmetic of torch's plain loop
    )
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    trained = sum(parameter.numel() for group in groups.values() for parameter in group)
    config = {
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": batch_size // (torch.distributed.get_world_size() * execution.micro_batches),
        "gradient_accumulation_steps": execution.micro_batches,
        "gradient_clipping": optim.max_grad_norm if execution.zero_stage else 0.0,  # `_clip_gradients` does stage 0's
        # DeepSpeed's default bucket of 5e8 fp32 gradients is 2 GB, however few train
        "zero_optimization": {"stage": execution.zero_stage, "reduce_bucket_size": min(trained, REDUCE_BUCKET)},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU in every forward pass
    }
    if execution.zero_stage == 3:  # one weight at a time goes to the GPU and is cut up: all at once might not fit
        deepspeed.init_distributed(auto_mpi_discovery=False)  # takes over torch's group; Init would count one worker
        deepspeed.zero.Init(module=model, config_dict_or_path=config)
        device = deepspeed.accelerator.get_accelerator().current_device_name()
        for buffer in model.buffers():
            buffer.data = buffer.data.to(device)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def training_steps(
    engine: Any, micro_batches_of: Callable[[int], list[Batch]], *, first_step: int, steps: int, optim: OptimConfig
) -> Iterator[StepInfo]:
    """Run optimizer steps first_step..steps-1 and yield what each did.

    Raises FloatingPointError on every worker, with the weights as they were, when a loss or a gradient is not finite.
    """
    engine.train()
    trained = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    prepared = iter_step_batches(micro_batches_of, range(first_step, steps), engine.device)
    for step in range(first_step, steps):
        started = time.perf_counter()
        factor = learning_rate_factor(step, steps=steps, config=optim)
        for group in engine.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        losses: list[torch.Tensor] = []
        batches = next(prepared)
        for batch in batches:
            loss = engine(batch.to(engine.device))
            engine.backward(loss)
            losses.append(loss.detach())
            if batch is batches[-1]:
                # all work is queued before the first figure is read: reading waits for the GPU
                norm = None if engine.zero_optimization() else _clip_gradients(trained, optim.max_grad_norm)
                mean_loss, tokens = _over_workers(batches, losses, engine.device)
                _check_finite("loss", mean_loss, step, batches, losses)
                if norm is not None:
                    grad_norm = float(norm)
                    _check_finite("gradient's norm", grad_norm, step, batches, losses)
            engine.step()
        if engine.zero_optimization():  # its step computes the norm, and updates nothing when that is not finite
            grad_norm = float(engine.get_global_grad_norm())
            _check_finite("gradient's norm", grad_norm, step, batches, losses)
        yield StepInfo(
            step=step + 1,
            loss=mean_loss,
            grad_norm=grad_norm,
            learning_rate=engine.optimizer.param_groups[0]["lr"],
            tokens=tokens,
            examples=engine.train_batch_size(),
            seconds=time.perf_counter() - started,
        )


def _check_finite(name: str, value: float, step: int, batches: list[Batch], losses: list[torch.Tensor]) -> None:
    """`value` is the same on every worker, so all of them stop here, or none.

    Names the examples of the micro-batches whose own loss is not finite, on whatever worker; those of the whole step when there are none.
    """
    if math.isfinite(value):
        return
    met = [(id_, math.isfinite(loss)) for batch, loss in zip(batches, losses, strict=True) for id_ in batch.example_ids]
    everywhere: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, met)
    suspects = {example for worker in everywhere for example, finite in worker if not finite}
    examples = suspects or {example for worker in everywhere for example, _ in worker}
    raise FloatingPointError(
        f"step {step + 1}: the {name} is {value}; no weight was changed; examples {', '.join(sorted(examples))}"
    )


def _clip_gradients(parameters: list[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale the gradients of ZeRO 0 down to a norm of at most `max_norm` (0: as they are), in place. Returns the norm that they had.

    To the bit what DeepSpeed's own clipping does, which computes the norm inside its step, after the guard, and launches two kernels a weight.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.stack(torch._foreach_norm(gradients)).square().sum().sqrt()
    if max_norm > 0:
        torch._foreach_mul_(gradients, (torch.full_like(norm, max_norm) / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _over_workers(batches: list[Batch], losses: list[torch.Tensor], device: torch.device) -> tuple[float, int]:
    """The mean loss of the global batch and its columns that are not padding."""
    loss = sum(float(loss) / len(losses) for loss in losses)
    tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
    world = torch.distributed.get_world_size()
    if world == 1:
        return loss, tokens
    total = torch.tensor([loss / world, tokens], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return float(total[0]), int(total[1])
