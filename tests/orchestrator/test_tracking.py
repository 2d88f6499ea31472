"""MLflow as a mirror of the trial folders: every point once, one run per trial over all attempts, nothing left running, never in the way."""

import json
import shutil
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.metric_lines import MetricRow, metric_line
from model.configs import TrialConfig
from orchestrator.identity import trial_id
from orchestrator.layout import Store, TrialFolder
from orchestrator.lease import LeaseLostError
from orchestrator.ledger import move_stale_aside
from orchestrator.mirror_points import LARGEST_BATCH, Curves
from orchestrator.mlflow_tracker import KEY, MlflowTracker, read_key
from orchestrator.point_check import compare_with_files
from orchestrator.results import Failure
from orchestrator.scales import SCALES
from orchestrator.tracking import Mirror, tracking_uri
from orchestrator.trial_mirror import flatten
from stand_ins.damages import DAMAGES, damage
from stand_ins.tracked import EXPERIMENT, Server, curve, rewrite_curve, runs, write_curve

Build = Callable[..., Mirror]


@pytest.fixture
def build(store: Store, empty_database: Path) -> Build:
    store.root.mkdir(parents=True)
    shutil.copy(empty_database, store.root / "mlflow.db")

    def build(
        trials: list[TrialConfig], uri: str | None = None, warnings: list[str] | None = None, **more: Any
    ) -> Mirror:
        warn = (warnings if warnings is not None else []).append
        return Mirror(EXPERIMENT, SCALES["tiny"], trials, store, uri=uri or store.mlflow_uri, warn=warn, **more)

    return build


@pytest.fixture
def folder_of(store: Store) -> Callable[[TrialConfig], TrialFolder]:
    return lambda trial: store.runs("mirrored", "tiny").trial(trial_id(trial))


def differences(uri: str, folder: TrialFolder, trial: TrialConfig) -> list[object]:
    tracker = MlflowTracker(uri, EXPERIMENT.name, artifact_root=None)
    return list(compare_with_files(tracker, folder.mlflow_run_id.read_text(), folder, trial))


def test_a_finished_trial_is_one_finished_run_with_everything_to_compare(store, tiny_grid, finish, build, folder_of):
    trial = tiny_grid[0]
    run = store.runs("mirrored", "tiny")
    finish(run, trial, 0.625, seconds=33.0)
    write_curve(folder_of(trial), range(1, 4), time_ms=1_000)
    run.report_md.write_text("# report")
    mirror = build([trial])
    assert not mirror.is_complete()
    assert mirror.finish("FINISHED")
    assert build([trial]).is_complete()

    found = runs(store.mlflow_uri)
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
    assert curve(store.mlflow_uri, child, "train/loss") == [(1, 1_001), (2, 1_002), (3, 1_003)]

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store.mlflow_uri)
    assert {"config.json", "result.json"} <= {file.path for file in client.list_artifacts(child.info.run_id)}
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["report.md"]


def test_a_resumed_trial_goes_on_in_its_run_and_no_point_is_lost_or_doubled(
    store, tiny_grid, begin, finish, build, folder_of
):
    trial = tiny_grid[0]
    run, folder = store.runs("mirrored", "tiny"), folder_of(trial)
    begin(run, trial, step=5)
    write_curve(folder, range(1, 6), time_ms=1_000)
    assert build([trial]).finish("KILLED")
    interrupted = runs(store.mlflow_uri)[trial_id(trial)]
    assert interrupted.info.status == "KILLED" and interrupted.data.tags["state"] == "interrupted"

    mirror = build([trial])
    begin(run, trial)  # another attempt, seen while it runs
    rewrite_curve(folder)
    mirror._pass(final=None)
    assert runs(store.mlflow_uri)[trial_id(trial)].info.status == "RUNNING"
    write_curve(folder, range(6, 8), time_ms=50_000)
    with folder.metrics.open("a") as stream:
        stream.write('{"step": 8, "ti')  # being written
    mirror._pass(final=None)
    rewrite_curve(folder)  # killed and begun again, within one process
    write_curve(folder, [8], time_ms=50_000)
    finish(run, trial)
    assert mirror.finish("FINISHED")

    resumed = runs(store.mlflow_uri)[trial_id(trial)]
    assert resumed.info.run_id == interrupted.info.run_id and resumed.info.status == "FINISHED"
    times = [*range(1_001, 1_006), *range(50_006, 50_009)]
    assert curve(store.mlflow_uri, resumed, "train/loss") == list(zip(range(1, 9), times, strict=True))
    assert differences(store.mlflow_uri, folder, trial) == []


