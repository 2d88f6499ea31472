"""Engine state <-> a checkpoint folder: trainable weights, AdamW moments, random state and position, all safetensors and JSON.

    checkpoints/step-000200/{trainable.safetensors, optimizer.safetensors, random-<rank>.safetensors, commit.json}

`commit.json` is written last and holds the sha256 of every other file: a folder without it, or with a file that differs, is no checkpoint
and the one before it is used. Tensors are whole (gathered from ZeRO partitions) and named, so the number of workers may change. There is no pickle.
DeepSpeed's own checkpoints are not used: they are pickles, cannot be loaded at another world size under ZeRO, and by default hold the frozen LM.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
from safetensors.torch import load_file, save_file

from data.atomic import file_sha256, write_json

MOMENTS = ("exp_avg", "exp_avg_sq")
KEPT = 2
_log = logging.getLogger(__name__)


def save_checkpoint(engine: Any, folder: Path, *, step: int, rank: int, world: int) -> None:
    """Write `folder`/step-<step> from every rank (rank 0 writes the weights), then keep the last two. Collective: all ranks call it."""
    target = folder / f"step-{step:06d}"
    if rank == 0:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
    _barrier(world)
    weights, moments = _gather(engine)
    save_file(_random_state(engine.device), target / f"random-{rank}.safetensors")
    if rank == 0:
        save_file(weights, target / "trainable.safetensors")
        save_file(moments, target / "optimizer.safetensors")
    _barrier(world)
    if rank == 0:
        hashes = {path.name: file_sha256(path) for path in sorted(target.iterdir())}
        write_json(target / "commit.json", {"step": step, "world": world, "sha256": hashes})
        for old in sorted(folder.glob("step-*"))[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    _barrier(world)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, None when there is none. Damaged ones are passed over with a warning that names the file."""
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        damage = _damage(candidate)
        if damage is None:
            return candidate
        _log.warning("checkpoint %s: %s; the one before it is used", candidate, damage)
    return None


def load_trainable(module: Any, checkpoint: Path) -> None:
    """The weights, into a module without an engine: before one is built (whose master copies follow from them), or to generate in a fresh process."""
    _load(module.trainable_parameters(), load_file(checkpoint / "trainable.safetensors"), checkpoint)


def load_adapter(module: Any, file: Path) -> None:
    """The weights of an adapter that was aligned before (`model.alignment`), into the adapter of a module without an engine."""
    _load(dict(module.adapter.named_parameters()), load_file(file), file)


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


def load_optimizer(engine: Any, checkpoint: Path, *, rank: int) -> int:
    """Restore the moments and this rank's random state into a fresh engine over loaded weights; returns the step.

    The learning rate follows from the step.
    """
    moments = load_file(checkpoint / "optimizer.safetensors")
    commit = json.loads((checkpoint / "commit.json").read_text(encoding="utf-8"))
    _set_moments(engine, moments, step=commit["step"], rank=rank)
    random_file = checkpoint / f"random-{rank}.safetensors"
    if random_file.is_file():  # absent when the number of workers grew: the sample order does not depend on it
        _set_random_state(load_file(random_file))
    return int(commit["step"])


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
        return {"step": torch.tensor(float(step)), **{moment: torch.zeros_like(parameter) for moment in MOMENTS}}

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


def _damage(checkpoint: Path) -> str | None:
    try:
        commit = json.loads((checkpoint / "commit.json").read_text(encoding="utf-8"))
        for name, expected in commit["sha256"].items():
            if file_sha256(checkpoint / name) != expected:
                return f"{name} differs from what was saved"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
        return "commit.json is damaged"
    return None


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.device(device).type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _barrier(world: int) -> None:
    if world > 1:
        torch.distributed.barrier()
