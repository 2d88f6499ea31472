"""A store -> what takes its space and what of it can go, by which command; and whether there is room for what a run will write."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.manifest import CORPUS_FILE
from model.configs import TrialConfig
from orchestrator.capacity import CHECKPOINTS_ON_DISK, Capacity
from orchestrator.corpora import ImportedCorpus, corpus_folder
from orchestrator.identity import trial_id
from orchestrator.layout import RunFolder, Store
from orchestrator.ledger import TrialState
from orchestrator.scales import Scale

_GB = 1e9
_ALWAYS_BYTES = 0.1 * _GB
"""Logs, metrics, predictions, reports, MLflow: small beside the rest."""

_NEARLY_FULL_BYTES = 10e6
"""With less than this nothing can be trusted to have been written."""


@dataclass(frozen=True, kw_only=True)
class DiskUse:
    """One folder or file of a store."""

    name: str
    path: Path
    bytes: int
    remedy: str = ""  # what frees it, and what that costs; empty where it is needed


@dataclass(frozen=True, kw_only=True)
class TrialUse:
    """What one trial's folder takes, in bytes."""

    trial_id: str
    state: str  # as the ledger says
    checkpoints: int
    predictions: int
    logs: int  # of all attempts

    @property
    def total(self) -> int:
        """All of it."""
        return self.checkpoints + self.predictions + self.logs


@dataclass(frozen=True, kw_only=True)
class DiskSurvey:
    """What takes the space of a store, for one grid's run folder in detail."""

    store: Path
    free: int  # bytes left to us on the store's device
    device: int  # bytes of the device
    shared: tuple[DiskUse, ...]
    trials: tuple[TrialUse, ...]

    @property
    def total(self) -> int:
        """Bytes of everything listed."""
        return sum(use.bytes for use in self.shared) + sum(trial.total for trial in self.trials)

    @property
    def done_checkpoints(self) -> int:
        """Bytes of the checkpoints of done trials."""
        return sum(trial.checkpoints for trial in self.trials if trial.state == "done")


def survey_disk(scale: Scale, store: Store, run: RunFolder, states: Sequence[TrialState]) -> DiskSurvey:
    """Add up the files of the store. `states`: every trial of the run's grid; a folder of the run that is none of theirs is listed as such."""
    existing = next(path for path in (store.root, *store.root.parents) if path.exists())
    device = shutil.disk_usage(existing)
    trials = [
        TrialUse(
            trial_id=state.id,
            state=state.state,
            checkpoints=size_of(state.folder.checkpoints),
            predictions=sum(size_of(path) for path in state.folder.path.glob("predictions-*")),
            logs=size_of(state.folder.attempts),
        )
        for state in states
    ]
    shared = [*_prepared(scale, store), *_of_run(run, {state.id for state in states}), *_other_runs(store, run)]
    database = Path(store.mlflow_uri.removeprefix("sqlite:///"))
    shared += [
        DiskUse(name="MLflow database", path=database, bytes=size_of(database)),
        DiskUse(name="MLflow artifacts", path=store.mlflow_artifacts, bytes=size_of(store.mlflow_artifacts)),
    ]
    return DiskSurvey(
        store=store.root,
        free=device.free,
        device=device.total,
        shared=tuple(use for use in shared if use.bytes),
        trials=tuple(trials),
    )


def _remove(path: Path, consequence: str) -> str:
    return f"rm -r {shlex.quote(str(path))}  ({consequence})"


def _prepared(scale: Scale, store: Store) -> Iterator[DiskUse]:
    mine = corpus_folder(scale.corpus, store)
    for folder in _folders(store.corpora):
        remedy = (
            "" if folder == mine else _remove(folder, "another scale's or an imported one: only if no grid reads it")
        )
        yield DiskUse(name=f"corpus {folder.name}", path=folder, bytes=size_of(folder), remedy=remedy)
    for folder in _folders(store.encoder_states):
        remedy = _remove(folder, "the next run that needs them computes them again")
        yield DiskUse(name=f"encoder states {folder.name}", path=folder, bytes=size_of(folder), remedy=remedy)
    yield DiskUse(name="encoder weights", path=store.encoders, bytes=size_of(store.encoders))


def _of_run(run: RunFolder, in_grid: set[str]) -> Iterator[DiskUse]:
    """Everything of the run folder but its trials' folders."""
    for folder in _folders(run.trials):
        if folder.name not in in_grid:
            aside = ".stale-" in folder.name
            why = "set aside as stale" if aside else "no trial of this grid, or of more seeds than now"
            remedy = _remove(folder, why)
            yield DiskUse(name=f"trial {folder.name}", path=folder, bytes=size_of(folder), remedy=remedy)
    for folder in _folders(run.path):
        if folder.name == "ray":
            remedy = "left by a killed run; the next run removes it"
            yield DiskUse(name="Ray's leftovers", path=folder, bytes=size_of(folder), remedy=remedy)
        elif folder != run.trials:
            yield DiskUse(name=folder.name, path=folder, bytes=size_of(folder))


