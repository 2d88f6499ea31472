"""The names of a run folder's files -> which of them a bucket shares, and in which order they are put so that a reader never counts half a trial.

Names are relative to the store: "grid-smoke/trials/a.regular.seed0/result.json".
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path

from model.checkpoint_folder import COMMIT_FILE, step_of

LEASE, GENERATION, STATE = "lease.json", "generation.json", "replica.json"
_TOP = {LEASE, GENERATION, STATE, "lease.lock", "stop.json", "ray"}
_ANYWHERE = {"lock", "mlflow_mirror.json"}
"""Of this machine alone: locks, and how much a tracker has been told that another machine may not see."""
DERIVED = {"plan.json", "report.md", "results.csv", "costs.csv", "heatmap.png"}
"""Made again from the rest, so not worth moving aside."""
CONFIG = "config.json"
_RESULTS = ("result.json", "alignment.json")
_PREPARED_LAST = ("corpus.json", "manifest.json")

Stats = Mapping[str, os.stat_result]


def scan(folder: Path, root: Path) -> dict[str, os.stat_result]:
    """The shared files below a run folder by name; what vanishes meanwhile is left out.

    A folder's files are looked at after its subfolders', so the curves are at least as new as the checkpoints.
    """
    found = {}
    for base, _, files in os.walk(folder, topdown=False):
        for file in files:
            path = Path(base, file)
            name = path.relative_to(root).as_posix()
            if not is_shared(name):
                continue
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                found[name] = status
    return found


def is_shared(name: str) -> bool:
    """Whether a file of a run folder belongs into the bucket: temporary ones do not, nor what is of this machine."""
    parts = name.split("/")[1:]
    return parts[0] not in _TOP and parts[-1] not in _ANYWHERE and not any(part.startswith(".") for part in parts)


def rank_of(name: str) -> int:
    """0 a trial's config, 1 data, 2 what makes them count, 3 what says that all is done: put and fetched in this order, removed in reverse."""
    base = name.rpartition("/")[2]
    if base == CONFIG:
        return 0
    if base in _RESULTS or base in _PREPARED_LAST:
        return 3
    return 2 if base.endswith(".json") else 1


def order_of(name: str) -> tuple[int, str]:
    """To sort names by."""
    return rank_of(name), name


def commits(name: str) -> bool:
    """Whether a file makes work count that would be done again without it."""
    return name.endswith("commit.json") or name.rpartition("/")[2] in _RESULTS


def unfinished_checkpoints(names: Collection[str]) -> set[str]:
    """Those names that are of a checkpoint whose commit is not among them."""
    return {name for name in names if "/checkpoints/" in name and f"{folder_of(name)}/{COMMIT_FILE}" not in names}


def outdated_checkpoints(names: Collection[str], mine: Collection[str]) -> set[str]:
    """Those names that are of a checkpoint which is not `mine`, while a newer one of the same trial is."""
    newest: dict[str, int] = {}
    for name in mine:
        if "/checkpoints/" in name and name.endswith(f"/{COMMIT_FILE}"):
            checkpoints = folder_of(folder_of(name))
            newest[checkpoints] = max(newest.get(checkpoints, 0), _step(name))
    return {
        name
        for name in names
        if f"{folder_of(name)}/{COMMIT_FILE}" not in mine
        and 0 < _step(name) < newest.get(folder_of(folder_of(name)), 0)
    }


def _step(name: str) -> int:
    """The step of the checkpoint that a file is of, 0 for any other file."""
    return step_of(folder_of(name).rpartition("/")[2]) or 0


def folder_of(name: str) -> str:
    """The name of the folder that a file is in."""
    return name.rpartition("/")[0]


def trial_of(name: str) -> str:
    """The folder of the trial, canary or alignment that a file belongs to; else the run folder."""
    parts = name.split("/")
    return "/".join(parts[:3]) if len(parts) > 3 else parts[0]


def is_old(name: str) -> bool:
    """Whether a name is of a trial that was set aside (`orchestrator.ledger`)."""
    return any(".stale-" in part for part in name.split("/")[:3])


def is_large(name: str) -> bool:
    """Whether a reader of states and scores can do without."""
    return "/checkpoints/" in name or name.endswith(".safetensors")
