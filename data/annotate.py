"""A corpus + a language model behind an OpenAI-compatible API -> the corpus with reasoning traces. The only home of `openai`.

Resumable at any kill without paying twice (`data.annotation.ledger`), live (`data.annotation.live`) or through the Batch API at half the price
(`data.annotation.batch`). The key comes from the environment and reaches no file, no log and no error text.

What a kill can cost. Chat completions: nothing, since the server lists what it has stored by our metadata; that it does is seen before anything is
taken for unbilled. Responses: answers are made in the background and fetched by the name that the server gives them at once; only a request cut off
before that name arrived may be paid for twice. Servers that keep no answers: those in flight are asked for again. Whatever may
have been paid in vain counts towards the cost limit.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import openai

from data.annotation.batch import BATCH_KEY, QUEUE_FULL, BatchAnnotation, BatchState
from data.annotation.ledger import Ledger
from data.annotation.live import LiveAnnotation, Pace
from data.annotation.report import AnnotationReport, annotation_folder, finish_work, selected_examples
from data.annotation.requests import (
    ENDPOINTS,
    METADATA_KEY,
    REFUSALS,
    AnnotationStoppedError,
    AnnotatorConfig,
    Answer,
    NotBilledError,
    OutcomeUnknownError,
    Request,
    RequestRefusedError,
    UnfinishedError,
    read_answer,
    request_body,
)
from data.annotation.settings import KEY_VARIABLE, Listener, Where, read_key, read_retry_after
from data.annotation.work import Work
from data.atomic import atomic_open
from data.manifest import Corpus
from data.records import Split

_LOOKUP_RETRIES = 5  # by the SDK, of what is not billed
_NOT_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout"}
"""Causes by which a request never left."""
_DECLINED = {429, 500, 503, 529}
_NO_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_NO_LIST = {400, 404, 405, 422, 501}
"""Statuses of servers that cannot list stored answers."""
_FAILURES = (openai.OpenAIError, ValueError, AttributeError)
"""What the SDK raises, and what it leaves to find out of a reply that is not JSON or lacks what it should have."""
_CONNECT_S = 15.0
_CLOCKS_DIFFER_S = 86_400  # as one that is set to the time of another zone
_HIDDEN = "***"
_SECRET_FROM = 16  # characters: a shorter key ("EMPTY") is a placeholder, and may be a word of an answer


class OpenAIServer:
    """One OpenAI-compatible server as `LiveAnnotation` and `BatchAnnotation` need it."""

    def __init__(self, config: AnnotatorConfig, *, url: str, key: str, pace: Pace, stored: bool) -> None:
        self.stored = stored
        self.lists_answers = stored and config.api == "chat"
        self._config, self._url, self._key, self._pace = config, url, key, pace
        # No retries by the SDK where money is at stake: it would send again what may have been answered.
        self._client = openai.AsyncOpenAI(
            api_key=key,
            base_url=url,
            max_retries=0,
            timeout=openai.Timeout(pace.timeout_s, connect=min(pace.timeout_s, _CONNECT_S)),
        )
        self._retrying = self._client.with_options(max_retries=_LOOKUP_RETRIES)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def prepare(self) -> str | None:
        """Find out whether stored answers can be looked up, and do without where not. A line for the user. Raises AnnotationStoppedError."""
        if self.lists_answers:
            try:
                reply = await self._client.with_options(max_retries=2).chat.completions.with_raw_response.list(limit=1)
                self.lists_answers = _rows(reply.content) is not None
            except openai.PermissionDeniedError as error:
                raise AnnotationStoppedError(
                    f"the key may not look up stored answers ({self._said(error)}); allow it, or use --no-store"
                ) from None
            except openai.APIStatusError as error:
                if error.status_code not in _NO_LIST:
                    raise self._stopped(error) from None
                self.lists_answers = False
            except openai.OpenAIError as error:
                raise self._stopped(error) from None
            self.stored = self.lists_answers
        if self.stored:
            return None
        return "the server keeps no answers to look up: one that is on its way at a kill is asked for again"

    async def ask(self, request: Request, on_named: Callable[[str], Awaitable[None]]) -> Answer:
        """Send a request and wait for its answer."""
        body = request_body(self._config, request, store=self.stored)
        api = self._client.chat.completions if self._config.api == "chat" else self._client.responses
        try:
            async with asyncio.timeout(self._pace.timeout_s):
                try:
                    reply = _document((await api.with_raw_response.create(**body)).content)
                except openai.OpenAIError as error:
                    raise self._error(error) from None
                if _is_unfinished(reply):
                    await on_named(reply["id"])
                while _is_unfinished(reply):
                    await asyncio.sleep(self._pace.poll_s)
                    reply = await self._retrieve(reply["id"])
        except TimeoutError:
            raise OutcomeUnknownError("no answer in time") from None
        return self._read(reply)

    async def find(self, request: str, response: str | None) -> Answer | None:
        """The stored answer to a request of this id. Raises UnfinishedError, and NotBilledError for a response that the server gave up."""
        try:
            if response is not None:
                reply = await self._retrieve(response)
                if _is_unfinished(reply):
                    raise UnfinishedError
                return None if reply is None else self._read(reply)
            listing = self._retrying.chat.completions.with_raw_response.list
            rows = _rows((await listing(metadata={METADATA_KEY: request}, limit=2)).content)
            named = [((row.get("metadata") or {}).get(METADATA_KEY), row) for row in rows or ()]
            # Not every server repeats the metadata; one that ignores the filter must not pass another answer for this one.
            ours = [row for name, row in named if name == request or (name is None and len(named) == 1)]
            return self._read(ours[0]) if ours else None
        except openai.OpenAIError as error:
            raise self._stopped(error) from None
        except (OutcomeUnknownError, AttributeError) as error:
            text = self._public(f"{self._url}: what it has stored cannot be read ({error})")
            raise AnnotationStoppedError(f"{text}; run again when it can") from None

    async def _retrieve(self, response: str) -> Any:
        """A response by its name, None when the server has it no more. It may be billed: whatever fails leaves its outcome unknown."""
        try:
            return _document((await self._retrying.responses.with_raw_response.retrieve(response)).content)
        except openai.NotFoundError:
            return None
        except openai.OpenAIError as error:
            raise OutcomeUnknownError(self._said(error)) from None

    async def submit(self, path: Path, key: str) -> str:
        """Upload a request file and create its batch. Raises OutcomeUnknownError when it may exist all the same."""
        try:
            file = (await self._retrying.files.create(file=path, purpose="batch")).id
        except openai.NotFoundError:
            raise AnnotationStoppedError(f"{self._url}: has no Batch API; run without --batch") from None
        except _FAILURES as error:
            raise self._stopped(error) from None
        try:
            batch = await self._client.batches.create(
                input_file_id=file,
                endpoint=ENDPOINTS[self._config.api],
                completion_window="24h",
                metadata={BATCH_KEY: key},
            )
            return batch.id
        except _FAILURES as error:
            raise self._unknown_or_stopped(error) from None

    async def find_batch(self, key: str, since: float) -> str | None:
        """The name of the batch with our key, created after `since`; the server lists the newest first."""
        try:
            async for batch in self._retrying.batches.list(limit=100):
                if (batch.metadata or {}).get(BATCH_KEY) == key:
                    return batch.id
                if batch.created_at < since - _CLOCKS_DIFFER_S:
                    return None
        except _FAILURES as error:
            raise self._stopped(error) from None
        return None

    async def look(self, name: str) -> BatchState:
        """Where a batch stands. Raises OutcomeUnknownError while the server cannot be reached."""
        try:
            batch = await self._retrying.batches.retrieve(name)
            errors, counts = (batch.errors.data if batch.errors else None) or [], batch.request_counts
        except _FAILURES as error:
            raise self._unknown_or_stopped(error) from None
        return BatchState(
            status=batch.status,
            done=counts.completed + counts.failed if counts else 0,
            total=counts.total if counts else 0,
            files=tuple(file for file in (batch.output_file_id, batch.error_file_id) if file),
            problem=self._public("; ".join(f"{error.code}: {error.message}" for error in errors[:3])),
            queue_full=any(error.code == QUEUE_FULL for error in errors),
        )

    async def download(self, file: str, path: Path) -> None:
        """Fetch a file of the server, whole or not at all, without the key should it repeat it."""
        try:
            content = (await self._retrying.files.content(file)).content
        except openai.OpenAIError as error:
            raise self._stopped(error) from None
        with atomic_open(path, "wb") as stream:
            stream.write(
                self._without_key(content.decode("latin-1")).encode("latin-1")
            )  # whatever the bytes, they stay

    def _read(self, reply: Any) -> Answer:
        status = reply.get("status") if isinstance(reply, dict) else None
        if status in ("failed", "cancelled"):
            raise NotBilledError(self._public(f"response {status}: {(reply.get('error') or {}).get('message')}"))
        answer = read_answer(reply)
        return replace(answer, text=self._without_key(answer.text))

    def _error(self, error: Exception) -> Exception:
        """What one of `_FAILURES` means for a request that may cost money."""
        text = self._said(error)
        if not isinstance(error, openai.APIStatusError):
            unsent = type(error.__cause__).__name__ in _NOT_SENT
            return NotBilledError(f"{self._url}: {text}") if unsent else OutcomeUnknownError(text)
        status = error.status_code
        if status in REFUSALS:
            hint = "; a server that knows neither store nor metadata needs --no-store" if self.stored else ""
            return RequestRefusedError(f"{text}{hint}")
        if status == 401:
            return AnnotationStoppedError(
                f"the server does not accept the key ({text}); set {KEY_VARIABLE} to a valid one"
            )
        if status == 403:
            return AnnotationStoppedError(
                f"the key is not allowed to do this ({text}); use another key, or another --model"
            )
        if status == 404:
            return AnnotationStoppedError(
                f"{self._url}: not there ({text}); check --model {self._config.model}, --base-url and whether the key is of the same project"
            )
        if status == 429 and error.code in _NO_QUOTA:
            return AnnotationStoppedError(f"the account's quota is used up ({text}); add credit, then run again")
        if status in _DECLINED:
            return NotBilledError(text, retry_after=read_retry_after(error.response.headers), busy=status == 429)
        return OutcomeUnknownError(text)

    def _stopped(self, error: Exception) -> AnnotationStoppedError:
        """An error of something that costs nothing and was tried again often enough."""
        known = self._error(error)
        if isinstance(known, AnnotationStoppedError):
            return known
        return AnnotationStoppedError(f"{self._url}: does not work ({known}); run again when it does")

    def _unknown_or_stopped(self, error: Exception) -> OutcomeUnknownError | AnnotationStoppedError:
        """An error of something that may have happened all the same, or that cannot be done at all."""
        known = self._error(error)
        passing = isinstance(known, (NotBilledError, OutcomeUnknownError))
        return OutcomeUnknownError(str(known)) if passing else AnnotationStoppedError(str(known))

    def _said(self, error: Exception) -> str:
        """What went wrong in the server's own words, or the kind of failure where it said nothing."""
        if not isinstance(error, openai.APIStatusError):
            return self._public(f"{error} ({type(error.__cause__ or error).__name__})")
        said = error.body.get("message") if isinstance(error.body, dict) else None
        return self._public(f"{error.status_code}: {said or error.message}")

    def _public(self, text: str) -> str:
        """One line without the key, whatever a server writes into its messages."""
        return " ".join(self._without_key(text).split())[:300]

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, _HIDDEN) if len(self._key) >= _SECRET_FROM else text


