"""Work -> answers, live: many requests at once, retries, the lookup of answers whose outcome is unknown, and the cost limit.

A request whose answer did not come may still be written and billed by the server. It is not sent again before the server was asked for the
answer, and only when it is older than an answer can take; meanwhile other examples are worked on.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from data.annotation.ledger import Lost, Named, OpenRequest, Sent, Unbilled
from data.annotation.requests import (
    AnnotationStoppedError,
    Answer,
    NotBilledError,
    OutcomeUnknownError,
    Request,
    RequestRefusedError,
    UnfinishedError,
)
from data.annotation.work import How, Progress, Work
from data.records import Example

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0
_REFUSALS = 10  # before the first answer: it is not the examples' fault
_CALM = 5  # answers per slot after which one more is tried
_LOST_PER_SLOT = 3  # requests without an answer in a row: it is not chance
_STUCK = 20  # times the usual patience: what the server is still at then, it never finishes

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How many requests at once, and how patiently; no part of what is computed."""

    concurrency: int = 32
    timeout_s: float = 120.0  # for one answer
    grace_s: float = 60.0  # after which the server surely lists an answer that it keeps
    tries: int = 8  # of a request that the server declines
    poll_s: float = 2.0  # between two looks for one answer
    batch_poll_s: float = 60.0  # between two looks at a batch, in the long run

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.tries < 1:
            raise ValueError(f"concurrency is {self.concurrency}, tries {self.tries}; use at least 1")
        if min(self.timeout_s, self.grace_s, self.poll_s, self.batch_poll_s) <= 0:
            raise ValueError("time-outs and polling intervals must be more than 0 seconds")


class LiveServer(Protocol):
    """An OpenAI-compatible server as `LiveAnnotation` needs it. Raises the errors of `data.annotation.requests`."""

    stored: bool  # it is asked to keep its answers
    lists_answers: bool  # it finds them by the request's id, so that what is not found was never answered

    async def ask(self, request: Request, on_named: Callable[[str], Awaitable[None]]) -> Answer:
        """Send a request and wait for its answer; `on_named` gets the name of the response if the server tells it before."""
        ...

    async def find(self, request: str, response: str | None) -> Answer | None:
        """The answer to a request of this id that was sent before; None where there is none. UnfinishedError: it is being written."""
        ...


class _TooBusyError(Exception):
    """The server declines a request again and again because there are too many; it answers others."""


