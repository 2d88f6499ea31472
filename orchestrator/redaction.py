"""Text that is about to be recorded or printed -> the same text without secrets: keys, tokens, passwords."""

from __future__ import annotations

import io
import os
import re
from typing import IO

REDACTED = "[redacted]"

_SECRET_NAME = re.compile(
    r"(^|_)(\w*key|token|secret|password|passwd|credential)s?(_(id|value|[0-9]+))?$", re.IGNORECASE
)
"""Of an environment variable: its last word says what it holds, so TOKENIZERS_PARALLELISM and SSH_KEY_PATH are none."""
_SHORTEST_SECRET = 8
"""Characters; a shorter value of such a variable ("1", "none") is a word of many harmless lines."""

_PATTERNS = (
    (re.compile(r"(?<=://)[^\s/@:'\"]*:[^\s/@'\"]+(?=@)"), REDACTED),  # user:password@host
    (
        re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?)(?:(?:bearer|basic|token)\s+)?[^\s'\",;}]+"),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]{16,}"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)([?&][\w-]*(?:token|key|signature|credential|secret|password)=)[^\s&'\"]+"), rf"\1{REDACTED}"),
    (re.compile(r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,})"), REDACTED),
)
"""Passwords in addresses, HTTP headers, signed addresses, and the keys of Hugging Face and of OpenAI-compatible services."""


def redact(text: str) -> str:
    """The text with every secret replaced by "[redacted]": what the patterns know and the values of this process's secret variables."""
    values = {
        value for name, value in os.environ.items() if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name)
    }
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, REDACTED)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


class RedactingStream(io.TextIOBase):
    """A text stream that redacts whole lines on their way to another one. What C code writes to a file descriptor does not pass through."""

    def __init__(self, target: IO[str]) -> None:
        """`target` is written to whenever a line is complete, and on `flush`."""
        self._target, self._line = target, ""

    def write(self, text: str, /) -> int:
        """Take text; every line that it completes is written on."""
        whole, newline, self._line = (self._line + text).rpartition("\n")
        if newline:
            self._target.write(redact(whole) + newline)
            self._target.flush()
        return len(text)

    def flush(self) -> None:
        """Write on what there is of an incomplete line: progress bars end none."""
        self._target.write(redact(self._line))
        self._line = ""
        self._target.flush()

    def fileno(self) -> int:
        """Of the target: what is written there directly is not redacted."""
        return self._target.fileno()

    def writable(self) -> bool:
        """Yes."""
        return True
