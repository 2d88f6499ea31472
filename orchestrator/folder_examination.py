"""A run folder that nobody drives -> what a kill or a fault left in it that does not belong there, each with what puts it right."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.metric_lines import read_metrics
from model.checkpoint_folder import COMMIT_FILE, OPTIMIZER_FILE, prune_checkpoints
from model.configs import KeptCheckpoints, TrialConfig
from orchestrator.attempts import close_killed, read_record
from orchestrator.identity import trial_id
from orchestrator.layout import RunFolder, TrialFolder
from orchestrator.ledger import read_state, set_damaged_aside

AilmentKind = Literal[
    "lease",
    "attempt",
    "checkpoint",
    "leftover",
    "damaged",
    "tracker",
    "zombie",
    "missing-run",
    "duplicate-run",
    "duplicate-points",
    "gap",
    "difference",
    "stale-run",
]


@dataclass(frozen=True, kw_only=True)
class Ailment:
    """Something that is not as it should be."""

    kind: AilmentKind
    where: str  # a path, or a run of MLflow
    problem: str
    remedy: str  # what `doctor --repair` does; without a cure: what a person can do
    cure: Callable[[], object] | None = field(repr=False, compare=False)


def examine_lease(run: RunFolder) -> list[Ailment]:
    """A lease whose holder is dead; to be asked when no living one holds it."""
    if not run.lease.exists():
        return []
    return [
        Ailment(
            kind="lease",
            where=str(run.lease),
            problem="its holder is dead",
            remedy="remove it",
            cure=lambda: run.lease.unlink(missing_ok=True),
        )
    ]


def examine_folder(run: RunFolder, trials: Sequence[TrialConfig], keep: KeptCheckpoints) -> Iterator[Ailment]:
    """Everything but the lease. `keep`: what a done trial keeps of its checkpoints. Nothing is written."""
    yield from _leftovers(run)
    for folder in _all_folders(run):
        yield from _attempt_without_end(folder)
        yield from _unfinished_checkpoints(folder)
    for trial in trials:
        folder = run.trial(trial_id(trial))
        yield from _damaged(folder, trial)
        if folder.result.exists():
            yield from _kept_too_much(folder, keep)


_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}")
"""What `data.atomic` names a file until it is whole."""


def _leftovers(run: RunFolder) -> Iterator[Ailment]:
    for path in sorted(run.path.rglob(".*")):
        if path.is_file() and _TEMPORARY.fullmatch(path.name):
            yield _removable("leftover", path, "a file that was being written when its writer was killed")
    ray = run.path / "ray"
    if ray.exists():
        yield _removable("leftover", ray, "what Ray stored for a run that was killed")


def _unfinished_checkpoints(folder: TrialFolder) -> Iterator[Ailment]:
    for path in sorted(folder.checkpoints.glob("*")):
        if path.name.startswith(".writing-"):
            yield _removable("checkpoint", path, "was being written when its writer was killed")
        elif path.suffix == ".replaced":
            if (path.with_suffix("") / COMMIT_FILE).exists():
                yield _removable("checkpoint", path, "another one of its step has taken its place")
        elif path.name.startswith("step-") and not (path / COMMIT_FILE).exists():
            yield _removable("checkpoint", path, f"has no {COMMIT_FILE}: it was never whole")


def _kept_too_much(folder: TrialFolder, keep: KeptCheckpoints) -> Iterator[Ailment]:
    whole = sorted(path.parent for path in folder.checkpoints.glob(f"step-*/{COMMIT_FILE}"))
    more = len(whole) > 1 or (keep == "weights" and any((path / OPTIMIZER_FILE).exists() for path in whole))
    if more:
        yield Ailment(
            kind="checkpoint",
            where=str(folder.checkpoints),
            problem=f"the trial is done and keeps {len(whole)} checkpoints",
            remedy="keep the weights of the last one" if keep == "weights" else "keep the last one",
            cure=lambda: prune_checkpoints(folder.checkpoints, keep),
        )


def _attempt_without_end(folder: TrialFolder) -> Iterator[Ailment]:
    attempt = folder.latest_attempt()
    if attempt is None:
        return
    record = read_record(attempt)
    if record.known and record.ended is None:
        yield Ailment(
            kind="attempt",
            where=str(attempt.path),
            problem="was killed: it has no end",
            remedy="note its last sign of life as its end",
            cure=lambda: close_killed(folder, attempt),
        )


def _damaged(folder: TrialFolder, trial: TrialConfig) -> Iterator[Ailment]:
    """What the ledger says of the trial's files."""
    try:
        state = read_state(folder, trial)
    except ValueError as error:
        remedy = "none here: do what the problem says"
        yield Ailment(kind="damaged", where=str(folder.path), problem=str(error), remedy=remedy, cure=None)
        return
    if state.damaged:
        names = ", ".join(path.name for path in state.damaged)
        yield Ailment(
            kind="damaged",
            where=str(folder.path),
            problem=state.note,
            remedy=f"set aside {names}; the next run makes them again",
            cure=lambda: set_damaged_aside(state),
        )
    elif state.note:
        remedy = "nothing here; made of MLflow's points where it has them all"
        yield Ailment(kind="damaged", where=str(folder.metrics), problem=state.note, remedy=remedy, cure=None)
    elif state.state != "done" and (lines := read_metrics(folder.metrics).damaged_lines):
        yield Ailment(
            kind="damaged",
            where=str(folder.metrics),
            problem=f"damaged lines: {', '.join(map(str, lines))}",
            remedy="none here: the next run trains their steps again",
            cure=None,
        )


def _removable(kind: AilmentKind, path: Path, problem: str) -> Ailment:
    def remove() -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    return Ailment(kind=kind, where=str(path), problem=problem, remedy="remove it", cure=remove)


def _all_folders(run: RunFolder) -> list[TrialFolder]:
    """Every folder that attempts are made in: trials, also those set aside, canaries, alignment stages."""
    parents = (run.trials, run.canary("").path, run.alignment("", 0).path.parent)
    return [TrialFolder(path) for parent in parents for path in sorted(parent.glob("*/"))]
