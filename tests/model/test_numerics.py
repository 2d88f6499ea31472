"""The arithmetic of training: schedule, precision, kernels, seeds, and what happens to a number that is not finite."""

import itertools
import os
import re
from dataclasses import replace
from pathlib import Path

import deepspeed
import pytest
import torch
from deepspeed.runtime.utils import clip_grad_norm_

from data.atomic import iter_whole_lines
from model.configs import Budget, Execution, OptimConfig
from model.speech_llm import build_speech_llm
from model.train import _clip_gradients, learning_rate_factor
from model.trial import run_trial
from stand_ins.trials import greatest_difference, poisoned_training, small_trial, trained_weights, untrained_model


@pytest.fixture
def single_process_group():
    if not torch.distributed.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)


def test_the_learning_rate_warms_up_and_falls_on_half_a_cosine() -> None:
    config = OptimConfig(warmup_fraction=0.1, final_fraction=0.05)
    factors = [learning_rate_factor(step, steps=100, config=config) for step in range(101)]
    assert factors[:11] == pytest.approx([(step + 1) / 10 for step in range(10)] + [1.0])
    assert factors[55] == pytest.approx(0.05 + 0.95 / 2)
    assert factors[100] == pytest.approx(0.05)
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[10:]))


def test_gradients_are_clipped_as_deepspeed_clips_them_to_the_bit(single_process_group, monkeypatch) -> None:
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", False)  # as `build_engine` does
    deepspeed.init_distributed(auto_mpi_discovery=False)
    for seed, max_norm in itertools.product(range(20), (0.3, 1.0, 1e6)):
        torch.manual_seed(seed)
        parameters = [torch.nn.Parameter(torch.zeros(rows, 37)) for rows in (1, 5, 64, 301)]
        gradients = [torch.randn_like(parameter) * 10 ** torch.randn(()) for parameter in parameters]
        clipped = []
        for clip in (clip_grad_norm_, _clip_gradients):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            clipped.append([clip(parameters, max_norm), *(parameter.grad for parameter in parameters)])
        assert all(torch.equal(theirs, ours) for theirs, ours in zip(*clipped, strict=True))
        assert torch.equal(clipped[1][1], gradients[0]) == (clipped[1][0] < max_norm)
    before = [parameter.grad.clone() for parameter in parameters]
    _clip_gradients(parameters, 0.0)
    assert all(torch.equal(parameter.grad, gradient) for parameter, gradient in zip(parameters, before, strict=True))


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_training_stops_before_a_number_that_is_not_finite_reaches_the_weights(
    single_process_group, trial_paths, tmp_path: Path, stage: int, poison: str
) -> None:
    execution = Execution(zero_stage=stage, micro_batches=2)
    config = small_trial("llama-3.1", tmp_path / "stand-ins")
    message, unchanged = poisoned_training(config, execution, trial_paths(tmp_path), poison)
    assert unchanged
    assert re.match(f"step 2: the {'loss' if poison == 'loss' else 'gradient.s norm'} is (nan|inf); no weight", message)
    named = message.count("train-")
    assert named <= 2 if poison == "loss" else named > 2, (
        "one micro-batch of two examples is poisoned, the other is not"
    )


def test_bf16_trains_fp32_weights_on_a_bf16_foundation(trial_paths, tmp_path: Path) -> None:
    fp32 = small_trial("qwen3", tmp_path / "stand-ins")
    bf16 = replace(fp32, optim=replace(fp32.optim, precision="bf16"))
    model = untrained_model(bf16, trial_paths(tmp_path))
    assert {parameter.dtype for parameter in model.trainable_parameters().values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}

    losses = {}
    for name, config, execution in (
        ("fp32", fp32, Execution()),
        ("bf16", bf16, Execution()),
        ("bf16-micro", bf16, Execution(micro_batches=4)),
    ):
        run_trial(config, execution, trial_paths(tmp_path / name))
        rows = iter_whole_lines(tmp_path / name / "metrics.jsonl")
        losses[name] = [row["metrics"]["train/loss"] for row in rows if "train/loss" in row["metrics"]]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=2e-3)
    assert losses["bf16-micro"] == pytest.approx(losses["bf16"], rel=1e-3)
    assert greatest_difference(trained_weights(tmp_path / "bf16"), trained_weights(tmp_path / "fp32")) > 0


def test_gradient_checkpointing_changes_no_bit(trial_paths, tmp_path: Path) -> None:
    config = small_trial("r1", tmp_path / "stand-ins", budget=Budget(steps=2, batch_size=4))
    for name, execution in (("kept", Execution()), ("recomputed", Execution(gradient_checkpointing=True))):
        run_trial(config, execution, trial_paths(tmp_path / name))
    assert greatest_difference(trained_weights(tmp_path / "kept"), trained_weights(tmp_path / "recomputed")) == 0


def test_two_seeds_differ_and_one_repeats(trial_paths, tmp_path: Path) -> None:
    config = small_trial("qwen3", tmp_path / "stand-ins")
    zero, again, one = (
        untrained_model(replace(config, seed=seed), trial_paths(tmp_path)).trainable_parameters() for seed in (0, 0, 1)
    )
    assert all(torch.equal(zero[name], again[name]) for name in zero)
    drawn = [name for name in zero if "lora_A" in name or name in ("adapter.up.weight", "adapter.down.weight")]
    assert len(drawn) == 2 * 7 + 2
    assert not any(torch.equal(zero[name], one[name]) for name in drawn)


def test_kernels_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"execution\.attention: these kernels run on a GPU only; set use_gpu"):
        Execution(attention="flash_attention_2")
    config = small_trial("llama-3.1", tmp_path / "stand-ins")
    parts = {"state_mean": torch.zeros(512), "state_std": torch.ones(512), "precision": "bf16", "seed": 0}
    for execution, package in (
        (Execution(attention="flash_attention_2", use_gpu=True), "flash-attn"),
        (Execution(liger_kernels=True, use_gpu=True), "liger-kernel"),
    ):
        if torch.cuda.is_available():
            pytest.skip("the kernels may be there")
        with pytest.raises(ValueError, match=f"needs a GPU and the package {package}"):
            build_speech_llm(config.foundation, adapter=config.adapter, lora=config.lora, execution=execution, **parts)
