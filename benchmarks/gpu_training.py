"""Measure our training step beside a plain Hugging Face Trainer loop: tokens/s, step time, MFU, peak memory. In plain processes, without Ray.

    python benchmarks/gpu_training.py                     # on a GPU: 0.6b, 4b and 8b; without one: a tiny model
    python benchmarks/gpu_training.py --sizes 8b --batch 16 --gradient-checkpointing --out results/gpu_training.json

Weights are random, so nothing is downloaded. The loops run in turn, each in a process of its own and `--repeats` times (A B C A B C ...), so that
every ratio is of two things measured one after the other on one machine. `benchmarks/README.md` says what is compared and how FLOPs are counted.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, in a checkout

import typer
from rich.console import Console

from benchmarks.training_report import (
    ARM_NAMES,
    ARMS,
    datasheet_tflops,
    judge_goals,
    markdown,
    summarize_size,
    unmeasured_size,
)
from benchmarks.training_workload import (
    CPU_SIZES,
    GPU_SIZES,
    Size,
    TrainingJob,
    draw_lengths,
    examples_needed,
    find_sizes,
)
from data.atomic import atomic_open, write_json
from model.architectures import adapter_parameters, lora_parameters
from model.configs import Attention, Execution
from orchestrator.memory import GIB, BatchShape, training_memory
from orchestrator.provenance import describe_environment
from orchestrator.workload import ENCODER_WIDTH

ROOT = Path(__file__).resolve().parents[1]

app = typer.Typer(add_completion=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def run_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job in a fresh process on the first GPU. {"failed": why} when the process dies."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # Trainer would spread over all it sees
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": visible, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        job_path, result_path = Path(folder) / "job.json", Path(folder) / "result.json"
        write_json(job_path, job)
        command = [sys.executable, "-m", "benchmarks.training_worker", str(job_path), str(result_path)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines()
            return {"failed": f"exit {done.returncode}: {said[-1] if said else 'no message'}"}
        result: dict[str, Any] = json.loads(result_path.read_text(encoding="utf-8"))
        return result


def check_memory(size: Size, job: TrainingJob, device: dict[str, Any]) -> None:
    """Raise ValueError when the plan's formula says that our loop does not fit the free memory. A plain loop may still run out of it."""
    lengths = draw_lengths(
        examples_needed(job.steps, job.batch), size.adapter, mean_columns=job.sequence, seed=job.seed
    )
    hidden = size.architecture.hidden_size
    trainable = lora_parameters(size.architecture, size.lora)
    trainable += adapter_parameters(size.adapter, encoder_width=ENCODER_WIDTH, hidden_size=hidden)
    gpu = device["device"] == "cuda"
    use = training_memory(
        size.architecture,
        size.lora,
        size.adapter,
        Execution(
            use_gpu=gpu,
            gradient_checkpointing=job.gradient_checkpointing,
            attention=job.attention,
            liger_kernels=job.liger,
        ),
        BatchShape(
            rows=job.batch,
            columns=max(length.columns for length in lengths),
            target_columns=max(length.target for length in lengths),
            audio_columns=max(length.audio for length in lengths),
        ),
        trainable=trainable,
        encoder_width=ENCODER_WIDTH,
        precision=job.precision,
    )
    free = device["free_memory_bytes"]
    if use.total > free:
        raise ValueError(
            f"--sizes: {size.name} in {job.precision} with batches of {job.batch} needs about {use.total / GIB:.1f} GiB, and {free / GIB:.1f} GiB of "
            f"this machine's {'GPU' if gpu else 'memory'} are free (largest part: {use.largest}); use a smaller size, --batch or "
            "--gradient-checkpointing"
        )


def measure(
    sizes: list[Size], jobs: dict[str, TrainingJob], device: dict[str, Any], repeats: int
) -> list[dict[str, Any]]:
    """Run every size's loops in turn; `jobs` by size."""
    summaries = []
    for size in sizes:
        runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
        for repeat in range(repeats):
            for arm, (loop, order) in ARMS.items():
                result = run_worker({"job": "train", **asdict(jobs[size.name]), "loop": loop, "order": order})
                runs[arm].append(result)
                said = result.get("failed") or f"{result['tokens'] / sum(result['step_seconds']):,.0f} tokens/s"
                errors.print(f"{size.name}, {ARM_NAMES[arm]}, run {repeat + 1} of {repeats}: {said}")
        summaries.append(summarize_size(size, runs, device))
    return summaries