def test_a_row_that_was_damaged_and_trained_again_replaces_the_run(store, tiny_grid, begin, build, folder_of):
    """MLflow cannot delete the point that is no longer in the file."""
    trial, folder = tiny_grid[0], folder_of(tiny_grid[0])
    begin(store.runs("mirrored", "tiny"), trial)
    write_curve(folder, range(1, 5), time_ms=1_000)
    assert build([trial]).finish("KILLED")
    begin(store.runs("mirrored", "tiny"), trial)
    first = runs(store.mlflow_uri)[trial_id(trial)].info.run_id
    rewrite_curve(folder, without=[3])
    write_curve(folder, [3], time_ms=90_000)

    assert build([trial]).finish("KILLED")
    run = runs(store.mlflow_uri)[trial_id(trial)]
    assert run.info.run_id != first and differences(store.mlflow_uri, folder, trial) == []
    assert curve(store.mlflow_uri, run, "train/loss") == [(1, 1_001), (2, 1_002), (3, 90_003), (4, 1_004)]
    deleted = runs(store.mlflow_uri, deleted=True)[trial_id(trial)]
    assert deleted.info.run_id == first and deleted.data.tags["state"] == "replaced"


def test_a_folder_that_was_copied_doubles_nothing(store, tiny_grid, finish, build, folder_of):
    trial, folder = tiny_grid[0], folder_of(tiny_grid[0])
    finish(store.runs("mirrored", "tiny"), trial)
    write_curve(folder, range(1, 4), time_ms=1_000)
    assert build([trial]).finish("FINISHED")
    for path in [*folder.path.rglob("*")]:
        if path.is_file():
            path.touch()
    (folder.path / "mlflow_mirror.json").unlink()
    assert build([trial]).finish("FINISHED")
    assert len(runs(store.mlflow_uri)) == 2 and differences(store.mlflow_uri, folder, trial) == []


def test_a_failed_trial_is_a_failed_run_with_its_reason(store, tiny_grid, begin, build):
    trial = tiny_grid[1]
    failure = Failure(cause="code", error="ValueError", message="broken")
    begin(store.runs("mirrored", "tiny"), trial, step=2, failure=failure)
    assert build([trial]).finish("FAILED")
    found = runs(store.mlflow_uri)
    assert {run.info.status for run in found.values()} == {"FAILED"}
    artifacts = Path(found[trial_id(trial)].info.artifact_uri.removeprefix("file://"))
    assert json.loads((artifacts / "failure.json").read_text())["error"] == "ValueError"


def test_a_run_that_a_killed_process_left_running_is_closed(store, tiny_grid, begin, build):
    kept, left_out = tiny_grid[0], replace(tiny_grid[0], seed=7)
    run = store.runs("mirrored", "tiny")
    killed = build([kept, left_out])
    begin(run, left_out)
    begin(run, kept)
    killed._pass(final=None)  # and then the process is gone
    assert {found.info.status for found in runs(store.mlflow_uri).values()} == {"RUNNING"}
    again = build([kept])
    begin(run, kept)
    again._pass(final=None)
    found = runs(store.mlflow_uri)
    assert (found[trial_id(kept)].info.status, found[trial_id(left_out)].info.status) == ("RUNNING", "KILLED")
    assert again.finish("KILLED")
    assert {found.info.status for found in runs(store.mlflow_uri).values()} == {"KILLED"}


def test_a_trial_that_waits_for_its_turn_does_not_count_as_running(store, tiny_grid, begin, build):
    begin(store.runs("mirrored", "tiny"), tiny_grid[0])  # by an earlier run
    build([tiny_grid[0]])._pass(final=None)
    assert runs(store.mlflow_uri)[trial_id(tiny_grid[0])].info.status == "KILLED"


def test_a_run_made_just_before_a_kill_is_found_again(store, tiny_grid, finish, build, folder_of):
    trial = tiny_grid[0]
    finish(store.runs("mirrored", "tiny"), trial)
    build([trial])._pass(final=None)
    folder_of(trial).mlflow_run_id.unlink()  # killed between making the run and noting its id
    (folder_of(trial).path / "mlflow_mirror.json").unlink()
    assert build([trial]).finish("FINISHED")
    assert len(runs(store.mlflow_uri)) == 2


