"""`doctor`: what a kill or a fault leaves in a run folder and in MLflow is found, told, and put right; nothing else is touched."""

import contextlib
import os
import shutil
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from data.atomic import write_sealed_json
from data.metric_lines import MetricRow, metric_line
from model.configs import TrialConfig
from orchestrator.attempts import open_attempt, read_record
from orchestrator.doctor import Ailment, Repair, examination_to_json, examine, print_examination, repair
from orchestrator.identity import trial_id, write_config
from orchestrator.layout import RunFolder, Store, TrialFolder
from orchestrator.lease import Holder, LeaseHeldError, hold_lease
from orchestrator.ledger import hash_files
from orchestrator.mlflow_tracker import MetricPoint, MlflowTracker
from orchestrator.results import read_result, write_result
from orchestrator.scales import SCALES
from orchestrator.tracking import Mirror
from stand_ins.damages import DAMAGES, damage
from stand_ins.tracked import EXPERIMENT, Server, runs, write_curve

TINY = SCALES["tiny"]


@pytest.fixture
def run(store: Store) -> RunFolder:
    return store.runs("mirrored", "tiny")


@pytest.fixture
def trials(tiny_grid: list[TrialConfig]) -> list[TrialConfig]:
    return tiny_grid[:2]


@pytest.fixture
def folder(run: RunFolder, trials: list[TrialConfig]) -> TrialFolder:
    """The first trial's."""
    return run.trial(trial_id(trials[0]))


@pytest.fixture
def mirrored(store: Store, run: RunFolder, trials: list[TrialConfig], finish, empty_database: Path) -> str:
    """Two done trials that are mirrored whole; the tracker's address."""
    store.root.mkdir(parents=True)
    shutil.copy(empty_database, store.root / "mlflow.db")
    for trial in trials:
        finish(run, trial)
        write_curve(run.trial(trial_id(trial)), range(1, 6), time_ms=1_000)
    run.report_md.write_text("# report")
    mirror = Mirror(EXPERIMENT, TINY, trials, store, uri=store.mlflow_uri, warn=print)
    mirror.catch_up(mirror.grid_status())
    return store.mlflow_uri


@pytest.fixture
def look(store: Store, trials: list[TrialConfig]) -> Callable[..., list[Ailment]]:
    return lambda uri=store.mlflow_uri: examine(EXPERIMENT, TINY, trials, store, uri)


@pytest.fixture
def mend(store: Store, trials: list[TrialConfig]) -> Callable[..., Repair]:
    return lambda uri=store.mlflow_uri: repair(EXPERIMENT, TINY, trials, store, uri)


def kinds(ailments: list[Ailment]) -> set[str]:
    return {ailment.kind for ailment in ailments}


def dead_process() -> int:
    process = os.fork()
    if process == 0:
        os._exit(0)
    os.waitpid(process, 0)
    return process


def test_what_is_whole_is_left_alone(store, mirrored, look, mend, capsys):
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}
    assert look() == [] and mend() == Repair(found=[], left=[])
    after = {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}
    assert {path for path in after if path not in before} <= {store.runs("mirrored", "tiny").path / "lease.lock"}
    assert all(after[path] == time for path, time in before.items() if path.name != "lease.lock")
    print_examination([], Console())
    assert "all is well" in capsys.readouterr().out


def test_nothing_is_looked_at_while_a_driver_is_at_work(run, mirrored, look, mend):
    with hold_lease(run):
        for act in (look, mend):
            with pytest.raises(LeaseHeldError, match="at work here"):
                act()


def test_what_a_kill_leaves_in_the_folder_is_found_and_put_in_order(run, trials, folder, mirrored, look, mend):
    holder = Holder(pid=dead_process(), host=socket.gethostname(), token="t", since=1.0, heartbeat=2.0)
    write_sealed_json(run.lease, asdict(holder))
    (run.path / "ray" / "session").mkdir(parents=True)
    (folder.path / ".status.json.ab12_xyz").write_text("{")
    (folder.checkpoints / ".writing-0123").mkdir(parents=True)
    (folder.checkpoints / "step-000004").mkdir()  # never committed
    attempt = open_attempt(folder, devices=1)
    attempt.note("started")
    found = look()
    assert kinds(found) == {"lease", "leftover", "checkpoint", "attempt"} and len(found) == 6

    outcome = mend()
    assert kinds(outcome.found) >= {"lease", "leftover", "checkpoint", "attempt"} and outcome.left == []
    assert read_record(attempt.folder).ended is not None
    assert not run.lease.exists() and not list(run.path.rglob(".*")) and not list(folder.checkpoints.iterdir())
    assert not (run.path / "ray").exists() and folder.result.exists()


