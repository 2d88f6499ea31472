"""A `Capacity` for programs (JSON) and for people: one line for a table, and the formulas, figures and assumptions behind it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model.configs import Execution
from orchestrator.capacity import MEMORY_MARGIN, MOST_TRIALS_PER_GPU, SHARING_GAIN, Capacity, alignment_gpu_hours
from orchestrator.memory import DEVICE_CONTEXT, GIB, MemoryUse
from orchestrator.workload import (
    ASSUMED_MFU,
    CHARACTERS_PER_TOKEN,
    LAUNCH_SECONDS_PER_BLOCK,
    LONGEST_ANSWER,
    PADDING,
    TRANSCRIPT_TOKENS_PER_SECOND,
)

ASSUMPTIONS = (
    f"{MEMORY_MARGIN:.0%} of a GPU stay free for the allocator, {DEVICE_CONTEXT / GIB:.1f} GiB are the CUDA context's and NCCL's",
    f"training reaches {ASSUMED_MFU:.0%} of the data sheet's peak: not measured yet",
    f"{PADDING:.0%} of the columns are padding; {CHARACTERS_PER_TOKEN} characters are a token",
    f"launching a block's kernels takes {LAUNCH_SECONDS_PER_BLOCK * 1e3:.1f} ms a pass, and a generated token at least that or reading all weights: "
    "not measured yet",
    "trials that share a GPU take turns at arithmetic and memory, and each launches its kernels while another computes: not measured yet; at most "
    f"{MOST_TRIALS_PER_GPU} share one, and twice as many only where that saves {SHARING_GAIN:.0%} of the GPU-hours",
    f"a transcript has {TRANSCRIPT_TOKENS_PER_SECOND} tokens a second of audio; measuring an alignment's loss takes no time",
    f"a generated batch ends with an answer {LONGEST_ANSWER:g} times as long as the mean",
    "loading the model, writing checkpoints and exchanging LoRA gradients take no time",
)

_SHOWN = (
    "workers",
    "zero_stage",
    "micro_batches",
    "gradient_checkpointing",
    "attention",
    "liger_kernels",
    "evaluation_batch_size",
    "trials_per_gpu",
)


def capacity_to_json(capacity: Capacity) -> dict[str, Any]:
    """All figures; bytes, seconds, hours."""
    workload, execution = capacity.workload, capacity.execution
    return {
        "foundation": workload.trial.foundation.name,
        "hardware": workload.hardware.name,
        "fits": capacity.refusal is None,
        "refusal": capacity.refusal,
        "execution": {name: getattr(execution, name) for name in _SHOWN},
        "changes": list(capacity.changes),
        "parameters": {"foundation": workload.frozen, "lora": workload.lora, "adapter": workload.adapter},
        "memory_bytes": {
            "training": dict(capacity.training.parts),
            "evaluation": dict(capacity.evaluation.parts),
            "peak": capacity.peak_bytes,
            "usable": capacity.usable_bytes,
            "host": capacity.host_bytes,
        },
        "tokens_per_step": workload.tokens_per_step,
        "flops_per_step": workload.flops_per_step(recompute=execution.gradient_checkpointing),
        "step_seconds": workload.step_seconds(execution),
        "evaluation_seconds": workload.evaluation_seconds(execution),
        "gpu_hours": capacity.gpu_hours,
        "alignment_gpu_hours": capacity.alignment_gpu_hours,
        "checkpoint_bytes": capacity.checkpoint_bytes,
        "download_bytes": capacity.download_bytes,
        "assumptions": list(ASSUMPTIONS),
    }


def print_capacities(
    capacities: Mapping[str, Capacity], console: Console, *, aligned: Collection[str] = frozenset()
) -> None:
    """A table of what each trial needs, the sum, the formulas of one trial and the assumptions behind all.

    `aligned`: alignments that are done ("qwen3-4b.seed0") and cost nothing more.
    """
    table = Table("on each GPU", "memory", "largest part", "GPUs", "ZeRO", "micro-batches", "GPU-hours", "")
    for name, capacity in capacities.items():
        execution = capacity.execution
        note = (
            f"[red]does not fit[/]: {escape(capacity.refusal)}"
            if capacity.refusal
            else escape(", ".join(capacity.changes))
        )
        peak = max(capacity.training, capacity.evaluation, key=lambda use: use.total)
        shared = f"{execution.trials_per_gpu} x " * (execution.trials_per_gpu > 1)
        memory = f"{shared}{capacity.peak_bytes / GIB:.1f} of {capacity.usable_bytes / GIB:.0f} GiB"
        numbers = (_gpus(execution), execution.zero_stage, execution.micro_batches)
        table.add_row(name, memory, peak.largest, *map(str, numbers), f"{capacity.gpu_hours:.1f}", note)
    console.print(table)
    first = next(iter(capacities))
    for line in explain_capacity(capacities[first]):
        console.print(
            escape(
                f"  {first if not line.startswith('assumed') else ''}{': ' * (not line.startswith('assumed'))}{line}"
            ),
            soft_wrap=True,
        )
    alignments = {name: hours for name, hours in alignment_gpu_hours(capacities).items() if name not in aligned}
    stages = sum(alignments.values())
    hours = stages + sum(capacity.gpu_hours for capacity in capacities.values() if not capacity.refusal)
    of_them = f", {stages:,.0f} of them for {len(alignments)} alignment{'s' * (len(alignments) > 1)}"
    downloads = {capacity.workload.trial.foundation.name: capacity.download_bytes for capacity in capacities.values()}
    disk = sum(capacity.checkpoint_bytes for capacity in capacities.values())
    hardware = capacities[first].workload.hardware.name
    console.print(
        f"together about {hours:,.0f} GPU-hours of {hardware}{of_them * bool(alignments)}, checkpoints {disk / 1e9:.0f} GB, "
        f"downloads {sum(downloads.values()) / 1e9:.0f} GB: planned, not measured"
    )


def explain_capacity(capacity: Capacity) -> list[str]:
    """The plan of one trial in lines: how it runs, memory by part, time with its formula, disk, and what is assumed."""
    workload, execution = capacity.workload, capacity.execution
    lengths, trial = workload.lengths, workload.trial
    lines = [f"does not fit: {capacity.refusal}"] if capacity.refusal else []
    lines += [
        f"runs on: {_gpus(execution)} x {workload.hardware.name}, ZeRO {execution.zero_stage}, {execution.micro_batches} micro-batches a step, "
        f"{execution.attention} attention, gradient checkpointing {'on' if execution.gradient_checkpointing else 'off'}, "
        f"evaluation in batches of {execution.evaluation_batch_size}",
        f"changed from what is declared: {', '.join(capacity.changes) or 'nothing'}",
        f"parameters: {workload.frozen:,} frozen, {workload.lora:,} LoRA, {workload.adapter:,} adapter",
        _memory_line("training", capacity.training),
        _memory_line("evaluation", capacity.evaluation),
        f"usable: {capacity.usable_bytes / GIB:.1f} of {workload.hardware.memory_gib} GiB on each GPU"
        f"{f', by {execution.trials_per_gpu} trials' * (execution.trials_per_gpu > 1)}; while loading up to "
        f"{capacity.host_bytes / GIB:.0f} GiB of the node's main memory",
        f"lengths: audio {lengths.audio_seconds:g} s (longest {lengths.longest_audio_seconds:g}), prompt {lengths.prompt} tokens "
        f"({lengths.longest_prompt}), target "
        + ", ".join(
            f"{mode} {lengths.target[mode]} ({lengths.longest_target[mode]})" for mode in trial.inference_modes
        ),
    ]
    step, evaluation = workload.step_seconds(execution), workload.evaluation_seconds(execution)
    flops = workload.flops_per_step(recompute=execution.gradient_checkpointing)
    lines += [
        f"step: {workload.tokens_per_step:,} tokens, {flops:.3g} FLOPs (4 a token and frozen weight, 6 a LoRA weight, attention"
        f"{', the forward pass again' if execution.gradient_checkpointing else ''}) / ({execution.workers} x {workload.peak_flops:.3g} a second x "
        f"{ASSUMED_MFU:g}){' + gathering weights' if execution.zero_stage == 3 else ''}, or launching kernels: {step:.2f} s",
        f"time: {trial.budget.steps:,} steps {trial.budget.steps * step / 3600:.2f} h + evaluation {evaluation / 3600:.2f} h on "
        f"{_gpus(execution)} GPU{'s' * (execution.workers > 1)}: {capacity.gpu_hours:.1f} GPU-hours",
        f"disk: checkpoints {capacity.checkpoint_bytes / 1e9:.1f} GB, download {capacity.download_bytes / 1e9:.1f} GB",
    ]
    if workload.alignment and trial.alignment:
        steps, second = trial.alignment.budget.steps, workload.alignment.step_seconds(execution)
        lines.append(
            f"alignment before it, once for all modes of a seed: {steps:,} steps of {second:.2f} s: {capacity.alignment_gpu_hours:.1f} GPU-hours"
        )
    return lines + [f"assumed: {assumption}" for assumption in ASSUMPTIONS]


def _gpus(execution: Execution) -> str:
    return f"1/{execution.trials_per_gpu}" if execution.trials_per_gpu > 1 else str(execution.workers)


def _memory_line(phase: str, use: MemoryUse) -> str:
    parts = " + ".join(f"{name} {size / GIB:.1f}" for name, size in use.parts.items() if size)
    return f"{phase}: {use.total / GIB:.1f} GiB on each GPU = {parts}"
