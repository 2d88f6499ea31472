"""What the loopback server answers, with which faults, and what it bills: the part that knows nothing of HTTP."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from data.annotation.trace_rules import rule_trace
from data.records import Example, SlotValue, Turn

POISON = "unteachable"
"""An example with this word in its transcript never gets a right answer."""
NO_ID = "asked"
"""The server is not told which example it writes the trace of; the rule's wording depends on the id."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How often what goes wrong; probabilities of one request, at most one fault each."""

    rate_limited: float = 0.0  # 429 with retry-after
    failing: float = 0.0  # 500
    late: float = 0.0  # written and billed, but after the client's time-out
    cut_before: float = 0.0  # connection cut, nothing billed
    cut_after: float = 0.0  # connection cut, billed and stored
    garbled: float = 0.0  # billed and stored, but the reply is no JSON
    gateway: float = 0.0  # billed and stored, but something on the way replies 502
    invalid_json: float = 0.0  # billed, the answer is no JSON
    wrong_slots: float = 0.0  # billed, the answer has another slot value
    batch_missing: float = 0.0  # of the lines of a batch
    batch_expired: float = 0.0
    batch_failing: float = 0.0
    batch_twice: float = 0.0
    batch_creation_cut: float = 0.0  # the batch is created, the reply is not sent
    late_s: float = 1.2
    retry_after_s: float = 0.05
    working_s: float = 0.0  # every answer takes so long
    background_s: float = 0.0  # every answer of the Responses API in the background
    seed: int = 0

    def draw(self, name: str, kinds: tuple[str, ...]) -> str | None:
        """Which fault hits; the same for the same name."""
        digest = hashlib.sha256(f"{self.seed}|{name}".encode()).digest()
        at = random.Random(digest).random()
        for kind in kinds:
            at -= getattr(self, kind)
            if at < 0:
                return kind
        return None


LIVE_FAULTS = (
    "rate_limited",
    "failing",
    "late",
    "cut_before",
    "cut_after",
    "garbled",
    "gateway",
    "invalid_json",
    "wrong_slots",
)
BATCH_FAULTS = ("batch_missing", "batch_expired", "batch_failing", "batch_twice", "invalid_json", "wrong_slots")


@dataclass
class Bank:
    """Stored answers and bills, safe for many threads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    bills: list[dict[str, Any]] = field(default_factory=list)
    stored: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by request id
    responses: dict[str, dict[str, Any]] = field(default_factory=dict)  # by their name
    ready_at: dict[str, float] = field(default_factory=dict)  # by their name, seconds since 1970
    next_at: float = 0.0  # when the rate limit lets the next question in
    tries: Counter[str] = field(default_factory=Counter)

    def has_room(self, per_second: float) -> bool:
        """Whether one more question may be answered now."""
        with self.lock:
            now = time.monotonic()
            if now < self.next_at:
                return False
            self.next_at = now + 1 / per_second
            return True

    def nth_try(self, request: str) -> int:
        """How often a request came, this time included."""
        with self.lock:
            self.tries[request] += 1
            return self.tries[request]

    def bill(self, request: str, usage: tuple[int, int], how: str) -> str:
        """Charge for an answer; the name of the completion."""
        with self.lock:
            self.bills.append({"request": request, "tokens_in": usage[0], "tokens_out": usage[1], "how": how})
            return f"{len(self.bills):08d}"

    def store(self, request: str, completion: dict[str, Any]) -> None:
        """Keep an answer."""
        with self.lock:
            kept = {**completion, "metadata": {"slotgrid_request": request}, "stored_at": time.monotonic()}
            self.stored.setdefault(request, []).append(kept)

    def listed(self, request: str, after_s: float) -> list[dict[str, Any]]:
        """The stored answers to a request that are at least so old."""
        with self.lock:
            return [kept for kept in self.stored.get(request, []) if time.monotonic() - kept["stored_at"] >= after_s]


def write_trace(messages: list[dict[str, str]], fault: str | None) -> str:
    """The answer to a prompt: a right one, read from the prompt itself, or one with the fault."""
    turn, _ = json.JSONDecoder().raw_decode(messages[-1]["content"])
    slots = [SlotValue(label=s["label"], spoken=s["value"], surface=s["value"], canonical="") for s in turn["slots"]]
    example = Example(
        id=NO_ID,
        split="train",
        domain="any",
        audio="",
        audio_sha256="",
        duration_s=1.0,
        transcript=turn["transcript"],
        slots=tuple(slots),
        context=tuple(Turn(speaker=t["speaker"], text=t["text"]) for t in turn["context"]),
    )
    trace = rule_trace(example)
    answer = {
        "transcription": trace.transcription,
        "mentions": [{"label": m.label, "text": m.text} for m in trace.mentions],
        "justifications": [{"label": j.label, "value": j.value, "because": j.because} for j in trace.justifications],
        "slots": [{"label": s["label"], "value": s["value"]} for s in turn["slots"]],
    }
    if fault == "wrong_slots" or POISON in turn["transcript"]:
        answer["slots"].append({"label": turn["labels"][0]["name"], "value": "something else"})
    text = json.dumps(answer, ensure_ascii=False)
    return text[: len(text) // 2] if fault == "invalid_json" else text


def usage_of(messages: list[dict[str, str]], text: str) -> tuple[int, int]:
    """Tokens in and out, about as a real tokenizer counts."""
    return sum(len(m["content"]) for m in messages) // 4 + 120, len(text) // 4 + 1


def chat_completion(name: str, model: str, text: str, usage: tuple[int, int]) -> dict[str, Any]:
    """A reply of /v1/chat/completions."""
    return {
        "id": f"chatcmpl-{name}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": f"{model}-2024-08-06",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": None,
                "message": {"role": "assistant", "content": text, "refusal": None},
            }
        ],
        "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)},
    }


def response(name: str, model: str, text: str | None, usage: tuple[int, int]) -> dict[str, Any]:
    """A reply of /v1/responses; without text it is still being made."""
    message = {"type": "message", "id": f"msg_{name}", "role": "assistant", "status": "completed"}
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": int(time.time()),
        "model": f"{model}-2024-08-06",
        "status": "queued" if text is None else "completed",
        "output": [] if text is None else [{**message, "content": content}],
        "usage": {"input_tokens": usage[0], "output_tokens": usage[1], "total_tokens": sum(usage)},
    }
