"""What all commands print on: one console, as wide as a table needs where the output is no terminal."""

from __future__ import annotations

import os
from typing import IO

from rich.console import Console

_PIPE_WIDTH = 160  # characters of a table line where the output is no terminal


def open_console(*, file: IO[str] | None = None, soft_wrap: bool = False) -> Console:
    """A console on `file` (standard output). A width that the user sets with COLUMNS is kept."""
    console = Console(file=file, highlight=False, soft_wrap=soft_wrap)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    return console
