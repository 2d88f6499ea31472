"""What the worker processes measured -> medians, ratios and verdicts, as one JSON document and as a markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.training_workload import BatchOrder, LoopName, Size
from orchestrator.hardware import HARDWARE

NOT_MEASURED = "not measured yet"
ARMS: dict[str, tuple[LoopName, BatchOrder]] = {
    "ours": ("ours", "sorted"),
    "trainer": ("trainer", "sorted"),
    "trainer_random": ("trainer", "random"),
}
"""What runs in turn. The last is the plain loop with the batches that its own sampler would draw."""
ARM_NAMES = {
    "ours": "ours",
    "trainer": "Trainer, the same batches",
    "trainer_random": "Trainer, the same examples in random batches",
}
GOAL_SIZE, GOAL_MFU, GOAL_RATIO = "8b", 0.50, 1.5
_CARDS = {  # the driver's name for a card -> the data sheet's
    "NVIDIA H100 80GB HBM3": "h100-80g",
    "NVIDIA H200": "h200-141g",
    "NVIDIA A100-SXM4-80GB": "a100-80g",
    "NVIDIA A100-SXM4-40GB": "a100-40g",
    "NVIDIA L40S": "l40s-48g",
    "NVIDIA A10G": "a10g-24g",
    "NVIDIA GeForce RTX 4090": "rtx4090-24g",
}


def datasheet_tflops(device: Mapping[str, Any]) -> float | None:
    """The data sheet's dense bf16 peak; None for a CPU and for a card that `orchestrator.hardware` does not list (a PCIe H100 is another card)."""
    name = _CARDS.get(device["name"])
    return HARDWARE[name].bf16_tflops if name else None


def summarize_size(
    size: Size, runs: Mapping[str, Sequence[Mapping[str, Any]]], device: Mapping[str, Any]
) -> dict[str, Any]:
    """One size's measurements, `runs[arm]` in the order of the repeats, as figures with median, min and max."""
    arms = {name: _summarize_arm(runs[name], device) for name in runs}
    return {
        "size": size.name,
        "dimensions_of": size.of,
        "status": "measured",
        "arms": arms,
        "speedup_over": {name: _ratio(arms["ours"], arms[name]) for name in arms if name != "ours"},
    }


def unmeasured_size(size: Size) -> dict[str, Any]:
    """The row of a size that needs a GPU, on a machine without one."""
    return {"size": size.name, "dimensions_of": size.of, "status": NOT_MEASURED, "arms": {}, "speedup_over": {}}


