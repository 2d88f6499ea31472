"""Batches made one step ahead: in order, no further ahead, an error in the step it belongs to, and no thread left behind."""

import threading
import time

import pytest
import torch

from model.prefetch import iter_ahead, iter_step_batches


def batch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def wait_for(condition) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_every_step_is_made_once_in_order_and_only_the_next_one_ahead() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        made.append(step)
        return step * step

    steps = iter_ahead(make, range(3, 8))
    assert next(steps) == 9
    wait_for(lambda: made == [3, 4])
    time.sleep(0.02)
    assert made == [3, 4], "one step ahead, not two"
    assert list(steps) == [16, 25, 36, 49]
    assert made == [3, 4, 5, 6, 7]
    assert not batch_threads()
    assert list(iter_ahead(make, range(7, 7))) == []


def test_the_next_step_is_made_while_this_one_is_computed_with() -> None:
    begun, computed = threading.Event(), threading.Event()

    def make(step: int) -> int:
        if step == 1:
            begun.set()
            assert computed.wait(20), "made only after the step before was over"
        return step

    steps = iter_ahead(make, range(2))
    assert next(steps) == 0
    assert begun.wait(20)
    computed.set()
    assert next(steps) == 1


def test_an_error_surfaces_in_its_own_step() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise ValueError("manifest.jsonl: line 3: broken")
        return step

    steps = iter_ahead(make, range(5))
    assert [next(steps), next(steps)] == [0, 1]
    with pytest.raises(ValueError, match="line 3: broken"):
        next(steps)
    assert not batch_threads()
    assert list(steps) == []


def test_a_training_that_stops_in_between_leaves_no_thread() -> None:
    made: list[int] = []
    steps = iter_ahead(made.append, range(100))
    next(steps)
    assert batch_threads()
    steps.close()
    assert not batch_threads() and len(made) <= 2


def test_without_a_gpu_batches_are_made_when_they_are_asked_for() -> None:
    made: list[int] = []

    def make(step: int) -> list:
        assert threading.current_thread() is threading.main_thread()
        made.append(step)
        return []

    steps = iter_step_batches(make, range(2, 5), torch.device("cpu"))
    assert made == []
    next(steps)
    assert made == [2]
