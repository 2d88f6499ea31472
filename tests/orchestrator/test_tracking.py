"""MLflow as a mirror of the trial folders: every point once, one run per trial over all attempts, nothing left running, never in the way."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data.atomic import write_jsonl
from model.configs import TrialConfig
from orchestrator.experiment import Experiment
from orchestrator.identity import trial_id
from orchestrator.layout import Store
from orchestrator.results import Failure
from orchestrator.scales import SCALES
from orchestrator.tracking import Mirror, flatten, tracking_uri

EXPERIMENT = Experiment(name="mirrored", hypothesis="Mirrors do not lie.", declare=lambda scale, seeds: [])


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's schema, made once: it takes seconds."""
    from orchestrator.mlflow_tracker import MlflowTracker

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowTracker(f"sqlite:///{path}", "other", artifact_root=path.parent / "artifacts")
    return path


@pytest.fixture
def build(store: Store, empty_database: Path) -> Callable[..., Mirror]:
    store.root.mkdir(parents=True)
    shutil.copy(empty_database, store.root / "mlflow.db")

    def build(trials: list[TrialConfig], uri: str | None = None, warnings: list[str] | None = None) -> Mirror:
        warn = (warnings if warnings is not None else []).append
        return Mirror(EXPERIMENT, SCALES["tiny"], trials, store, uri=uri or store.mlflow_uri, warn=warn)

    return build


def write_curve(store: Store, trial: TrialConfig, steps: range, *, time_ms: int) -> None:
    rows = [{"step": s, "time": time_ms + s, "metrics": {"train/loss": 1 / s, "optim/lr": 0.1}} for s in steps]
    write_jsonl(store.runs("mirrored", "tiny").trial(trial_id(trial)).metrics, rows)


def runs(store: Store) -> dict[str, object]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store.mlflow_uri)
    experiment = client.get_experiment_by_name("mirrored")
    assert experiment
    found = client.search_runs([experiment.experiment_id])
    names = [run.info.run_name for run in found]
    assert len(set(names)) == len(names), names  # never a second run of the same name
    return {run.info.run_name: run for run in found}


def curve(store: Store, run, name: str) -> list[tuple[int, int]]:
    from mlflow import MlflowClient

    points = MlflowClient(tracking_uri=store.mlflow_uri).get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.timestamp) for point in points)


def test_a_finished_trial_is_one_finished_run_with_everything_to_compare(store, tiny_grid, finish, build):
    trial = tiny_grid[0]
    run = store.runs("mirrored", "tiny")
    finish(run, trial, 0.625, seconds=33.0)
    write_curve(store, trial, range(1, 4), time_ms=1_000)
    run.report_md.write_text("# report")
    mirror = build([trial])
    assert not mirror.is_complete()
    assert mirror.finish("FINISHED")
    assert build([trial]).is_complete()

    found = runs(store)
    child, parent = found[trial_id(trial)], found["mirrored-tiny"]
    assert child.info.status == parent.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {name: child.data.tags[name] for name in ("kind", "foundation", "mode", "seed", "scale", "state")} == {
        "kind": "base",
        "foundation": "tiny-base",
        "mode": "regular",
        "seed": "0",
        "scale": "tiny",
        "state": "done",
    }
    assert child.data.params["foundation.name"] == "tiny-base" and child.data.params["lora.r"] == "32"
    assert child.data.metrics["eval/partial_f1"] == 0.625 and child.data.metrics["cost/device_seconds"] == 33.0
    assert curve(store, child, "train/loss") == [(1, 1_001), (2, 1_002), (3, 1_003)]

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store.mlflow_uri)
    assert {"config.json", "result.json"} <= {file.path for file in client.list_artifacts(child.info.run_id)}
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["report.md"]


def test_a_resumed_trial_goes_on_in_its_run_and_redone_steps_arrive_once(store, tiny_grid, begin, finish, build):
    trial = tiny_grid[0]
    run = store.runs("mirrored", "tiny")
    begin(run, trial, step=5)
    write_curve(store, trial, range(1, 6), time_ms=1_000)
    assert build([trial]).finish("KILLED")
    interrupted = runs(store)[trial_id(trial)]
    assert interrupted.info.status == "KILLED" and interrupted.data.tags["state"] == "interrupted"

    write_curve(store, trial, range(1, 8), time_ms=50_000)  # steps 4 and 5 were redone after the checkpoint of step 3
    finish(run, trial)
    assert build([trial]).finish("FINISHED")
    resumed = runs(store)[trial_id(trial)]
    assert resumed.info.run_id == interrupted.info.run_id and resumed.info.status == "FINISHED"
    assert [step for step, _ in curve(store, resumed, "train/loss")] == [1, 2, 3, 4, 5, 6, 7]
    assert curve(store, resumed, "train/loss")[4] == (5, 1_005)


def test_a_failed_trial_is_a_failed_run_with_its_reason(store, tiny_grid, begin, build):
    trial = tiny_grid[1]
    begin(store.runs("mirrored", "tiny"), trial, step=2, failure=Failure(cause="ValueError", message="broken"))
    assert build([trial]).finish("FAILED")
    found = runs(store)
    assert {run.info.status for run in found.values()} == {"FAILED"}
    artifacts = Path(found[trial_id(trial)].info.artifact_uri.removeprefix("file://"))
    assert json.loads((artifacts / "failure.json").read_text())["cause"] == "ValueError"


def test_a_run_that_a_killed_process_left_running_is_closed(store, tiny_grid, begin, build):
    kept, left_out = tiny_grid[0], replace(tiny_grid[0], seed=7)
    run = store.runs("mirrored", "tiny")
    begin(run, left_out)
    killed = build([left_out])
    killed._pass(final=None)  # and then the process is gone
    assert runs(store)[trial_id(left_out)].info.status == "RUNNING"
    begin(run, kept)
    assert build([kept]).finish("KILLED")
    assert {found.info.status for found in runs(store).values()} == {"KILLED"}


def test_a_run_made_just_before_a_kill_is_found_again(store, tiny_grid, finish, build):
    trial = tiny_grid[0]
    run = store.runs("mirrored", "tiny")
    finish(run, trial)
    build([trial])._pass(final=None)
    run.trial(trial_id(trial)).mlflow_run_id.unlink()  # killed between making the run and noting its id
    (run.trial(trial_id(trial)).path / "mlflow_mirror.json").unlink()
    assert build([trial]).finish("FINISHED")
    assert len(runs(store)) == 2


def test_a_dead_tracker_warns_once_and_the_next_run_catches_up(store, tiny_grid, finish, build, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    trial = tiny_grid[0]
    finish(store.runs("mirrored", "tiny"), trial)
    warnings: list[str] = []
    started = time.monotonic()
    mirror = build([trial], uri="http://127.0.0.1:9", warnings=warnings)
    mirror.start()
    assert not mirror.finish("FINISHED")
    assert time.monotonic() - started < 30
    assert len(warnings) == 1 and "the next run sends what is missing" in warnings[0]

    again = build([trial])
    assert not again.is_complete()
    assert again.finish("FINISHED") and build([trial]).is_complete()
    assert runs(store)[trial_id(trial)].info.status == "FINISHED"


def test_where_to_mirror_to(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(None, store) == f"sqlite:///{store.root}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert tracking_uri(None, store) == "http://tracker:5000"
    assert tracking_uri("sqlite:///x.db", store) == "sqlite:///x.db"
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": 3}) == {"a.b": 1, "a.c.d": [2], "e": 3}
