"""Every ZeRO stage on two workers: the weights, checkpoints and predictions of one worker without ZeRO, and of a plain PyTorch loop."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.configs import Budget, EvaluationConfig, Execution
from model.foundations import FOUNDATIONS
from stand_ins.reference_loop import train_plainly
from stand_ins.trials import (
    Job,
    greatest_difference,
    run_group,
    run_jobs,
    small_trial,
    trained_weights,
    untrained_model,
)
from stand_ins.workers import run_on_workers

pytestmark = pytest.mark.slow

FAMILIES = ("qwen3", "llama-3.1", "r1")
STAGES = (0, 1, 2, 3)
PREDICTIONS = ("predictions-direct.jsonl", "predictions-think.jsonl")


@pytest.fixture(scope="module")
def group(trial_paths, tmp_path_factory: pytest.TempPathFactory):
    """The folder of every finished trial, and each worker's errors in poisoned training.

    One group of two workers does it all, ZeRO-3 last: DeepSpeed then replaces torch's linear.
    """
    root = tmp_path_factory.mktemp("stages")
    configs = {family: small_trial(family, root / "stand-ins") for family in FAMILIES}
    bf16 = replace(configs["llama-3.1"], optim=replace(configs["llama-3.1"].optim, precision="bf16"))
    # stops by itself, after as many tokens as it likes
    tiny = replace(
        configs["qwen3"],
        foundation=FOUNDATIONS["tiny-hybrid"],
        budget=Budget(steps=0, batch_size=4),
        evaluation=EvaluationConfig(max_new_tokens_direct=24, max_new_tokens_think=8, splits=("validation", "test")),
    )

    def job(config, name: str, *, workers: int, stage: int, stop_at: int | None = None) -> Job:
        (root / name).mkdir(exist_ok=True)
        execution = Execution(checkpoint_every=2, workers=workers, zero_stage=stage)
        return Job(config=config, execution=execution, paths=trial_paths(root / name), stop_at=stop_at)

    run_jobs(
        [
            *(job(configs[family], f"{family}-one", workers=1, stage=0) for family in FAMILIES),
            job(configs["qwen3"], "one-then-3", workers=1, stage=0, stop_at=2),
            job(tiny, "tiny-one", workers=1, stage=0),
        ]
    )
    two = [
        *(job(configs[family], f"{family}-{stage}", workers=2, stage=stage) for stage in STAGES for family in FAMILIES),
        job(configs["qwen3"], "2-then-one", workers=2, stage=2, stop_at=2),
        job(configs["qwen3"], "3-then-one", workers=2, stage=3, stop_at=2),
        job(configs["qwen3"], "one-then-3", workers=2, stage=3),
        job(tiny, "tiny-3", workers=2, stage=3),
        job(bf16, "bf16-whole", workers=2, stage=3),
        job(bf16, "bf16-cut", workers=2, stage=3, stop_at=2),
        job(bf16, "bf16-cut", workers=2, stage=3),
    ]
    two.sort(key=lambda job: job.execution.zero_stage)
    poisoned = small_trial("llama-3.1", root / "stand-ins"), Execution(workers=2, zero_stage=3, micro_batches=2)
    errors = run_on_workers(run_group, two, (*poisoned, trial_paths(root)), folder=root / "group")
    run_jobs([job(configs["qwen3"], f"{stage}-then-one", workers=1, stage=0) for stage in (2, 3)])
    return root, errors


@pytest.fixture
def finished(group) -> Path:
    return group[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_stages_end_with_the_weights_of_one_worker_and_of_a_plain_loop(finished, trial_paths, family: str) -> None:
    paths = trial_paths(finished / f"{family}-one")
    config = small_trial(family, finished / "stand-ins")
    start = {name: weight.detach() for name, weight in untrained_model(config, paths).trainable_parameters().items()}
    expected, _ = train_plainly(config, paths, start)
    for run in ("one", *STAGES):
        assert greatest_difference(trained_weights(finished / f"{family}-{run}"), expected) < 1e-5, run


@pytest.mark.parametrize("family", FAMILIES)
def test_all_stages_answer_every_question_once(finished, family: str) -> None:
    for name in PREDICTIONS:
        expected = finished / f"{family}-one" / name
        for stage in STAGES:
            found = finished / f"{family}-{stage}" / name
            assert found.exists() == expected.exists()
            assert not found.exists() or found.read_bytes() == expected.read_bytes(), stage


def test_sharded_generation_waits_for_the_longest_answer(finished) -> None:
    for name in PREDICTIONS:
        assert (finished / "tiny-3" / name).read_bytes() == (finished / "tiny-one" / name).read_bytes()


@pytest.mark.parametrize("run", ["one-then-3", "2-then-one", "3-then-one"])
def test_a_checkpoint_goes_on_with_another_number_of_workers_and_stage(finished, run: str) -> None:
    expected = trained_weights(finished / "qwen3-one")
    assert greatest_difference(trained_weights(finished / run), expected) < 1e-5


def test_bf16_resumes_bit_for_bit_where_weights_are_sharded(finished) -> None:
    whole = trained_weights(finished / "bf16-whole")
    assert greatest_difference(trained_weights(finished / "bf16-cut"), whole) == 0
    assert all(weight.dtype == torch.float32 for weight in whole.values())


def test_every_worker_stops_when_one_meets_what_is_not_finite(group) -> None:
    errors = group[1]
    assert errors[0] == errors[1], "on every worker the same"
    (loss, loss_unchanged), (gradient, gradient_unchanged) = errors[0]["loss"], errors[0]["gradient"]
    assert loss_unchanged and gradient_unchanged
    assert loss.startswith("step 2: the loss is nan; no weight was changed; examples train-")
    assert loss.count("train-") == 1, "the poisoned micro-batch holds one of the four examples"
    assert gradient.startswith("step 2: the gradient's norm is inf") and gradient.count("train-") > 2
