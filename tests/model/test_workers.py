"""One trial on two workers: the same training as on one, and its checkpoint goes on with one."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from corpus_samples.synthetic import REF
from safetensors.torch import load_file

from data.atomic import iter_whole_lines
from data.supervision import SupervisionConfig
from model.checkpoints import newest_checkpoint
from model.configs import AdapterConfig, Budget, EvaluationConfig, Execution, OptimConfig, TrialConfig
from model.foundations import FOUNDATIONS
from model.trial import run_trial

ROOT = Path(__file__).parents[2]
CONFIG = TrialConfig(
    foundation=FOUNDATIONS["tiny-hybrid"],
    supervision=SupervisionConfig(mode="hybrid", label_descriptions=False, value_form="spoken"),
    corpus=REF,
    budget=Budget(steps=4, batch_size=4),
    adapter=AdapterConfig(hidden_width=64),
    optim=OptimConfig(precision="fp32", lora_learning_rate=1e-3),
    evaluation=EvaluationConfig(max_new_tokens_direct=4, max_new_tokens_think=4),
)
WORKER = """
import os, pickle, sys
rank, world, job = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(world), DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
import torch
from model.trial import run_trial
torch.distributed.init_process_group("gloo", init_method=f"file://{job}.rendezvous", rank=rank, world_size=world)
with open(job, "rb") as stream:
    config, execution, paths, stop_at = pickle.load(stream)
def on_checkpoint(step):
    if step == stop_at:
        os._exit(7)
run_trial(config, execution, paths, on_checkpoint=on_checkpoint)
"""


def run_on_two(execution: Execution, paths, tmp_path: Path, *, stop_at: int = -1) -> list[int]:
    job = tmp_path / f"job-{stop_at}"
    job.write_bytes(pickle.dumps((CONFIG, execution, paths, stop_at)))
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), "2", str(job)], cwd=ROOT, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=240)[1].decode() for worker in workers]
    codes = [worker.returncode for worker in workers]
    assert set(codes) <= {0, 7}, errors[0][-2000:] + errors[1][-2000:]
    return codes


def trained(output: Path) -> dict[str, torch.Tensor]:
    newest = newest_checkpoint(output / "checkpoints")
    assert newest is not None and newest.name == "step-000004"
    return {name: value.clone() for name, value in load_file(newest / "trainable.safetensors").items()}


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_two_workers_train_like_one_and_one_takes_over(trial_paths, tmp_path: Path, zero_stage: int) -> None:
    one = Execution(checkpoint_every=2, zero_stage=zero_stage)
    two = Execution(checkpoint_every=2, zero_stage=zero_stage, workers=2)
    for name in ("one", "two", "cut"):
        (tmp_path / name).mkdir()
    run_trial(CONFIG, one, trial_paths(tmp_path / "one"))
    assert run_on_two(two, trial_paths(tmp_path / "two"), tmp_path) == [0, 0]
    assert run_on_two(two, trial_paths(tmp_path / "cut"), tmp_path, stop_at=2) == [7, 7]
    run_trial(CONFIG, one, trial_paths(tmp_path / "cut"))

    expected = trained(tmp_path / "one")
    for name in ("two", "cut"):
        found = trained(tmp_path / name)
        assert all(torch.allclose(expected[key], found[key], atol=2e-4) for key in expected), name
    losses = {
        name: [
            row["metrics"]["train/loss"]
            for row in iter_whole_lines(tmp_path / name / "metrics.jsonl")
            if "train/loss" in row["metrics"]
        ]
        for name in ("one", "two")
    }
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-4)
    answered = [len((tmp_path / name / "predictions-think.jsonl").read_text().splitlines()) for name in ("one", "two")]
    assert answered[0] == answered[1]
