"""A trial, how it is meant to run and a GPU type -> `Capacity`: does it fit, how spread, how long does it take, what does it leave on disk.

Pure arithmetic on the model's dimensions: no weights, no torch, no network. Memory is `orchestrator.memory`'s, time `orchestrator.workload`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from data.records import Split
from model.configs import Execution, TrialConfig
from model.foundations import card_of
from orchestrator.hardware import Hardware
from orchestrator.memory import BYTES, GIB, BatchShape, MemoryUse, evaluation_memory, training_memory
from orchestrator.workload import (
    ENCODER_FRAMES_PER_SECOND,
    ENCODER_WIDTH,
    SequenceLengths,
    Workload,
    assumed_lengths,
)

CHECKPOINTS_ON_DISK = 3  # two are kept while the next is written (`model.checkpoints`)
MEMORY_MARGIN = 0.15
"""Share of a GPU left free, for the allocator's fragments and for what the formulas miss: an assumption."""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What a trial needs on one type of GPU. Where `refusal` says why it cannot run, the figures are those of what came closest."""

    workload: Workload
    execution: Execution
    changes: tuple[str, ...]  # what differs from the declared execution
    refusal: str | None
    training: MemoryUse
    evaluation: MemoryUse

    @property
    def peak_bytes(self) -> int:
        """The wider of training and evaluation, on each GPU."""
        return max(self.training.total, self.evaluation.total)

    @property
    def usable_bytes(self) -> int:
        """What a GPU has, less the margin."""
        return _usable(self.workload.hardware)

    @property
    def gpu_hours(self) -> float:
        """Of training and evaluation; loading is not in it."""
        return self.execution.workers * self.workload.seconds(self.execution) / 3600

    @property
    def host_bytes(self) -> int:
        """Main memory of a node that holds all workers: each of them loads the whole foundation before it goes to its GPU."""
        return self.execution.workers * BYTES[self.workload.trial.optim.precision] * self.workload.frozen

    @property
    def checkpoint_bytes(self) -> int:
        """Disk for checkpoints: fp32 weights and two moments of all that trains."""
        return CHECKPOINTS_ON_DISK * 12 * self.workload.trainable

    @property
    def download_bytes(self) -> int:
        """Weights on the hub; 0 for a packaged or local foundation."""
        card = card_of(self.workload.trial.foundation)
        return card.download_bytes if card else 0


def encoder_state_bytes(audio_seconds: float) -> int:
    """Disk that the encoder states of that much audio take: fp16, shared by all trials of a corpus."""
    return round(audio_seconds * ENCODER_FRAMES_PER_SECOND) * ENCODER_WIDTH * 2


def plan_capacity(
    trial: TrialConfig,
    declared: Execution,
    hardware: Hardware,
    *,
    examples: Mapping[Split, int],
    lengths: SequenceLengths | None = None,
    max_gpus: int = 8,
    keep_declared: bool = True,
) -> Capacity:
    """Fit one trial into GPUs of one type. `examples` counts the splits that are evaluated; `lengths` default to `assumed_lengths`.

    The declared execution is kept where it fits (on fewer GPUs where there are not as many). Where it does not (or with `keep_declared=False`), the
    smallest number of GPUs up to `max_gpus` that has a fitting one is taken, and of those the fastest, with the lowest ZeRO stage and the largest
    micro-batch. Evaluation batches are halved until they fit. Raises ValueError when the foundation's dimensions are not known.
    """
    workload = Workload(trial=trial, hardware=hardware, lengths=lengths or assumed_lengths(trial), examples=examples)
    start = replace(declared, workers=min(declared.workers, max_gpus) if keep_declared else 1)
    closest = _with_fitting_evaluation(workload, start)
    if keep_declared and _divides(workload, closest) and _fits(workload, closest):
        return _capacity(workload, closest, declared)
    gpus = start.workers
    while gpus <= max_gpus:
        choices = list(_choices(workload, replace(declared, workers=gpus)))
        if fitting := [choice for choice in choices if _fits(workload, choice)]:
            best = min(fitting, key=lambda x: (workload.seconds(x), x.zero_stage, x.micro_batches))
            return _capacity(workload, best, declared)
        closest = min([*choices, closest], key=lambda choice: _peak(workload, choice))
        gpus *= 2
    return _capacity(workload, closest, declared, _refusal(workload, closest, max_gpus))