def test_a_damaged_file_is_set_aside_or_named(run, trials, folder, mirrored, look, mend):
    folder.result.write_text(folder.result.read_text().replace("0.5", "0.9", 1))
    other = run.trial(trial_id(trials[1]))
    other.config.write_text("{")
    found = {ailment.where: ailment for ailment in look() if ailment.kind == "damaged"}
    assert found[str(folder.path)].cure and found[str(other.path)].cure is None
    assert str(other.config) in found[str(other.path)].problem
    left = mend().left
    assert [ailment.where for ailment in left] == [str(other.path)]
    assert not folder.result.exists() and (folder.path / "result.json.damaged-1").exists()


@pytest.fixture
def sealed(store, run, trials, folder, mirrored) -> bytes:
    """The first trial's curve, with a row of scores; its result names the curve's hash, and the tracker has all of it."""
    result = read_result(folder)
    with folder.metrics.open("a") as stream:
        stream.write(metric_line(MetricRow(step=trials[0].budget.steps, time=9_000, metrics=result.scores)))
    write_result(folder, replace(result, finished=10.0, files=hash_files(folder)))
    mirror = Mirror(EXPERIMENT, TINY, trials, store, uri=store.mlflow_uri, warn=print)
    mirror.catch_up(mirror.grid_status())
    return folder.metrics.read_bytes()


@pytest.mark.parametrize("how", DAMAGES)
def test_the_damaged_metrics_of_a_done_trial_are_made_of_mlflows_points(trials, folder, sealed, look, mend, how):
    assert look() == []
    run_id = folder.mlflow_run_id.read_text()
    damage(folder.metrics, how)
    found = look()
    assert kinds(found) == {"damaged"} and [a.problem for a in found if a.cure] == [
        "is damaged, and MLflow has every point of it"
    ]
    assert mend().left == []
    assert folder.metrics.read_bytes() == sealed and folder.mlflow_run_id.read_text() == run_id
    assert how == "deleted" or (folder.path / "metrics.jsonl.damaged-1").exists()


def test_damaged_metrics_that_mlflow_has_not_whole_stay_named(store, folder, sealed, look, mend):
    """What the tracker holds of them stays there, too: it may be all that is left."""
    with contextlib.closing(sqlite3.connect(store.root / "mlflow.db")) as database, database:
        database.execute("DELETE FROM metrics WHERE key = 'train/loss' AND step = 3")
    run_id = folder.mlflow_run_id.read_text()
    folder.metrics.unlink()
    (ailment,) = mend().left
    assert ailment.cure is None and "delete result.json and run" in ailment.problem
    assert not folder.metrics.exists() and folder.mlflow_run_id.read_text() == run_id


def test_runs_that_a_kill_left_running_are_closed_as_the_files_say(run, trials, folder, mirrored, look, mend, begin):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mirrored)
    for found in runs(mirrored).values():
        client.update_run(found.info.run_id, status="RUNNING")
    assert [ailment.kind for ailment in look()] == ["zombie"] * 3
    assert mend().left == []
    assert {found.info.status for found in runs(mirrored).values()} == {"FINISHED"}


def test_points_that_are_there_twice_cost_the_run_and_nothing_else(trials, folder, mirrored, look, mend):
    tracker = MlflowTracker(mirrored, EXPERIMENT.name, artifact_root=None)
    first = folder.mlflow_run_id.read_text()
    tracker.send(first, [MetricPoint(name="train/loss", value=9.0, step=3, time_ms=7)])
    (found,) = look()
    assert found.kind == "duplicate-points" and "1 points" in found.problem and first in found.where
    assert mend().left == []
    run = runs(mirrored)[trial_id(trials[0])]
    assert run.info.run_id != first and run.info.status == "FINISHED" and run.data.metrics["train/loss"] == 1 / 5
    assert runs(mirrored, deleted=True)[trial_id(trials[0])].data.tags["state"] == "replaced"


def test_a_second_run_of_a_trial_is_deleted(trials, folder, mirrored, look, mend):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mirrored)
    mine = client.get_run(folder.mlflow_run_id.read_text())
    parent = mine.data.tags["mlflow.parentRunId"]
    name = trial_id(trials[0])
    for tags in ({"slotgrid.key": mine.data.tags["slotgrid.key"]}, {"mlflow.parentRunId": parent}):
        client.create_run(mine.info.experiment_id, run_name=name, tags=tags)
        (found,) = look()
        assert found.kind == "duplicate-run"
        assert mend().left == []
    assert runs(mirrored)[name].info.run_id == mine.info.run_id


