"""A text of a corpus as its authors wrote it -> the one line of it that a `SourceRow` holds, and where words begin and end in it."""

from __future__ import annotations

import re
from typing import Any

from data.json_lines import shown
from data.readers.source import Unusable

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def clean_text(value: Any, field: str) -> str:
    """The text with single spaces. Raises Unusable where it is missing, blank, no text, or not printable; `field` is named in the finding."""
    if not isinstance(value, str) or not value.strip():
        raise Unusable("field-missing", field, "is missing, blank or not a text", "fill it, or remove the row")
    text = " ".join(value.split())
    if _CONTROL.search(text):
        raise Unusable("text-unreadable", field, f"{shown(text)} holds control characters", "remove them")
    return text


def cuts_word(text: str, start: int, end: int) -> bool:
    """Whether the span of characters is blank, or begins or ends inside a word: most likely its numbers are not characters."""
    inside_before = start > 0 and text[start - 1].isalnum() and text[start].isalnum()
    inside_after = end < len(text) and text[end - 1].isalnum() and text[end].isalnum()
    return inside_before or inside_after or not text[start:end].strip()
