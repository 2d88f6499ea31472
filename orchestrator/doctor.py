"""A run folder and its tracker -> a list of what is not as it should be, and its repair: the verb `doctor` (a dry run) and `doctor --repair`.

Nothing is looked at or touched while a driver holds the folder's lease. The files are put in order first, then MLflow is made equal to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model.configs import TrialConfig
from orchestrator.experiment import Experiment
from orchestrator.folder_examination import Ailment, examine_folder, examine_lease
from orchestrator.layout import Store, public_uri
from orchestrator.lease import LeaseHeldError, hold_lease, read_holder
from orchestrator.mlflow_tracker import MlflowTracker, database_problem, has_experiment
from orchestrator.patience import within
from orchestrator.scales import Scale
from orchestrator.tracker_examination import examine_tracker, missing_everything
from orchestrator.tracking import Mirror, artifact_root, failure_line

PATIENCE_S = 10.0
"""How long a tracker may take to answer at all."""


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What `repair` found, and what of it is left."""

    found: list[Ailment]
    left: list[Ailment]


def examine(
    experiment: Experiment, scale: Scale, trials: Sequence[TrialConfig], store: Store, uri: str
) -> list[Ailment]:
    """Everything that is not as it should be; nothing is changed. `trials`: the whole grid; `uri`: of the tracker.

    Raises LeaseHeldError while a driver is at work.
    """
    run = store.runs(experiment.name, scale.label)
    if not run.path.is_dir():
        return []
    if holder := read_holder(run):
        raise LeaseHeldError(
            f"{run.lease}: a driver is at work here ({holder.describe()}); doctor looks at what nobody changes meanwhile: wait for its end"
        )
    return [*examine_lease(run), *_Patient(experiment, scale, trials, store, uri).examine()]


def repair(experiment: Experiment, scale: Scale, trials: Sequence[TrialConfig], store: Store, uri: str) -> Repair:
    """Put right what `examine` finds and can be put right, and examine again. Raises LeaseHeldError while a driver is at work."""
    found = examine(experiment, scale, trials, store, uri)
    run = store.runs(experiment.name, scale.label)
    if not found:
        return Repair(found=[], left=[])
    with hold_lease(run):  # a dead holder's lease is taken over, and gone afterwards
        patient = _Patient(experiment, scale, trials, store, uri)
        found = [ailment for ailment in found if ailment.kind == "lease"] + patient.cure()
        left = _Patient(experiment, scale, trials, store, uri).examine()
    return Repair(found=found, left=left)


class _Patient:
    """One run folder and its tracker, nobody else changing them."""

    def __init__(
        self, experiment: Experiment, scale: Scale, trials: Sequence[TrialConfig], store: Store, uri: str
    ) -> None:
        self._experiment, self._scale, self._trials, self._store, self._uri = experiment, scale, trials, store, uri
        self._run = store.runs(experiment.name, scale.label)

    def examine(self) -> list[Ailment]:
        """Files and tracker as they are."""
        return [*self._folder(), *self._tracker()]

    def cure(self) -> list[Ailment]:
        """Put the files in order, then make the tracker like them. Returns what was found on the way."""
        in_folder = self._folder()
        for ailment in in_folder:
            if ailment.cure:
                ailment.cure()
        in_tracker = self._tracker()
        if any(ailment.cure for ailment in in_tracker):
            in_tracker += self._told(lambda: self._cure_tracker(in_tracker))
        return in_folder + in_tracker

    def _folder(self) -> list[Ailment]:
        return list(examine_folder(self._run, self._trials, self._scale.execution.keep_checkpoints))

    def _tracker(self) -> list[Ailment]:
        if problem := database_problem(self._uri):
            where, remedy = public_uri(self._uri), "none here: do what the problem says"
            return [Ailment(kind="tracker", where=where, problem=problem, remedy=remedy, cure=None)]
        found: list[Ailment] = []
        return self._told(lambda: found.extend(self._look_at_tracker())) + found

    def _look_at_tracker(self) -> list[Ailment]:
        mirror = self._mirror()
        if not within(PATIENCE_S, lambda: has_experiment(self._uri, self._experiment.name)):
            return missing_everything(mirror)
        return list(examine_tracker(self._open(), mirror, self._run))

    def _cure_tracker(self, ailments: Sequence[Ailment]) -> None:
        for ailment in ailments:
            if ailment.cure:
                ailment.cure()
        mirror = self._mirror()
        mirror.catch_up(mirror.grid_status())

    def _told(self, action: Callable[[], None]) -> list[Ailment]:
        """Do it; a tracker that cannot be spoken to is an ailment."""
        try:
            action()
        except Exception as error:
            # The boundary to MLflow, whose backends raise classes of their own: the file half is told whatever the tracker does.
            problem = f"cannot be asked: {failure_line(error, self._uri)[:300]}"
            remedy = "start it, or name another with --tracking-uri, then doctor --repair"
            return [Ailment(kind="tracker", where=public_uri(self._uri), problem=problem, remedy=remedy, cure=None)]
        return []

    def _mirror(self) -> Mirror:
        return Mirror(
            self._experiment, self._scale, self._trials, self._store, uri=self._uri, warn=lambda message: None
        )

    def _open(self) -> MlflowTracker:
        return MlflowTracker(self._uri, self._experiment.name, artifact_root=artifact_root(self._uri, self._store))


def print_examination(ailments: Sequence[Ailment], console: Console, *, repaired: bool = False) -> None:
    """A table of what was found; `repaired`: that it was put right."""
    if not ailments:
        console.print("all is well: the files are whole and MLflow is equal to them")
        return
    table = Table("kind", "where", "what", "repaired by" if repaired else "doctor --repair would")
    for ailment in ailments:
        table.add_row(ailment.kind, escape(ailment.where), escape(ailment.problem), escape(ailment.remedy))
    console.print(table, soft_wrap=False)


def examination_to_json(ailments: Sequence[Ailment]) -> list[dict[str, Any]]:
    """For programs; `repairable`: whether `doctor --repair` puts it right."""
    return [
        {
            "kind": ailment.kind,
            "where": ailment.where,
            "problem": ailment.problem,
            "remedy": ailment.remedy,
            "repairable": ailment.cure is not None,
        }
        for ailment in ailments
    ]
