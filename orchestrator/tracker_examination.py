"""MLflow's runs of a grid -> where they are not what the files say, each with what makes them so.

Most of it is cured by mirroring once more (`orchestrator.tracking.Mirror.catch_up`), after what was noted about the run is forgotten: then the run is
compared with the files point for point. MLflow cannot delete a point, so a run with a point too many is deleted and a new one filled from the
files; MLflow keeps deleted runs until its trash is emptied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from data.atomic import atomic_open, set_aside
from orchestrator.folder_examination import Ailment, AilmentKind
from orchestrator.layout import RunFolder
from orchestrator.mlflow_tracker import KEY, PARENT, MlflowTracker, RunRecord, param_text, read_key
from orchestrator.point_check import compare_with_files, rebuild_metrics
from orchestrator.tracking import GRID_STATE, Mirror, is_set_aside, other_folders, report_files
from orchestrator.trial_mirror import STATUS, RunState, TrialMirror, trial_files

_MIRROR_AGAIN = "mirror the files again"
_REPLACE = "delete the run (MLflow can restore it) and fill a new one from the files"


def examine_tracker(tracker: MlflowTracker, mirror: Mirror, run: RunFolder) -> Iterator[Ailment]:
    """Everything about the grid's runs. Nothing is written. Raises what MLflow raises."""
    parent = _find(tracker, run.mlflow_run_id)
    known = {parent.id} if parent else set[str]()
    yield from _examine_parent(tracker, mirror, run, parent)
    for folder in other_folders(run, mirror.children):
        if other := tracker.find(folder.mlflow_run_id):
            known.add(other.id)
            yield from _examine_other(tracker, other, set_aside=is_set_aside(folder))
    for child in mirror.children.values():
        mine = _find(tracker, child.folder.mlflow_run_id)
        if mine:
            known.add(mine.id)
            yield from _duplicates(tracker, child.folder.mlflow_run_id, mine)
        yield from _examine_trial(tracker, child, mine, parent)
    names = mirror.children.keys()
    for stray in tracker.runs(f"tags.`{PARENT}` = '{parent.id}'") if parent else ():
        if stray.id not in known and stray.name in names and not _has_key_of(stray, mirror.children[stray.name]):
            yield _discardable(tracker, stray, "a second run of its trial under the grid's run")
        elif stray.id not in known and stray.name not in names and stray.status == "RUNNING":
            yield _zombie(tracker, stray)


def missing_everything(mirror: Mirror) -> list[Ailment]:
    """When the tracker has never heard of the experiment."""
    begun = [name for name, child in mirror.children.items() if _state(child)]
    problem = f"the tracker knows nothing of this grid, of which {len(begun)} trials have begun"
    return [_ailment("missing-run", mirror.public_uri, problem, _MIRROR_AGAIN)] if begun else []


def _examine_parent(
    tracker: MlflowTracker, mirror: Mirror, run: RunFolder, parent: RunRecord | None
) -> Iterator[Ailment]:
    if parent is None:
        if any(_state(child) for child in mirror.children.values()):
            yield _ailment("missing-run", run.path.name, "the grid has no run", _MIRROR_AGAIN)
        return
    yield from _duplicates(tracker, run.mlflow_run_id, parent)
    wanted = mirror.grid_status()
    if parent.status == "RUNNING":
        yield _ailment("zombie", _name(parent), "counts as running, and nobody drives it", f"close it as {wanted}")
    elif (parent.status == "FINISHED") != (wanted == "FINISHED"):
        yield _ailment("difference", _name(parent), f"is {parent.status}, by the files {wanted}", _MIRROR_AGAIN)
    elif parent.tags.get("state") not in GRID_STATE.values():
        yield _ailment("difference", _name(parent), f"state is {parent.tags.get('state')!r}", _MIRROR_AGAIN)
    yield from _artifacts(tracker, parent, report_files(run))


def _examine_other(tracker: MlflowTracker, other: RunRecord, *, set_aside: bool) -> Iterator[Ailment]:
    if set_aside and (other.status == "RUNNING" or other.tags.get("state") != "stale" or PARENT in other.tags):
        yield _ailment(
            "stale-run",
            _name(other),
            "its trial was set aside as stale and it is still compared with the others",
            "tag it stale and take it from under the grid's run",
            lambda: tracker.retire(other),
        )
    elif other.status == "RUNNING":
        yield _zombie(tracker, other)


def _examine_trial(
    tracker: MlflowTracker, child: TrialMirror, mine: RunRecord | None, parent: RunRecord | None
) -> Iterator[Ailment]:
    state = _state(child)
    if mine is None:
        if state:
            yield _ailment("missing-run", child.folder.path.name, "the trial has no run", _MIRROR_AGAIN, child.forget)
        return
    if state is None:
        if mine.status == "RUNNING":
            yield _zombie(tracker, mine)
        return
    if mine.status == "RUNNING":
        remedy = f"close it as {STATUS[state]}, with all that the files hold"
        yield _ailment("zombie", _name(mine), "counts as running, and nobody drives it", remedy, child.forget)
    elif mine.status != STATUS[state]:
        problem = f"is {mine.status}, by the files {STATUS[state]}"
        yield _ailment("difference", _name(mine), problem, _MIRROR_AGAIN, child.forget)
    yield from _tags_and_params(tracker, child, mine, state, parent)
    yield from _points(tracker, child, mine)
    for ailment in _artifacts(tracker, mine, trial_files(child.folder)):
        yield _ailment(ailment.kind, ailment.where, ailment.problem, ailment.remedy, child.forget)


