"""Work -> answers through the Batch API, at half the price: request files within the API's limits, uploaded, watched, collected, and again for
what failed.

A batch is known by a key of ours that stands in its metadata and in the ledger before it exists, so that one whose creation was cut off is found
instead of created twice. Its answers are matched by request id; what is missing, expired or failed is not billed and goes into the next batch.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from data.annotation.ledger import BatchEnded, BatchNamed, BatchSent, Event, Lost, OpenBatch
from data.annotation.live import OnProgress, Pace
from data.annotation.requests import (
    ENDPOINTS,
    REFUSALS,
    AnnotationStoppedError,
    OutcomeUnknownError,
    Request,
    read_answer,
    request_body,
)
from data.annotation.work import Work
from data.atomic import atomic_open
from data.records import Example

BATCH_KEY = "slotgrid_batch"
MAX_REQUESTS, MAX_BYTES = 50_000, 200_000_000
"""Of one batch, as the API documents them."""
ENDED = ("completed", "failed", "expired", "cancelled")
QUEUE_FULL = "token_limit_exceeded"
"""The batch failed because the account may not have more tokens waiting; nothing was done of it."""
_EVENTS_AT_ONCE = 500  # flushed to the disk together
_FRUITLESS = 3  # rounds of batches in a row without one answer


@dataclass(frozen=True, kw_only=True)
class BatchState:
    """Where the server stands with a batch."""

    status: str  # one of ENDED when nothing more will come
    done: int = 0
    total: int = 0
    files: tuple[str, ...] = ()  # of answers and of errors
    problem: str = ""  # why the whole batch failed
    queue_full: bool = False


class BatchServer(Protocol):
    """A server with a Batch API, as `BatchAnnotation` needs it. Raises the errors of `data.annotation.requests`."""

    async def submit(self, path: Path, key: str) -> str:
        """Upload a request file and create its batch, with `key` in the metadata; its name. OutcomeUnknownError: look for it."""
        ...

    async def find_batch(self, key: str, since: float) -> str | None:
        """The name of the batch with this key, created after `since` (seconds since 1970); None where there is none."""
        ...

    async def look(self, name: str) -> BatchState:
        """Where a batch stands."""
        ...

    async def download(self, file: str, path: Path) -> None:
        """Fetch a file of the server."""
        ...


class BatchAnnotation:
    """One run over everything that is still to be asked, in batches."""

    def __init__(
        self,
        work: Work,
        server: BatchServer,
        pace: Pace,
        folder: Path,
        *,
        max_cost: Decimal | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """`folder` takes the request and answer files."""
        self._work, self._ledger, self._server, self._pace, self._folder = work, work.ledger, server, pace, folder
        self._max_cost = max_cost
        self._on_progress = on_progress or (lambda progress: None)
        self._max_requests = MAX_REQUESTS
        self._one_at_a_time = self._queue_full = False  # the account's queue is small; was full in this round
        self._failures: dict[str, str] = {}  # example id: why its last request failed

    async def run(self) -> None:
        """Submit, watch and collect until every example is accepted or quarantined or nothing more can be sent. Raises AnnotationStoppedError.

        Cancelled, it stops watching: the batches go on at the server and the next run collects them.
        """
        fruitless = 0
        while fruitless < _FRUITLESS:
            answers, self._queue_full = len(self._ledger.answers), False
            if not self._ledger.batches:
                self._work.too_dear = not await self._submit()
            if not self._ledger.batches:
                break
            await asyncio.gather(*(self._finish(key) for key in list(self._ledger.batches)))
            progressed = len(self._ledger.answers) > answers or self._queue_full
            fruitless = 0 if progressed else fruitless + 1
        if self._work.refused and not self._ledger.answers:
            raise AnnotationStoppedError(f"the server refuses the requests: {next(iter(self._work.refused.values()))}")
        for example, _ in () if self._work.too_dear else self._work.pending():
            if example.id not in self._work.refused:
                self._work.unanswered[example.id] = self._failures.get(example.id, "no answer in any batch")

    async def _submit(self) -> bool:
        """Send everything that is to be asked in as many batches as it needs. False when the cost limit left some of it out."""
        pending = [
            (example, request)
            for example, request in self._work.pending()
            if example.id not in self._work.refused and request.id not in self._ledger.open
        ]
        while pending:
            count, lines, reserved = self._fill(pending)
            if not count:
                return False
            key = secrets.token_hex(8)
            path = self._folder / f"{key}.jsonl"
            with atomic_open(path, "wb") as stream:
                stream.writelines(lines)
            self._ledger.append(BatchSent(batch=key, requests=count, reserved=reserved))
            try:
                name = await self._server.submit(path, key)
                self._ledger.append(BatchNamed(batch=key, name=name))
            except OutcomeUnknownError as error:
                self._tell(f"word of the batch just sent ({error})")
            except AnnotationStoppedError as error:
                self._ledger.append(BatchEnded(batch=key, status=str(error)))
                raise
            pending = pending[count:]
            if self._one_at_a_time:
                break
        return True

    def _fill(self, pending: Sequence[tuple[Example, Request]]) -> tuple[int, list[bytes], Decimal]:
        """The lines of the next request file, as many as the API and the cost limit allow, and what they can cost."""
        config, lines, size, reserved = self._work.config, [], 0, Decimal(0)
        for _, request in pending[: self._max_requests]:
            body = request_body(config, request, store=False)
            row = {"custom_id": request.id, "method": "POST", "url": ENDPOINTS[config.api], "body": body}
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
            cost = self._work.reserve(request, batched=True)
            known = self._ledger.spent + self._ledger.reserved + reserved
            if size + len(line) > MAX_BYTES or (self._max_cost is not None and known + cost > self._max_cost):
                break
            lines.append(line)
            size, reserved = size + len(line), reserved + cost
        return len(lines), lines, reserved

    async def _finish(self, key: str) -> None:
        """Watch one batch to its end and collect what it brought."""
        opened = self._ledger.batches[key]
        name = opened.name or await self._look_for(key, opened)
        if name is None:
            self._ledger.append(BatchEnded(batch=key, status="never created"))
            return
        state = await self._watch(name)
        told: set[str] = set()  # requests whose end is known
        for number, file in enumerate(state.files):
            path = self._folder / f"{key}.answers-{number}.jsonl"
            if not path.exists():
                await self._server.download(file, path)
            told |= self._collect(path)
        events: list[Event] = []
        if state.status in ("completed", "expired"):
            # Each request has an answer or an error then; what has neither may have been paid for. So was the answer to an example that has
            # changed since.
            events = [lost for lost in self._losses(self._folder / f"{key}.jsonl") if lost.request not in told]
        self._ledger.append(*events, BatchEnded(batch=key, status=state.status))
        if state.queue_full and opened.sent.requests > 1:
            self._max_requests, self._one_at_a_time, self._queue_full = opened.sent.requests // 2, True, True
        elif state.problem:
            raise AnnotationStoppedError(f"batch {name} failed: {state.problem}")

    def _losses(self, request_file: Path) -> Iterator[Lost]:
        """Each request of a batch, as if it had been paid for in vain."""
        for line in request_file.read_bytes().splitlines():
            row = json.loads(line)
            messages = row["body"].get("messages") or row["body"]["input"]
            request = Request(id=row["custom_id"], example_id="", attempt=0, messages=tuple(messages))
            yield Lost(request=request.id, cost=self._work.reserve(request, batched=True))

    async def _watch(self, name: str) -> BatchState:
        """Look at a batch now and then until it has ended, through failures of the network too."""
        wait = self._pace.poll_s
        while True:
            try:
                state = await self._server.look(name)
                if state.status in ENDED:
                    return state
                self._tell(f"batch {name}: {state.status}, {state.done:,} of {state.total:,} requests")
            except OutcomeUnknownError as error:
                self._tell(f"the server, which does not tell how batch {name} stands ({error})")
            await asyncio.sleep(wait)
            wait = min(2 * wait, self._pace.batch_poll_s)

    async def _look_for(self, key: str, opened: OpenBatch) -> str | None:
        """The name of a batch whose creation was cut off, None when there surely is none."""
        while True:
            name = await self._server.find_batch(key, opened.sent.time)
            if name is not None:
                self._ledger.append(BatchNamed(batch=key, name=name))
                return name
            if time.monotonic() > opened.since + self._pace.timeout_s + self._pace.grace_s:
                return None
            await asyncio.sleep(self._pace.poll_s)

    def _collect(self, path: Path) -> set[str]:
        """Put a file's answers into the ledger; the requests whose end is known. A line that repeats a request is left alone."""
        asked = {request.id: (example, request) for example, request in self._work.pending(selected=False)}
        events: list[Event] = []
        told: set[str] = set()
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                name, response = row["custom_id"], row.get("response") or {}
                answer = read_answer(response["body"]) if response.get("status_code") == 200 else None
            except (ValueError, KeyError, TypeError, AttributeError, OutcomeUnknownError):
                continue  # as if it were missing
            if answer is None or name in asked or name in self._ledger.answers:
                told.add(name)
            example, request = asked.pop(name, (None, None))
            if example is None or request is None:
                continue
            if answer is None:
                self._note_failure(example, row, response)
                continue
            events.append(self._work.judge(example, request, answer, "batch"))
            if len(events) == _EVENTS_AT_ONCE:
                self._ledger.append(*events)
                events.clear()
        self._ledger.append(*events)
        self._tell("")
        return told

    def _note_failure(self, example: Example, row: Mapping[str, Any], response: Mapping[str, Any]) -> None:
        error = row.get("error") or (response.get("body") or {}).get("error") or {}
        text = f"{error.get('code')}: {error.get('message')}"
        failures = self._work.refused if response.get("status_code") in REFUSALS else self._failures
        failures[example.id] = text

    def _tell(self, waiting: str) -> None:
        self._on_progress(self._work.progress(waiting))
