"""A benchmark that needs a folder for everything it runs: made before, and removed after it when all went well."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from data.atomic import write_json


def measure_in_folder(
    name: str,
    measure: Callable[[Path], dict[str, Any]],
    *,
    show: Callable[[dict[str, Any], Console], None],
    is_good: Callable[[dict[str, Any]], bool],
    store: Path | None,
    keep: bool,
    out: Path | None,
    console: Console,
) -> int:
    """Measure in a new folder, show the document and write it to `NAME.json` there and to `out`; returns the exit code.

    0: good, the folder is removed unless `keep` says otherwise; 1: not good; 2: `store` is not empty, or `measure` raised RuntimeError.
    """
    folder = (store or Path(tempfile.mkdtemp(prefix=f"slotgrid-{name}-"))).absolute()
    if folder.exists() and any(folder.iterdir()):
        console.print(f"error: --store: {folder} is not empty; give a new folder", markup=False)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    try:
        document = measure(folder)
    except RuntimeError as error:
        console.print(f"error: {error}", markup=False)
        return 2
    show(document, console)
    write_json(folder / f"{name}.json", document)
    if out:
        write_json(out, document)
    good = is_good(document)
    if keep or not good:
        console.print(f"kept: {folder}", markup=False)
    else:
        shutil.rmtree(folder)
    return 0 if good else 1
