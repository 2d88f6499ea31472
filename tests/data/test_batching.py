"""Sample order and padding: what resume, several workers and the splice of audio into text rest on."""

import numpy as np
import pytest
import torch

from data.batching import IGNORE, WINDOW, audio_token_count, batch_indices, collate, rank_share
from data.rendering import RenderedExample


def _item(name: str, prefix: int, frames: int, suffix: int, target: int) -> tuple[str, RenderedExample, np.ndarray]:
    rendered = RenderedExample(
        prefix=tuple(range(10, 10 + prefix)), suffix=tuple(range(30, 30 + suffix)), target=tuple(range(50, 50 + target))
    )
    return name, rendered, np.full((frames, 4), frames, dtype=np.float16)


LENGTHS = [int(n) for n in np.random.default_rng(0).integers(5, 60, size=48)]


def _batch(step: int, *, seed: int = 3, batch_size: int = 6, lengths: list[int] = LENGTHS) -> list[tuple[int, int]]:
    return batch_indices(
        items=len(lengths), length_of=lambda pair: lengths[pair[1]], batch_size=batch_size, seed=seed, step=step
    )


def _batches(steps: int, seed: int = 3) -> list[list[tuple[int, int]]]:
    return [_batch(step, seed=seed) for step in range(steps)]


def test_every_epoch_visits_every_item_once() -> None:
    pairs = [pair for batch in _batches(2 * WINDOW) for pair in batch]  # 192 places: 4 epochs of 48
    for epoch in range(4):
        assert sorted(index for e, index in pairs if e == epoch) == list(range(len(LENGTHS)))


def test_a_step_can_be_computed_alone_and_depends_on_the_seed() -> None:
    assert _batch(29) == _batches(30)[29]
    assert _batches(8) != _batches(8, seed=4)
    assert len(_batch(0, batch_size=8, lengths=[3, 4, 5])) == 8


def test_a_batch_holds_items_of_like_length() -> None:
    spreads = [np.ptp([LENGTHS[index] for _, index in batch]) for batch in _batches(WINDOW)]
    assert np.mean(spreads) < 0.3 * np.ptp(LENGTHS)
    assert [min(LENGTHS[i] for _, i in batch) for batch in _batches(4)] != sorted(
        min(LENGTHS[i] for _, i in b) for b in _batches(4)
    )


@pytest.mark.parametrize(("world", "micro_batches"), [(1, 1), (2, 1), (1, 4), (2, 2), (4, 2)])
def test_workers_and_micro_batches_share_a_batch_without_loss(world: int, micro_batches: int) -> None:
    pairs = _batch(7, batch_size=16)
    shares = [rank_share(pairs, rank=rank, world=world, micro_batches=micro_batches) for rank in range(world)]
    assert all(len(share) == micro_batches for share in shares)
    assert sorted(pair for share in shares for micro in share for pair in micro) == sorted(pairs)


def test_a_batch_that_cannot_be_split_names_the_field() -> None:
    with pytest.raises(ValueError, match=r"budget.batch_size: 10 .* 4 workers"):
        rank_share([(0, i) for i in range(10)], rank=0, world=4, micro_batches=1)


def test_padding_stands_on_the_left_and_targets_end_in_the_last_column() -> None:
    batch = collate([_item("a", 2, 9, 3, 4), _item("b", 1, 8, 1, 2)], stack_factor=8, pad_id=0, with_targets=True)
    assert batch.input_ids.tolist() == [
        [10, 11, 0, 0, 30, 31, 32, 50, 51, 52, 53],
        [0, 0, 0, 0, 0, 0, 10, 0, 30, 50, 51],
    ]
    assert [audio_token_count(9, 8), audio_token_count(8, 8)] == [2, 1]
    assert batch.audio_places.tolist() == [
        2,
        3,
        11 + 7,
    ]  # of 2 x 11 columns: where the pads between prefix and suffix stand
    assert batch.stack_places.tolist() == [0, 1, 2]  # of 2 x 2 stacks: the second example's second one is padding
    assert batch.attention_mask.sum(dim=1).tolist() == [11, 5]
    assert batch.labels[1].tolist() == [IGNORE] * 9 + [50, 51]
    assert batch.target_columns == 4
    assert batch.states.shape == (2, 9, 4)
    assert torch.all(batch.states[1, 8:] == 0)


def test_generation_batches_hold_no_answer() -> None:
    batch = collate([_item("a", 2, 9, 3, 4)], stack_factor=8, pad_id=0, with_targets=False)
    assert batch.input_ids.tolist() == [[10, 11, 0, 0, 30, 31, 32]]
    assert torch.all(batch.labels == IGNORE)
