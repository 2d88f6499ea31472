"""A bucket and its working folder: what is pushed comes back byte for byte, whatever is killed when, and one machine at a time drives."""

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.chaos_processes import Session
from data.atomic import read_sealed_json, write_sealed_json
from data.metric_lines import parse_metric_line
from model.checkpoint_folder import (
    COMMIT_FILE,
    checkpoint_to_resume,
    newest_checkpoint,
    read_commit,
    whole_checkpoints,
)
from model.configs import TrialConfig
from orchestrator.bucket.drive import drive_bucket, read_bucket_holder, refresh
from orchestrator.bucket.names import STATE, scan
from orchestrator.bucket.objects import Bucket, LeaseObject, explain
from orchestrator.bucket.prepared import prepared_for
from orchestrator.bucket.replica import Replica
from orchestrator.cli import main
from orchestrator.experiment import Experiment
from orchestrator.identity import trial_id, write_config
from orchestrator.layout import RunFolder, Store, TrialFolder, open_store
from orchestrator.lease import LEASE_EXPIRES_S, WATCH_S, Holder, LeaseHeldError, LeaseLostError, hold_lease, hold_place
from orchestrator.ledger import move_stale_aside, read_state, read_states
from orchestrator.ray_session import Cluster
from orchestrator.results import Failure
from orchestrator.scales import SCALES, Scale
from stand_ins.grids import ROOT, SCRIPT, environment, grid, run_folder
from stand_ins.object_store import CREDENTIALS, ObjectStore
from stand_ins.saving_trial import save_step


def declare(scale: Scale, seeds: int) -> list[TrialConfig]:
    return [
        scale.trial(foundation=f, mode=mode, seed=0) for f, mode in zip(scale.foundations, scale.modes, strict=False)
    ]


GRID = Experiment(name="grid", hypothesis="It works.", declare=declare)


