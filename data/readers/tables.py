"""A file of tab-separated cells under a header -> its lines as cells by name, and a `Finding` for each that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.findings import Finding
from data.json_lines import Location, iter_lines


def iter_table(path: Path, required: tuple[str, ...]) -> Iterator[tuple[Location, dict[str, str]] | Finding]:
    """The lines of a UTF-8 file, blank ones skipped. Quotes are characters like all others.

    One Finding, and no line, where the header cannot be read or lacks one of the `required` columns.
    """
    header: list[str] = []
    for at, line in iter_lines(path):
        cells = _read_cells(at, line)
        if isinstance(cells, Finding):
            yield cells
            if at.line == 1:
                return
        elif at.line == 1:
            header = cells
            if missing := [name for name in required if name not in header]:
                problem = f"names no column {', '.join(map(repr, missing))} (it names {', '.join(header)[:200]})"
                remedy = "restore the authors' file, with its first line"
                yield at.error("column-missing", None, problem, remedy)
                return
        elif cells == [""]:
            continue
        elif len(cells) != len(header):
            problem = f"has {len(cells)} cells under {len(header)} columns"
            remedy = "restore the line: one tab between cells, none inside them"
            yield at.error("column-count", None, problem, remedy)
        else:
            yield at, dict(zip(header, cells, strict=True))


def _read_cells(at: Location, line: bytes) -> list[str] | Finding:
    if b"\0" in line:  # no path may hold one
        return at.error("line-nul-byte", None, "holds a NUL byte, so it is not text", "copy the file again")
    try:
        return line.decode("utf-8-sig" if at.line == 1 else "utf-8").rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        return at.error("line-not-utf8", None, f"is not UTF-8 (byte {error.start + 1})", "save the file as UTF-8")
