"""Turns preparation tasks into Ray tasks: one CPU and one thread each, a bounded number in flight, results as they come."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)

TELL_EVERY_S = 45.0
_RETRIES_OF_A_KILLED_WORKER = 2


class RayExecutor:
    """A `data.executors.Executor` on the Ray that is open; the caller opens and closes it (`orchestrator.ray_session`)."""

    def __init__(self, *, in_flight: int) -> None:
        """`in_flight`: tasks handed to Ray at once; the cluster's CPUs and a few more keep every CPU busy."""
        assert in_flight >= 1, in_flight
        self.in_flight = in_flight

    def map_unordered(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield results as tasks finish. The first failing task cancels the rest and raises its own exception here.

        A task whose worker process was killed is tried again twice, then raises ray.exceptions.WorkerCrashedError.
        """
        import ray
        from ray.exceptions import RayTaskError

        run = ray.remote(num_cpus=1, max_retries=_RETRIES_OF_A_KILLED_WORKER)(_apply)
        shared = ray.put(function)  # pickled once, not once a task
        waiting = iter(tasks)
        running: list[Any] = [run.remote(shared, task) for task in islice(waiting, self.in_flight)]
        try:
            while running:
                ready, running = ray.wait(running, num_returns=1, timeout=TELL_EVERY_S)
                if not ready:
                    _log.warning("no task has ended for %.0f s: long ones, or CPUs that others hold", TELL_EVERY_S)
                    continue
                running.extend(run.remote(shared, task) for task in islice(waiting, 1))
                yield ray.get(ready[0])
        except RayTaskError as error:
            # Ray wraps what the task raised in a class of its own whose text is a remote traceback; users get the original.
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        finally:
            for reference in running:
                ray.cancel(reference)


def _apply(function: Callable[[Any], Any], task: Any) -> Any:
    return function(task)
