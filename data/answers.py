"""What a model wrote -> the slots it filled, whether it thought first, and whether it kept to the form.

The form is `{"label": "value", "label2": ["v1", "v2"]}`, or `<thinking>...</thinking><response>{...}</response>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

RESPONSE, RESPONSE_END = "<response>", "</response>"

_THINKING_TAG = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
"""Ours, and the `<think>` that many models were trained to write: what stands inside is never the answer."""

MAX_REPAIR_CHARS = 2000
"""A longer broken object is a parse failure: the repair's time grows with the square of the length (0.2 s for the worst 2,000 characters found)."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer, taken apart."""

    slots: tuple[tuple[str, str], ...]  # (label, value) in the order written; empty after a parse failure
    thought: bool  # a thinking block with something in it was begun
    closed: bool  # every <thinking> and <response> that was opened was closed
    parse_failure: bool  # no JSON object of strings, numbers and lists of them where the answer belongs
    repaired: bool = False  # the object was not JSON; `slots` is what a repair made of it. Never of a parse failure


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs, so that a label written twice keeps both values."""


class _FormError(ValueError):
    """The JSON is well-formed, but is no answer."""


_DECODER = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=str, parse_float=str, parse_constant=str)
"""Numbers stay as they are written: 1.50 is "1.50", and an integer of any length is a value."""

_WHOLE_NUMBER = re.compile(r"(?<=[\s:,\[])[-+]?\d[\d.eE+-]*(?=\s*(?:[,\]}]|$))")
"""A number that is all of a value: not the 5 of `5 dollars`."""


def parse_answer(text: str) -> Answer:
    """Take an answer apart; never raises, whatever the text.

    Text before the first `{` (a greeting, a code fence, special tokens) and after the object's end is ignored. null, ""
    and [] mean that a label has no value. An object that is not JSON is repaired where that is no guess (`_repair`). A
    nested object, a list in a list or around the object, an unclosed `<thinking>` (what follows may be a mention, not the
    answer) and an object that is absent or beyond repair are parse failures without slots.
    """
    body, thought, closed = _split_thinking(text)
    if body is None:
        return Answer(slots=(), thought=thought, closed=False, parse_failure=True)
    start = body.find("{")
    if RESPONSE in (body if start == -1 else body[:start]):
        closed = RESPONSE_END in body
    try:
        if start == -1 or body[:start].rstrip().endswith("["):
            raise _FormError("no JSON object, or a list of them")
        # Only the first brace counts: scanning on would take the inside of a broken object for an answer.
        pairs, repaired = _read_object(body[start:])
        slots = tuple((_clean(label), value) for label, written in pairs for value in _values(written))
    except (ValueError, RecursionError):  # RecursionError: thousands of brackets from a model in a loop
        return Answer(slots=(), thought=thought, closed=closed, parse_failure=True)
    return Answer(slots=slots, thought=thought, closed=closed, parse_failure=False, repaired=repaired)


def _split_thinking(text: str) -> tuple[str | None, bool, bool]:
    """(the text after the thinking blocks, None where one has no end; whether it thought; whether it closed).

    A tag that closes what nothing opened ends a thought that began in the prompt.
    """
    begin, thought = 0, False
    while tag := _THINKING_TAG.search(text, begin):
        if text.find(RESPONSE, begin, tag.start()) != -1:
            break  # the answer has begun
        inside, end = begin, tag
        if not tag[1]:
            if text.find("{", begin, tag.start()) != -1:
                break  # inside an answer's value, or behind it
            inside = tag.end()
            closing = (later for later in _THINKING_TAG.finditer(text, inside) if later[1])
            end = next(closing, tag)
            if end is tag:
                return None, thought or bool(text[inside:].strip()), False
        thought = thought or bool(text[inside : end.start()].strip())
        begin = end.end()
    return text[begin:], thought, True


def _read_object(text: str) -> tuple[list[tuple[str, Any]], bool]:
    """The pairs of the object that `text` begins with, and whether it had to be repaired. Raises ValueError or RecursionError."""
    try:
        return _DECODER.raw_decode(text)[0], False
    except json.JSONDecodeError:
        return _repair(text), True


def _repair(text: str) -> list[tuple[str, Any]]:
    """The pairs of a broken object, by json-repair. Raises _FormError where there is nothing to repair, or it would be a guess.

    The object reaches to `</response>`, else to the last `}`; without either, nothing says that the model was done with it. It
    is repaired when it is not longer than MAX_REPAIR_CHARS and has no second `{`: an answer holds no nested object, and of two
    objects neither is the answer. A number counts only where the text has it whole, and then as it is written. Of a label that
    is written twice json-repair keeps the last.
    """
    written, end_tag, _ = text.partition(RESPONSE_END)
    if not end_tag:
        written = text[: text.rfind("}") + 1]
    if not written or len(written) > MAX_REPAIR_CHARS or written.count("{") > 1:
        raise _FormError("a broken object without an end, too long or nested")
    from json_repair import repair_json  # here, so that only a broken answer pays for it

    try:
        found = repair_json(written, return_objects=True, skip_json_loads=True)
    except Exception as error:  # json-repair fails in ways of its own (ValueError and AssertionError were seen): a parse failure, counted as one
        raise _FormError("beyond repair") from error
    if not isinstance(found, dict) or not found:
        raise _FormError("the repair found no object")
    return [(str(label), _as_written(value, written)) for label, value in found.items()]


def _as_written(value: Any, text: str) -> Any:
    """A value of a repaired object with its numbers as strings. Raises _FormError for a number that the repair has changed."""
    if isinstance(value, list):
        return [_as_written(item, text) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    for token in _WHOLE_NUMBER.findall(text):
        try:
            if float(token) == value:
                return token
        except ValueError:  # 2024-03-03 is no number
            continue
    raise _FormError("a number that the text does not have")


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