def build_document(sizes: list[dict[str, Any]], device: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured and what is needed to measure it again."""
    return {
        "benchmark": "gpu_training",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "benchmarks/gpu_training.py", *sys.argv[1:]]),
        "settings": settings,
        "environment": describe_environment(),
        "device": {name: value for name, value in device.items() if name != "matmuls"},
        "peaks": {
            "measured_tflops": device["measured_peak_tflops"],
            "datasheet_tflops": datasheet_tflops(device),
            "matmuls": device["matmuls"],
        },
        "sizes": sizes,
        "goals": judge_goals(sizes, device),
    }


def benchmark(
    names: str | None, out: Path | None, *, repeats: int, batch: int | None, settings: dict[str, Any]
) -> bool:
    """Measure and print; `settings` are the fields that all jobs share. False when a loop failed. Raises ValueError for what cannot be measured."""
    chosen = find_sizes(names) if names is not None else None
    _check_kernels(settings["attention"], liger=settings["liger"])
    device = run_worker({"job": "device"})
    if "failed" in device:
        raise ValueError(f"torch does not run here: {device['failed']}")
    gpu = device["device"] == "cuda"
    sizes = chosen or list((GPU_SIZES if gpu else CPU_SIZES).values())
    settings = {**settings, "precision": device["precision"]}
    jobs = {
        size.name: TrainingJob(size=size.name, loop="ours", order="sorted", batch=batch or size.batch, **settings)
        for size in sizes
    }
    for size in sizes:
        check_memory(size, jobs[size.name], device)
    measured = measure(sizes, jobs, device, repeats)
    open_sizes = [] if gpu else [unmeasured_size(size) for size in GPU_SIZES.values()]
    batches = {name: job.batch for name, job in jobs.items()}
    document = build_document(measured + open_sizes, device, {**settings, "repeats": repeats, "batch": batches})
    table = markdown(document)
    sys.stdout.write(table)
    if out:
        write_json(out, document)
        with atomic_open(out.with_suffix(".md")) as stream:
            stream.write(table)
    return not any("failed" in arm for size in measured for arm in size["arms"].values())


def _check_kernels(attention: str, *, liger: bool) -> None:
    if attention not in get_args(Attention):
        raise ValueError(f"--attention: {attention!r} is not one of {', '.join(get_args(Attention))}")
    for option, wanted, package in (
        ("--attention flash_attention_2", attention == "flash_attention_2", "flash_attn"),
        ("--liger", liger, "liger_kernel"),
    ):
        if wanted and importlib.util.find_spec(package) is None:
            raise ValueError(f"{option}: needs a GPU and the package {package}; install it or leave the option out")


@app.command()
def main(
    sizes: Annotated[
        str | None, typer.Option(help="0.6b,4b,8b or tiny; default: all of the first three on a GPU, else tiny")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="measured optimizer steps of a run")] = 16,
    warmup: Annotated[int, typer.Option(min=1, help="steps before them, of the longest batches")] = 4,
    repeats: Annotated[int, typer.Option(min=1, help="runs of each loop, in turn")] = 3,
    batch: Annotated[int | None, typer.Option(min=1, help="examples per step; default: by size")] = None,
    sequence: Annotated[
        int | None, typer.Option(min=16, help="columns of a mean example; default: as the plan assumes")
    ] = None,
    gradient_checkpointing: Annotated[bool, typer.Option("--gradient-checkpointing", help="in all loops")] = False,
    attention: Annotated[str, typer.Option(help="sdpa, flash_attention_2 or eager, in all loops")] = "sdpa",
    liger: Annotated[
        bool, typer.Option("--liger", help="Liger kernels in all loops; in Trainer with their fused loss")
    ] = False,
    seed: Annotated[int, typer.Option(help="of weights and examples")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file; the table goes beside it as .md")] = None,
) -> None:
    """Tokens/s, MFU and peak memory of our training step beside a plain Hugging Face Trainer loop."""
    settings = {
        "steps": steps,
        "warmup": warmup,
        "sequence": sequence,
        "gradient_checkpointing": gradient_checkpointing,
        "attention": attention,
        "liger": liger,
        "seed": seed,
    }
    try:
        passed = benchmark(sizes, out, repeats=repeats, batch=batch, settings=settings)
    except ValueError as error:
        errors.print(f"error: {error}", markup=False)
        raise typer.Exit(2) from None
    raise typer.Exit(0 if passed else 1)


if __name__ == "__main__":
    app()
