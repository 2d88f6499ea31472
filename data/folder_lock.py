"""A folder that several processes may write -> one writer at a time; the others wait, say so, and find its work done."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_log = logging.getLogger(__name__)

LOCK = ".lock"
TELL_EVERY_S = 30.0


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Write below `folder` alone. The other writer may take hours; the system releases a dead one's lock."""
    lock = FileLock(folder / LOCK)
    begun, patience_s = time.monotonic(), 0.0
    while True:
        try:
            lock.acquire(timeout=patience_s)
            break
        except Timeout:
            waited = time.monotonic() - begun
            _log.warning("%s: another process is writing here; waiting for it since %.0f s", folder, waited)
            patience_s = TELL_EVERY_S
    try:
        yield
    finally:
        lock.release()