def _capacity(workload: Workload, execution: Execution, declared: Execution, refusal: str | None = None) -> Capacity:
    changes = (
        f"{name} {getattr(declared, name)} -> {value}"
        for name, value in vars(execution).items()
        if value != getattr(declared, name)
    )
    return Capacity(
        workload=workload,
        execution=execution,
        changes=tuple(changes),
        refusal=refusal,
        training=_training(workload, execution),
        evaluation=_evaluation(workload, execution),
    )


def _usable(hardware: Hardware) -> int:
    return int(hardware.memory_gib * GIB * (1 - MEMORY_MARGIN))


def _training(workload: Workload, execution: Execution) -> MemoryUse:
    """With a micro-batch of the longest examples: items of like length share a batch."""
    trial, lengths = workload.trial, workload.lengths
    audio, target = workload.audio_columns(lengths.longest_audio_seconds), max(lengths.longest_target.values())
    return training_memory(
        workload.architecture,
        trial.lora,
        trial.adapter,
        execution,
        BatchShape(
            rows=max(1, trial.budget.batch_size // (execution.workers * execution.micro_batches)),
            columns=audio + lengths.longest_prompt + target,
            target_columns=target,
            audio_columns=audio,
        ),
        trainable=workload.trainable,
        encoder_width=ENCODER_WIDTH,
        precision=trial.optim.precision,
    )


def _evaluation(workload: Workload, execution: Execution) -> MemoryUse:
    trial, lengths = workload.trial, workload.lengths
    return evaluation_memory(
        workload.architecture,
        execution,
        trainable=workload.trainable,
        prompt_columns=workload.audio_columns(lengths.longest_audio_seconds) + lengths.longest_prompt,
        new_tokens=max(trial.evaluation.max_new_tokens(mode) for mode in trial.inference_modes),
        precision=trial.optim.precision,
    )


def _peak(workload: Workload, execution: Execution) -> int:
    return max(_training(workload, execution).total, _evaluation(workload, execution).total)


def _fits(workload: Workload, execution: Execution) -> bool:
    return _peak(workload, execution) <= _usable(workload.hardware)


def _divides(workload: Workload, execution: Execution) -> bool:
    """Whether the global batch splits evenly over GPUs and micro-batches."""
    return workload.trial.budget.batch_size % (execution.workers * execution.micro_batches) == 0


def _with_fitting_evaluation(workload: Workload, execution: Execution) -> Execution:
    while execution.evaluation_batch_size > 1 and _evaluation(workload, execution).total > _usable(workload.hardware):
        execution = replace(execution, evaluation_batch_size=execution.evaluation_batch_size // 2)
    return execution


def _choices(workload: Workload, declared: Execution) -> Iterator[Execution]:
    """Every way to run on the declared GPUs that splits the batch evenly. One GPU has nothing to shard."""
    for zero_stage in range(4) if declared.workers > 1 else (0,):
        for gradient_checkpointing in (False, True):
            for micro_batches in range(1, workload.trial.budget.batch_size // declared.workers + 1):
                choice = replace(
                    declared,
                    zero_stage=zero_stage,
                    gradient_checkpointing=gradient_checkpointing,
                    micro_batches=micro_batches,
                )
                if _divides(workload, choice):
                    yield _with_fitting_evaluation(workload, choice)


def _refusal(workload: Workload, execution: Execution, max_gpus: int) -> str:
    """One line: what does not fit into what, and which part is to blame."""
    name, hardware, batch = workload.trial.foundation.name, workload.hardware, workload.trial.budget.batch_size
    if not _divides(workload, execution):
        return (
            f"{name}: budget.batch_size {batch} cannot be split over {execution.workers} GPUs x {execution.micro_batches} "
            "micro-batches; choose a multiple"
        )
    training, evaluation = _training(workload, execution), _evaluation(workload, execution)
    use, phase = (training, "training") if training.total >= evaluation.total else (evaluation, "evaluation")
    gpus = f"{execution.workers} x {hardware.name}" if execution.workers > 1 else f"one {hardware.name}"
    return (
        f"{name} does not fit on {gpus}: {phase} needs {use.total / GIB:.1f} GiB on each GPU, and "
        f"{_usable(hardware) / GIB:.1f} of its {hardware.memory_gib} GiB can be used; the largest part is {use.largest} with "
        f"{use.parts[use.largest] / GIB:.1f} GiB; every ZeRO stage, gradient checkpointing and micro-batch on up to {max_gpus} "
        f"GPU{'s' * (max_gpus > 1)} was tried; use a GPU type with more memory, more GPUs, or a smaller foundation"
    )
