"""Steps and a function that makes a step's batches -> the batches of each step in turn: on a GPU made one step ahead, in pinned memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from data.batching import Batch

Made = TypeVar("Made")


def iter_step_batches(
    micro_batches_of: Callable[[int], list[Batch]], steps: range, device: torch.device
) -> Iterator[list[Batch]]:
    """The micro-batches of every step, on the host. On a GPU the next step's are made in a thread while this one's are computed with.

    Without a GPU they are made when they are asked for: a thread would take the core that computes.
    """
    if device.type != "cuda":
        return map(micro_batches_of, steps)

    def pinned(step: int) -> list[Batch]:
        torch.cuda.set_device(device)  # a new thread has the first GPU, which may be another worker's
        return [batch.pin_memory() for batch in micro_batches_of(step)]

    return iter_ahead(pinned, steps)


def iter_ahead(make: Callable[[int], Made], steps: range) -> Iterator[Made]:
    """`make` of every step in order, each begun in one thread when the one before is handed out.

    What `make` raises is raised where its own step is asked for, and ends it. Closing the iterator waits for the step under way; no thread is left.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
        ahead: Future[Made] | None = None
        for step in steps:
            made = (ahead or thread.submit(make, step)).result()
            ahead = thread.submit(make, step + 1) if step + 1 in steps else None
            yield made
