"""Who annotates (`AnnotatorConfig`), what it is asked (`Request`), what it answers (`Answer`), and how asking can fail; and both APIs' JSON bodies.

Nothing here talks to a server: `data.annotate` does, live and in batches, with these words.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from data.annotation.trace_checks import Rejection
from data.annotation.trace_requests import RESPONSE_FORMAT, TRACE_PROMPT_VERSION

Api = Literal["chat", "responses"]
ENDPOINTS: dict[Api, Literal["/v1/chat/completions", "/v1/responses"]] = {
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
}

REFUSALS = (400, 413, 422)
"""Statuses by which a server refuses one request as such."""
METADATA_KEY = "slotgrid_request"
"""Every request carries its id under this key, so that its answer can be found again on the server instead of being paid for twice."""

_SCHEMA_BYTES = len(json.dumps(RESPONSE_FORMAT))
_PER_MESSAGE = 16  # tokens around a message (role, separators) at most; published counts are 3 to 7


@dataclass(frozen=True, kw_only=True)
class AnnotatorConfig:
    """Everything that decides what a language model answers. Where it runs (server, key, prices, concurrency) is not part of it."""

    model: str = "gpt-4o"  # paper: the traces were written by GPT-4o
    api: Api = "chat"
    temperature: float = 1.0  # the only value that every model takes
    max_output_tokens: int = 1024  # of one answer, hidden reasoning tokens included
    max_attempts: int = 3  # answers asked for per example before it is quarantined
    prompt_version: int = TRACE_PROMPT_VERSION

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("annotator.model is empty; name a model of the server")
        if self.api not in get_args(Api):
            raise ValueError(f"annotator.api: {self.api!r} is not one of {', '.join(get_args(Api))}")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"annotator.temperature: {self.temperature} is not between 0 and 2")
        if self.max_output_tokens < 1 or self.max_attempts < 1:
            raise ValueError("annotator: max_output_tokens and max_attempts must be at least 1")
        if self.prompt_version != TRACE_PROMPT_VERSION:
            raise ValueError(
                f"annotator.prompt_version: this code writes version {TRACE_PROMPT_VERSION}, not {self.prompt_version}"
            )

    @property
    def name(self) -> str:
        """What people call it: the model, fit for a file name."""
        return re.sub(r"[^A-Za-z0-9.-]+", "-", self.model)

    def fingerprint(self) -> str:
        """Names everything that decides what is answered; it enters the fingerprint of the traces."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question about one example. The same question has the same id, on every machine and after every restart."""

    id: str  # 32 hex digits; metadata of a live request, custom_id of a batched one
    example_id: str
    attempt: int  # from 1; every rejected answer is a further attempt
    messages: tuple[Mapping[str, str], ...]

    @property
    def max_tokens_in(self) -> int:
        """An upper bound of the input tokens: no tokenizer makes more tokens than bytes. The answer's schema counts as input too."""
        texts = [message["content"] for message in self.messages]
        return _SCHEMA_BYTES + sum(len(text.encode()) + _PER_MESSAGE for text in texts)


def make_request(annotator: str, example_id: str, attempt: int, messages: list[dict[str, str]]) -> Request:
    """A request to the annotator of this fingerprint. Its id is a hash of all that it asks: a changed example is another question."""
    asked = json.dumps([annotator, example_id, attempt, messages])
    name = hashlib.sha256(asked.encode()).hexdigest()[:32]
    return Request(id=name, example_id=example_id, attempt=attempt, messages=tuple(messages))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server answered, and what it bills for it."""

    text: str
    tokens_in: int | None  # None: the server does not say
    tokens_out: int | None
    model: str  # as the server names it, often more exact than what was asked for: "gpt-4o-2024-08-06"
    problem: Rejection | None = None  # why this is no whole answer: cut off, refused


class NotBilledError(Exception):
    """The server declined for the moment (429, 5xx) or was not reached; asking again costs nothing twice."""

    def __init__(self, message: str, *, retry_after: float | None = None, busy: bool = False) -> None:
        super().__init__(message)
        self.busy = busy  # too many requests, whichever: it is not this one's fault
        self.retry_after = retry_after  # seconds, as the server wishes


class OutcomeUnknownError(Exception):
    """No answer came (time-out, cut connection, garbage), yet the server may have written and billed one."""


class UnfinishedError(Exception):
    """The server is still writing the answer to a request that was sent before."""


class RequestRefusedError(Exception):
    """The server refuses this one request as such (`REFUSALS`); it is not billed, and asking again gives the same."""


class AnnotationStoppedError(ValueError):
    """No request can succeed (key, model, quota, server): one line that names the remedy."""


def request_body(config: AnnotatorConfig, request: Request, *, store: bool) -> dict[str, Any]:
    """The JSON body of a request. `store`: the server keeps the answer for a while, findable by the request's id (Responses: by its own)."""
    common = {"model": config.model, "temperature": config.temperature}
    kept: dict[str, Any] = {"store": True, "metadata": {METADATA_KEY: request.id}} if store else {}
    if config.api == "chat":
        asked = {"messages": list(request.messages), "max_completion_tokens": config.max_output_tokens}
        return {**common, **asked, "response_format": RESPONSE_FORMAT, **kept}
    form = {"format": {"type": "json_schema", **RESPONSE_FORMAT["json_schema"]}}
    # Stored by default, so it has to be said; in the background the server names the answer at once, before it is written.
    kept = {**kept, "background": True} if store else {"store": False}
    return {
        **common,
        "input": list(request.messages),
        "max_output_tokens": config.max_output_tokens,
        "text": form,
        **kept,
    }


def read_answer(body: Any) -> Answer:
    """The answer in a finished completion or response of either API. Raises OutcomeUnknownError when `body` is neither."""
    try:
        return _chat_answer(body) if "choices" in body else _responses_answer(body)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise OutcomeUnknownError(f"the server's reply is no completion: {str(body)[:120]!r}") from error


_CUT_OFF = Rejection(kind="cut-off", text="the answer was longer than allowed; write less")


def _refusal(said: str | None) -> Rejection:
    return Rejection(kind="refused", text=f"the answer was a refusal: {said or 'by the content filter'}")


def _chat_answer(body: Mapping[str, Any]) -> Answer:
    choice = body["choices"][0]
    usage = body.get("usage") or {}
    problem = None
    if choice.get("finish_reason") == "length":
        problem = _CUT_OFF
    elif choice["message"].get("refusal") or choice.get("finish_reason") == "content_filter":
        problem = _refusal(choice["message"].get("refusal"))
    return Answer(
        text=choice["message"].get("content") or "",
        tokens_in=usage.get("prompt_tokens"),
        tokens_out=usage.get("completion_tokens"),
        model=str(body.get("model")),
        problem=problem,
    )


def _responses_answer(body: Mapping[str, Any]) -> Answer:
    parts = [part for item in body["output"] if item.get("type") == "message" for part in item["content"]]
    refusals = [part["refusal"] for part in parts if part.get("type") == "refusal"]
    usage = body.get("usage") or {}
    problem = None
    if body.get("status") == "incomplete":
        filtered = (body.get("incomplete_details") or {}).get("reason") == "content_filter"
        problem = _refusal(None) if filtered else _CUT_OFF
    elif refusals:
        problem = _refusal(refusals[0])
    return Answer(
        text="".join(part["text"] for part in parts if part.get("type") == "output_text"),
        tokens_in=usage.get("input_tokens"),
        tokens_out=usage.get("output_tokens"),
        model=str(body.get("model")),
        problem=problem,
    )
