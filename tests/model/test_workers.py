"""Two workers that share every weight are killed; one goes on from their checkpoint and ends where one alone would have."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.atomic import iter_whole_lines
from model.checkpoint_folder import newest_checkpoint, read_commit
from model.checkpoints import load_optimizer, load_trainable, save_checkpoint
from model.configs import Execution
from model.foundations import FOUNDATIONS
from model.train import build_engine
from model.trial import run_trial
from stand_ins.sample_order import noting_samples, run_noting_samples, samples_by_step
from stand_ins.trials import Job, greatest_difference, run_until_killed, small_trial, trained_weights, untrained_model
from stand_ins.workers import run_on_workers

STAGES = (0, 1, 2, 3)


@pytest.mark.slow
def test_one_worker_takes_over_from_two_that_were_killed(trial_paths, tmp_path: Path) -> None:
    config = small_trial("qwen3", tmp_path / "stand-ins", foundation=FOUNDATIONS["tiny-hybrid"])
    one = Execution(checkpoint_every=2)
    (tmp_path / "cut").mkdir()
    run_trial(config, one, trial_paths(tmp_path / "whole"))
    two = Job(
        config=config,
        execution=Execution(checkpoint_every=2, workers=2, zero_stage=3),
        paths=trial_paths(tmp_path / "cut"),
        stop_at=2,
    )
    run_on_workers(run_until_killed, two, folder=tmp_path / "group", exit_code=7)
    run_trial(config, one, trial_paths(tmp_path / "cut"))

    assert greatest_difference(trained_weights(tmp_path / "cut"), trained_weights(tmp_path / "whole")) < 1e-5
    losses = {
        run: [row["metrics"].get("train/loss", 0) for row in iter_whole_lines(tmp_path / run / "metrics.jsonl")]
        for run in ("whole", "cut")
    }
    assert losses["cut"] == pytest.approx(losses["whole"], rel=1e-4)
    for name in ("predictions-direct.jsonl", "predictions-think.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.fixture(scope="module")
def handed_over(trial_paths, tmp_path_factory: pytest.TempPathFactory):
    """The folders of a trial of one worker ("whole") and of those that two workers of each ZeRO stage left at step 2 of 4, and the config."""
    root = tmp_path_factory.mktemp("handed-over")
    config = small_trial("qwen3", root / "stand-ins", foundation=FOUNDATIONS["tiny-hybrid"])
    jobs = []
    for stage in STAGES:
        (root / str(stage)).mkdir()
        execution = Execution(checkpoint_every=2, workers=2, zero_stage=stage)
        jobs.append(Job(config=config, execution=execution, paths=trial_paths(root / str(stage)), stop_at=2))
    run_on_workers(run_noting_samples, jobs, folder=root / "group")
    with noting_samples(root / "whole" / "samples"):
        (root / "whole").mkdir()
        run_trial(config, Execution(checkpoint_every=2), trial_paths(root / "whole"))
    return root, config


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_workers_to_one_same_sample_order_same_loaded_weights_and_moments(
    handed_over, trial_paths, tmp_path: Path, stage: int
) -> None:
    root, config = handed_over
    folder = root / str(stage)
    saved = newest_checkpoint(folder / "checkpoints")
    assert saved is not None
    commit = read_commit(saved)
    assert (commit.step, commit.samples, commit.world) == (2, 8, 2)

    model = untrained_model(config, trial_paths(tmp_path))
    load_trainable(model, saved)
    engine = build_engine(model, config.optim, Execution(), batch_size=config.budget.batch_size)
    load_optimizer(engine, saved, rank=0, steps=config.budget.steps)
    save_checkpoint(engine, tmp_path / "loaded", step=2)
    for name in ("trainable.safetensors", "optimizer.safetensors"):
        before, loaded = load_file(saved / name), load_file(tmp_path / "loaded" / "step-000002" / name)
        assert before.keys() == loaded.keys()
        assert all(torch.equal(before[tensor], loaded[tensor]) for tensor in before), name

    with noting_samples(folder / "samples"):
        run_trial(config, Execution(checkpoint_every=2), trial_paths(folder))
    assert samples_by_step(folder) == samples_by_step(root / "whole")
    assert len(samples_by_step(folder)) == 4 and all(len(examples) == 4 for examples in samples_by_step(folder))
    assert greatest_difference(trained_weights(folder), trained_weights(root / "whole")) < 1e-5
