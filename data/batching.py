"""Rendered examples + encoder states -> Batch, in an order that is a pure function of (seed, step, rank, world).

Everything is padded on the left, in training as in generation, so that all targets end in the last column: a causal LM then has to
compute logits for the last `target_columns` columns only, whatever its architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data.rendering import RenderedExample

IGNORE = -100
"""The label of a position without loss (what torch's cross-entropy ignores)."""
WINDOW = 16
"""Batches that are cut from one sorted stretch of items."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A padded batch. B examples, L columns, A audio embeddings in all, F frames of width W."""

    example_ids: tuple[str, ...]
    input_ids: torch.Tensor  # [B, L] int64; the pad id at padding and at audio positions
    attention_mask: torch.Tensor  # [B, L] int64
    audio_places: (
        torch.Tensor
    )  # [A] int64: where the embeddings go among the B x L columns, row by row in the order of `states`
    labels: torch.Tensor  # [B, L] int64, IGNORE outside the targets
    states: torch.Tensor  # [B, F, W] encoder states, zero past each example's frames
    state_frames: torch.Tensor  # [B] int64
    stack_places: torch.Tensor  # [A] int64: which of the B x `audio_token_count(F)` stacks of frames hold an example's
    target_columns: int  # the last columns that can hold a target; 0 in generation
    loss_normalizer: float  # target tokens that one micro-batch's summed loss is divided by

    def to(self, device: torch.device) -> Batch:
        """The same batch where it is computed with. What lies in pinned memory is copied to a GPU while the host goes on."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in pinned (page-locked) memory of the host. Needs CUDA."""
        return self._with(torch.Tensor.pin_memory)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed = {name: change(value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return Batch(**{**vars(self), **changed})


def audio_token_count(frames: int, stack_factor: int) -> int:
    """How many embeddings the speech adapter makes of `frames` encoder frames: every `stack_factor` frames, a last part included.

    The one place that knows: batching reserves this many columns, `model.adapter` fills exactly as many.
    """
    return -(-frames // stack_factor)


def collate(
    items: Sequence[tuple[str, RenderedExample, np.ndarray]],
    *,
    stack_factor: int,
    pad_id: int,
    with_targets: bool,
    loss_normalizer: float = 1.0,
) -> Batch:
    """Pad items (example id, rendered ids, encoder states [frames, width]) on the left into one batch."""
    rows = []
    for _, rendered, states in items:
        audio = audio_token_count(len(states), stack_factor)
        rows.append((rendered.prefix, audio, rendered.suffix, rendered.target if with_targets else ()))
    lengths = [len(prefix) + audio + len(suffix) + len(target) for prefix, audio, suffix, target in rows]
    size = (len(rows), max(lengths))
    input_ids = np.full(size, pad_id, dtype=np.int64)
    attention = np.zeros(size, dtype=np.int64)
    audio_mask = np.zeros(size, dtype=bool)
    labels = np.full(size, IGNORE, dtype=np.int64)
    for row, (prefix, audio, suffix, target) in enumerate(rows):
        at = size[1] - lengths[row]
        attention[row, at:] = 1
        input_ids[row, at : at + len(prefix)] = prefix
        at += len(prefix)
        audio_mask[row, at : at + audio] = True
        at += audio
        input_ids[row, at : at + len(suffix)] = suffix
        at += len(suffix)
        input_ids[row, at:] = target
        labels[row, at:] = target
    frames = [len(states) for _, _, states in items]
    stacks = np.array([audio for _, audio, *_ in rows])
    stacked = np.zeros((len(items), max(frames), items[0][2].shape[1]), dtype=items[0][2].dtype)
    for row, (_, _, states) in enumerate(items):
        stacked[row, : len(states)] = states
    return Batch(
        example_ids=tuple(example_id for example_id, _, _ in items),
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention),
        audio_places=torch.from_numpy(np.flatnonzero(audio_mask)),
        labels=torch.from_numpy(labels),
        states=torch.from_numpy(stacked),
        state_frames=torch.tensor(frames),
        stack_places=torch.from_numpy(np.flatnonzero(np.arange(stacks.max())[None, :] < stacks[:, None])),
        target_columns=max((len(target) for *_, target in rows), default=0),
        loss_normalizer=loss_normalizer,
    )


def batch_indices(
    *, items: int, length_of: Callable[[tuple[int, int]], int], batch_size: int, seed: int, step: int
) -> list[tuple[int, int]]:
    """The global batch of one optimizer step (0-based) as (epoch, item index) pairs; `length_of` gives a pair's length.

    Epoch after epoch is a seeded permutation of the items, laid end to end and cut into windows of `WINDOW` batches. Within a window, items of
    like length share a batch (less padding) and the batches are shuffled. Any step can be computed alone, so resuming and changing the
    number of workers keep the sample order.
    """
    window, place = divmod(step, WINDOW)
    pairs = _window_pairs(items, start=window * WINDOW * batch_size, count=WINDOW * batch_size, seed=seed)
    pairs.sort(key=lambda pair: (length_of(pair), pair))
    batch = int(np.random.default_rng([seed, 1, window]).permutation(WINDOW)[place])
    return pairs[batch * batch_size : (batch + 1) * batch_size]


def _window_pairs(items: int, *, start: int, count: int, seed: int) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    while len(pairs) < count:
        epoch, offset = divmod(start + len(pairs), items)
        order = np.random.default_rng([seed, 0, epoch]).permutation(items)
        pairs += [(epoch, int(index)) for index in order[offset : offset + count - len(pairs)]]
    return pairs


def rank_share(
    pairs: Sequence[tuple[int, int]], *, rank: int, world: int, micro_batches: int
) -> list[Sequence[tuple[int, int]]]:
    """One worker's micro-batches of a global batch. Raises ValueError when the batch cannot be split evenly."""
    if len(pairs) % (world * micro_batches):
        raise ValueError(
            f"budget.batch_size: {len(pairs)} examples cannot be split over {world} workers x {micro_batches} micro-batches; choose a multiple"
        )
    mine = pairs[rank::world]
    size = len(mine) // micro_batches
    return [mine[start : start + size] for start in range(0, len(mine), size)]
