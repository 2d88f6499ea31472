"""A question to a service -> its answer, or an error when that takes too long, whatever the service's own library does meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def within(patience_s: float, ask: Callable[[], Answer]) -> Answer:
    """The answer. Raises what asking raises, TimeoutError when it takes too long: the thread that asks is then left to itself."""
    answers: queue.Queue[tuple[list[Answer], Exception | None]] = queue.Queue()

    def work() -> None:
        try:
            answers.put(([ask()], None))
        except Exception as error:  # handed to the thread that waits
            answers.put(([], error))

    threading.Thread(target=work, name="question", daemon=True).start()
    try:
        answer, error = answers.get(timeout=patience_s)
    except queue.Empty:
        raise TimeoutError(f"no answer within {patience_s:.0f} s") from None
    if error:
        raise error
    return answer[0]