def judge_goals(sizes: Iterable[Mapping[str, Any]], device: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The goals for one H100: PASS or MISSED where this run measured them on a GPU."""
    measured = next((s for s in sizes if s["size"] == GOAL_SIZE and s["status"] == "measured"), None)
    arms = measured["arms"] if measured and device["device"] == "cuda" else {}
    ratios = measured["speedup_over"] if measured and arms else {}

    def judge(goal: str, target: float, figure: Mapping[str, float] | None) -> dict[str, Any]:
        value = figure["median"] if figure else None
        verdict = NOT_MEASURED if value is None else "PASS" if value >= target else "MISSED"
        return {"goal": goal, "target": target, "value": value, "verdict": verdict}

    return [
        judge(f"{GOAL_SIZE}: MFU of the measured peak", GOAL_MFU, arms.get("ours", {}).get("mfu_measured")),
        *(
            judge(f"{GOAL_SIZE}: tokens/s over those of {ARM_NAMES[name]}", GOAL_RATIO, ratios.get(name))
            for name in ("trainer", "trainer_random")
        ),
    ]


def markdown(document: Mapping[str, Any]) -> str:
    """The document as a table with what was run on what, ratios and verdicts."""
    device, peaks = document["device"], document["peaks"]
    gpu = f"{device['name']}, " if device["device"] == "cuda" else ""
    where = f"{gpu}{document['environment']['cpu']}, {device['threads']} CPU threads, {device['precision']}"
    sheet = f", data sheet {peaks['datasheet_tflops']:g}" if peaks["datasheet_tflops"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in document["environment"]["versions"].items())
    lines = [
        f"`{document['command']}`, {document['date']}, {where}. {versions}.",
        "",
        f"Matrix products: {peaks['measured_tflops']:.4g} TFLOP/s measured{sheet}. "
        f"Loops: median of {document['settings']['repeats']} runs (min to max).",
        "",
        "| model | loop | tokens/s | step, s | MFU of measured peak | of data sheet | peak memory, GiB | padding |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size in document["sizes"]:
        name = f"{size['size']} ({size['dimensions_of']})"
        if size["status"] != "measured":
            lines.append(f"| {name} | on a GPU | {NOT_MEASURED} |  |  |  |  |  |")
        lines += [f"| {name} | {ARM_NAMES[arm]} | {_cells(figures)} |" for arm, figures in size["arms"].items()]
    ratios = [
        f"- {size['size']}: ours / {ARM_NAMES[name]}, in tokens/s: {_range(figure, '.2f')}"
        for size in document["sizes"]
        for name, figure in size["speedup_over"].items()
        if figure
    ]
    goals = [
        f"- {goal['goal']} >= {goal['target']}: {goal['verdict']}"
        + (f" ({goal['value']:.2f})" if goal["value"] else "")
        for goal in document["goals"]
    ]
    return "\n".join([*lines, "", *ratios, "", "Goals on one H100:", "", *goals, ""])


def _summarize_arm(runs: Sequence[Mapping[str, Any]], device: Mapping[str, Any]) -> dict[str, Any]:
    failed = next((run["failed"] for run in runs if "failed" in run), None)
    if failed:
        return {"failed": failed, "repeats": list(runs)}

    def spread(figure: Callable[[Mapping[str, Any]], float]) -> dict[str, float]:
        return _spread([figure(run) for run in runs])

    peak, sheet = device["measured_peak_tflops"] * 1e12, (datasheet_tflops(device) or 0) * 1e12
    return {
        "tokens_per_second": spread(lambda run: run["tokens"] / sum(run["step_seconds"])),
        "step_seconds": spread(lambda run: statistics.median(run["step_seconds"])),
        "mfu_measured": spread(lambda run: run["flops"] / sum(run["step_seconds"]) / peak),
        "mfu_datasheet": spread(lambda run: run["flops"] / sum(run["step_seconds"]) / sheet) if sheet else None,
        "peak_memory_gib": spread(lambda run: run["peak_memory_bytes"] / 2**30),
        "padding_share": 1 - runs[0]["tokens"] / runs[0]["columns"],
        "first_loss": runs[0]["first_loss"],
        "repeats": list(runs),
    }


def _ratio(ours: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float] | None:
    """Speed against another loop, repeat by repeat: the two of a pair ran one after the other. None where one of them failed."""
    if "failed" in ours or "failed" in other:
        return None
    pairs = zip(ours["repeats"], other["repeats"], strict=True)
    return _spread([(a["tokens"] / sum(a["step_seconds"])) / (b["tokens"] / sum(b["step_seconds"])) for a, b in pairs])


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _cells(figures: Mapping[str, Any]) -> str:
    if "failed" in figures:
        return f"{figures['failed']} |  |  |  |  | "
    sheet = figures["mfu_datasheet"]
    return " | ".join(
        [
            _range(figures["tokens_per_second"], ",.0f"),
            _range(figures["step_seconds"], ".3f"),
            f"{figures['mfu_measured']['median']:.1%}",
            f"{sheet['median']:.1%}" if sheet else "",
            f"{figures['peak_memory_gib']['max']:.2f}",
            f"{figures['padding_share']:.1%}",
        ]
    )


def _range(figure: Mapping[str, float], form: str) -> str:
    return f"{figure['median']:{form}} ({figure['min']:{form}} to {figure['max']:{form}})"