class LiveAnnotation:
    """One run over everything that is still to be asked."""

    def __init__(
        self,
        work: Work,
        server: LiveServer,
        pace: Pace,
        *,
        max_cost: Decimal | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._work, self._ledger, self._server, self._pace, self._max_cost = work, work.ledger, server, pace, max_cost
        self._on_progress = on_progress or (lambda progress: None)
        self._slots: set[asyncio.Task[None]] = set()
        self._width = 0  # slots at work: fewer while the server is too busy
        self._calm = 0  # answers since the last change of the width
        self._ready: deque[Example] = deque()
        self._unknown: deque[Example] = deque()  # with a request whose outcome is not known
        self._dear: deque[Example] = deque()  # what is left is too little while the outcome of others is not known
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._changed = asyncio.Condition()
        self._active = 0  # requests whose outcome a task is waiting for
        self._claimed = Decimal(0)  # dollars on their way into the ledger
        self._answers = self._lost = 0  # answers of this run; requests without one since the last
        self._only_unknown = False
        self._first = ""  # the first request of this run that was answered at once
        self._finds_answers = False  # a lookup has found an answer
        self._rng = random.Random()  # of waiting times only

    async def run(self, *, only_unknown: bool = False) -> None:
        """Ask until every example is accepted or quarantined or nothing more can be sent. Raises AnnotationStoppedError.

        `only_unknown`: no more than the examples with a request whose outcome is not known from an earlier run.
        Cancelled, it sends nothing more and waits for the answers on their way; cancelled again, it leaves them.
        """
        self._only_unknown = only_unknown
        for example, request in self._work.pending():
            if request.id in self._ledger.open:
                self._unknown.append(example)
            elif not only_unknown:
                self._ready.append(example)
        for _ in range(min(self._pace.concurrency, len(self._ready) + len(self._unknown))):
            self._open_slot()
        try:
            await self._finish_slots()
        except asyncio.CancelledError:
            self._stop.set()
            self._on_progress(self._work.progress("the answers on their way (Ctrl-C again leaves them)"))
            await self._finish_slots()
            raise
        finally:
            for slot in self._slots:
                slot.cancel()
        if self._failure:
            raise self._failure

    def _open_slot(self) -> None:
        self._width += 1
        self._slots.add(asyncio.create_task(self._slot()))

    async def _finish_slots(self) -> None:
        while self._slots:
            done, _ = await asyncio.wait(set(self._slots), return_when=asyncio.FIRST_COMPLETED)
            self._slots -= done
            for slot in done:
                slot.result()

    async def _slot(self) -> None:
        """Take one example after the other: those that were never asked first, then those whose outcome is unknown."""
        while not self._stop.is_set() and (waiting := self._ready or self._unknown or self._dear):
            example = waiting.popleft()
            try:
                await self._annotate(example)
            except OutcomeUnknownError:
                self._unknown.append(example)
            except RequestRefusedError as error:
                self._refuse(example, error)
            except _TooBusyError:
                self._ready.append(example)
                if self._width > 1 and self._calm:  # one slot less, but not all at once
                    self._calm = 0
                    break
            except Exception as error:  # raised by `run`, when the answers on their way have come
                self._failure = self._failure or error
                self._stop.set()
        self._width -= 1

    async def _annotate(self, example: Example) -> None:
        """Ask for one example until an answer is accepted or its attempts are used up."""
        while not self._stop.is_set():
            _, request = self._work.chain(example)
            if request is None:
                return
            if opened := self._ledger.open.get(request.id):
                await self._settle(example, request, opened)
            elif self._only_unknown or not await self._ask(example, request):
                return

    async def _ask(self, example: Example, request: Request) -> bool:
        """Send a request, again while the server declines it. False when this run can do no more for the example."""
        answers, problem, busy = self._answers, "", False
        for number in range(self._pace.tries):
            if not await self._claim(example, request):
                return False
            try:
                await self._send(example, request)
            except NotBilledError as error:
                problem, busy = str(error), error.busy
                if busy and number > 0 and self._width > 1 and self._calm:
                    raise _TooBusyError from None
                wait = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**number) * self._rng.uniform(0.5, 1)
                await self._sleep(wait if error.retry_after is None else error.retry_after * self._rng.uniform(1, 1.1))
            else:
                return True
            if self._stop.is_set():
                return False
        if self._answers == answers:
            raise AnnotationStoppedError(f"the server declines every request ({problem}); try again later")
        if busy:  # for others, not for this one
            raise _TooBusyError
        self._work.unanswered[example.id] = problem
        return False

    async def _claim(self, example: Example, request: Request) -> bool:
        """Wait until the limit leaves room for what a request can cost; False when it never will in this run."""
        cost = self._work.reserve(request)
        async with self._changed:
            while self._max_cost is not None and not self._stop.is_set():
                if self._ledger.spent + self._ledger.reserved + self._claimed + cost <= self._max_cost:
                    break
                if self._active:
                    await self._changed.wait()
                elif self._unknown:  # what is kept for them may become free
                    self._dear.append(example)
                    return False
                else:
                    self._work.too_dear = True
                    self._stop.set()
            if self._stop.is_set():
                return False
            self._claimed += cost
            self._active += 1
            return True

    async def _send(self, example: Example, request: Request) -> None:
        """One request over the wire: its intent in the ledger before, its outcome after."""
        cost = self._work.reserve(request)
        sent = Sent(
            request=request.id,
            example=example.id,
            attempt=request.attempt,
            reserved=cost,
            stored=self._server.stored,
        )
        try:
            try:
                await self._ledger.commit(sent)
            finally:
                self._claimed -= cost
            try:
                answer = await self._server.ask(
                    request, lambda name: self._ledger.commit(Named(request=request.id, response=name))
                )
            except (NotBilledError, RequestRefusedError, AnnotationStoppedError) as error:
                await self._ledger.commit(Unbilled(request=request.id, why=str(error)))
                raise
            await self._record(example, request, answer, "live")
        finally:
            await self._release()

    async def _settle(self, example: Example, request: Request, opened: OpenRequest) -> None:
        """Find the answer of a request whose outcome is unknown, or establish that there is none."""
        patience = self._pace.timeout_s + self._pace.grace_s
        findable = opened.sent.stored and (self._server.lists_answers or opened.response is not None)
        self._active += 1
        try:
            while findable and not self._stop.is_set():
                age = time.monotonic() - opened.since
                try:
                    answer = await self._server.find(request.id, opened.response)
                except NotBilledError as error:  # the response failed
                    await self._ledger.commit(Unbilled(request=request.id, why=str(error)))
                    return
                except UnfinishedError:
                    answer, left = None, _STUCK * patience - age
                else:
                    left = patience - age
                if answer is not None:
                    self._finds_answers = True
                    await self._record(example, request, answer, "found")
                    return
                if left <= 0:
                    break
                if not self._ready:
                    self._on_progress(self._work.progress("answers that may have been written but did not arrive"))
                await self._sleep(min(left, self._pace.poll_s))
            if self._stop.is_set():
                return
            self._lost += 1
            if findable and self._server.lists_answers and await self._finds():
                await self._ledger.commit(Unbilled(request=request.id, why="the server has no answer to it"))
            else:
                await self._ledger.commit(Lost(request=request.id, cost=opened.sent.reserved))
        finally:
            await self._release()
        if self._lost > _LOST_PER_SLOT * max(self._pace.concurrency, _REFUSALS):
            raise AnnotationStoppedError(
                f"the server answered none of the last {self._lost} requests within {self._pace.timeout_s:.0f} s; check it, then run again"
            )

    async def _finds(self) -> bool:
        """Whether a lookup finds an answer that came. Where none is kept (zero data retention), every lost one would pass for never written."""
        if not self._finds_answers:
            live = (answered.request for answered in reversed(self._ledger.answers.values()) if answered.how == "live")
            known = self._first or next(live, "")
            self._finds_answers = bool(known) and await self._server.find(known, None) is not None
        return self._finds_answers

    async def _record(self, example: Example, request: Request, answer: Answer, how: How) -> None:
        await self._ledger.commit(self._work.judge(example, request, answer, how))
        if how == "live":
            self._first = self._first or request.id
        self._answers += 1
        self._calm += 1
        self._lost = 0
        if self._calm >= _CALM * self._width and self._ready and self._width < self._pace.concurrency:
            self._calm = 0
            self._open_slot()
        self._on_progress(self._work.progress())

    async def _release(self) -> None:
        async with self._changed:
            self._active -= 1
            self._changed.notify_all()

    async def _sleep(self, seconds: float) -> None:
        """Wait, but not when everything stops."""
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return

    def _refuse(self, example: Example, error: RequestRefusedError) -> None:
        self._work.refused[example.id] = str(error)
        if not self._ledger.answers and len(self._work.refused) >= _REFUSALS:
            self._failure = self._failure or AnnotationStoppedError(f"the server refuses the requests: {error}")
            self._stop.set()
