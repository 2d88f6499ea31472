"""Sample order and padding: what resume, several workers and the splice of audio into text rest on."""

import numpy as np
import pytest
import torch

from data.batching import IGNORE, audio_token_count, batch_indices, collate, rank_share
from data.rendering import RenderedExample


def _item(name: str, prefix: int, frames: int, suffix: int, target: int) -> tuple[str, RenderedExample, np.ndarray]:
    rendered = RenderedExample(
        prefix=tuple(range(10, 10 + prefix)), suffix=tuple(range(30, 30 + suffix)), target=tuple(range(50, 50 + target))
    )
    return name, rendered, np.full((frames, 4), frames, dtype=np.float16)


def test_every_epoch_visits_every_item_once_whatever_the_batch_size() -> None:
    items, batch_size = 23, 5
    pairs = [
        pair for step in range(23) for pair in batch_indices(items=items, batch_size=batch_size, seed=3, step=step)
    ]
    for epoch in range(5):
        assert sorted(index for e, index in pairs if e == epoch) == list(range(items))
    orders = [[index for e, index in pairs if e == epoch] for epoch in range(2)]
    assert orders[0] != orders[1]


def test_a_step_can_be_computed_alone() -> None:
    assert batch_indices(items=50, batch_size=8, seed=1, step=40) == batch_indices(
        items=50, batch_size=8, seed=1, step=40
    )
    assert batch_indices(items=50, batch_size=8, seed=1, step=40) != batch_indices(
        items=50, batch_size=8, seed=2, step=40
    )
    assert len(batch_indices(items=3, batch_size=8, seed=1, step=0)) == 8


@pytest.mark.parametrize(("world", "micro_batches"), [(1, 1), (2, 1), (1, 4), (2, 2), (4, 2)])
def test_workers_and_micro_batches_share_a_batch_without_loss(world: int, micro_batches: int) -> None:
    pairs = batch_indices(items=100, batch_size=16, seed=0, step=7)
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
    assert batch.audio_mask.sum(dim=1).tolist() == [audio_token_count(9, 8), audio_token_count(8, 8)] == [2, 1]
    assert batch.attention_mask.sum(dim=1).tolist() == [11, 5]
    assert batch.labels[1].tolist() == [IGNORE] * 9 + [50, 51]
    assert batch.target_columns == 4
    assert batch.states.shape == (2, 9, 4)
    assert torch.all(batch.states[1, 8:] == 0)


def test_generation_batches_hold_no_answer() -> None:
    batch = collate([_item("a", 2, 9, 3, 4)], stack_factor=8, pad_id=0, with_targets=False)
    assert batch.input_ids.tolist() == [[10, 11, 0, 0, 30, 31, 32]]
    assert torch.all(batch.labels == IGNORE)
