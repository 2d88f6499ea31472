"""What a model wrote -> the slots it filled, whether it thought first, and whether it kept to the form.

The form is `{"label": "value", "label2": ["v1", "v2"]}`, or `<thinking>...</thinking><response>{...}</response>`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

THINKING, THINKING_END = "<thinking>", "</thinking>"
RESPONSE, RESPONSE_END = "<response>", "</response>"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer, taken apart."""

    slots: tuple[tuple[str, str], ...]  # (label, value) in the order written; empty after a parse failure
    thought: bool  # a thinking block with something in it was begun
    closed: bool  # every <thinking> and <response> that was opened was closed
    parse_failure: bool  # no JSON object of strings, numbers and lists of them where the answer belongs


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs, so that a label written twice keeps both values."""


class _FormError(ValueError):
    """The JSON is well-formed, but is no answer."""


_DECODER = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=str, parse_float=str, parse_constant=str)
"""Numbers stay as they are written: 1.50 is "1.50", and an integer of any length is a value."""


def parse_answer(text: str) -> Answer:
    """Take an answer apart; never raises, whatever the text.

    Text before the first `{` (a greeting, a code fence, special tokens) and after the object's end is ignored. null, ""
    and [] mean that a label has no value. A nested object, a list in a list, an unclosed `<thinking>` and a JSON object
    that is absent or broken are parse failures: no slots, no guess.
    """
    body, thought, closed = _split_thinking(text)
    if body is None:
        return Answer(slots=(), thought=thought, closed=False, parse_failure=True)
    start = body.find("{")
    if RESPONSE in (body if start == -1 else body[:start]):
        closed = RESPONSE_END in body
    try:
        if start == -1:
            raise _FormError("no JSON object")
        # Only the first brace counts: scanning on would take the inside of a broken object for an answer.
        pairs, _ = _DECODER.raw_decode(body, start)
        slots = tuple((_clean(label), value) for label, written in pairs for value in _values(written))
    except (ValueError, RecursionError):  # RecursionError: thousands of brackets from a model in a loop
        return Answer(slots=(), thought=thought, closed=closed, parse_failure=True)
    return Answer(slots=slots, thought=thought, closed=closed, parse_failure=False)


def _split_thinking(text: str) -> tuple[str | None, bool, bool]:
    """(the text after the thinking block, None where it has no end; whether it thought; whether it closed)."""
    start, brace = text.find(THINKING), text.find("{")
    if start == -1 or -1 < brace < start:  # a tag inside an answer's value opens no block
        return text, False, True
    thinking, end_tag, body = text[start + len(THINKING) :].partition(THINKING_END)
    return (body if end_tag else None), bool(thinking.strip()), bool(end_tag)


def _values(written: Any) -> Iterator[str]:
    """The values of one label: none, one, or a list of them."""
    for item in written if type(written) is list else [written]:
        if isinstance(item, bool):
            yield "true" if item else "false"
        elif isinstance(item, str):
            if value := _clean(item):
                yield value
        elif item is not None:
            raise _FormError("a value is an object or a nested list")


def _clean(text: str) -> str:
    r"""Without surrounding space, and writable as UTF-8: a lone surrogate (`\ud800`) becomes "?"."""
    return text.strip().encode("utf-8", "replace").decode("utf-8")
