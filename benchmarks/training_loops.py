"""A job -> a measurement: the same random model trained by our loop, or by a plain Hugging Face Trainer.

Both get the same frozen weights, LoRA, speech adapter, encoder states and examples, the same kernels, precision, gradient checkpointing and
AdamW settings, and both collate their batches inside the timed loop. What differs:

ours     `model.train.training_steps` over `model.speech_llm.SpeechLLM` and its DeepSpeed engine: as a trial trains, logits on target columns only
trainer  `transformers.Trainer` over a model that hands its labels to the causal LM, as its documentation shows: logits on every column. PEFT
         and Trainer at their defaults (fused AdamW, one learning rate, a look at the loss on the host in every step, pinned batches); logging
         and saving are off
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.training_models import build_ours, build_plain, prepare_llm, random_llm
from benchmarks.training_workload import (
    ExampleLength,
    Size,
    TrainingJob,
    batches_of,
    draw_lengths,
    examples_needed,
    find_sizes,
    training_flops,
)
from data.batching import Batch, collate
from data.rendering import RenderedExample
from model.configs import Execution, OptimConfig
from orchestrator.workload import ENCODER_WIDTH


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one loop did in its measured steps."""

    step_seconds: list[float]
    tokens: int  # columns that are not padding
    columns: int  # with padding
    flops: float  # useful ones (`benchmarks.training_workload.training_flops`)
    first_loss: float  # of the first step, before any weight changed: shows that two loops train the same model
    peak_memory_bytes: (
        int  # what torch had allocated at most on the GPU; without one, the process's largest resident size
    )
    frozen_parameters: int
    trainable_parameters: int


class StepClock:
    """Marks between steps, without making the host wait for the GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """The end of a step, or of the warm-up."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """The time between each two marks."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return [before.elapsed_time(after) / 1000 for before, after in pairs]
        return [after - before for before, after in pairs]


class JobBatches:
    """The batches of a job, collated when they are asked for: warm-up steps, longest batches first, then the measured ones."""

    def __init__(self, job: TrainingJob, size: Size) -> None:
        count = examples_needed(job.steps, job.batch)
        self._lengths = draw_lengths(count, size.adapter, mean_columns=job.sequence, seed=job.seed)
        self._stack_factor = size.adapter.stack_factor
        self.measured = batches_of(self._lengths, batch=job.batch, steps=job.steps, order=job.order, seed=job.seed)
        longest = sorted(self.measured, key=self._longest, reverse=True)
        self._steps = [longest[step % len(longest)] for step in range(job.warmup)] + self.measured
        rng = np.random.default_rng([job.seed, 4])
        self._examples = [_random_example(length, size.architecture.vocab_size, rng) for length in self._lengths]

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, step: int) -> Batch:
        indices = self._steps[step]
        return collate(
            [(str(index), *self._examples[index]) for index in indices],
            stack_factor=self._stack_factor,
            pad_id=0,
            with_targets=True,
            loss_normalizer=sum(self._lengths[index].target for index in indices),
        )

    @property
    def measured_lengths(self) -> list[ExampleLength]:
        """The examples of all measured steps."""
        return [self._lengths[index] for indices in self.measured for index in indices]

    @property
    def measured_columns(self) -> int:
        """Columns of all measured steps with padding."""
        return sum(len(indices) * self._longest(indices) for indices in self.measured)

    def _longest(self, indices: list[int]) -> int:
        return max(self._lengths[index].columns for index in indices)