def test_a_trial_that_was_set_aside_leaves_the_comparison(store, tiny_grid, finish, begin, build, folder_of):
    trial = tiny_grid[0]
    run = store.runs("mirrored", "tiny")
    finish(run, trial)
    assert build([trial]).finish("FINISHED")
    old = runs(store.mlflow_uri)[trial_id(trial)].info.run_id
    move_stale_aside(folder_of(trial))
    assert build([trial]).finish("KILLED")

    from mlflow import MlflowClient

    tags = MlflowClient(tracking_uri=store.mlflow_uri).get_run(old).data.tags
    assert tags["state"] == "stale" and "mlflow.parentRunId" not in tags


def test_one_damaged_trial_does_not_keep_the_others_back(store, tiny_grid, finish, build, folder_of):
    run, warnings = store.runs("mirrored", "tiny"), list[str]()
    for trial in tiny_grid[:2]:
        finish(run, trial)
    result = folder_of(tiny_grid[0]).result
    result.write_text(result.read_text().replace("0.5", "0.9", 1))
    assert not build(tiny_grid[:2], warnings=warnings).finish("FAILED")
    assert "result.json" in warnings[0]
    assert runs(store.mlflow_uri)[trial_id(tiny_grid[1])].info.status == "FINISHED"


def test_a_dead_tracker_warns_once_and_the_next_run_catches_up(store, tiny_grid, finish, build, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    trial = tiny_grid[0]
    finish(store.runs("mirrored", "tiny"), trial)
    warnings: list[str] = []
    started = time.monotonic()
    mirror = build([trial], uri="http://someone:pass-word@127.0.0.1:9", warnings=warnings)
    mirror.start()
    assert not mirror.finish("FINISHED")
    assert time.monotonic() - started < 30
    assert len(warnings) == 1 and "the next run" in warnings[0] and "sends what is missing" in warnings[0]
    assert "127.0.0.1:9" in warnings[0] and "pass-word" not in warnings[0]

    again = build([trial])
    assert not again.is_complete()
    assert again.finish("FINISHED") and build([trial]).is_complete()
    assert runs(store.mlflow_uri)[trial_id(trial)].info.status == "FINISHED"
    written = [path for path in store.root.rglob("*") if path.is_file()]
    assert not [path for path in written if b"pass-word" in path.read_bytes()]


@pytest.fixture
def hanging_uri() -> Iterator[str]:
    """A server that takes every call and answers none."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_tracker_that_hangs_is_given_up_within_the_patience(store, tiny_grid, finish, build, hanging_uri):
    finish(store.runs("mirrored", "tiny"), tiny_grid[0])
    warnings: list[str] = []
    mirror = build([tiny_grid[0]], uri=hanging_uri, warnings=warnings)
    mirror.start()
    started = time.monotonic()
    assert not mirror.finish("KILLED", patience_s=1.0)
    assert time.monotonic() - started < 10
    assert len(warnings) == 1


def test_nothing_is_mirrored_once_another_driver_has_taken_over(store, tiny_grid, finish, build):
    finish(store.runs("mirrored", "tiny"), tiny_grid[0])
    before = {path for path in store.root.rglob("*") if path.is_file()}

    def check() -> None:
        raise LeaseLostError("lease.json: taken over")

    warnings: list[str] = []
    mirror = build([tiny_grid[0]], warnings=warnings, check=check)
    mirror.start()
    assert not mirror.finish("KILLED")
    assert warnings == [], "the run says it"
    assert {path for path in store.root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["mlflow_run_id", "mlflow_key"])
@pytest.mark.parametrize("how", DAMAGES)
def test_a_run_is_found_again_when_its_id_or_its_key_is_damaged(store, tiny_grid, finish, build, folder_of, name, how):
    finish(store.runs("mirrored", "tiny"), tiny_grid[0])
    build([tiny_grid[0]]).catch_up("FINISHED")
    folder = folder_of(tiny_grid[0])
    run_id = folder.mlflow_run_id.read_text()
    damage(folder.path / name, how)
    mirror = build([tiny_grid[0]])
    mirror.children[trial_id(tiny_grid[0])].forget()
    mirror.catch_up("FINISHED")
    (run,) = [run for found, run in runs(store.mlflow_uri).items() if found == trial_id(tiny_grid[0])]
    assert folder.mlflow_run_id.read_text() == run.info.run_id == run_id
    assert read_key(folder.mlflow_run_id) == run.data.tags[KEY]


def test_curves_are_read_forward_in_batches_of_whole_rows(tmp_path: Path):
    folder = TrialFolder(tmp_path)
    assert list(Curves(folder.metrics).batches()) == []
    write_curve(folder, range(1, 1502), time_ms=0)  # two metrics a row
    curves = Curves(folder.metrics)
    batches = list(curves.batches())
    assert [len(batch) for batch in batches] == [LARGEST_BATCH, LARGEST_BATCH, LARGEST_BATCH, 2]
    assert list(curves.batches()) == []
    write_curve(folder, [1502], time_ms=0)
    for _ in curves.batches():
        break  # what was sent broke off: it is read again
    assert [point.step for batch in curves.batches() for point in batch] == [1502, 1502]
    again = Curves(folder.metrics)
    assert again.skip(curves.rows, curves.digest) and list(again.batches()) == []
    assert not again.skip(curves.rows, "another hash") and len(next(again.batches())) == LARGEST_BATCH


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lines", [20_000, pytest.param(200_000, marks=pytest.mark.full)])
def test_a_long_curve_is_mirrored_in_little_memory(store, tiny_grid, finish, build, folder_of, lines):
    trial, folder = tiny_grid[0], folder_of(tiny_grid[0])
    finish(store.runs("mirrored", "tiny"), trial)
    with folder.metrics.open("w") as stream:
        for step in range(1, lines + 1):
            stream.write(metric_line(MetricRow(step=step, time=step, metrics={"train/loss": 1 / step})))
    warm, mirror = build([tiny_grid[1]]), build([trial])
    warm.catch_up("KILLED")  # imports, schema
    tracemalloc.start()
    try:
        mirror.catch_up("FINISHED")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"peak {peak / 1e6:.1f} MB for {folder.metrics.stat().st_size / 1e6:.1f} MB of metrics")
    assert peak < 12e6
    assert differences(store.mlflow_uri, folder, trial) == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.mark.slow
def test_a_server_that_is_killed_while_it_is_written_to_has_everything_in_the_end(
    store, tiny_grid, finish, build, folder_of, server, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    trial, folder = tiny_grid[0], folder_of(tiny_grid[0])
    finish(store.runs("mirrored", "tiny"), trial)
    write_curve(folder, range(1, 10_001), time_ms=1_000)
    server.start()
    mirror = build([trial], uri=server.uri)
    mirror.start()
    deadline = time.monotonic() + 60
    while not (folder.path / "mlflow_mirror.json").exists():  # the first batch is there
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.kill()
    assert not mirror.finish("FINISHED")
    server.start()
    again = build([trial], uri=server.uri)
    assert not again.is_complete()
    again.catch_up("FINISHED")
    assert len(runs(server.uri)) == 2 and differences(server.uri, folder, trial) == []


@pytest.mark.slow
def test_training_does_not_wait_for_a_dead_tracker(store, tiny_grid, begin, build, folder_of, hanging_uri, monkeypatch):
    """The same second of work with and without a mirror in the same process, which is more than a trial's process ever sees, in turns.

    To wait once for a tracker that hangs would take ten. On a quiet machine the ratio is within 1 % of 1; other work on its cores blurs it.
    """
    monkeypatch.setattr("orchestrator.tracking.PASS_EVERY_S", 0.05)
    monkeypatch.setattr("orchestrator.tracking.RETRY_EVERY_S", 0.05)
    trial, folder = tiny_grid[0], folder_of(tiny_grid[0])
    steps = iter(range(1, 10_000))

    def train() -> float:
        started = time.perf_counter()
        for step in [next(steps) for _ in range(50)]:
            time.sleep(0.02)
            write_curve(folder, [step], time_ms=1_000)
        return time.perf_counter() - started

    for uri in (hanging_uri, "http://127.0.0.1:9"):
        build([trial], uri=uri).finish("KILLED", patience_s=30.0)  # imports
        alone, mirrored = [], []
        for _ in range(3):
            alone.append(train())
            mirror = build([trial], uri=uri)
            begin(store.runs("mirrored", "tiny"), trial)
            mirror.start()
            mirrored.append(train())
            mirror.finish("KILLED", patience_s=0.1)
        print(f"{uri}: {min(mirrored) / min(alone):.3f} times as long")
        assert min(mirrored) < 1.5 * min(alone)


def test_where_to_mirror_to(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(None, store) == f"sqlite:///{store.root}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert tracking_uri(None, store) == "http://tracker:5000"
    assert tracking_uri("sqlite:///x.db", store) == "sqlite:///x.db"
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": 3}) == {"a.b": 1, "a.c.d": [2], "e": 3}
