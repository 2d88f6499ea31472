"""JSON objects <-> the lines of append-only files, each with its own checksum: a changed byte costs one line, and is noticed.

    {"step": 10, "metrics": {"train/loss": 1.5}, "crc32": "8d3a1b0c"}

The checksum is that of the line's text before it, so a line is checked before it is parsed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any


def checked_line(row: Mapping[str, Any]) -> str:
    """The row as a line, with its line feed."""
    text = json.dumps(row, ensure_ascii=False)[:-1]
    return f'{text}, "crc32": "{zlib.crc32(text.encode()):08x}"}}\n'


def parse_checked_line(line: bytes) -> dict[str, Any] | None:
    """The row of a line, without its line feed or with it; None when any byte of it was changed."""
    text, _, checksum = line.removesuffix(b"\n").rpartition(b', "crc32": ')
    if not text or checksum != b'"%08x"}' % zlib.crc32(text):
        return None
    row: dict[str, Any] = json.loads(text + b"}")
    return row