def _document(content: bytes) -> Any:
    """A reply's JSON. Raises OutcomeUnknownError for garbage: the server may have billed what it garbled."""
    try:
        return json.loads(content)
    except ValueError as error:
        raise OutcomeUnknownError(f"the reply is not JSON ({error})") from None


def _rows(content: bytes) -> list[Any] | None:
    """The rows of a listing; None when it is no listing."""
    try:
        rows = json.loads(content)["data"]
    except (ValueError, KeyError, TypeError):
        return None
    return rows if isinstance(rows, list) else None


def _is_unfinished(reply: Any) -> bool:
    """Whether a response of the Responses API is still being made."""
    return isinstance(reply, dict) and reply.get("status") in ("queued", "in_progress")


def annotate(
    corpus: Corpus,
    config: AnnotatorConfig,
    where: Where,
    *,
    splits: tuple[Split, ...] = ("train",),
    limit: int | None = None,
    listener: Listener | None = None,
) -> tuple[Path, AnnotationReport] | None:
    """Ask for the traces of some splits, or what is missing of them, and attach them to the corpus when all is asked.

    With a `limit` it is a sample: its answers are kept for the whole, and the corpus stays as it is. Returns the folder and the report;
    None when `listener.confirm` said no. Raises AnnotationStoppedError where no request can succeed and ValueError for
    other errors of the user; what was answered until then is kept.
    """
    listener, key = listener or Listener(), read_key()
    examples = selected_examples(corpus, splits, limit)
    described = {"name": config.name, **asdict(config)}
    with annotation_folder(corpus.root, config.name, described, config.fingerprint()) as folder:
        ledger = Ledger(folder / "ledger.jsonl")
        try:
            work = Work(config, corpus, examples, ledger, where.price)
            estimate = work.estimate(batched=where.batched)
            if estimate.requests and not listener.confirm(estimate):
                return None
            if estimate.requests or ledger.batches:
                try:
                    asyncio.run(_run(work, where, key, folder, listener))
                except AnnotationStoppedError:
                    finish_work(folder, work, described, where.host, splits, attach=False)
                    raise
            return folder, finish_work(folder, work, described, where.host, splits, attach=limit is None)
        finally:
            ledger.close()


async def _run(work: Work, where: Where, key: str, folder: Path, listener: Listener) -> None:
    server = OpenAIServer(work.config, url=where.url, key=key, pace=where.pace, stored=where.stored)
    try:
        live = LiveAnnotation(work, server, where.pace, max_cost=where.max_cost, on_progress=listener.on_progress)
        if not where.batched:
            if work.ledger.batches:
                raise ValueError(
                    f"{folder}: {len(work.ledger.batches)} batches are on their way; run with --batch to collect them"
                )
            if note := await server.prepare():
                listener.on_note(note)
            await live.run()
            return
        await live.run(only_unknown=True)  # what a live run left behind
        batches = BatchAnnotation(
            work, server, where.pace, folder / "batches", max_cost=where.max_cost, on_progress=listener.on_progress
        )
        await batches.run()
    finally:
        await server.close()
