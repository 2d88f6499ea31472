"""The alignment stage in a plain process: what it trains, that it gains, that it resumes bit for bit, and that trials start from what it leaves."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from corpus_samples.synthetic import REF
from data.atomic import file_sha256, iter_whole_lines
from data.metric_lines import read_metrics
from data.records import Example, SlotValue, Turn
from data.supervision import (
    AUDIO_MARKER,
    TRANSCRIPTION_INSTRUCTIONS,
    TRANSCRIPTION_VERSION,
    SupervisionConfig,
    transcribe,
)
from model.alignment import build_alignment_model, open_transcriptions, run_alignment
from model.checkpoint_folder import newest_checkpoint, prune_checkpoints
from model.configs import AdapterConfig, AlignmentConfig, Budget, EvaluationConfig, Execution, OptimConfig, TrialConfig
from model.foundations import FOUNDATIONS
from model.hooks import TrialHooks, TrialInterrupted
from model.process_group import join_process_group
from model.train import build_engine, training_steps
from model.trial import run_trial
from orchestrator.alignments import alignment_config
from stand_ins.workers import run_on_workers

EXECUTION = Execution(checkpoint_every=2)
ALIGNMENT = AlignmentConfig(budget=Budget(steps=4, batch_size=4), adapter_learning_rate=3e-3)


def trial(mode="hybrid", **changes) -> TrialConfig:
    fields = {
        "foundation": FOUNDATIONS["tiny-instruct"],
        "supervision": SupervisionConfig(mode=mode, label_descriptions=False, value_form="spoken"),
        "corpus": REF,
        "budget": Budget(steps=1, batch_size=4),
        "adapter": AdapterConfig(hidden_width=64),
        "optim": OptimConfig(precision="fp32", lora_learning_rate=1e-9, adapter_learning_rate=1e-9),
        "evaluation": EvaluationConfig(max_new_tokens_direct=4, max_new_tokens_think=4),
        "alignment": ALIGNMENT,
    }
    return TrialConfig(**{**fields, **changes})


def test_the_model_is_asked_for_the_transcript_and_nothing_else() -> None:
    spoken = Example(
        id="e1",
        split="train",
        domain="table",
        audio="audio/a.flac",
        audio_sha256="0" * 64,
        duration_s=1.0,
        transcript="a table for two",
        slots=(SlotValue(label="party", spoken="two", surface="two", canonical="2"),),
        context=(Turn(speaker="agent", text="hello"),),
    )
    asked = transcribe(spoken, draw="seed0/epoch0")
    instruction, audio = asked.prompt.split("\n")
    assert instruction in TRANSCRIPTION_INSTRUCTIONS and audio == f"audio: {AUDIO_MARKER}"
    assert (asked.mode, asked.target, asked.asked_labels) == ("direct", "a table for two", ())
    assert transcribe(spoken, draw="seed0/epoch0") == asked
    drawn = {transcribe(spoken, draw=f"seed0/epoch{epoch}").prompt for epoch in range(50)}
    assert len(drawn) == len(TRANSCRIPTION_INSTRUCTIONS)


def test_other_wordings_are_another_version() -> None:
    wordings = hashlib.sha256("|".join(TRANSCRIPTION_INSTRUCTIONS).encode()).hexdigest()
    assert (TRANSCRIPTION_VERSION, wordings[:12]) == (1, "d71845a5a4fb")


def test_the_adapter_alone_changes(trial_paths, tmp_path: Path) -> None:
    config = alignment_config(trial())
    data = open_transcriptions(config, trial_paths(tmp_path))
    join_process_group(use_gpu=False)
    model = build_alignment_model(config, EXECUTION, data)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engine = build_engine(model, config.optim, EXECUTION, batch_size=4)
    for _ in training_steps(
        engine,
        lambda step: data.micro_batches(step, rank=0, world=1, micro_batches=1),
        first_step=0,
        steps=3,
        optim=config.optim,
    ):
        pass
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("adapter.")}


def test_it_learns_to_write_down_what_is_said(trial_paths, tmp_path: Path) -> None:
    config = alignment_config(trial(alignment=replace(ALIGNMENT, budget=Budget(steps=40, batch_size=4))))
    outcome = run_alignment(config, EXECUTION, trial_paths(tmp_path))
    assert outcome is not None
    assert outcome.validation_loss < 0.9 * outcome.validation_loss_before
    rows = list(iter_whole_lines(tmp_path / "metrics.jsonl"))
    assert (rows[0]["step"], rows[0]["metrics"]) == (0, {"validation/loss": outcome.validation_loss_before})
    assert rows[-2]["metrics"]["train/loss"] < 0.9 * rows[1]["metrics"]["train/loss"]
    assert (rows[-1]["step"], rows[-1]["metrics"]) == (40, {"validation/loss": outcome.validation_loss})
    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    assert all(name.startswith("adapter.") for name in load_file(newest / "trainable.safetensors"))
    assert json.loads((tmp_path / "alignment.json").read_text())["validation_loss"] == outcome.validation_loss


@pytest.mark.parametrize("damaged", [False, True])
def test_a_stopped_alignment_ends_with_the_same_bytes(trial_paths, tmp_path: Path, damaged: bool) -> None:
    config = alignment_config(trial())
    whole = run_alignment(config, EXECUTION, trial_paths(tmp_path / "whole"))
    stops = iter([False, False, True])
    with pytest.raises(TrialInterrupted):
        run_alignment(
            config,
            EXECUTION,
            trial_paths(tmp_path / "cut"),
            hooks=TrialHooks(should_stop=lambda: next(stops)),
        )
    assert not (tmp_path / "cut" / "adapter.safetensors").exists()
    if damaged:  # the loss before the first step cannot be told any more
        metrics = tmp_path / "cut" / "metrics.jsonl"
        metrics.write_bytes(metrics.read_bytes().replace(b"validation/loss", b"validation/lost", 1))
    cut = run_alignment(config, EXECUTION, trial_paths(tmp_path / "cut"))
    assert whole is not None and cut is not None
    assert replace(cut, seconds=0) == replace(whole, seconds=0)
    assert file_sha256(tmp_path / "cut" / "adapter.safetensors") == whole.adapter_sha256
    (tmp_path / "cut" / "adapter.safetensors").write_bytes(b"damaged")
    prune_checkpoints(tmp_path / "cut" / "checkpoints", "weights")
    again = run_alignment(config, EXECUTION, trial_paths(tmp_path / "cut"))  # nothing is trained for it
    assert again is not None and replace(again, seconds=0) == replace(whole, seconds=0)
    steps = [[row.step for row in read_metrics(tmp_path / name / "metrics.jsonl").rows] for name in ("whole", "cut")]
    assert steps[0] == sorted(steps[1]) == [0, 1, 4, 4]


def test_every_mode_starts_from_the_same_adapter(trial_paths, tmp_path: Path) -> None:
    modes = [trial(mode) for mode in ("regular", "reasoning", "hybrid")]
    assert len({alignment_config(config) for config in modes}) == 1
    run_alignment(alignment_config(modes[0]), EXECUTION, trial_paths(tmp_path / "alignment"))
    adapter = tmp_path / "alignment" / "adapter.safetensors"
    aligned = load_file(adapter)
    for config in modes:  # whose one step of 1e-9 moves a weight by no more than 1e-9
        output = tmp_path / config.mode
        run_trial(config, EXECUTION, replace(trial_paths(output), aligned_adapter=adapter))
        newest = newest_checkpoint(output / "checkpoints")
        assert newest is not None
        started = load_file(newest / "trainable.safetensors")
        for name, value in aligned.items():
            assert torch.allclose(started[f"adapter.{name}"], value, rtol=0, atol=1e-7), name


@pytest.mark.slow
def test_two_workers_with_sharded_weights_leave_what_one_leaves(trial_paths, tmp_path: Path) -> None:
    """Three validation examples in batches of one: the last is one worker's alone."""
    config = alignment_config(trial(alignment=replace(ALIGNMENT, adapter_learning_rate=1e-4)))
    alone = run_alignment(config, EXECUTION, trial_paths(tmp_path / "alone"))
    (tmp_path / "sharded").mkdir()
    execution = Execution(checkpoint_every=2, workers=2, zero_stage=3, micro_batches=2)
    together, other_rank = run_on_workers(
        run_alignment, config, execution, trial_paths(tmp_path / "sharded"), folder=tmp_path / "group"
    )
    assert other_rank is None and alone is not None
    assert together.validation_loss_before == pytest.approx(alone.validation_loss_before, abs=1e-5)
    assert together.validation_loss == pytest.approx(alone.validation_loss, abs=1e-4)
    expected, found = (load_file(tmp_path / name / "adapter.safetensors") for name in ("alone", "sharded"))
    assert expected.keys() == found.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)