def run_job(job: TrainingJob) -> Measurement:
    """Train and measure in this process. Raises torch.OutOfMemoryError when the GPU is too small."""
    (size,) = find_sizes(job.size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = JobBatches(job, size)
    llm = random_llm(size.architecture, precision=job.precision, attention=job.attention, device=device, seed=job.seed)
    frozen = llm.num_parameters()
    prepare_llm(
        llm, liger=job.liger, fused_loss=job.loop == "trainer", gradient_checkpointing=job.gradient_checkpointing
    )
    run = _run_ours if job.loop == "ours" else _run_trainer
    clock = StepClock(device)
    first_loss, trainable = run(job, size, llm, batches, clock)
    return Measurement(
        step_seconds=clock.seconds(),
        tokens=sum(length.columns for length in batches.measured_lengths),
        columns=batches.measured_columns,
        flops=training_flops(size, batches.measured_lengths),
        first_loss=first_loss,
        peak_memory_bytes=_peak_memory(device),
        frozen_parameters=frozen,
        trainable_parameters=trainable,
    )


def _run_ours(job: TrainingJob, size: Size, llm: Any, batches: JobBatches, clock: StepClock) -> tuple[float, int]:
    from model.train import (
        build_engine,
        training_steps,
    )  # here, so that the plain loop's process stays plain: no DeepSpeed

    execution = Execution(use_gpu=torch.cuda.is_available())
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    backend = "nccl" if execution.use_gpu else "gloo"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    optim = OptimConfig(precision=job.precision)
    speech_llm = build_ours(llm, size, precision=job.precision, seed=job.seed)
    trainable = sum(parameter.numel() for parameter in speech_llm.trainable_parameters().values())
    engine = build_engine(speech_llm, optim, execution, batch_size=job.batch)
    first_loss = float("nan")
    _forget_peak_memory()
    for info in training_steps(engine, lambda step: [batches[step]], first_step=0, steps=len(batches), optim=optim):
        if info.step == 1:
            first_loss = info.loss
        if info.step >= job.warmup:
            clock.mark()
    torch.distributed.destroy_process_group()
    return first_loss, trainable


class _ClockCallback(TrainerCallback):
    def __init__(self, clock: StepClock, warmup: int) -> None:
        self._clock, self._warmup = clock, warmup

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Trainer calls it after every optimizer step."""
        if state.global_step >= self._warmup:
            self._clock.mark()


class _BatchDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Whole batches as items, so that Trainer takes exactly these, in this order."""

    def __init__(self, batches: JobBatches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        return {name: value for name, value in vars(self._batches[step]).items() if isinstance(value, torch.Tensor)}


def _run_trainer(job: TrainingJob, size: Size, llm: Any, batches: JobBatches, clock: StepClock) -> tuple[float, int]:
    optim = OptimConfig(precision=job.precision)
    speech_llm = build_plain(llm, size, seed=job.seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=not torch.cuda.is_available(),
            bf16=job.precision == "bf16",
            max_steps=len(batches),
            per_device_train_batch_size=1,  # an item is a whole batch
            train_sampling_strategy="sequential",
            learning_rate=optim.lora_learning_rate,
            adam_beta1=optim.beta1,
            adam_beta2=optim.beta2,
            weight_decay=optim.weight_decay,
            max_grad_norm=optim.max_grad_norm,
            warmup_steps=optim.warmup_fraction,
            lr_scheduler_type="cosine",
            remove_unused_columns=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=job.seed,
        )
        trainer = Trainer(
            model=speech_llm,
            args=arguments,
            train_dataset=_BatchDataset(batches),
            data_collator=lambda items: items[0],
            callbacks=[_ClockCallback(clock, job.warmup)],
        )
        _forget_peak_memory()
        trainer.train()
    assert speech_llm.first_loss is not None
    trainable = sum(parameter.numel() for parameter in speech_llm.parameters() if parameter.requires_grad)
    return float(speech_llm.first_loss), trainable


def _random_example(
    length: ExampleLength, vocabulary: int, rng: np.random.Generator
) -> tuple[RenderedExample, np.ndarray]:
    """Random tokens around the audio, half of the prompt before it, and random encoder states in the cache's fp16."""
    before = length.prompt // 2
    prompt, target = (tuple(rng.integers(1, vocabulary, count).tolist()) for count in (length.prompt, length.target))
    states = rng.standard_normal((length.frames, ENCODER_WIDTH), dtype=np.float32).astype(np.float16)
    return RenderedExample(prefix=prompt[:before], suffix=prompt[before:], target=target), states


def _forget_peak_memory() -> None:
    """Building a model may take more for a moment than training a small one does."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
