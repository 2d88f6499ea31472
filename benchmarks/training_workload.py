"""A size's name -> its model's dimensions, examples of realistic lengths in their batches, and the useful FLOPs of training on them.

Lengths follow what the plan assumes for the paper scale (`orchestrator.workload.assumed_lengths`) in hybrid supervision, where every second
target thinks. Everything drawn depends on the seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data.batching import WINDOW, audio_token_count, batch_indices
from data.records import INFERENCE_MODES
from model.architectures import Architecture, adapter_parameters, lora_parameters
from model.configs import AdapterConfig, Attention, LoRAConfig, Precision
from model.foundations import CARDS, FOUNDATIONS
from orchestrator.scales import PAPER
from orchestrator.workload import ENCODER_FRAMES_PER_SECOND, ENCODER_WIDTH, assumed_lengths

SPREAD = 0.4
"""Standard deviation of the logarithm of every length: an assumption; the means and the longest are the plan's."""

BatchOrder = Literal["sorted", "random"]
LoopName = Literal["ours", "trainer"]


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One loop to run in a process of its own."""

    size: str
    loop: LoopName
    order: BatchOrder
    precision: Precision
    batch: int
    steps: int  # measured ones
    warmup: int  # before them; at least 1
    sequence: int | None
    gradient_checkpointing: bool
    attention: Attention
    liger: bool
    seed: int


@dataclass(frozen=True, kw_only=True)
class Size:
    """One model to measure: dimensions of a published one, its weights random."""

    name: str
    of: str  # whose dimensions
    architecture: Architecture
    batch: int  # examples per optimizer step
    adapter: AdapterConfig
    lora: LoRAConfig


def _published(name: str, foundation: str, batch: int) -> Size:
    return Size(
        name=name,
        of=foundation,
        architecture=CARDS[foundation].architecture,
        batch=batch,
        adapter=PAPER.adapter,
        lora=PAPER.lora,
    )


_TINY = Architecture(
    model_type="qwen3",
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=176,
    vocab_size=2048,
    tie_word_embeddings=True,
)
# batches that a plain loop, which keeps the logits of every column, can hold on an 80 GB card without gradient checkpointing
GPU_SIZES: dict[str, Size] = {
    size.name: size
    for size in (
        _published("0.6b", "qwen3-0.6b", 16),
        _published("4b", "qwen3-4b", 8),
        _published("8b", "llama-3.1-8b", 8),
    )
}
CPU_SIZES: dict[str, Size] = {
    "tiny": Size(
        name="tiny",
        of="no published model",
        architecture=_TINY,
        batch=4,
        adapter=AdapterConfig(hidden_width=64),
        lora=LoRAConfig(r=8, alpha=32),
    )
}


def find_sizes(names: str) -> list[Size]:
    """Sizes from "0.6b,8b". Raises ValueError that lists the known ones."""
    known = CPU_SIZES | GPU_SIZES
    chosen = [name.strip().lower() for name in names.split(",") if name.strip()]
    if not chosen or set(chosen) - set(known):
        unknown = ", ".join(repr(name) for name in chosen if name not in known) or "nothing"
        raise ValueError(f"--sizes: {unknown} is not a list of {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(chosen)]


@dataclass(frozen=True)
class ExampleLength:
    """How long one example is."""

    frames: int  # encoder states
    audio: int  # columns that their embeddings take
    prompt: int
    target: int

    @property
    def columns(self) -> int:
        """Columns that are not padding."""
        return self.audio + self.prompt + self.target


def draw_lengths(count: int, adapter: AdapterConfig, *, mean_columns: int | None, seed: int) -> list[ExampleLength]:
    """`count` examples. `mean_columns` scales every part, so that an example of mean parts has so many columns."""
    trial = PAPER.trial(foundation=FOUNDATIONS["llama-3.1-8b"], mode="hybrid", seed=0)
    lengths, modes = assumed_lengths(trial), INFERENCE_MODES["hybrid"]
    audio = audio_token_count(round(lengths.audio_seconds * ENCODER_FRAMES_PER_SECOND), adapter.stack_factor)
    mean = audio + lengths.prompt + sum(lengths.target[mode] for mode in modes) / len(modes)
    scale = mean_columns / mean if mean_columns else 1.0
    factors = np.random.default_rng([seed, 2]).lognormal(-(SPREAD**2) / 2, SPREAD, size=(count, 3))  # of mean 1

    def part(mean: float, longest: float, factor: float) -> int:
        return max(1, round(scale * min(mean * factor, longest)))

    drawn = []
    for index, (heard, asked, answered) in enumerate(factors):
        mode = modes[index % len(modes)]
        seconds = min(lengths.audio_seconds * heard, lengths.longest_audio_seconds)
        frames = max(1, round(scale * seconds * ENCODER_FRAMES_PER_SECOND))
        drawn.append(
            ExampleLength(
                frames=frames,
                audio=audio_token_count(frames, adapter.stack_factor),
                prompt=part(lengths.prompt, lengths.longest_prompt, asked),
                target=part(lengths.target[mode], lengths.longest_target[mode], answered),
            )
        )
    return drawn


def batches_of(
    lengths: Sequence[ExampleLength], *, batch: int, steps: int, order: BatchOrder, seed: int
) -> list[list[int]]:
    """The examples of each of `steps` measured batches: both orders hold the same ones.

    "sorted" is how our trials train (`data.batching.batch_indices`: like lengths share a batch), "random" how a plain sampler draws.
    """
    grouped = [
        [
            index
            for _, index in batch_indices(
                items=len(lengths),
                length_of=lambda pair: lengths[pair[1]].columns,
                batch_size=batch,
                seed=seed,
                step=step,
            )
        ]
        for step in range(steps)
    ]
    if order == "sorted":
        return grouped
    shuffled = np.random.default_rng([seed, 3]).permutation([index for group in grouped for index in group]).tolist()
    return [shuffled[start : start + batch] for start in range(0, len(shuffled), batch)]


def examples_needed(steps: int, batch: int) -> int:
    """So many that no measured step repeats an example: whole windows of batches."""
    return -(-steps // WINDOW) * WINDOW * batch


def training_flops(size: Size, lengths: Sequence[ExampleLength]) -> float:
    """Useful FLOPs of one training pass over these examples. Padding, recomputation and an optimizer step count as nothing.

    Of an example with L columns, T of them targets and S audio embeddings:

    frozen blocks    4 N L      2 N a column forward and 2 N backward to what enters (N weights of all linear layers; they get no gradient)
    LoRA             6 n L      forward, backward to what enters, backward to its own n weights
    attention        6 A L (L + 1) per block: column i sees i columns, scores and weighted sum cost 4 A i forward (A: all query heads side by side)
                                and twice that backward
    head             4 D V T    forward and backward on target columns only, the only ones that have a loss
    speech adapter   6 m S      all its m weights train, and the first of them, the input's scale, needs the gradient of all above

    A loop that computes logits for every column does more than this; what it does in vain is not credited to it.
    """
    a = size.architecture
    blocks = a.num_hidden_layers * sum(width_in * width_out for width_in, width_out in a.linear_shapes.values())
    lora = lora_parameters(a, size.lora)
    adapter = adapter_parameters(size.adapter, encoder_width=ENCODER_WIDTH, hidden_size=a.hidden_size)
    columns = sum(example.columns for example in lengths)
    pairs = sum(example.columns * (example.columns + 1) for example in lengths)
    targets, audio = sum(example.target for example in lengths), sum(example.audio for example in lengths)
    return float(
        (4 * blocks + 6 * lora) * columns
        + 6 * a.query_width * a.num_hidden_layers * pairs
        + 4 * a.hidden_size * a.vocab_size * targets
        + 6 * adapter * audio
    )
