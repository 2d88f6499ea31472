"""The workers of one trial as a group: joining it, and deciding together."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Decision = TypeVar("Decision")


def join_process_group(*, use_gpu: bool) -> None:
    """Use Ray Train's process group; in a plain process make one of a single member, which needs no port."""
    if not torch.distributed.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it; Ray Train and other launchers set it
        backend = "nccl" if use_gpu else "gloo"
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)


def agreed(decide: Callable[[], Decision]) -> Decision:
    """What rank 0 decides, on every rank: two ranks that look at a shared mount or a clock may see different things.

    Collective. What `decide` raises is raised on every rank, so that none waits for one that has stopped.
    """
    if torch.distributed.get_world_size() == 1:
        return decide()
    told: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            told[0] = decide()
        except Exception as error:  # raised below, everywhere
            told[1] = error
    torch.distributed.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    decision: Decision = told[0]
    return decision