def test_what_is_missing_or_other_in_mlflow_is_mirrored_again(store, run, trials, folder, mirrored, look, mend):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mirrored)
    mine, other = folder.mlflow_run_id.read_text(), run.trial(trial_id(trials[1])).mlflow_run_id.read_text()
    with sqlite3.connect(mirrored.removeprefix("sqlite:///")) as database:
        database.execute("DELETE FROM metrics WHERE step = 3 AND run_uuid = ?", (mine,))
    client.set_tag(mine, "mode", "hybrid")
    client.set_terminated(mine, "FAILED")
    (store.mlflow_artifacts / mine / "artifacts" / "config.json").unlink()
    client.delete_run(other)
    problems = {(ailment.kind, mine in ailment.where) for ailment in look()}
    assert {("gap", True), ("difference", True), ("missing-run", False)} <= problems
    assert mend().left == []
    found = runs(mirrored)
    assert found[trial_id(trials[0])].info.run_id == mine and found[trial_id(trials[0])].data.tags["mode"] == "regular"
    assert found[trial_id(trials[1])].info.run_id != other


def test_wrong_parameters_cost_the_run(trials, folder, mirrored, look, mend):
    """They cannot be changed in MLflow."""
    with sqlite3.connect(mirrored.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE params SET value = '31' WHERE key = 'lora.r'")
    assert [ailment.kind for ailment in look()] == ["difference"] * 2
    assert mend().left == []
    assert runs(mirrored)[trial_id(trials[0])].data.params["lora.r"] == "32"


def test_a_tracker_that_is_away_is_one_ailment_and_the_files_are_still_put_in_order(folder, mirrored, look, mend):
    (folder.path / ".status.json.ab12_xyz").write_text("{")
    with socket.create_server(("127.0.0.1", 0), backlog=64) as hanging:
        for address in (f"127.0.0.1:{hanging.getsockname()[1]}", "127.0.0.1:9"):
            found = look(f"http://someone:pass-word@{address}")
            assert [ailment.kind for ailment in found] == ["leftover", "tracker"]
            assert address in found[1].where and "pass-word" not in str(examination_to_json(found))
    assert [ailment.kind for ailment in mend("http://127.0.0.1:9").left] == ["tracker"]
    assert not (folder.path / ".status.json.ab12_xyz").exists()


def test_a_damaged_database_is_named_with_its_remedy_and_left_alone(store, mirrored, look, mend, tmp_path):
    content = (store.root / "mlflow.db").read_bytes()
    for name, damaged in {
        "cut": content[: len(content) // 2],
        "not one": b"garbage" * 1000,
        "closed to writing": content[:18] + b"\x07" + content[19:],
    }.items():
        database = tmp_path / f"{name}.db"
        database.write_bytes(damaged)
        (ailment,) = look(f"sqlite:///{database}")
        assert ailment.kind == "tracker" and ailment.cure is None and f"move {database}* away" in ailment.problem
        assert mend(f"sqlite:///{database}").left == [ailment] and database.read_bytes() == damaged


def test_a_grid_that_was_never_mirrored_is_mirrored(store, run, trials, finish, begin, look, mend, empty_database):
    store.root.mkdir(parents=True)
    assert look() == []  # nothing has been run
    finish(run, trials[0])
    write_config(run.trial(trial_id(trials[1])).config, trials[1])  # has not begun
    assert [ailment.kind for ailment in look()] == ["missing-run"] and not (store.root / "mlflow.db").exists()
    shutil.copy(empty_database, store.root / "mlflow.db")
    assert mend().left == []
    found = runs(store.mlflow_uri)
    assert {name: one.info.status for name, one in found.items()} == {
        "mirrored-tiny": "KILLED",
        trial_id(trials[0]): "FINISHED",
    }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.mark.slow
def test_a_server_that_was_away_for_the_whole_grid_is_brought_to_equality(
    store, run, trials, folder, finish, mend, look, server, monkeypatch
):
    monkeypatch.setattr("orchestrator.tracking.PASS_EVERY_S", 0.1)
    warnings: list[str] = []
    mirror = Mirror(EXPERIMENT, TINY, trials, store, uri=server.uri, warn=warnings.append)
    mirror.start()
    workers = [
        threading.Thread(target=write_curve, args=(run.trial(trial_id(trial)), range(1, 501)), kwargs={"time_ms": 0})
        for trial in trials
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for trial in trials:
        finish(run, trial)
    assert not mirror.finish("FINISHED") and len(warnings) == 1
    assert [ailment.kind for ailment in look(server.uri)] == ["tracker"]
    server.start()
    assert [ailment.kind for ailment in look(server.uri)] == ["missing-run"]
    assert mend(server.uri).left == []
    server.kill()
    server.start()
    assert look(server.uri) == []
    assert {found.info.status for found in runs(server.uri).values()} == {"FINISHED"}
