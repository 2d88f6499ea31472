"""Who does the work of a preparation stage: this process, or a pool of processes. (`orchestrator.ray_executor` adds Ray tasks.)

Preparation stages take an `Executor` and never know which one: tests run them serially, the command line in a pool, a grid on the cluster.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Several processes with several threads each on few cores spin against each other, up to 10x slower."""


class Executor(Protocol):
    """Applies a picklable function to every task, in any order, and yields the results as they come."""

    def map_unordered(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield `function(task)` for every task; an exception in a task is raised here."""
        ...


class SerialExecutor:
    """Everything in this process, in order."""

    def map_unordered(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield `function(task)` one by one."""
        for task in tasks:
            yield function(task)


class ProcessExecutor:
    """A pool of fresh (spawned) processes on this machine, one thread each."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or os.cpu_count() or 1

    def map_unordered(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield results as the pool finishes them; the first failing task cancels the rest."""
        saved = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ.update(ONE_THREAD)  # read by the children at start
        try:
            with ProcessPoolExecutor(self.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
                futures = [pool.submit(function, task) for task in tasks]
                try:
                    for future in as_completed(futures):
                        yield future.result()
                finally:
                    for future in futures:
                        future.cancel()
        finally:
            for name, value in saved.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
