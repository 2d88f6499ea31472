"""A trial, how it is meant to run and a GPU type -> `Capacity`: does it fit, how spread, how long does it take, what does it leave on disk.

Pure arithmetic on the model's dimensions: no weights, no torch, no network. Memory is `orchestrator.memory`'s, time `orchestrator.workload`'s.

Small trials may share a GPU. Where a model is so small that launching its kernels takes longer than their arithmetic, the GPU idles in between, and
another trial's kernels fit in there; `orchestrator.workload` says with which assumption.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from data.records import Split
from model.configs import Execution, TrialConfig
from model.foundations import card_of
from orchestrator.hardware import Hardware
from orchestrator.memory import BYTES, GIB, BatchShape, MemoryUse, evaluation_memory, training_memory
from orchestrator.workload import (
    ENCODER_WIDTH,
    SequenceLengths,
    Workload,
    assumed_lengths,
)

CHECKPOINTS_ON_DISK = 3  # two are kept while the next is written (`model.checkpoints`)
MEMORY_MARGIN = 0.15
"""Share of a GPU left free, for the allocator's fragments and for what the formulas miss: an assumption."""
GPUS = 8
"""GPUs that a plan spreads trials over: a node's, where it is not told."""
MOST_TRIALS_PER_GPU = 8
"""Beyond that the plan's simple picture of sharing (`Workload.step_seconds`) is not to be trusted: an assumption."""
SHARING_GAIN = 0.25
"""Twice as many trials share a GPU only where that saves at least this part of the GPU-hours."""


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
        """Of training and evaluation; a shared GPU's hours are split among its trials. Loading is not in it, nor is the alignment."""
        return _gpu_hours(self.workload, self.execution)

    @property
    def alignment_gpu_hours(self) -> float:
        """Of the alignment stage, which all trials of the foundation and seed share; 0 without one."""
        return _gpu_hours(self.workload.alignment, self.execution) if self.workload.alignment else 0.0

    @property
    def host_bytes(self) -> int:
        """Main memory of a node that holds all workers, while they load.

        Published weights are bf16. A trial in bf16 maps their files: all workers read one copy, which the kernel drops when it needs the space.
        In fp32 each worker makes its own. Each takes the embeddings' root mean square from one or two fp32 copies.
        """
        precision, workers, a = self.workload.trial.optim.precision, self.execution.workers, self.workload.architecture
        weights = BYTES[precision] * self.workload.frozen * (1 if precision == "bf16" else workers)
        return weights + workers * (8 if precision == "bf16" else 4) * a.vocab_size * a.hidden_size

    @property
    def checkpoint_bytes(self) -> int:
        """Disk for checkpoints: fp32 weights and two moments of all that trains."""
        return CHECKPOINTS_ON_DISK * 12 * self.workload.trainable

    @property
    def download_bytes(self) -> int:
        """Weights on the hub; 0 for a packaged or local foundation."""
        card = card_of(self.workload.trial.foundation)
        return card.download_bytes if card else 0


def plan_capacity(
    trial: TrialConfig,
    declared: Execution,
    hardware: Hardware,
    *,
    examples: Mapping[Split, int],
    lengths: SequenceLengths | None = None,
    max_gpus: int = GPUS,
    keep_declared: bool = True,
    waiting: int = 1,
) -> Capacity:
    """Fit one trial into GPUs of one type. `examples` counts the splits that are evaluated; `lengths` default to `assumed_lengths`.

    The declared execution is kept where it fits (on fewer GPUs where there are not as many). Where it does not (or with `keep_declared=False`), the
    smallest number of GPUs up to `max_gpus` that has a fitting one is taken, and of those the fastest, with the lowest ZeRO stage and the largest
    micro-batch. Evaluation batches are halved until they fit. `waiting` trials, this one with them, are to run on the GPUs that are there, `max_gpus`
    where nobody has looked: if they are more, and it pays, several share a GPU. Raises ValueError when the foundation's dimensions are not known.
    """
    workload = Workload(trial=trial, hardware=hardware, lengths=lengths or assumed_lengths(trial), examples=examples)
    start = replace(declared, workers=min(declared.workers, max_gpus) if keep_declared else 1)
    there = hardware.count or max_gpus
    closest = _with_fitting_evaluation(workload, start)
    if keep_declared and _divides(workload, closest) and _fits(workload, closest):
        return _capacity(workload, _shared(workload, closest, waiting, there), declared)
    gpus = start.workers
    while gpus <= max_gpus:
        choices = list(_choices(workload, replace(declared, workers=gpus, trials_per_gpu=1)))
        if fitting := [choice for choice in choices if _fits(workload, choice)]:
            best = min(fitting, key=lambda x: (workload.seconds(x), x.zero_stage, x.micro_batches))
            return _capacity(workload, _shared(workload, best, waiting, there), declared)
        closest = min([*choices, closest], key=lambda choice: _peak(workload, choice))
        gpus *= 2
    return _capacity(workload, closest, declared, _refusal(workload, closest, max_gpus))


