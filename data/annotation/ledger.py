"""The append-only, fsynced file that makes annotation resumable at any kill: one JSON event a line -> what was sent, paid, answered.

An event is on disk before anything relies on it: `Sent` before a request leaves, `Answered` before the next step of its example. A request is
*open* between `Sent` and the event that ends it; after a kill, open requests are those whose outcome is not known.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from data.annotation.trace_checks import Rejection


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of the ledger."""

    time: float = field(default_factory=time.time)  # seconds since 1970


@dataclass(frozen=True, kw_only=True)
class Sent(Event):
    """A request is about to leave for the server."""

    request: str
    example: str
    attempt: int
    reserved: Decimal  # dollars it can cost at most
    stored: bool  # the server was asked to keep the answer


@dataclass(frozen=True, kw_only=True)
class Named(Event):
    """The server took the request and named the response under which its answer can be fetched (Responses API)."""

    request: str
    response: str


@dataclass(frozen=True, kw_only=True)
class Unbilled(Event):
    """The request came to nothing and is not billed: declined, refused, or proven never to have been answered."""

    request: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Lost(Event):
    """The request may have been answered and billed, but its answer cannot be had any more; what it can have cost counts as spent."""

    request: str
    cost: Decimal


@dataclass(frozen=True, kw_only=True)
class Answered(Event):
    """An answer, what it cost, and the verdict on it. Batched requests have no `Sent`: their batch has."""

    request: str
    example: str
    attempt: int
    model: str
    tokens_in: int
    tokens_out: int
    cost: Decimal
    how: str  # "live", "found" (on the server, after its outcome was unknown) or "batch"
    text: str
    reasons: tuple[Rejection, ...]  # empty: accepted


@dataclass(frozen=True, kw_only=True)
class BatchSent(Event):
    """A batch is about to be uploaded and created; its requests are in the file `batches/<batch>.jsonl` beside the ledger."""

    batch: str
    requests: int
    reserved: Decimal


@dataclass(frozen=True, kw_only=True)
class BatchNamed(Event):
    """The server took the batch and named it."""

    batch: str
    name: str


@dataclass(frozen=True, kw_only=True)
class BatchEnded(Event):
    """Everything the batch brought is in the ledger, or there was nothing to bring."""

    batch: str
    status: str


EVENTS = {kind.__name__: kind for kind in (Sent, Named, Unbilled, Lost, Answered, BatchSent, BatchNamed, BatchEnded)}


@dataclass
class OpenRequest:
    """A request that was sent and has not come to an end."""

    sent: Sent
    since: float  # `time.monotonic()` when this process sent it or read of it: no setting of the clock makes it older
    response: str | None = None


@dataclass
class OpenBatch:
    """A batch that was sent and is not collected."""

    sent: BatchSent
    since: float  # as of an open request
    name: str | None = None


class Ledger:
    """The file and what follows from it. One process at a time; the caller holds the lock."""

    def __init__(self, path: Path) -> None:
        """Open or begin the file and read it. A last line that a kill cut off is removed. Raises ValueError for a damaged line."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.answers: dict[str, Answered] = {}
        self.open: dict[str, OpenRequest] = {}
        self.batches: dict[str, OpenBatch] = {}
        self.spent = self.lost = Decimal(0)  # dollars; `lost`, that of answers that never arrived, is a part of `spent`
        self.reserved = Decimal(0)  # dollars that the open requests and batches can cost at most
        self.tokens_in = self.tokens_out = self.rejected = 0  # over all answers
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = asyncio.Lock()
        self._pending: list[Event] = []
        self._queued = self._written = 0
        self._failure: OSError | None = None
        self._read()

    def close(self) -> None:
        """Close the file; the ledger can still be read."""
        os.close(self._file)

    def append(self, *events: Event) -> None:
        """Write events, flush them to the disk, then count them."""
        self._write(events)
        for event in events:
            self._apply(event)

    async def commit(self, event: Event) -> None:
        """`append` for many tasks at once: whatever was handed over while the disk was busy is flushed together."""
        self._pending.append(event)
        self._queued += 1
        place = self._queued
        async with self._lock:
            if self._written < place:
                events, self._pending = self._pending, []
                flush = asyncio.ensure_future(self._flush(events))
                try:
                    await asyncio.shield(flush)
                except asyncio.CancelledError:  # others' events are in it: written and counted before the lock goes on
                    await flush
                    raise

    async def _flush(self, events: Sequence[Event]) -> None:
        await asyncio.to_thread(self._write, events)
        for event in events:
            self._apply(event)
        self._written += len(events)

    def _write(self, events: Sequence[Event]) -> None:
        if self._failure:  # the last line may be half written; only opening the file again cuts it
            raise self._failure
        lines = "".join(json.dumps(_to_json(event)) + "\n" for event in events).encode()
        try:
            while lines:
                lines = lines[os.write(self._file, lines) :]
            os.fsync(self._file)
        except OSError as error:
            error.filename = str(self.path)
            self._failure = error
            raise

    def _read(self) -> None:
        whole = 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    self._apply(_from_json(json.loads(line)))
                except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
                    problem = f"{self.path}, line {number}: is no event of a ledger, or follows on none ({error!r})"
                    raise ValueError(f"{problem}; restore the file, what it holds has been paid for") from error
                whole += len(line)
        os.ftruncate(self._file, whole)
        os.fsync(self._file)

    def _apply(self, event: Event) -> None:
        if isinstance(event, (Unbilled, Lost, Answered)):
            ended = self.open.pop(event.request, None)  # None: it went in a batch
            self.reserved -= ended.sent.reserved if ended else 0
        match event:
            case Sent():
                self.open[event.request] = OpenRequest(event, time.monotonic())
                self.reserved += event.reserved
            case Named():
                self.open[event.request].response = event.response
            case Lost():
                self.spent += event.cost
                self.lost += event.cost
            case Answered():
                self.answers[event.request] = event
                self.spent += event.cost
                self.tokens_in += event.tokens_in
                self.tokens_out += event.tokens_out
                self.rejected += bool(event.reasons)
            case BatchSent():
                self.batches[event.batch] = OpenBatch(event, time.monotonic())
                self.reserved += event.reserved
            case BatchNamed():
                self.batches[event.batch].name = event.name
            case BatchEnded():
                self.reserved -= self.batches.pop(event.batch).sent.reserved


def _to_json(event: Event) -> dict[str, Any]:
    row: dict[str, Any] = {"event": type(event).__name__}
    for part in fields(event):
        value = getattr(event, part.name)
        if isinstance(value, Decimal):
            value = format(value, "f")
        elif part.name == "reasons":
            value = [{"kind": reason.kind, "text": reason.text} for reason in value]
        row[part.name] = value
    return row


def _from_json(row: Mapping[str, Any]) -> Event:
    values = dict(row)
    kind = EVENTS[values.pop("event")]
    for name in ("reserved", "cost"):
        if name in values:
            values[name] = Decimal(values[name])
    if "reasons" in values:
        values["reasons"] = tuple(Rejection(**reason) for reason in values["reasons"])
    return kind(**values)
