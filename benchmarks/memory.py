"""Measured against planned memory of a training step: `python benchmarks/memory.py [FOUNDATION] [--precision bf16]`.

Builds the foundation's architecture with random weights (nothing is downloaded) in a process of its own for each case, trains on batches of several
sizes, and prints what the step took beside what `orchestrator.memory` says, part by part. On a GPU the peak is CUDA's; elsewhere it is the resident
set of the process (Linux), less what its libraries took before the model was built; there the plan in bf16 has a part that a GPU's has not, the
copies of the head (`orchestrator.memory`).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model.architectures import Architecture, adapter_parameters, lora_parameters
from model.configs import AdapterConfig, Execution, Foundation, LoRAConfig, Precision
from model.foundations import FOUNDATIONS, architecture_of
from orchestrator.memory import BatchShape, MemoryUse, training_memory

MIB = 2**20
WIDTH, LORA, ADAPTER = 512, LoRAConfig(), AdapterConfig(hidden_width=512)
SHAPES = tuple(
    BatchShape(rows=rows, columns=columns, target_columns=target, audio_columns=16)
    for rows, columns, target in ((1, 128, 16), (1, 384, 16), (2, 384, 16), (1, 384, 128))
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One process: an architecture, how it trains, and the batches whose peaks are taken."""

    architecture: Architecture
    precision: Precision
    gradient_checkpointing: bool
    shapes: tuple[BatchShape, ...] = SHAPES


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Bytes beyond the libraries'."""

    resident: int  # between two steps
    peaks: tuple[int, ...]  # of each shape's step


def planned(case: Case, shape: BatchShape) -> MemoryUse:
    """What the planner says of one worker without ZeRO, on this machine."""
    hidden = case.architecture.hidden_size
    return training_memory(
        case.architecture,
        LORA,
        ADAPTER,
        Execution(gradient_checkpointing=case.gradient_checkpointing, use_gpu=_device() == "cuda"),
        shape,
        trainable=lora_parameters(case.architecture, LORA)
        + adapter_parameters(ADAPTER, encoder_width=WIDTH, hidden_size=hidden),
        encoder_width=WIDTH,
        precision=case.precision,
        context=0,
    )


def measure(case: Case) -> Measured:
    """Run the case in a fresh process, whose allocator gives memory back to the system at once."""
    command = [sys.executable, __file__, "--worker", json.dumps(asdict(case))]
    settings = {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings})
    if done.returncode:
        raise RuntimeError(f"the measuring process failed: {done.stderr[-2000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return Measured(resident=answer["resident"], peaks=tuple(answer["peaks"]))


def _worker(case: Case) -> Measured:
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _steps(replace(case.architecture, num_hidden_layers=1, vocab_size=256), case, Path(folder) / "warm-up")
        gc.collect()
        before = _memory()
        return _steps(case.architecture, case, Path(folder) / "model", before)


def _steps(architecture: Architecture, case: Case, folder: Path, before: int = 0) -> Measured:
    """Save random weights, load them as a trial does, and train: two micro-batches a step, so that gradients are held at the peak."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from model.speech_llm import DTYPES, build_speech_llm

    config = AutoConfig.for_model(**asdict(architecture))
    AutoModelForCausalLM.from_config(config, dtype=DTYPES[case.precision]).save_pretrained(folder)
    gc.collect()
    model = build_speech_llm(
        Foundation(name="random", kind="base", source=str(folder), revision="", family="random", parameters=0),
        state_mean=torch.zeros(WIDTH),
        state_std=torch.ones(WIDTH),
        adapter=ADAPTER,
        lora=LORA,
        precision=case.precision,
        seed=0,
        execution=Execution(gradient_checkpointing=case.gradient_checkpointing),
    ).to(_device())
    model.train()
    optimizer = torch.optim.AdamW(model.trainable_parameters().values())

    def peak(shape: BatchShape) -> int:
        batches = [_batch(shape), _batch(shape)]
        _reset_peak()
        for batch in batches:
            model(batch.to(torch.device(_device()))).backward()
        optimizer.step()
        optimizer.zero_grad()
        return _memory(peak=True) - before

    peak(BatchShape(rows=1, columns=32, target_columns=4, audio_columns=4))  # AdamW makes its moments
    gc.collect()
    resident = _memory() - before
    return Measured(resident=resident, peaks=tuple(peak(shape) for shape in case.shapes))


def _batch(shape: BatchShape) -> Any:
    import torch

    from data.batching import IGNORE, Batch

    size = (shape.rows, shape.columns)
    labels = torch.full(size, IGNORE)
    rows, stacks = torch.arange(shape.rows)[:, None], torch.arange(shape.audio_columns)
    labels[:, -shape.target_columns :] = 7
    attention = torch.ones(size, dtype=torch.int64)
    attention[0, :2] = 0  # some padding: without any, the mask is left out
    return Batch(
        example_ids=("random",) * shape.rows,
        input_ids=torch.randint(0, 256, size),
        attention_mask=attention,
        audio_places=(rows * shape.columns + 4 + stacks).flatten(),
        labels=labels,
        states=torch.randn(shape.rows, shape.audio_columns * ADAPTER.stack_factor, WIDTH),
        state_frames=torch.full((shape.rows,), shape.audio_columns * ADAPTER.stack_factor),
        stack_places=(rows * shape.audio_columns + stacks).flatten(),
        target_columns=shape.target_columns,
        loss_normalizer=float(shape.rows * shape.target_columns),
    )


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _reset_peak() -> None:
    import torch

    if _device() == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _memory(*, peak: bool = False) -> int:
    import torch

    if _device() == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(status["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Measure with and without gradient checkpointing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("foundation", nargs="?", default="smollm2-135m", choices=[*FOUNDATIONS])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        fields = json.loads(arguments.worker)
        fields["architecture"] = Architecture(**fields["architecture"])
        fields["shapes"] = tuple(BatchShape(**shape) for shape in fields["shapes"])
        _say(json.dumps(asdict(_worker(Case(**fields)))))
        return
    architecture = architecture_of(FOUNDATIONS[arguments.foundation])
    _say(f"{arguments.foundation}, {arguments.precision}: MiB measured / planned")
    for checkpointing in (False, True):
        case = Case(architecture=architecture, precision=arguments.precision, gradient_checkpointing=checkpointing)
        measured = measure(case)
        for shape, peak in zip(case.shapes, measured.peaks, strict=True):
            use = planned(case, shape)
            step = use.parts["gradients"] + use.parts["activations"] + use.parts["logits"]
            _say(
                f"checkpointing {'on ' if checkpointing else 'off'} {shape.rows} x {shape.columns}, {shape.target_columns} targets: "
                f"peak {peak / MIB:.0f} / {use.total / MIB:.0f} ({use.total / peak - 1:+.1%}), resident {measured.resident / MIB:.0f} / "
                f"{(use.total - step) / MIB:.0f}, step {(peak - measured.resident) / MIB:.0f} / {step / MIB:.0f}"
            )


if __name__ == "__main__":
    main()