def plan_capacities(
    trials: Sequence[TrialConfig],
    declared: Execution,
    hardware: Hardware,
    *,
    examples: Mapping[Split, int],
    max_gpus: int = GPUS,
) -> dict[TrialConfig, Capacity]:
    """`plan_capacity` of all trials that are to run. Seeds need the same, so they are computed once."""
    known: dict[TrialConfig, Capacity] = {}
    capacities = {}
    for trial in trials:
        seedless = replace(trial, seed=0)
        if seedless not in known:
            known[seedless] = plan_capacity(
                seedless, declared, hardware, examples=examples, max_gpus=max_gpus, waiting=len(trials)
            )
        found = known[seedless]
        capacities[trial] = replace(found, workload=replace(found.workload, trial=trial))
    return capacities


def alignment_gpu_hours(capacities: Mapping[str, Capacity]) -> dict[str, float]:
    """GPU-hours of every alignment stage, once per foundation and seed, by its name ("qwen3-4b.seed0"). Trials that do not fit have none."""
    hours = {}
    for capacity in capacities.values():
        trial = capacity.workload.trial
        if trial.alignment and not capacity.refusal:
            hours[f"{trial.foundation.name}.seed{trial.seed}"] = capacity.alignment_gpu_hours
    return hours


def spread(execution: Execution, *, waiting: int, gpus: int) -> Execution:
    """No more trials to a GPU than it takes to fill all of them: while there are few, each has more of a GPU."""
    sharing = execution.trials_per_gpu
    while sharing > 1 and sharing * gpus > waiting:
        sharing //= 2
    return replace(execution, trials_per_gpu=sharing)


def _shared(workload: Workload, execution: Execution, waiting: int, gpus: int) -> Execution:
    """As many trials to a GPU as fit, fill all GPUs and save GPU-hours, in powers of two. More than one where so many are declared."""
    while execution.workers == 1 and execution.use_gpu and 2 * execution.trials_per_gpu <= MOST_TRIALS_PER_GPU:
        twice = replace(execution, trials_per_gpu=2 * execution.trials_per_gpu)
        saved = 1 - _gpu_hours(workload, twice) / _gpu_hours(workload, execution)
        if not _fits(workload, twice) or saved < SHARING_GAIN or spread(twice, waiting=waiting, gpus=gpus) != twice:
            break
        execution = twice
    return execution


def _gpu_hours(workload: Workload, execution: Execution) -> float:
    return execution.workers * workload.seconds(execution) / 3600 / execution.trials_per_gpu


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


def _share(workload: Workload, execution: Execution) -> float:
    """Bytes of a GPU that one of the trials on it can use."""
    return _usable(workload.hardware) / execution.trials_per_gpu


def _training(workload: Workload, execution: Execution) -> MemoryUse:
    """With a micro-batch of the longest examples: items of like length share a batch. Of trial and alignment the wider."""
    stages = [stage for stage in (workload, workload.alignment) if stage]
    return max((_stage_training(stage, execution) for stage in stages), key=lambda use: use.total)


def _stage_training(workload: Workload, execution: Execution) -> MemoryUse:
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
    return _peak(workload, execution) <= _share(workload, execution)


def _divides(workload: Workload, execution: Execution) -> bool:
    """Whether the global batch, and the alignment's, splits evenly over GPUs and micro-batches."""
    return not _indivisible(workload, execution)


def _indivisible(workload: Workload, execution: Execution) -> list[str]:
    """The batch sizes that do not, each with its field."""
    stages = {"budget": workload.trial.budget}
    if workload.trial.alignment:
        stages["alignment.budget"] = workload.trial.alignment.budget
    parts = execution.workers * execution.micro_batches
    return [f"{field}.batch_size {b.batch_size}" for field, b in stages.items() if b.batch_size % parts]


def _with_fitting_evaluation(workload: Workload, execution: Execution) -> Execution:
    while execution.evaluation_batch_size > 1 and _evaluation(workload, execution).total > _share(workload, execution):
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
    name, hardware = workload.trial.foundation.name, workload.hardware
    if indivisible := _indivisible(workload, execution):
        return (
            f"{name}: {indivisible[0]} cannot be split over {execution.workers} GPUs x {execution.micro_batches} "
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
