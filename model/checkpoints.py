"""Engine state <-> the files of a checkpoint (`model.checkpoint_folder`): trained weights, AdamW moments and random state, all safetensors.

Tensors are whole (gathered from ZeRO partitions) and named, so the number of workers may change. There is no pickle.
DeepSpeed's own checkpoints are not used: they are pickles, cannot be loaded at another world size under ZeRO, and by default hold the frozen LM.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
from safetensors.torch import load_file, save, save_file

from data.atomic import atomic_open
from model.checkpoint_folder import OPTIMIZER_FILE, WEIGHTS_FILE, commit_checkpoint, new_checkpoint, read_commit
from model.process_group import agreed

MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(engine: Any, folder: Path, *, step: int, before_commit: Callable[[], None] = lambda: None) -> None:
    """Gather from every rank and write `folder`/step-<step> on rank 0, then keep the last two. Collective: all ranks call it.

    `before_commit` is called on rank 0 when all is written; what it or the disk raises is raised on every rank, and nothing is committed.
    """
    weights, moments = _gather(engine)
    random_states = _random_states(engine.device)

    def write() -> None:
        writing = new_checkpoint(folder)
        save_file(weights, writing / WEIGHTS_FILE)
        save_file(moments, writing / OPTIMIZER_FILE)
        for rank, state in enumerate(random_states):
            save_file(state, writing / _random_file(rank))
        world, samples = len(random_states), step * engine.train_batch_size()
        commit_checkpoint(writing, step=step, world=world, samples=samples, before_commit=before_commit)

    agreed(write)


def load_trainable(module: Any, checkpoint: Path) -> None:
    """The weights, into a module without an engine: before one is built (whose master copies follow from them), or to generate in a fresh process."""
    _load(module.trainable_parameters(), load_file(checkpoint / WEIGHTS_FILE), checkpoint)


def load_adapter(module: Any, file: Path) -> None:
    """The weights of an adapter that was aligned before (`model.alignment`), into the adapter of a module without an engine."""
    _load(dict(module.adapter.named_parameters()), load_file(file), file)


def save_adapter(engine: Any, file: Path, *, rank: int) -> None:
    """Write the adapter's weights as `load_adapter` reads them, whole or not at all. Collective: all ranks call it, rank 0 writes."""
    parameters = dict(engine.module.adapter.named_parameters())
    with deepspeed.zero.GatheredParameters(parameters.values()):  # does nothing but under ZeRO-3
        weights = {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}
    if rank == 0:
        with atomic_open(file, "wb") as stream:
            stream.write(save(weights))


def _load(parameters: dict[str, torch.nn.Parameter], weights: dict[str, torch.Tensor], checkpoint: Path) -> None:
    """Copy weights into parameters of the same names and shapes. Raises ValueError that names a tensor when they are not."""
    if missing := sorted(parameters.keys() ^ weights.keys()):
        raise ValueError(
            f"{checkpoint}: its tensors are not this model's, e.g. {missing[0]}; was the trial's configuration changed?"
        )
    for name, parameter in parameters.items():
        if parameter.shape != weights[name].shape:
            found, expected = list(weights[name].shape), list(parameter.shape)
            raise ValueError(
                f"{checkpoint}: {name} is {found}, this model's {expected}; was the trial's configuration changed?"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def load_optimizer(engine: Any, checkpoint: Path, *, rank: int, steps: int) -> int:
    """Restore the moments and this rank's random state into a fresh engine over loaded weights; returns the step.

    The learning rate follows from the step. Nothing is restored where that is the last of `steps`: what is left needs the weights alone.
    Of random states there is torch's alone: dropout draws from it, and what Python or NumPy draw is seeded where it is drawn.
    """
    commit = read_commit(checkpoint)
    if commit.step == steps:
        return steps
    if OPTIMIZER_FILE not in commit.files:
        raise ValueError(f"{checkpoint}: holds weights alone: they can be scored and exported, not trained on")
    assert commit.samples == commit.step * engine.train_batch_size(), "another global batch is another trial"
    _set_moments(engine, load_file(checkpoint / OPTIMIZER_FILE), step=commit.step, rank=rank)
    # absent when the number of workers grew: the sample order does not depend on it
    if _random_file(rank) in commit.files:
        _set_random_state(load_file(checkpoint / _random_file(rank)))
    return commit.step


def _gather(engine: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Every trained weight and its moments, whole and on the CPU. Collective under ZeRO."""
    parameters = engine.module.trainable_parameters()
    with deepspeed.zero.GatheredParameters(parameters.values()):  # does nothing but under ZeRO-3
        weights = {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}
    if engine.zero_optimization_stage() in (1, 2):
        _link_moments(engine.optimizer)
    moments = {}
    for name, parameter in parameters.items():
        for moment in MOMENTS:
            state = None if engine.zero_optimization() else engine.optimizer.state[parameter][moment]
            value = safe_get_full_optimizer_state(parameter, moment) if state is None else state
            moments[f"{name}.{moment}"] = value.cpu().clone()
    return weights, moments


def _set_moments(engine: Any, moments: dict[str, torch.Tensor], *, step: int, rank: int) -> None:
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer

    def state_of(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        count = torch.full((), float(step), device=parameter.device)  # fused AdamW, on a GPU, counts there
        return {"step": count, **{moment: torch.zeros_like(parameter) for moment in MOMENTS}}

    parameters = engine.module.trainable_parameters()
    if stage == 0:
        optimizer.state.update({parameter: state_of(parameter) for parameter in parameters.values()})
    else:
        flat = optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
        optimizer.optimizer.state.update({partition: state_of(partition) for partition in flat})
    if stage in (1, 2):
        _link_moments(optimizer)
    for name, parameter in parameters.items():
        for moment in MOMENTS:
            value = moments[f"{name}.{moment}"]
            if stage == 0:
                optimizer.state[parameter][moment].copy_(value)
            elif stage == 3:
                safe_set_local_optimizer_state(parameter, _share(value, parameter.ds_tensor.numel(), rank), moment)
            else:
                safe_set_full_optimizer_state(parameter, value, moment)


def _share(value: torch.Tensor, size: int, rank: int) -> torch.Tensor:
    """What a rank holds of a tensor under ZeRO-3: `size` elements, the last rank's filled up with zeros."""
    mine = value.flatten()[rank * size : (rank + 1) * size]
    return torch.nn.functional.pad(mine, (0, size - len(mine)))


def _link_moments(zero_optimizer: Any) -> None:
    """Make every parameter know its slice of the flat moments (ZeRO 1 and 2).

    DeepSpeed (0.19) does so once, after the first parameter group's first step, when the other groups have no moments yet.
    """
    zero_optimizer._hp_optimizer_states_linked = False
    zero_optimizer._lazy_init_hp_params_optimizer_state()


def _random_file(rank: int) -> str:
    return f"random-{rank}.safetensors"


def _random_states(device: torch.device) -> list[dict[str, torch.Tensor]]:
    """Every rank's. Collective."""
    state = {"cpu": torch.get_rng_state()}
    if torch.device(device).type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    states = [state] * torch.distributed.get_world_size()
    if len(states) > 1:
        torch.distributed.all_gather_object(states, state)
    return states


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
