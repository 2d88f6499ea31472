"""The folder `checkpoints/` of a trial: how a checkpoint becomes one, which are whole, which one training goes on from, and what is kept.

    step-000200/{trainable.safetensors, optimizer.safetensors, random-<rank>.safetensors, commit.json}
    step-000200.replaced/    a whole one that was in the way of another of its step, until that is in its place
    .writing-<random>/       being written, or left by a writer that was killed; renamed to step-... when all of it is on the disk

`commit.json` holds the sha256 of every file and its own: a folder in which any byte differs is no checkpoint and the one before it is used.
Knows nothing of tensors, so the orchestrator may look without loading the model's libraries.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from data.atomic import file_sha256, flush_to_disk, read_sealed_json, write_sealed_json
from data.metric_lines import is_logged, read_metrics
from model.configs import KeptCheckpoints

COMMIT_FILE = "commit.json"
WEIGHTS_FILE = "trainable.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
KEPT = 2
_NAME = re.compile(r"step-(\d+)(\.replaced)?")
_WRITING = ".writing-"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What a checkpoint says of itself."""

    step: int  # finished optimizer steps
    world: int  # workers that trained
    samples: int  # the position in the endless sequence of training items, which does not depend on the workers (`data.batching`)
    files: Mapping[str, str]  # file name -> sha256


def read_commit(checkpoint: Path) -> Commit:
    """A checkpoint's `commit.json`. Raises ValueError naming the file when it is damaged, FileNotFoundError when it is absent."""
    return Commit(**read_sealed_json(checkpoint / COMMIT_FILE))


def new_checkpoint(folder: Path) -> Path:
    """An empty folder to write a checkpoint into. What killed writers left is removed: one process at a time may write."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{_WRITING}*"):
        _remove(leftover)
    writing = folder / f"{_WRITING}{secrets.token_hex(8)}"
    writing.mkdir()
    return writing


def commit_checkpoint(
    writing: Path, *, step: int, world: int, samples: int, before_commit: Callable[[], None] = lambda: None
) -> Path:
    """Make the files in `writing` the checkpoint of `step`, and keep the last two. Returns its folder.

    A kill at any moment leaves at least the last good checkpoint. `before_commit` is called when all is ready, and may raise.
    """
    files = {}
    for path in sorted(writing.iterdir()):
        flush_to_disk(path)
        files[path.name] = file_sha256(path)
    commit = Commit(step=step, world=world, samples=samples, files=files)
    write_sealed_json(writing / COMMIT_FILE, asdict(commit))
    before_commit()
    folder, target = writing.parent, writing.with_name(f"step-{step:06d}")
    _make_way(target)
    writing.rename(target)
    flush_to_disk(folder)
    # later steps are of a training that was given up for an earlier checkpoint
    mine = [path for path in _newest_first(folder) if path.suffix == "" and (step_of(path.name) or 0) <= step]
    _remove_all_but(folder, mine[:KEPT])
    return target


def _make_way(target: Path) -> None:
    if not target.exists():
        return
    if _damage(target):
        _remove(target)
        return
    replaced = target.with_name(f"{target.name}.replaced")
    _remove(replaced)
    target.rename(replaced)


def whole_checkpoints(folder: Path) -> Iterator[Path]:
    """The whole checkpoints, newest first. Others are passed over with a warning that names the file."""
    for candidate in _newest_first(folder):
        if damage := _damage(candidate):
            _log.warning("checkpoint %s: %s; it is passed over", candidate, damage)
        else:
            yield candidate


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, None when there is none."""
    return next(whole_checkpoints(folder), None)


def checkpoint_to_resume(output: Path, *, steps: int) -> Path | None:
    """The newest whole checkpoint in `output`/checkpoints that a training of `steps` steps can go on from without losing a metric; None: start anew.

    Every row that the steps before it left must be whole in `output`/metrics.jsonl; and the optimizer's state must be there while steps are
    left to train. What is passed over is said in the log.
    """
    folder = output / "checkpoints"
    logged = {row.step for row in read_metrics(output / "metrics.jsonl").rows if row.of_training}
    for checkpoint in whole_checkpoints(folder):
        commit = read_commit(checkpoint)
        lost = [step for step in range(1, commit.step + 1) if is_logged(step, steps=steps) and step not in logged]
        if lost:
            _log.warning(
                "%s: its metrics of step %d are lost or damaged, so the steps from there are trained again; %s is passed over",
                output / "metrics.jsonl",
                lost[0],
                checkpoint,
            )
        elif commit.step < steps and OPTIMIZER_FILE not in commit.files:
            _log.warning(
                "checkpoint %s: holds weights alone, which cannot be trained on; it is passed over", checkpoint
            )
        else:
            return checkpoint
    if _newest_first(folder):
        _log.warning("%s: no checkpoint is left to go on from; training starts from nothing", folder)
    return None


def prune_checkpoints(folder: Path, keep: KeptCheckpoints) -> None:
    """Remove what a done trial no longer needs: all but its newest whole checkpoint ("last"), of that all but the weights ("weights").

    A kill at any moment leaves a whole checkpoint; calling it again finishes the work. Without a whole checkpoint nothing is removed.
    """
    newest = newest_checkpoint(folder)
    if newest is None:
        return
    commit = read_commit(newest)
    if keep == "weights" and commit.files.keys() != {WEIGHTS_FILE}:
        commit = Commit(**{**asdict(commit), "files": {WEIGHTS_FILE: commit.files[WEIGHTS_FILE]}})
        write_sealed_json(newest / COMMIT_FILE, asdict(commit))
    for path in newest.iterdir():
        if path.name not in {COMMIT_FILE, *commit.files}:
            path.unlink()
    _remove_all_but(folder, [newest])


def _remove_all_but(folder: Path, kept: Collection[Path]) -> None:
    for path in folder.iterdir():
        if path not in kept and (_NAME.fullmatch(path.name) or path.name.startswith(_WRITING)):
            _remove(path)


def _remove(folder: Path) -> None:
    shutil.rmtree(
        folder, ignore_errors=True
    )  # a worker that is about to learn that it is an orphan may remove the same


def _newest_first(folder: Path) -> list[Path]:
    """Every folder that is named like a checkpoint; of one step the one in place before the one replaced."""
    named = [(step, path) for path in folder.glob("step-*") if (step := step_of(path.name)) is not None]
    return [path for _, path in sorted(named, key=lambda found: (-found[0], found[1].name))]


def step_of(name: str) -> int | None:
    """The step of the checkpoint whose folder is named so; None: that is no checkpoint's name."""
    named = _NAME.fullmatch(name)
    return int(named[1]) if named else None


def _damage(checkpoint: Path) -> str | None:
    """What keeps a folder from being a checkpoint; None when it is one."""
    try:
        for name, expected in read_commit(checkpoint).files.items():
            if file_sha256(checkpoint / name) != expected:
                return f"{name} differs from what was saved"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except ValueError:
        return f"{COMMIT_FILE} is damaged"
    return None
