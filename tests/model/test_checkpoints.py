"""A checkpoint holds what trains and its moments, nothing else; a kill in the middle of saving leaves the last good one; and what is kept."""

import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.metric_lines import MetricRow, metric_line, read_metrics
from model.checkpoint_folder import checkpoint_to_resume, newest_checkpoint, prune_checkpoints, read_commit
from model.checkpoints import load_optimizer, load_trainable, save_checkpoint
from model.configs import AdapterConfig, Execution
from model.train import build_engine
from model.trial import run_trial, score_checkpoint
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


@pytest.fixture(scope="module")
def finished(trial_paths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trial of 4 steps with the checkpoints of steps 2 and 4."""
    root = tmp_path_factory.mktemp("finished")
    run_trial(small_trial("qwen3", root / "stand-ins"), Execution(checkpoint_every=2), trial_paths(root / "trial"))
    return root / "trial"


@pytest.fixture
def trial(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    shutil.copytree(finished, tmp_path / "trial")
    return tmp_path / "trial"


@pytest.fixture
def engine(finished: Path, trial_paths, tmp_path: Path) -> Any:
    """An engine as it is after step 2 of that trial."""
    config = small_trial("qwen3", tmp_path / "stand-ins")
    model = untrained_model(config, trial_paths(tmp_path))
    checkpoint = finished / "checkpoints" / "step-000002"
    load_trainable(model, checkpoint)
    engine = build_engine(model, config.optim, Execution(), batch_size=config.budget.batch_size)
    assert load_optimizer(engine, checkpoint, rank=0, steps=4) == 2
    return engine


def save_and_die(engine: Any, folder: Path, step: int, operations: int) -> bool:
    """Save in a forked process that dies before its `operations`-th change of a file; whether it came to an end before that."""
    child = os.fork()
    if child == 0:
        left = operations

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"):
                left -= 1
                if left == 0:
                    os._exit(9)

        sys.addaudithook(count)
        save_checkpoint(engine, folder, step=step)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("in_the_way", ["nothing", "a whole one", "a damaged one", "an uncommitted one"])
def test_a_kill_at_any_moment_of_a_save_leaves_the_last_good_checkpoint(
    finished: Path, tmp_path: Path, engine: Any, in_the_way: str
) -> None:
    checkpoints = tmp_path / "checkpoints"
    step, good = (6, 4) if in_the_way == "nothing" else (4, 4 if in_the_way == "a whole one" else 2)
    ends = set()
    operations, ended = 0, False
    while not ended:
        operations += 1
        shutil.rmtree(checkpoints, ignore_errors=True)
        shutil.copytree(finished / "checkpoints", checkpoints)
        if in_the_way == "a damaged one":
            (checkpoints / "step-000004" / "optimizer.safetensors").write_bytes(b"")
        elif in_the_way == "an uncommitted one":
            (checkpoints / "step-000004" / "commit.json").unlink()
        ended = save_and_die(engine, checkpoints, step, operations)
        newest = newest_checkpoint(checkpoints)
        assert newest is not None, f"killed before operation {operations}"
        commit = read_commit(newest)
        assert commit.step in (good, step)
        assert load_file(newest / "trainable.safetensors")
        ends.add(commit.step)
        if not ended and operations % 5 == 0:
            save_checkpoint(engine, checkpoints, step=8)
            assert {path.name for path in checkpoints.iterdir()} < {f"step-{n:06d}" for n in (2, 4, 6, 8)}
    assert operations > 15
    assert ends == {good, step}
    assert sorted(path.name for path in checkpoints.iterdir())[-1] == f"step-{step:06d}"
    assert len(list(checkpoints.iterdir())) == 2


def test_a_worker_that_is_replaced_while_it_writes_commits_nothing(trial: Path, engine: Any) -> None:
    def replaced() -> None:
        raise PermissionError

    with pytest.raises(PermissionError):
        save_checkpoint(engine, trial / "checkpoints", step=6, before_commit=replaced)
    newest = newest_checkpoint(trial / "checkpoints")
    assert newest is not None and read_commit(newest).step == 4


def test_a_commit_says_the_position_in_the_samples_and_the_workers(finished: Path) -> None:
    commit = read_commit(finished / "checkpoints" / "step-000002")
    assert (commit.step, commit.samples, commit.world) == (2, 8, 1)
    assert commit.files.keys() == {"trainable.safetensors", "optimizer.safetensors", "random-0.safetensors"}


def flip(path: Path, place: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["commit.json", "trainable.safetensors", "optimizer.safetensors", "random-0.safetensors"]
)
def test_one_bit_anywhere_falls_back_to_the_checkpoint_before_and_then_to_nothing_and_says_so(
    trial: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level(logging.WARNING)
    flip(trial / "checkpoints" / "step-000004" / name, 20)
    assert checkpoint_to_resume(trial, steps=4) == trial / "checkpoints" / "step-000002"
    assert f"step-000004: {name}" in caplog.text and "passed over" in caplog.text
    flip(trial / "checkpoints" / "step-000002" / name, 20)
    assert checkpoint_to_resume(trial, steps=4) is None
    assert "training starts from nothing" in caplog.text


def test_no_metric_is_lost_with_a_damaged_row(trial: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows of steps 1, 4 (of 4) and the scores. Without the last step's row the checkpoint before it counts, without the first's none."""
    caplog.set_level(logging.WARNING)
    metrics = trial / "metrics.jsonl"
    assert [(row.step, row.of_training) for row in read_metrics(metrics).rows] == [(1, True), (4, True), (4, False)]
    assert checkpoint_to_resume(trial, steps=4) == trial / "checkpoints" / "step-000004"
    flip(metrics, metrics.read_bytes().index(b'"step": 4') + 30)
    assert read_metrics(metrics).damaged_lines == (2,)
    assert checkpoint_to_resume(trial, steps=4) == trial / "checkpoints" / "step-000002"
    assert "metrics of step 4 are lost or damaged" in caplog.text
    metrics.unlink()
    assert checkpoint_to_resume(trial, steps=4) is None


@pytest.mark.parametrize("keep", ["last", "weights"])
def test_a_pruned_checkpoint_still_scores_and_only_weights_are_not_trained_on(
    trial: Path, trial_paths, engine: Any, keep: Any
) -> None:
    config = small_trial("qwen3", trial.parent / "stand-ins")
    scores = score_checkpoint(config, Execution(), trial_paths(trial), mode="direct")
    (trial / "checkpoints" / ".writing-left").mkdir()
    for _ in range(2):
        prune_checkpoints(trial / "checkpoints", keep)
        assert [path.name for path in (trial / "checkpoints").iterdir()] == ["step-000004"]
    newest = newest_checkpoint(trial / "checkpoints")
    assert newest is not None
    files = {path.name for path in newest.iterdir()}
    moments = {"optimizer.safetensors", "random-0.safetensors"}
    assert files == {"commit.json", "trainable.safetensors"} | (moments if keep == "last" else set())
    assert score_checkpoint(config, Execution(), trial_paths(trial), mode="direct") == scores
    assert checkpoint_to_resume(trial, steps=4) == newest, "no step is left to train, answers can be given"
    assert (checkpoint_to_resume(trial, steps=5) is None) == (keep == "weights")
    if keep == "weights":
        with pytest.raises(ValueError, match="holds weights alone"):
            load_optimizer(engine, newest, rank=0, steps=5)


def test_a_row_has_its_own_checksum(tmp_path: Path) -> None:
    rows = [MetricRow(step=step, time=step, metrics={"train/loss": 1 / step}) for step in (1, 10, 20)]
    path = tmp_path / "metrics.jsonl"
    whole = "".join(map(metric_line, rows)).encode()
    path.write_bytes(whole)
    assert read_metrics(path).rows == tuple(rows) and not read_metrics(path).damaged_lines
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = read_metrics(path)
        assert len(found.rows) < 3 and all(row in rows for row in found.rows)
        assert found.damaged_lines or place == len(whole) - 1, "a line without an end is one that a kill cut off"
    path.write_bytes(whole + b'{"step": 30')
    assert read_metrics(path).rows == tuple(rows) and not read_metrics(path).damaged_lines
