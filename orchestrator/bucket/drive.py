"""A grid whose home is a bucket -> a working folder that one machine drives, kept alike in the background; for a store in a folder nothing is done.

    drive_bucket    `run` and `doctor --repair`: lease, fetch everything, then put what is new until the end
    refresh         the other verbs: fetch the small files

Training never waits for the bucket: what it does not take is put later, at the end, or by the next run on this machine.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape

from model.configs import TrialConfig
from orchestrator.bucket.names import LEASE
from orchestrator.bucket.objects import Bucket, LeaseObject
from orchestrator.bucket.prepared import prepared_for
from orchestrator.bucket.replica import Replica
from orchestrator.layout import RunFolder, Store
from orchestrator.lease import Holder, Lease, LeaseLostError, hold_lock, hold_place, is_fresh, lock_file

PASS_EVERY_S = 5.0
"""Between two looks for checkpoints and results."""
RETRY_EVERY_S = 15.0
"""After a pass that failed."""
SETTLE_S = 3.0
"""For two drivers that take the lease over at the same moment."""
PATIENCE_S = 60.0
"""At the end: for how long the bucket may take no byte before the rest is left to the next run."""
_CHECK_EVERY_S = 2.0
_log = logging.getLogger(__name__)


@contextmanager
def drive_bucket(
    store: Store, run: RunFolder, trials: Iterable[TrialConfig], tell: Callable[[str], None]
) -> Iterator[Lease | None]:
    """For the length of the block, drive `run` in its bucket: the lease, None for a store in a folder.

    Raises LeaseHeldError while another driver lives, LeaseLostError when one took over, BucketError when the bucket cannot be used at the start.
    """
    if store.remote is None:
        yield None
        return
    bucket = Bucket(store.remote)
    place = _place(bucket, run)
    with hold_lock(_lock(run), place):
        replica = Replica(bucket, store, run, prepared_for(trials, store))
        with hold_place(place, is_dead=lambda holder: holder.token in replica.generations, settle_s=SETTLE_S) as lease:
            replica.accept(lease.holder.token)
            replica.pull(whole=True, tell=lambda text: tell(escape(text)))
            lease.check()  # that may have taken a while
            replica.claim(lease.holder.token)
            pusher = Pusher(replica, lease, bucket.uri, tell)
            pusher.start()
            try:
                yield lease
            finally:
                pusher.finish()
            if lease.lost.is_set():
                lease.check()


def refresh(store: Store, run: RunFolder) -> None:
    """Fetch what tells how a run stands, unless it is driven on this machine. Raises BucketError when the bucket cannot be read."""
    if store.remote is None:
        return
    bucket = Bucket(store.remote)
    lock = lock_file(_lock(run), wait_s=0)
    if lock is not None:
        with lock:
            Replica(bucket, store, run).pull(whole=False)


def read_bucket_holder(store: Store, run: RunFolder) -> Holder | None:
    """Who drives `run` on another machine, as far as one look at the bucket can tell; None for a store in a folder."""
    if store.remote is None:
        return None
    bucket = Bucket(store.remote)
    holder = _place(bucket, run).read()
    mine = holder is not None and holder.token in Replica(bucket, store, run).generations
    return holder if holder and is_fresh(holder) and not mine else None


def _place(bucket: Bucket, run: RunFolder) -> LeaseObject:
    return LeaseObject(bucket, f"{run.path.name}/{LEASE}", run.path / ".bucket-lease.json")


def _lock(run: RunFolder) -> Path:
    return run.path / ".bucket.lock"


class Pusher:
    """Puts what is new in a thread of its own, from `start` to `finish`, for as long as the lease is held."""

    def __init__(self, replica: Replica, lease: Lease, uri: str, tell: Callable[[str], None]) -> None:
        """`tell` is told, once, in one line, when the bucket cannot be reached, and of what is not in it at the end."""
        self._replica, self._lease, self._uri, self._tell = replica, lease, uri, tell
        self._warned = self._arrived = False
        self._checked = 0.0
        self._ending, self._abandoned = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="bucket-push", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def finish(self) -> None:
        """Put what is left and stop; give up when nothing moves for `PATIENCE_S`, and say what is missing."""
        self._ending.set()
        try:
            moved, since = self._replica.moved, time.monotonic()
            while self._thread.is_alive() and time.monotonic() - since < PATIENCE_S:
                self._thread.join(0.2)
                if self._replica.moved != moved:
                    moved, since = self._replica.moved, time.monotonic()
        finally:
            self._abandoned.set()
        if not self._arrived and not self._lease.lost.is_set():
            files, size = self._replica.behind()
            self._tell(
                f"[red]not everything is in the bucket:[/] {files} files ({size / 1e6:,.1f} MB) of {escape(str(self._replica.folder))} are not "
                f"known to be in {escape(self._uri)}; keep the folder and run the same command again on this machine, it puts them there"
            )

    def _work(self) -> None:
        wait = 0.0
        while not self._ending.wait(wait):
            wait = PASS_EVERY_S if self._attempt(final=False) else RETRY_EVERY_S
        while not (self._lease.lost.is_set() or self._attempt(final=True) or self._abandoned.wait(PASS_EVERY_S)):
            continue

    def _attempt(self, *, final: bool) -> bool:
        try:
            self._replica.push(self._check, final=final)
        except LeaseLostError as error:  # the driver is told by the lease; nothing here is ours to put any more
            _log.debug("%s", error)
            return False
        except OSError as error:  # the bucket, or this machine's disk
            _log.debug("%s", error)
            if not self._warned:
                self._warned = True
                self._tell(
                    f"[yellow]warning:[/] {escape(str(error))}; the grid goes on, and what is missing is put when the bucket answers again"
                )
            return False
        self._arrived = final
        return True

    def _check(self) -> None:
        """Raise LeaseLostError when nothing may be put any more. The bucket is asked now and then, the heartbeat's answer counts at once."""
        if self._lease.lost.is_set() or self._abandoned.is_set():
            raise LeaseLostError("given up")
        if time.monotonic() - self._checked > _CHECK_EVERY_S:
            self._lease.check()
            self._checked = time.monotonic()
