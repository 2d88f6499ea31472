"""What is wrong with one row of a user's data, in a form that people read, programs count and tests name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Severity = Literal["error", "warning"]
"""An error keeps its row out of the corpus; a warning is told and the row stays."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One defect of one row."""

    kind: str  # a stable name of the defect, kebab-case: "slot-label-unknown"; what summaries count by
    file: Path
    line: int | None  # from 1; None where the defect is of the whole file
    field: str | None  # as in the file, nested ones dotted: "slots[2].label"
    problem: str  # what is wrong, with the offending value
    remedy: str  # what the user can do
    severity: Severity = "error"
    example_id: str | None = None  # of the row, where it has a readable one

    def __str__(self) -> str:
        """The one line that users read: file, line, field, problem, remedy."""
        where = f"{self.file}" + (f", line {self.line}" if self.line else "")
        where += f", field {self.field}" if self.field else ""
        return f"{where}: {self.problem}; {self.remedy}"