def _other_runs(store: Store, run: RunFolder) -> Iterator[DiskUse]:
    for folder in _folders(store.root):
        if (folder / "trials").is_dir() and folder != run.path:
            name = f"run folder {folder.name}"
            yield DiskUse(name=name, path=folder, bytes=size_of(folder), remedy="`status --disk` of that grid says")


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files below a folder; 0 where there is none. Files that vanish meanwhile count as gone."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                total += Path(folder, name).lstat().st_size
            except FileNotFoundError:  # a running grid replaces its files all the time
                continue
    return total


def survey_to_json(survey: DiskSurvey) -> dict[str, Any]:
    """The survey for programs; bytes."""
    return {
        "store": str(survey.store),
        "free_bytes": survey.free,
        "device_bytes": survey.device,
        "total_bytes": survey.total,
        "shared": [{**asdict(use), "path": str(use.path)} for use in survey.shared],
        "trials": [{**asdict(trial), "total": trial.total} for trial in survey.trials],
    }


def print_survey(survey: DiskSurvey, console: Console) -> None:
    """Two tables, largest first, and the space that is left."""
    shared = Table("what", "size", "to free it", title="shared and kept", title_justify="left")
    for use in sorted(survey.shared, key=lambda use: -use.bytes):
        shared.add_row(escape(use.name), _size(use.bytes), escape(use.remedy))
    trials = Table("trial", "state", "checkpoints", "predictions", "logs", title="trials", title_justify="left")
    for trial in sorted(survey.trials, key=lambda trial: -trial.total):
        sizes = (_size(size) for size in (trial.checkpoints, trial.predictions, trial.logs))
        trials.add_row(trial.trial_id, trial.state, *sizes)
    console.print(shared)
    console.print(trials)
    console.print(
        f"{_size(survey.total)} in {escape(str(survey.store))}; {_size(survey.free)} of {_size(survey.device)} are free on its device"
    )
    if survey.done_checkpoints:
        console.print(
            f"checkpoints of done trials take {_size(survey.done_checkpoints)}: a trial's checkpoints folder may go "
            "(its scores stay; export and predict need it)"
        )


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def check_room(
    scale: Scale,
    to_run: Sequence[TrialConfig],
    store: Store,
    run: RunFolder,
    *,
    capacities: Mapping[str, Capacity],
) -> None:
    """Raise ValueError when the store's disk cannot hold what the run will write. `capacities` by trial id, where they are planned."""
    store.root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(store.root).free
    data = _data_bytes(scale, store)
    checkpoints = sum(_checkpoint_bytes(trial, run, capacities) for trial in to_run)
    need = data + checkpoints + _ALWAYS_BYTES
    if free < need:
        raise ValueError(
            f"{store.root}: {_size(free)} are free and about {_size(need)} are needed ({_size(checkpoints)} for checkpoints of "
            f"{len(to_run)} trials, {_size(data)} for the corpus and its encoder states); free some space (`status --disk` lists what can go), "
            "run fewer trials at a time with --only, or choose another --store"
        )


def tell_if_full(folder: Path) -> str:
    """What to do about the folder's disk when it is full; empty when it is not."""
    free = shutil.disk_usage(folder).free
    if free > _NEARLY_FULL_BYTES:
        return ""
    return (
        f"{folder}: the disk is full ({_size(free)} are free); `status --disk` lists what takes the space and can go; "
        "then the same command goes on from the last checkpoints"
    )


def _data_bytes(scale: Scale, store: Store) -> float:
    """A rough sum of audio (about 0.08 MB an example) and encoder states (0.2 MB) that are not there yet."""
    states = store.encoder_states.glob(f"{scale.encoder.name}-pad-{scale.encoder.padding}-*")
    left = max(0.0, scale.corpus.examples * 0.2e6 - sum(size_of(folder) for folder in states))
    if isinstance(scale.corpus, ImportedCorpus):
        return left
    made = (corpus_folder(scale.corpus, store) / CORPUS_FILE).exists()
    return 0.0 if made else left + scale.corpus.examples * 0.1e6


def _checkpoint_bytes(trial: TrialConfig, run: RunFolder, capacities: Mapping[str, Capacity]) -> float:
    """What the trial's checkpoints will take beyond those that are there: two are kept while the next is written."""
    there = size_of(run.trial(trial_id(trial)).checkpoints)
    if capacity := capacities.get(trial_id(trial)):
        return max(0, capacity.checkpoint_bytes - there)
    lora = min(trial.foundation.parameters, 0.01 * trial.foundation.parameters * trial.lora.r / 32 + 1e6)
    adapter = trial.adapter.hidden_width * (512 * trial.adapter.stack_factor + 4096)
    return max(0.0, CHECKPOINTS_ON_DISK * 12 * (lora + adapter) - there)  # fp32 weights and two AdamW moments
