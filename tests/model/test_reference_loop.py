"""A trial ends with the weights of a plain PyTorch loop that knows neither DeepSpeed nor PEFT, nor padding, nor batches."""

from dataclasses import replace
from pathlib import Path

import pytest

from data.atomic import iter_whole_lines
from model.configs import Execution
from model.trial import run_trial
from stand_ins.reference_loop import train_plainly
from stand_ins.trials import greatest_difference, small_trial, trained_weights, untrained_model


@pytest.mark.parametrize(
    ("family", "execution", "max_grad_norm"),
    [
        ("qwen3", Execution(), 1.0),
        ("llama-3.1", Execution(), 1.0),
        ("r1", Execution(), 1.0),
        ("qwen3", Execution(micro_batches=4), 1.0),
        ("qwen3", Execution(gradient_checkpointing=True, attention="eager"), 1.0),
        ("qwen3", Execution(zero_stage=2, micro_batches=2), 0.01),  # every step is clipped
    ],
    ids=["qwen3", "llama-3.1", "r1", "micro-batches", "checkpointing", "clipped-zero-2"],
)
def test_a_trial_computes_what_a_plain_loop_computes(
    trial_paths, tmp_path: Path, family: str, execution: Execution, max_grad_norm: float
) -> None:
    config, paths = small_trial(family, tmp_path / "stand-ins"), trial_paths(tmp_path)
    config = replace(config, optim=replace(config.optim, max_grad_norm=max_grad_norm))
    start = {name: weight.detach() for name, weight in untrained_model(config, paths).trainable_parameters().items()}
    expected, losses = train_plainly(config, paths, start)
    run_trial(config, execution, paths)

    trained = trained_weights(tmp_path)
    assert greatest_difference(trained, expected) < 1e-5
    assert greatest_difference(trained, start) > 3e-4, "the trial hardly trained, so agreeing would say nothing"
    first = next(row for row in iter_whole_lines(tmp_path / "metrics.jsonl") if row["step"] == 1)
    assert first["metrics"]["train/loss"] == pytest.approx(losses[0], rel=1e-6)
