"""Two workers that share every weight are killed; one goes on from their checkpoint and ends where one alone would have."""

from pathlib import Path

import pytest

from data.atomic import iter_whole_lines
from model.configs import Execution
from model.foundations import FOUNDATIONS
from model.trial import run_trial
from stand_ins.trials import Job, greatest_difference, run_until_killed, small_trial, trained_weights
from stand_ins.workers import run_on_workers


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