def open_machine(cache: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store as another machine sees it: with a working folder of its own."""
    monkeypatch.setenv("SLOTGRID_CACHE", str(cache))
    return open_store(uri, buckets=True)


@pytest.fixture
def home(tmp_path: Path) -> str:
    """A bucket in a folder: everything but the network."""
    (tmp_path / "bucket").mkdir()
    return (tmp_path / "bucket").as_uri()


@pytest.fixture
def machine(tmp_path: Path, home: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Store]:
    return lambda name: open_machine(tmp_path / name, home, monkeypatch)


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    store = ObjectStore()
    yield store
    store.end()


@pytest.fixture
def s3(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.bucket.replica.APART_S", 0.0)
    monkeypatch.setattr("orchestrator.bucket.replica.GROWING_EVERY_S", 0.1)
    monkeypatch.setattr("orchestrator.bucket.objects._LOOK_EVERY_S", 0.2)
    for name, seconds in {"PASS_EVERY_S": 0.1, "SETTLE_S": 0.1, "_CHECK_EVERY_S": 0.0}.items():
        monkeypatch.setattr(f"orchestrator.bucket.drive.{name}", seconds)


def replica_of(store: Store, *, prepared: list[str] | None = None, bucket: Bucket | None = None) -> Replica:
    assert store.remote is not None
    return Replica(bucket or Bucket(store.remote), store, store.runs("grid", "smoke"), prepared or [])


def free() -> None:
    """Of a lease that nobody takes."""


def step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name[5:]) if checkpoint else 0


def contents(run: RunFolder) -> dict[str, bytes]:
    """What a run folder holds that another machine should see."""
    return {name.partition("/")[2]: (run.path.parent / name).read_bytes() for name in scan(run.path, run.path.parent)}


class WatchedBucket(Bucket):
    """Calls `after` after every request that changes something: the moments between which a kill can fall."""

    after: Callable[[], None] = staticmethod(lambda: None)

    def put(self, *arguments, **options):
        done = super().put(*arguments, **options)
        self.after()
        return done

    def remove(self, name: str) -> None:
        super().remove(name)
        self.after()


@pytest.mark.parametrize(
    "pushes", [pytest.param("after every change", marks=pytest.mark.slow), "first and last", "first and third"]
)
def test_a_kill_between_any_two_requests_loses_no_more_than_what_was_new(
    pushes: str, machine, tmp_path: Path, tiny_grid: list[TrialConfig], finish
) -> None:
    """Train, prune, end, then set aside as stale and train as something else: at every moment another machine, and this one, can go on."""
    store = machine("a")
    run, trial = store.runs("grid", "smoke"), tiny_grid[0]
    other = replace(trial, budget=replace(trial.budget, steps=trial.budget.steps + 1))
    folder = run.trial(trial_id(trial))
    bucket = WatchedBucket(store.remote)
    replica = replica_of(store, bucket=bucket)
    looks, often = 0, 1 if pushes == "after every change" else 6

    stages = [  # what changes, of which configuration, and the step to go on from at the least: while that is pushed, and after
        (lambda: (write_config(folder.config, trial), save_step(folder, 10)), "", 0, 10),
        (lambda: save_step(folder, 20), "", 10, 20),
        (lambda: save_step(folder, 30), "", 20, 30),
        (lambda: save_step(folder, 30, "redone"), "", 20, 30),
        (lambda: finish(run, trial), "", 30, 30),
        (lambda: move_stale_aside(folder, ["budget"]), "", 30, 30),
        (lambda: (write_config(folder.config, other), save_step(folder, 10, "other")), "other", 0, 10),
        (lambda: save_step(folder, 20, "other"), "other", 10, 20),
    ]
    least = {"": 0, "other": 0}

    def look() -> None:
        nonlocal looks
        looks += 1
        home = tmp_path / "snapshot" / str(looks)
        shutil.copytree(tmp_path / "bucket", home)
        elsewhere = Store(tmp_path / "elsewhere" / str(looks), remote=home.as_uri())
        replica_of(elsewhere).pull(whole=True)
        there = TrialFolder(elsewhere.runs("grid", "smoke").path / "trials" / trial_id(trial))
        aside = TrialFolder(home / "grid-smoke" / "trials" / f"{trial_id(trial)}.stale-1")
        if not there.path.exists():
            assert not least[""] or step_of(newest_checkpoint(aside.checkpoints)) >= least[""]
            return
        is_other = read_state(there, trial).state == "stale"
        seed = "other" if is_other else ""
        read_state(there, other if is_other else trial)
        resumed = checkpoint_to_resume(there.path, steps=100)
        kept = newest_checkpoint(aside.checkpoints) if not is_other and aside.checkpoints.exists() else resumed
        assert max(step_of(resumed), step_of(kept)) >= least[seed]
        for commit in there.checkpoints.glob(f"*/{COMMIT_FILE}"):
            assert all((commit.parent / name).exists() for name in read_commit(commit.parent).files)
        for checkpoint in whole_checkpoints(there.checkpoints):
            assert (checkpoint / "trainable.safetensors").read_text().split(" ")[2] in (
                [seed] if seed else ["", "redone"]
            )

        if looks % often:
            return
        shutil.copytree(store.root, tmp_path / "here" / str(looks))
        again = Store(tmp_path / "here" / str(looks), remote=home.as_uri())
        before = contents(again.runs("grid", "smoke"))
        replica_of(again).pull(whole=True)
        replica_of(again).push(free, final=True)
        assert contents(again.runs("grid", "smoke")) == before
        assert contents(RunFolder(home / "grid-smoke")) == before

    bucket.after = look
    replica.accept("token")
    replica.claim("token")
    for stage in stages if pushes == "after every change" else stages[:1]:
        change, seed, least_meanwhile, least_after = stage
        change()
        least[seed] = least_meanwhile
        replica.push(free, final=False)
        least[seed] = least_after
    if pushes != "after every change":
        for change, *_ in stages[1:] if pushes == "first and last" else stages[1:3]:
            change()
        replica.push(free, final=False)
    assert looks > 10
    assert contents(RunFolder(tmp_path / "bucket" / "grid-smoke")) == contents(run)


def test_a_checkpoint_that_goes_while_it_is_put_costs_nothing_that_was_there(machine, tmp_path: Path) -> None:
    store = machine("a")
    folder = store.runs("grid", "smoke").trial("a")
    bucket = WatchedBucket(store.remote)
    replica = replica_of(store, bucket=bucket)
    save_step(folder, 10)
    replica.push(free, final=False)
    for step in (20, 30):
        save_step(folder, step)
    bucket.after = lambda: [shutil.rmtree(path) for path in folder.checkpoints.iterdir()]  # as a later one would
    replica.push(free, final=False)
    there = tmp_path / "bucket" / "grid-smoke" / "trials" / "a" / "checkpoints"
    assert step_of(newest_checkpoint(there)) == 10
    assert not list(there.glob("step-0000[23]0/commit.json"))


def test_a_checkpoint_that_a_killed_driver_put_and_had_not_noted_does_not_come_back_when_newer_ones_are_here(
    machine, tmp_path: Path
) -> None:
    store = machine("a")
    run = store.runs("grid", "smoke")
    folder, replica = run.trial("a"), replica_of(store)
    replica.accept("token")
    replica.claim("token")
    noted = (run.path / STATE).read_bytes()
    save_step(folder, 10)
    replica.push(free, final=False)
    (run.path / STATE).write_bytes(noted)
    for step in (20, 30):
        save_step(folder, step)
    before = contents(run)
    again = replica_of(store)
    again.pull(whole=True)
    assert contents(run) == before
    again.push(free, final=True)
    assert contents(RunFolder(tmp_path / "bucket" / "grid-smoke")) == before


def test_a_damaged_checkpoint_does_not_replace_the_one_in_the_bucket(machine, tmp_path: Path) -> None:
    store = machine("a")
    folder = store.runs("grid", "smoke").trial("a")
    save_step(folder, 10)
    with drive(store):
        pass
    (folder.checkpoints / "step-000010" / "trainable.safetensors").write_bytes(b"")
    (folder.checkpoints / "step-000010" / "optimizer.safetensors").unlink()
    with drive(store):
        pass
    there = tmp_path / "bucket" / "grid-smoke" / "trials" / "a" / "checkpoints"
    assert step_of(newest_checkpoint(there)) == 10
    save_step(folder, 10, "again")
    with drive(store):
        pass
    assert contents(RunFolder(tmp_path / "bucket" / "grid-smoke")) == contents(store.runs("grid", "smoke"))


def test_what_a_cleaner_takes_from_the_working_folder_comes_back(
    machine, tmp_path: Path, tiny_grid: list[TrialConfig]
) -> None:
    store = machine("a")
    run, trial = store.runs("grid", "smoke"), tiny_grid[0]
    folder = run.trial(trial_id(trial))
    write_config(folder.config, trial)
    for step in (10, 20):
        save_step(folder, step)
    folder.result.write_text("{}")
    with drive(store):
        pass
    before, there = contents(run), RunFolder(tmp_path / "bucket" / "grid-smoke")
    for path in (folder.path, folder.checkpoints, folder.checkpoints / "step-000020" / "optimizer.safetensors"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with drive(store):
            assert contents(run) == before
    (
        there.path / "trials" / folder.path.name / "metrics.jsonl"
    ).unlink()  # and what somebody removes in the bucket, too
    with drive(store):
        pass
    assert contents(there) == before
    folder.result.unlink()  # the ledger's own advice for training a trial's last steps again
    with drive(store):
        assert not folder.result.exists()
    assert contents(there) == contents(run)


def lines() -> list[str]:
    return []


def drive(store: Store, trials: Sequence[TrialConfig] = (), told: list[str] | None = None):
    return drive_bucket(store, store.runs("grid", "smoke"), trials, (told if told is not None else []).append)


def test_what_is_pushed_comes_back_byte_for_byte(
    s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_grid: list[TrialConfig], finish, begin
) -> None:
    uri = s3.uri("round/trip")
    store = open_machine(tmp_path / "a", uri, monkeypatch)
    run, trials = store.runs("grid", "smoke"), tiny_grid[:2]
    finish(run, trials[0])
    save_step(run.trial(trial_id(trials[0])), 10)
    begin(run, trials[1], step=3, failure=Failure(cause="code", error="KeyError", message="a"))
    corpus = store.corpus(trials[0].corpus)
    encoder = trials[0].encoder
    states = store.encoder_states / f"{encoder.name}-pad-{encoder.padding}-0123456789ab"
    shared = {
        corpus / "audio" / "train" / "1.flac": b"f" * 1000,
        corpus / "corpus.json": b"{}",
        states / "aa.arrow": b"a" * 5000,
        states / "aa.json": b"{}",
        states / "manifest.json": b"{}",
        store.encoders / f"{encoder.name}.safetensors": os.urandom(12_000_000),  # more than one part
        store.encoders / f"{encoder.name}.json": b"",
    }
    private = [
        *(run.path / name for name in ("ray/tuner.pkl", "stop.json", "lease.lock", ".plan.json.tmp")),
        run.trial(trial_id(trials[0])).path / "mlflow_mirror.json",
        run.trial(trial_id(trials[1])).checkpoints / ".writing-1" / "trainable.safetensors",
        run.trial(trial_id(trials[1])).attempt(1).path / "lock",
        states / "bb.arrow",  # without its sidecar it does not count
        states / ".lock",
        store.corpora / "of-another-grid" / "corpus.json",
        store.root / "mlflow.db",
    ]
    for path in [*shared, *private]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(shared.get(path, b"private"))
    with drive(store, trials):
        pass
    before, states_before = contents(run), read_states(run, trials)
    objects = s3.objects("round/trip")
    assert b"private" not in objects.values()
    shutil.rmtree(tmp_path / "a")

    elsewhere = open_machine(tmp_path / "b", uri, monkeypatch)
    told = lines()
    with drive(elsewhere, trials, told):
        assert contents(elsewhere.runs("grid", "smoke")) == before
        found = read_states(elsewhere.runs("grid", "smoke"), trials)
        assert [(state.state, state.cause) for state in found] == [(s.state, s.cause) for s in states_before]
        for path, content in shared.items():
            assert (elsewhere.root / path.relative_to(store.root)).read_bytes() == content
    assert "fetching" in told[0]
    told.clear()
    with drive(elsewhere, trials, told):
        pass
    assert told == [], "nothing is fetched twice"
    secret = CREDENTIALS["AWS_SECRET_ACCESS_KEY"].encode()
    written = [path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file()]
    assert not any(secret in content for content in [*written, *s3.objects("round/trip").values()])


def test_two_machines_cannot_drive_at_once(machine) -> None:
    first, second = machine("a"), machine("b")
    with drive(first):
        with (
            pytest.raises(LeaseHeldError, match=r"bucket/grid-smoke/lease.json: another driver .*process \d+ on"),
            drive(second),
        ):
            pytest.fail("two drivers")
        assert read_bucket_holder(second, second.runs("grid", "smoke")) is not None
    assert read_bucket_holder(second, second.runs("grid", "smoke")) is None
    with drive(second):
        pass


def test_of_two_that_take_a_bucket_over_at_the_same_moment_one_goes_on(machine, tmp_path: Path) -> None:
    outcomes: list[str] = []
    start = threading.Barrier(2)

    def take(name: str) -> None:
        place = LeaseObject(Bucket((tmp_path / "bucket").as_uri()), "grid-smoke/lease.json", tmp_path / f".{name}")
        start.wait()
        try:
            with hold_place(place, is_dead=lambda holder: True, settle_s=0.5):
                outcomes.append("drives")
                time.sleep(1)
        except LeaseHeldError:
            outcomes.append("refused")

    threads = [threading.Thread(target=take, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["drives", "refused"]


def test_a_driver_that_was_taken_over_stops_and_puts_nothing_more(machine, tmp_path: Path) -> None:
    store = machine("a")
    run, there = store.runs("grid", "smoke"), tmp_path / "bucket" / "grid-smoke"
    now = time.time()
    with pytest.raises(LeaseLostError, match="taken over by process 7 on elsewhere"), drive(store) as lease:
        write_sealed_json(
            there / "lease.json", asdict(Holder(pid=7, host="elsewhere", token="new", since=now, heartbeat=now))
        )
        assert lease is not None and lease.lost.wait(20)
        before = contents(RunFolder(there))
        save_step(run.trial("late"), 10)
        time.sleep(0.5)
    assert contents(RunFolder(there)) == before
    assert read_sealed_json(there / "lease.json")["token"] == "new"


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_after_a_kill_this_machine_and_any_other_go_on(
    seed: int, s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_grid: list[TrialConfig]
) -> None:
    """kill -9, at some moment, of a driver whose trial saves and saves."""
    uri, trial = s3.uri(f"killed/{seed}"), tiny_grid[0]
    store = open_machine(tmp_path / "a", uri, monkeypatch)
    folder = store.runs("grid", "smoke").trial(trial_id(trial))
    write_config(folder.config, trial)
    folder.attempt(1).path.mkdir(parents=True)
    folder.attempt(1).log.write_text("it trains")
    command = [sys.executable, "-m", "stand_ins.saving_trial", uri, trial_id(trial)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with subprocess.Popen(command, env=environment() | {"PYTHONPATH": paths}) as driver:
        while not any(name.endswith("commit.json") for name in s3.objects(f"killed/{seed}")):
            assert driver.poll() is None
            time.sleep(0.05)
        time.sleep(random.Random(seed).uniform(0, 2.5))
        driver.kill()
    elsewhere = open_machine(tmp_path / "b", uri, monkeypatch)
    with pytest.raises(LeaseHeldError, match=f"process {driver.pid}"), drive(elsewhere):
        pytest.fail("its heartbeat is fresh")
    refresh(elsewhere, elsewhere.runs("grid", "smoke"))
    there = elsewhere.runs("grid", "smoke").trial(trial_id(trial))
    assert read_state(there, trial).state == "interrupted" and not there.checkpoints.exists()
    replica_of(elsewhere).pull(whole=True)
    assert checkpoint_to_resume(there.path, steps=100_000) is not None
    begun, before = time.monotonic(), contents(store.runs("grid", "smoke"))
    with drive(store):
        assert time.monotonic() - begun < WATCH_S / 2, "a killed driver of this machine is known to be dead"
        assert contents(store.runs("grid", "smoke")) == before
    assert (
        s3.objects(f"killed/{seed}").items() >= {f"grid-smoke/{name}": value for name, value in before.items()}.items()
    )


@pytest.mark.slow
def test_while_the_bucket_is_silent_the_grid_goes_on_and_then_everything_arrives(
    s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.bucket.objects.SILENCE_S", 1.0)
    monkeypatch.setattr("orchestrator.bucket.drive.RETRY_EVERY_S", 0.2)
    store, told = open_machine(tmp_path / "a", s3.uri("silent"), monkeypatch), lines()
    run = store.runs("grid", "smoke")
    with drive(store, told=told), s3.silence():
        save_step(run.trial("a"), 10)
        deadline = time.monotonic() + 30
        while not told:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        save_step(run.trial("a"), 20)
    (line,) = told
    assert "warning" in line and "s3://bucket/silent: " in line and "the grid goes on" in line and "\n" not in line
    assert (
        s3.objects("silent").items() >= {f"grid-smoke/{name}": value for name, value in contents(run).items()}.items()
    )


def test_what_the_bucket_does_not_take_at_the_end_is_said_and_put_by_the_next_run(
    machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.bucket.drive.PATIENCE_S", 0.5)
    store, told = machine("a"), lines()
    run, home = store.runs("grid", "smoke"), tmp_path / "bucket"
    with drive(store, told=told) as bucket_lease, hold_lease(run, within=bucket_lease) as lease:
        (home / "grid-smoke").rename(tmp_path / "away")
        (home / "grid-smoke").touch()  # no folder: nothing can be put
        save_step(run.trial("a"), 10)
        lease.check()  # what cannot be asked has not said that another machine took over
    assert "5 files (0.0 MB)" in told[-1] and "run the same command again on this machine" in told[-1]
    (home / "grid-smoke").unlink()
    (tmp_path / "away").rename(home / "grid-smoke")
    with drive(store):
        pass
    assert contents(RunFolder(home / "grid-smoke")) == contents(run)


def test_if_another_machine_has_driven_meanwhile_the_bucket_wins_and_nothing_is_deleted(machine) -> None:
    first, second = machine("a"), machine("b")
    mine, its = (store.runs("grid", "smoke") for store in (first, second))
    with drive(first):
        save_step(mine.trial("a"), 10)
    save_step(mine.trial("a"), 20, "not pushed")
    with drive(second):
        save_step(its.trial("a"), 20, "its own")
        save_step(its.trial("a"), 30, "its own")
    with drive(first):
        assert contents(mine) == contents(its)
    aside = mine.path.with_name("grid-smoke.superseded-1")
    assert (aside / "trials/a/checkpoints/step-000020/trainable.safetensors").read_text().endswith("20 not pushed ")
    assert not (aside / "trials/a/checkpoints/step-000010").exists(), "the bucket had it, and has pruned it"


def test_what_this_machine_had_not_pushed_is_pushed_if_nobody_has_driven_meanwhile(machine, tmp_path: Path) -> None:
    store = machine("a")
    run = store.runs("grid", "smoke")
    with drive(store):
        for step in (10, 20):
            save_step(run.trial("a"), step)
    save_step(run.trial("a"), 30)
    before = contents(run)
    refresh(machine("b"), machine("b").runs("grid", "smoke"))  # looking is not driving
    with drive(store):
        pass
    assert contents(run) == before == contents(RunFolder(tmp_path / "bucket" / "grid-smoke"))
    assert not list(store.root.glob("*.superseded-*"))


def test_prepared_data_of_the_bucket_are_never_replaced(machine, tmp_path: Path, tiny_grid: list[TrialConfig]) -> None:
    """Two machines made the same corpus and states at the same time, with other bytes."""
    trial = tiny_grid[0]
    key = f"{trial.encoder.name}-pad-{trial.encoder.padding}-0123456789ab"
    for name in ("a", "b"):
        store = machine(name)
        for path in (store.corpus(trial.corpus) / "1.flac", store.corpus(trial.corpus) / "corpus.json"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        states = store.encoder_states / key
        for path in (states / "both.arrow", states / "both.json", states / f"{name}.arrow", states / f"{name}.json"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        (store.corpus(trial.corpus) / f"only-{name}.flac").write_text(name)
        replica_of(store, prepared=prepared_for([trial], store)).push(free, final=True)
    home = tmp_path / "bucket" / "prepared"
    corpus = home / "corpora" / machine("a").corpus(trial.corpus).name
    assert {path.name: path.read_text() for path in corpus.iterdir()} == {
        "1.flac": "a", "corpus.json": "a", "only-a.flac": "a",
    }  # fmt: skip
    states = home / "encoder_states" / key
    assert {path.name: path.read_text() for path in states.iterdir()} == {
        "both.arrow": "a", "both.json": "a", "a.arrow": "a", "a.json": "a", "b.arrow": "b", "b.json": "b",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["../evil", "trials/../../evil", "trials/a\\..\\evil", "trials/./evil"])
def test_a_name_in_the_bucket_does_not_lead_out_of_the_folder(
    name: str, s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = f"evil/{tmp_path.name}"
    client = s3.client()
    for key in (f"grid-smoke/{name}", "grid-smoke/trials/good", f"prepared/encoders/whisper.x/../{name}"):
        client.put_object(Bucket="bucket", Key=f"{prefix}/{key}", Body=b"x")
    store = open_machine(tmp_path / "a", s3.uri(prefix), monkeypatch)
    replica_of(store, prepared=["prepared/encoders/whisper.*"]).pull(whole=True)
    assert list(contents(store.runs("grid", "smoke"))) == ["trials/good"]
    assert store.remote and list(Bucket(store.remote).list("grid-smoke")) == ["grid-smoke/trials/good"]
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://no-such-bucket/x{query}", ("s3://no-such-bucket/x: there is no bucket no-such-bucket", "create it")),
        ("s3://bucket/x?endpoint_override=127.0.0.1:1&scheme=http", ("s3://bucket/x: ", "check the address")),
        ("s3://bucket/x?colour=red", ("unknown query parameter colour", "region")),
        ("s3://key:hidden@bucket/x", ("holds credentials", "AWS_SECRET_ACCESS_KEY")),
        ("s3://bucket/x?secret_key=hidden", ("holds credentials", "environment")),
        ("s4://bucket/x", ("s4://bucket/x: ", "give e.g. s3://bucket/prefix")),
        ("abfs://c@account.dfs.core.windows.net/x", ("no credential in AZURE_STORAGE_KEY", "set the credentials")),
        ("file:///no/such/folder", ("there is no folder /no/such/folder", "--store")),
        ("s3:///x", ("names no bucket", "s3://bucket/prefix")),
    ],
)
@pytest.mark.parametrize("verb", ["run", "status"])
def test_a_bucket_that_cannot_be_used_is_one_line(
    verb: str, uri: str, words: tuple[str, ...], s3: ObjectStore, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("SLOTGRID_CACHE", str(tmp_path))
    monkeypatch.setattr("orchestrator.bucket.objects.SILENCE_S", 1.0)
    query = s3.uri("").partition("?")[1:]
    assert main(GRID, [verb, "--scale", "smoke", "--store", uri.format(query="".join(query))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line
    assert "hidden" not in line and not list(tmp_path.rglob("*hidden*"))


def test_what_a_store_answers_is_told_with_a_remedy() -> None:
    denied = "When listing objects under key 'x' in bucket 'b': AWS Error ACCESS_DENIED during ListObjectsV2 operation: Access Denied"
    assert explain("s3://b/x", denied).endswith(
        "; set the credentials in the environment, and let them list, read, write and delete there"
    )
    assert explain("s3://b/x", "curlCode: 7, Could not connect\nto server").endswith(
        "to server; check the address, the network and the store's own state"
    )


def test_a_cluster_of_several_machines_is_refused_before_anything_is_prepared(machine) -> None:
    cluster = Cluster(address="10.0.0.1:6379", local=False, cpus=8, cpus_now=8, gpus=0, nodes=2, elsewhere=True)
    with pytest.raises(
        ValueError, match=r"--store: the working folder of .* \(2 nodes\).* a mount that all its machines share"
    ):
        cluster.check_sees(machine("a"))
    cluster.check_sees(Store(Path("/mnt/shared/runs")))
    replace(cluster, local=True, elsewhere=False).check_sees(machine("a"))


def test_status_on_another_machine_tells_what_the_bucket_knows(
    machine, home: str, finish, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = GRID.declare(SCALES["smoke"], 1)
    store = machine("a")
    finish(store.runs("grid", "smoke"), trials[0], 0.75)
    with drive(store, trials):
        machine("b")
        assert main(GRID, ["status", "--scale", "smoke", "--store", home]) == 0
        assert f"driven by process {os.getpid()}" in capsys.readouterr().out
    assert main(GRID, ["status", "--scale", "smoke", "--store", home]) == 0
    out = capsys.readouterr().out
    assert "1 done, 1 pending" in out and f"--store {home}" in out


def rows_of_checkpoints(objects: Mapping[str, bytes]) -> dict[str, set[bytes]]:
    """The rows of each metrics.jsonl that a trial which goes on from its newest checkpoint has trained already."""
    found: dict[str, set[bytes]] = {}
    for name in objects:
        if name.endswith(f"/{COMMIT_FILE}"):
            trial, step = name.split("/checkpoints/step-")
            lines = objects[f"{trial}/metrics.jsonl"].splitlines()
            rows = {line for line in lines if (row := parse_metric_line(line)) and row.step <= int(step.split("/")[0])}
            found.setdefault(f"{trial}/metrics.jsonl", set()).update(rows)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_machine_that_vanishes_with_its_disk_costs_no_result(
    smoke: Path, tmp_path: Path, s3: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of everything once a checkpoint is in the bucket, the working folder gone: another machine ends with the undisturbed run's bytes."""
    more = {**CREDENTIALS, "SLOTGRID_CACHE": str(tmp_path / "first")}
    arguments = ["--scale", "smoke", "--store", s3.uri("team")]
    shutil.copytree(
        smoke / "runs" / "prepared", open_machine(tmp_path / "first", s3.uri("team"), monkeypatch).root / "prepared"
    )
    machine = Session([sys.executable, str(SCRIPT), *arguments], cwd=tmp_path, log=tmp_path / "log", more=more)
    deadline = time.monotonic() + 500
    while not rows_of_checkpoints(s3.objects("team/grid-smoke")):
        assert machine.returncode is None and time.monotonic() < deadline, machine.log.read_text()[-3000:]
        time.sleep(0.2)
    machine.kill()
    shutil.rmtree(tmp_path / "first")
    trained = rows_of_checkpoints(s3.objects("team/grid-smoke"))
    assert trained

    more["SLOTGRID_CACHE"] = str(tmp_path / "second")
    deadline = time.monotonic() + LEASE_EXPIRES_S + 30
    while (done := grid(*arguments, cwd=tmp_path, **more)).returncode == 2 and "another driver" in done.stderr:
        assert time.monotonic() < deadline, done.stderr
        time.sleep(5)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = (run_folder(smoke) / "results.csv").read_bytes()
    objects = s3.objects("team/grid-smoke")
    assert objects["results.csv"] == results
    for name, rows in trained.items():
        assert rows <= set(objects[name].splitlines()), (
            "their times are the first machine's: nothing of it was trained again"
        )
    everything = [done.stdout.encode(), *objects.values()]
    everything += [path.read_bytes() for path in (tmp_path / "second").rglob("*") if path.is_file()]
    assert not any(CREDENTIALS["AWS_SECRET_ACCESS_KEY"].encode() in content for content in everything)
