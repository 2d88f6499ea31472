"""A checkpoint holds what trains and its moments, nothing else."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.checkpoints import load_trainable, newest_checkpoint
from model.configs import AdapterConfig, Execution
from model.trial import run_trial
from stand_ins.trials import small_trial, untrained_model


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_checkpoint_is_as_large_as_trained_weights_and_moments(
    trial_paths, tmp_path: Path, stage: int, precision: str
) -> None:
    config = small_trial("qwen3", tmp_path / "stand-ins")
    config = small_trial("qwen3", tmp_path / "stand-ins", optim=type(config.optim)(precision=precision))
    run_trial(config, Execution(zero_stage=stage), trial_paths(tmp_path))
    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    trained = untrained_model(config, trial_paths(tmp_path)).trainable_parameters()
    expected = 3 * 4 * sum(parameter.numel() for parameter in trained.values())  # fp32 weight and two fp32 moments
    assert sum(path.stat().st_size for path in newest.iterdir()) == pytest.approx(expected, rel=0.05)

    moments = load_file(newest / "optimizer.safetensors")
    assert len(moments) == 2 * len(trained)
    assert all(moments[f"{name}.exp_avg"].shape == weight.shape for name, weight in trained.items())
    assert all(torch.any(moments[f"{name}.exp_avg_sq"] > 0) for name in trained), "a shard is missing"


def test_a_checkpoint_of_another_shape_is_refused(trial_paths, tmp_path: Path) -> None:
    config = small_trial("qwen3", tmp_path / "stand-ins")
    run_trial(config, Execution(), trial_paths(tmp_path))
    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    other = small_trial("llama-3.1", tmp_path / "stand-ins", adapter=AdapterConfig(hidden_width=32))
    with pytest.raises(ValueError, match=r"adapter.down.weight is \[64, 64\], this model's \[64, 32\]"):
        load_trainable(untrained_model(other, trial_paths(tmp_path)), newest)