def _tags_and_params(
    tracker: MlflowTracker, child: TrialMirror, mine: RunRecord, state: RunState, parent: RunRecord | None
) -> Iterator[Ailment]:
    tags = child.expected_tags(parent.id if parent else "")
    if mine.status != "RUNNING":
        tags["state"] = state
    if wrong := [tag for tag, value in tags.items() if mine.tags.get(tag) != value]:
        problem = f"tags are not the trial's: {', '.join(wrong)}"
        yield _ailment("difference", _name(mine), problem, _MIRROR_AGAIN, child.forget)
    params = {name: param_text(value) for name, value in child.expected_params().items()}
    if missing := params.keys() - mine.params.keys():
        problem = f"{len(missing)} parameters are missing, e.g. {min(missing)}"
        yield _ailment("gap", _name(mine), problem, _MIRROR_AGAIN, child.forget)
    if wrong := sorted(name for name in params.keys() & mine.params.keys() if params[name] != mine.params[name]):
        problem = f"parameters are not the trial's: {', '.join(wrong[:5])}"

        def replace() -> None:
            tracker.discard(mine.id, "replaced")
            child.forget()

        yield _ailment("difference", _name(mine), problem, _REPLACE, replace)


def _points(tracker: MlflowTracker, child: TrialMirror, mine: RunRecord) -> Iterator[Ailment]:
    try:
        differences = compare_with_files(tracker, mine.id, child.folder, child.trial)
        metrics = rebuild_metrics(tracker, mine.id, child.folder) if child.folder.result.exists() else None
    except ValueError:  # a damaged result, which the examination of the folder tells
        return
    if metrics is not None:
        yield _rebuildable(child, metrics)
    kinds: dict[str, AilmentKind] = {"missing": "gap", "doubled": "duplicate-points", "foreign": "difference"}
    said = {
        "missing": "points are missing",
        "doubled": "points are there twice, or not as in the files",
        "foreign": "points are in no file",
    }
    for kind in ("missing", "doubled", "foreign"):
        if found := [difference for difference in differences if difference.kind == kind]:
            points = sum(difference.points for difference in found)
            first = f"first {found[0].metric} of step {found[0].first_step}"
            remedy = _MIRROR_AGAIN if kind == "missing" else _REPLACE
            yield _ailment(kinds[kind], _name(mine), f"{points} {said[kind]}, {first}", remedy, child.forget)


def _rebuildable(child: TrialMirror, content: str) -> Ailment:
    path = child.folder.metrics

    def rebuild() -> None:
        if path.exists():
            set_aside(path)
        with atomic_open(path) as stream:
            stream.write(content)
        child.forget()

    problem, remedy = "is damaged, and MLflow has every point of it", "set it aside and make it of MLflow's points"
    return Ailment(kind="damaged", where=str(path), problem=problem, remedy=remedy, cure=rebuild)


def _artifacts(tracker: MlflowTracker, mine: RunRecord, files: list[Path]) -> Iterator[Ailment]:
    """Files that are not beside the run, or in another size; a log may have grown after its trial had ended."""
    there = tracker.artifacts(mine.id)
    missing = [file.name for file in files if file.name not in there]
    other = [file.name for file in files if file.name in there and there[file.name] != file.stat().st_size]
    if missing:
        yield _ailment("gap", _name(mine), f"artifacts are missing: {', '.join(missing)}", _MIRROR_AGAIN)
    if other := [name for name in other if name != "log"]:
        yield _ailment("difference", _name(mine), f"artifacts are of another time: {', '.join(other)}", _MIRROR_AGAIN)


def _duplicates(tracker: MlflowTracker, id_file: Path, mine: RunRecord) -> Iterator[Ailment]:
    """Other runs of the same folder: made when the tracker had made one and its answer was lost."""
    if key := read_key(id_file):
        for twin in tracker.runs(f"tags.`{KEY}` = '{key}'"):
            if twin.id != mine.id:
                yield _discardable(tracker, twin, f"a second run of the folder that {mine.id} mirrors")


def _find(tracker: MlflowTracker, id_file: Path) -> RunRecord | None:
    """The run of a folder, as `MlflowTracker.open_run` will find it."""
    key = read_key(id_file)
    return tracker.find(id_file) or (next(tracker.runs(f"tags.`{KEY}` = '{key}'"), None) if key else None)


def _has_key_of(stray: RunRecord, child: TrialMirror) -> bool:
    """Whether `_duplicates` has told of this run."""
    return stray.tags.get(KEY, "no key") == read_key(child.folder.mlflow_run_id)


def _state(child: TrialMirror) -> RunState | None:
    try:
        return child.state(live=False)
    except ValueError:  # a damaged config, which the examination of the folder tells
        return None


def _zombie(tracker: MlflowTracker, run: RunRecord) -> Ailment:
    problem = "counts as running, and nobody drives it"
    return _ailment("zombie", _name(run), problem, "close it as KILLED", lambda: tracker.end_abandoned(run))


def _discardable(tracker: MlflowTracker, run: RunRecord, problem: str) -> Ailment:
    remedy = "delete it (MLflow can restore it)"
    return _ailment("duplicate-run", _name(run), problem, remedy, lambda: tracker.discard(run.id, "duplicate"))


def _ailment(
    kind: AilmentKind, where: str, problem: str, remedy: str, cure: Callable[[], object] = lambda: None
) -> Ailment:
    """An ailment of the tracker: after its own cure, everything is mirrored once more."""
    return Ailment(kind=kind, where=f"MLflow: {where}", problem=problem, remedy=remedy, cure=cure)


def _name(run: RunRecord) -> str:
    return f"{run.name} ({run.id})"
