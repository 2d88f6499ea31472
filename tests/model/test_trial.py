"""One trial in a plain process: it trains what it should, resumes bit for bit, and scores what it wrote."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from corpus_samples.synthetic import REF
from data.atomic import iter_whole_lines
from data.metric_lines import read_metrics
from data.records import prediction_from_json
from data.scoring import score
from data.supervision import SupervisionConfig
from model.checkpoint_folder import newest_checkpoint
from model.configs import AdapterConfig, Budget, EvaluationConfig, Execution, LoRAConfig, OptimConfig, TrialConfig
from model.foundations import FOUNDATIONS
from model.hooks import TrialHooks
from model.speech_llm import build_speech_llm
from model.trial import run_trial, score_checkpoint

EXECUTION = Execution(checkpoint_every=2)


def _config(**changes) -> TrialConfig:
    fields = {
        "foundation": FOUNDATIONS["tiny-hybrid"],
        "supervision": SupervisionConfig(mode="hybrid", label_descriptions=False, value_form="spoken"),
        "corpus": REF,
        "budget": Budget(steps=6, batch_size=4),
        "adapter": AdapterConfig(hidden_width=64),
        "optim": OptimConfig(precision="fp32", lora_learning_rate=1e-3),
        "evaluation": EvaluationConfig(max_new_tokens_direct=8, max_new_tokens_think=12),
    }
    return TrialConfig(**{**fields, **changes})


class Killed(Exception):
    """Stands for whatever ends a trial from outside."""


def _trained(output: Path) -> dict[str, torch.Tensor]:
    newest = newest_checkpoint(output / "checkpoints")
    assert newest is not None
    return {name: value.clone() for name, value in load_file(newest / "trainable.safetensors").items()}


def test_a_trial_trains_adapter_and_lora_and_writes_everything_down(trial_paths, tmp_path: Path) -> None:
    config = _config()
    drawn = random.getstate(), np.random.get_state()[1].tolist()
    outcome = run_trial(config, EXECUTION, trial_paths(tmp_path))
    assert outcome is not None
    assert drawn == (random.getstate(), np.random.get_state()[1].tolist()), (
        "a checkpoint holds torch's random state alone"
    )

    rows = read_metrics(tmp_path / "metrics.jsonl").rows
    assert rows[0].step == 1 and rows[-1].metrics["eval/partial_f1"] == outcome.scores["eval/partial_f1"]
    assert json.loads((tmp_path / "status.json").read_text())["phase"] == "done"
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000004", "step-000006"]
    for mode in ("direct", "think"):
        predictions = [prediction_from_json(row) for row in iter_whole_lines(tmp_path / f"predictions-{mode}.jsonl")]
        assert {p.split for p in predictions} == {"validation", "test", "test_frame"}
        assert (
            score(p for p in predictions if p.split == "test").partial_f1 == outcome.scores[f"eval/{mode}/partial_f1"]
        )

    untrained = build_speech_llm(
        config.foundation,
        state_mean=torch.zeros(512),
        state_std=torch.ones(512),
        adapter=config.adapter,
        lora=config.lora,
        precision="fp32",
        seed=0,
    ).trainable_parameters()
    trained = _trained(tmp_path)
    assert trained.keys() == untrained.keys()
    assert all("lora_" in name or name.startswith("adapter.") for name in trained)
    assert all(
        not torch.equal(trained[name], untrained[name]) for name in trained if "lora_A" in name or "up.weight" in name
    )


def test_an_interrupted_trial_ends_with_the_same_bits(trial_paths, tmp_path: Path) -> None:
    config = _config()
    run_trial(config, EXECUTION, trial_paths(tmp_path / "whole"))

    def kill_at_four(step: int) -> None:
        if step == 4:
            raise Killed

    (tmp_path / "cut").mkdir()
    with pytest.raises(Killed):
        run_trial(config, EXECUTION, trial_paths(tmp_path / "cut"), hooks=TrialHooks(on_checkpoint=kill_at_four))
    run_trial(config, EXECUTION, trial_paths(tmp_path / "cut"))

    whole, cut = _trained(tmp_path / "whole"), _trained(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    for name in ("predictions-direct.jsonl", "predictions-think.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    steps = [row.step for row in read_metrics(tmp_path / "cut" / "metrics.jsonl").rows]
    assert steps == [row.step for row in read_metrics(tmp_path / "whole" / "metrics.jsonl").rows]


def test_training_from_nothing_again_keeps_every_row_and_its_time(trial_paths, tmp_path: Path) -> None:
    """Whoever has sent the rows on before has nothing to take back; the row that was damaged is written again."""
    config = _config()
    run_trial(config, EXECUTION, trial_paths(tmp_path))
    shutil.rmtree(tmp_path / "checkpoints")
    metrics = tmp_path / "metrics.jsonl"
    before = read_metrics(metrics).rows
    metrics.write_bytes(metrics.read_bytes().replace(b'"step": 6', b'"step": 5', 1))
    run_trial(config, EXECUTION, trial_paths(tmp_path))
    after = read_metrics(metrics)
    assert not after.damaged_lines and len(after.rows) == len(before)
    assert {row.step: row.metrics["train/loss"] for row in after.rows if row.of_training} == {
        row.step: row.metrics["train/loss"] for row in before if row.of_training
    }
    assert after.rows[0] == before[0] and after.rows[1] == before[2], "the scores' row, too"


def test_dropout_draws_the_same_after_a_kill(trial_paths, tmp_path: Path) -> None:
    config = _config(lora=LoRAConfig(dropout=0.3), budget=Budget(steps=4, batch_size=4))

    def kill_at_two(step: int) -> None:
        if step == 2:
            raise Killed

    run_trial(config, EXECUTION, trial_paths(tmp_path / "whole"))
    with pytest.raises(Killed):
        run_trial(config, EXECUTION, trial_paths(tmp_path / "cut"), hooks=TrialHooks(on_checkpoint=kill_at_two))
    torch.rand(7)
    run_trial(config, EXECUTION, trial_paths(tmp_path / "cut"))
    whole, cut = _trained(tmp_path / "whole"), _trained(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize("damage", ["truncate", "remove", "uncommit", "flip"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(trial_paths, tmp_path: Path, damage: str) -> None:
    config = _config(budget=Budget(steps=4, batch_size=4))
    run_trial(config, EXECUTION, trial_paths(tmp_path))
    before = _trained(tmp_path)
    newest = tmp_path / "checkpoints" / "step-000004"
    weights = newest / "trainable.safetensors"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "remove":
        weights.unlink()
    elif damage == "flip":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    else:
        (newest / "commit.json").unlink()
    assert newest_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-000002"
    run_trial(config, EXECUTION, trial_paths(tmp_path))
    after = _trained(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("zero_stage", "precision"), [(1, "fp32"), (0, "bf16"), (2, "bf16")])
def test_every_zero_stage_and_bf16_resume_bit_for_bit(
    trial_paths, tmp_path: Path, zero_stage: int, precision: str
) -> None:
    """The GPU's settings on a CPU. ZeRO-3 has its own process in test_zero_stages.py."""
    config = _config(
        optim=OptimConfig(precision=precision, lora_learning_rate=1e-3), budget=Budget(steps=4, batch_size=4)
    )
    execution = Execution(checkpoint_every=2, zero_stage=zero_stage)

    def kill_at_two(step: int) -> None:
        if step == 2:
            raise Killed

    run_trial(config, execution, trial_paths(tmp_path / "whole"))
    with pytest.raises(Killed):
        run_trial(config, execution, trial_paths(tmp_path / "cut"), hooks=TrialHooks(on_checkpoint=kill_at_two))
    run_trial(config, execution, trial_paths(tmp_path / "cut"))
    whole, cut = _trained(tmp_path / "whole"), _trained(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_an_untrained_model_scores_next_to_nothing(trial_paths, tmp_path: Path) -> None:
    untrained = score_checkpoint(_config(), EXECUTION, trial_paths(tmp_path), mode="direct", trained=False)
    assert untrained.partial_f1 < 0.05


def test_changed_weights_of_a_packaged_foundation_are_refused(trial_paths, tmp_path: Path) -> None:
    from dataclasses import replace

    config = _config(foundation=replace(FOUNDATIONS["tiny-hybrid"], revision="0" * 64))
    with pytest.raises(ValueError, match=r"model.safetensors: sha256 is .* pinned to 000000000000"):
        run_trial(config, EXECUTION, trial_paths(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_damaged_predictions_are_generated_again(trial_paths, tmp_path: Path, damage: str) -> None:
    config = _config(budget=Budget(steps=2, batch_size=4))
    outcome = run_trial(config, EXECUTION, trial_paths(tmp_path))
    path = tmp_path / "predictions-think.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"not json\n" + whole)
    again = run_trial(config, EXECUTION, trial_paths(tmp_path))
    assert outcome is not None and again is not None
    assert path.read_bytes() == whole
    assert again.scores == outcome.scores
