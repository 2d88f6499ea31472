"""The training benchmark: what it counts, what it refuses, that both loops train one model, and its CPU path from end to end."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.gpu_training import app, check_memory
from benchmarks.training_loops import JobBatches
from benchmarks.training_models import build_ours, build_plain, random_llm
from benchmarks.training_report import judge_goals, markdown, summarize_size, unmeasured_size
from benchmarks.training_workload import (
    CPU_SIZES,
    GPU_SIZES,
    ExampleLength,
    TrainingJob,
    batches_of,
    draw_lengths,
    examples_needed,
    find_sizes,
    training_flops,
)
from model.architectures import Architecture
from model.configs import AdapterConfig, LoRAConfig

ROOT = Path(__file__).parents[2]
TINY = CPU_SIZES["tiny"]
JOB = TrainingJob(
    size="tiny",
    loop="ours",
    order="sorted",
    precision="fp32",
    batch=2,
    steps=2,
    warmup=1,
    sequence=48,
    gradient_checkpointing=False,
    attention="sdpa",
    liger=False,
    seed=0,
)
H100 = {
    "device": "cuda",
    "name": "NVIDIA H100 80GB HBM3",
    "precision": "bf16",
    "threads": 8,
    "free_memory_bytes": 79 * 2**30,
    "measured_peak_tflops": 690.0,
}


def test_flops_are_those_counted_by_hand() -> None:
    size = replace(
        TINY,
        architecture=Architecture(
            model_type="llama",
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            intermediate_size=16,
            vocab_size=10,
        ),
        lora=LoRAConfig(r=2),
        adapter=AdapterConfig(stack_factor=8, hidden_width=4),
    )
    blocks = 2 * (8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 16)  # q, k, v, o, then gate, up and down
    lora = 2 * 2 * (16 + 12 + 12 + 16 + 3 * 24)
    adapter = (2 * 512) + (512 * 8 * 4 + 4) + (4 * 8 + 8) + 8
    one = 4 * blocks * 5 + 6 * lora * 5 + 2 * 6 * 8 * 5 * 6 + 4 * 8 * 10 * 2 + 6 * adapter * 1
    assert (
        training_flops(size, [ExampleLength(frames=8, audio=1, prompt=2, target=2)])
        == one
        == 1_152 * 20 + 512 * 30 + 2_880 + 640 + 6 * adapter
    )
    other = 4 * blocks * 3 + 6 * lora * 3 + 2 * 6 * 8 * 3 * 4 + 4 * 8 * 10 * 1 + 6 * adapter * 1
    pair = [ExampleLength(frames=8, audio=1, prompt=2, target=2), ExampleLength(frames=3, audio=1, prompt=1, target=1)]
    assert training_flops(size, pair) == one + other


def test_an_8b_model_costs_four_flops_a_weight_and_a_little_more() -> None:
    size = GPU_SIZES["8b"]
    lengths = draw_lengths(64, size.adapter, mean_columns=None, seed=0)
    per_token = training_flops(size, lengths) / sum(length.columns for length in lengths)
    assert 4 * 6.98e9 < per_token < 4.4 * 6.98e9  # 8.03e9 less embedding and head


def test_both_orders_hold_the_same_examples_and_sorting_saves_padding() -> None:
    lengths = draw_lengths(examples_needed(16, 8), TINY.adapter, mean_columns=None, seed=0)
    kept: dict[str, float] = {}
    drawn: dict[str, list[int]] = {}
    for order in ("sorted", "random"):
        groups = batches_of(lengths, batch=8, steps=16, order=order, seed=0)  # type: ignore[arg-type]
        assert [len(group) for group in groups] == [8] * 16
        drawn[order] = sorted(index for group in groups for index in group)
        columns = sum(8 * max(lengths[index].columns for index in group) for group in groups)
        kept[order] = sum(length.columns for length in lengths) / columns
    assert drawn["sorted"] == drawn["random"] == list(range(128))
    assert kept["sorted"] > 0.9 > 0.7 > kept["random"]
    assert sum(length.columns for length in lengths) / 128 == pytest.approx(226, rel=0.1)  # the plan's mean example


def test_tokens_counted_are_the_columns_that_a_batch_attends_to() -> None:
    batches = JobBatches(JOB, TINY)
    assert len(batches) == 3
    measured = [batches[step] for step in range(1, 3)]
    assert sum(int(b.attention_mask.sum()) for b in measured) == sum(
        length.columns for length in batches.measured_lengths
    )
    assert sum(b.input_ids.numel() for b in measured) == batches.measured_columns
    assert torch.equal(batches[1].states, JobBatches(JOB, TINY)[1].states)


def test_both_loops_train_the_same_model() -> None:
    def llm() -> object:
        return random_llm(TINY.architecture, precision="fp32", attention="sdpa", device=torch.device("cpu"), seed=0)

    ours, plain = build_ours(llm(), TINY, precision="fp32", seed=0), build_plain(llm(), TINY, seed=0)
    trained = {name: parameter for name, parameter in plain.named_parameters() if parameter.requires_grad}
    expected = ours.trainable_parameters()
    assert set(trained) == set(expected)
    assert all(torch.equal(trained[name], expected[name]) for name in trained)

    batch = JobBatches(JOB, TINY)[0]
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    ours_loss, plain_loss = ours(batch), plain(**tensors)["loss"]
    assert plain_loss.item() == pytest.approx(ours_loss.item(), abs=1e-4)
    ours_loss.backward()
    plain_loss.backward()
    for name in trained:
        torch.testing.assert_close(trained[name].grad, expected[name].grad, atol=1e-5, rtol=1e-3)


def test_unknown_sizes_are_refused_in_one_line() -> None:
    refused = CliRunner().invoke(app, ["--sizes", "8b,9b"])
    assert refused.exit_code == 2
    assert refused.output.strip().splitlines() == ["error: --sizes: '9b' is not a list of tiny, 0.6b, 4b, 8b"]
    with pytest.raises(ValueError, match="nothing is not a list of"):
        find_sizes(" , ")
    assert [size.name for size in find_sizes("8B, tiny,8b")] == ["8b", "tiny"]


def test_a_size_that_memory_cannot_hold_is_refused_in_one_line() -> None:
    job = replace(JOB, size="8b", precision="bf16", batch=8, steps=16, sequence=None)
    check_memory(GPU_SIZES["8b"], job, H100)
    with pytest.raises(ValueError, match=r"8b in bf16 .* needs about .* GiB of this machine's GPU are free") as refused:
        check_memory(GPU_SIZES["8b"], job, {**H100, "free_memory_bytes": 23 * 2**30})
    assert "\n" not in str(refused.value)


def run(seconds: float) -> dict[str, object]:
    """A run of 16 steps that takes so long a step."""
    return {
        "step_seconds": [seconds] * 16,
        "tokens": 32_000,
        "columns": 40_000,
        "flops": 350e12 * 16 * 0.1,
        "first_loss": 11.0,
        "peak_memory_bytes": 50 * 2**30,
    }


def test_goals_are_judged_on_a_gpu_only_and_a_loop_out_of_memory_is_a_row() -> None:
    runs = {
        "ours": [run(0.1), run(0.099), run(0.12)],
        "trainer": [run(0.14), run(0.14), run(0.2)],
        "trainer_random": [run(0.2), {"failed": "out of memory"}, run(0.2)],
    }
    size = summarize_size(GPU_SIZES["8b"], runs, H100)
    assert size["arms"]["ours"]["mfu_measured"]["median"] == pytest.approx(350 / 690)
    assert size["arms"]["ours"]["mfu_datasheet"]["median"] == pytest.approx(350 / 989)
    assert size["arms"]["ours"]["padding_share"] == pytest.approx(0.2)
    assert size["speedup_over"]["trainer"]["median"] == pytest.approx(0.14 / 0.099)  # of pairs, not of medians
    assert size["speedup_over"]["trainer_random"] is None
    assert [goal["verdict"] for goal in judge_goals([size], H100)] == ["PASS", "MISSED", "not measured yet"]
    on_cpu = judge_goals([size], {**H100, "device": "cpu"})
    assert {goal["verdict"] for goal in on_cpu} == {"not measured yet"}

    table = markdown(
        {
            "command": "c",
            "date": "d",
            "device": H100,
            "environment": {"cpu": "c", "versions": {}},
            "peaks": {"measured_tflops": 700.0, "datasheet_tflops": 989.0},
            "settings": {"repeats": 3},
            "sizes": [size, unmeasured_size(GPU_SIZES["4b"])],
            "goals": judge_goals([size], H100),
        }
    )
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 6 and {row.count("|") for row in rows} == {9}
    assert "| out of memory |" in rows[4] and "| not measured yet |" in rows[5]


@pytest.mark.slow
def test_the_cpu_path_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_training.py"), "--steps", "2", "--warmup", "1"]
    done = subprocess.run(
        [*command, "--repeats", "1", "--batch", "2", "--sequence", "48", "--out", str(out)],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(out.read_text())
    assert set(document) == {
        "benchmark",
        "date",
        "command",
        "settings",
        "environment",
        "device",
        "peaks",
        "sizes",
        "goals",
    }
    assert document["device"]["device"] == "cpu" and document["peaks"]["datasheet_tflops"] is None
    assert document["command"].startswith("python benchmarks/gpu_training.py --steps 2")
    assert {"torch", "transformers", "peft", "deepspeed"} <= set(document["environment"]["versions"])
    assert document["settings"]["batch"] == {"tiny": 2}
    tiny, *on_gpu = document["sizes"]
    assert [(size["size"], size["status"]) for size in on_gpu] == [
        (n, "not measured yet") for n in ("0.6b", "4b", "8b")
    ]
    assert set(tiny["arms"]) == {"ours", "trainer", "trainer_random"}
    for arm in tiny["arms"].values():
        for figure in ("tokens_per_second", "step_seconds", "mfu_measured", "peak_memory_gib"):
            assert 0 < arm[figure]["min"] <= arm[figure]["median"] <= arm[figure]["max"]
        assert [len(repeat["step_seconds"]) for repeat in arm["repeats"]] == [2]
        assert arm["repeats"][0]["tokens"] == tiny["arms"]["ours"]["repeats"][0]["tokens"]
        assert arm["repeats"][0]["trainable_parameters"] == tiny["arms"]["ours"]["repeats"][0]["trainable_parameters"]
    losses = [tiny["arms"][arm]["first_loss"] for arm in ("ours", "trainer")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert {goal["verdict"] for goal in document["goals"]} == {"not measured yet"}
    assert done.stdout == out.with_suffix(".md").read_text()
    assert done.stdout.count("| on a GPU | not measured yet |") == 3
