"""Trials on a real local Ray that end well, fail by every cause, or are stopped; and requests that can never be met."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from data.encoder_states import StateKey
from model.configs import Execution, TrialConfig
from orchestrator.attempts import AttemptSuperseded, attempt_costs, iter_records, open_attempt
from orchestrator.failures import POLICIES, Cause, Policy, left_alone
from orchestrator.identity import fingerprint, trial_id, write_config
from orchestrator.layout import RunFolder, Store, TrialFolder
from orchestrator.ledger import TrialState, read_states
from orchestrator.ray_session import Cluster, open_ray
from orchestrator.results import find_failure
from orchestrator.schedule import concurrent_trials, in_turns, run_trials
from orchestrator.trial_driver import TrialOrder, gpus_per_worker


def cluster(*, cpus: float, gpus: float = 0.0) -> Cluster:
    return Cluster(address="local", local=True, cpus=cpus, cpus_now=cpus, gpus=gpus, nodes=1)


def test_as_many_trials_at_once_as_the_scarcer_device_allows():
    assert concurrent_trials(cluster(cpus=2), Execution()) == 2
    gpus = Execution(workers=4, use_gpu=True, cpus_per_worker=4)
    assert concurrent_trials(cluster(cpus=64, gpus=16), gpus) == 4
    assert concurrent_trials(cluster(cpus=32, gpus=16), gpus) == 2
    shared = Execution(use_gpu=True, trials_per_gpu=5)
    assert concurrent_trials(cluster(cpus=64, gpus=2), shared) == 10
    assert 5 * gpus_per_worker(shared) <= 1 and 7 * gpus_per_worker(replace(shared, trials_per_gpu=7)) <= 1


def test_a_request_that_can_never_be_met_is_an_error_not_an_endless_wait():
    with pytest.raises(
        ValueError, match=r"needs 8 CPUs and 8 GPUs \(8 workers\) and there is this machine: 2 CPUs; .*--scale"
    ):
        concurrent_trials(cluster(cpus=2), Execution(workers=8, use_gpu=True))


def test_the_first_trial_of_every_canary_comes_before_anybody_waits(store: Store, tiny_grid: list[TrialConfig]):
    run = store.runs("toy", "tiny")
    orders = [make_order(run, trial) for trial in tiny_grid[:6]]
    canaries = [replace(orders[0], trial_id=f"canary-{name}") for name in "ab"]
    behind = [replace(order, first=(canaries[number // 3],)) for number, order in enumerate(orders)]
    assert in_turns(orders) == orders
    assert in_turns(behind) == [behind[number] for number in (0, 3, 1, 4, 2, 5)]


def test_a_newer_attempt_fences_off_the_older_one_and_counts_what_it_lost(tmp_path: Path):
    trial = TrialFolder(tmp_path / "trial")
    orphan = open_attempt(trial, devices=2)
    orphan.note("started")
    orphan.check_current()
    newer = open_attempt(trial, devices=2)
    newer.check_current()
    with pytest.raises(AttemptSuperseded, match="attempt 2 took over"):
        orphan.check_current()
    newer.note("started")
    newer.note("ended")
    costs = attempt_costs(trial)
    assert costs["attempts"] == 2
    assert 0 <= costs["lost_device_seconds"] <= costs["device_seconds"] < 60


def make_order(run: RunFolder, config: TrialConfig, how: str = "counts") -> TrialOrder:
    """An order whose trial is a few checkpoints of nothing, of which something becomes as `how` says."""

    def count(order: TrialOrder, config: TrialConfig, hooks):
        import os
        import signal
        import time
        from types import SimpleNamespace

        import torch

        from model.hooks import TrialInterrupted

        position, tries = order.folder / "position", order.folder / "tries"
        tries.write_text(str(tried := int(tries.read_text()) + 1 if tries.exists() else 1))
        for step in range(int(position.read_text()) if position.exists() else 0, 3):
            print(f"working on step {step + 1} with a key like sk-{'0' * 20}")
            if how == "breaks":
                raise KeyError(f"no such thing as sk-{'0' * 20}")
            if how == "lacks memory" and order.execution.micro_batches < 4:
                torch.empty(2**50)
            if how == "loses its storage" and tried < 2:
                raise ConnectionResetError(104, "Connection reset by peer")
            if how == "diverges":
                raise FloatingPointError("the loss is nan after step 1")
            position.write_text(str(step + 1))
            hooks.on_checkpoint(step + 1)
            if how == "is killed" or (how == "is killed without a step" and tried < 9):
                position.write_text(str(step + 1 if how == "is killed" else 0))
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "is taken away" and tried == 1:
                order.stop_file.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "is stopped" and tried == 1:
                assert order.stop_file and not hooks.should_stop()
                order.stop_file.touch()
                time.sleep(1.1)
                if hooks.should_stop():
                    raise TrialInterrupted("stopped after step 1, which is saved")
        return SimpleNamespace(
            headline_inference_mode="direct",
            scores={"eval/partial_f1": 0.5},
            validation_scores={"validation/partial_f1": 0.5},
            counts={"test": 1},
            seconds={"train": 1.0},
        )

    folder = run.trial(trial_id(config))
    if not folder.config.exists():
        write_config(folder.config, config)
    impatient: dict[Cause, Policy] = {
        "io": replace(POLICIES["io"], waits_s=(0.1,)),
        "worker-died": replace(POLICIES["worker-died"], attempts=2),
    }
    return TrialOrder(
        trial_id=trial_id(config),
        folder=folder.path,
        fingerprint=fingerprint(config),
        execution=Execution(workers=64 if how == "asks for too much" else 1),
        corpus=run.path,
        encoder_states=run.path,
        encoder_key=StateKey(encoder_name="none", weights_sha256="0" * 64, padding="none", width=512),
        ray_storage=run.path / "ray",
        run_trial=count,
        stop_file=run.stop,
        policies={**POLICIES, **impatient},
    )


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with open_ray() as opened:
            yield opened


def run_all(run: RunFolder, cluster: Cluster, hows: dict[TrialConfig, str]) -> dict[str, TrialState]:
    """Run these trials; the states afterwards, by what became of them."""
    orders = [make_order(run, trial, how) for trial, how in hows.items()]
    run_trials(orders, concurrent=concurrent_trials(cluster, Execution()), storage=run.path / "ray")
    assert not (run.path / "ray").exists()
    return dict(zip(hows.values(), read_states(run, list(hows)), strict=True))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_becomes_of_a_trial_depends_on_why_its_attempt_ended(
    store: Store, tiny_grid: list[TrialConfig], ray_cluster: Cluster
):
    run = store.runs("toy", "tiny")
    a, b = tiny_grid[0], tiny_grid[3]
    hows = {b: "breaks", a: "counts"}
    names = (
        "lacks memory",
        "loses its storage",
        "diverges",
        "is killed",
        "is killed without a step",
        "asks for too much",
    )
    hows |= {replace(a, seed=seed): how for seed, how in enumerate(names, start=1)}
    hows[replace(b, seed=1)] = "is held"
    states = run_all(run, ray_cluster, hows)

    assert states["counts"].state == "done" and states["counts"].result.costs["attempts"] == 1
    assert states["counts"].result.provenance["execution"]["micro_batches"] == 1

    broken, held = states["breaks"], states["is held"]
    assert (broken.state, broken.cause, broken.folder.latest_attempt().number) == ("failed", "code", 1)
    assert broken.failure == "code: KeyError: 'no such thing as [redacted]'"
    log = broken.folder.latest_attempt().log.read_text()
    assert "working on step 1 with a key like [redacted]" in log and "Traceback" in log and "0000" not in log
    assert (held.state, held.cause) == ("failed", "held") and held.failure.startswith(
        f"held: {broken.id} failed (code:"
    )
    assert not (held.folder.path / "tries").exists()

    small = states["lacks memory"]
    assert small.state == "done" and small.result.provenance["execution"]["micro_batches"] == 4
    assert [record.micro_batches for record in iter_records(small.folder)] == [1, 2, 4]
    assert find_failure(small.folder.attempt(1)).cause == "out-of-memory"

    assert states["loses its storage"].state == "done"
    assert states["loses its storage"].result.costs["attempts"] == 2

    diverged = states["diverges"]
    assert (diverged.state, diverged.cause, diverged.folder.latest_attempt().number) == ("failed", "nan", 1)
    assert left_alone(diverged.cause, ())

    killed, stuck = states["is killed"], states["is killed without a step"]
    assert killed.state == "done" and killed.result.costs["attempts"] == 4, (
        "more deaths than two, but never two without a step"
    )
    assert find_failure(killed.folder.attempt(1)).cause == "worker-died"
    assert (stuck.state, stuck.cause) == ("failed", "worker-died")
    assert stuck.folder.latest_attempt().number == 3, "the first one got a step further, two in a row did not"

    greedy = states["asks for too much"]
    assert (greedy.state, greedy.cause, greedy.folder.latest_attempt().number) == ("failed", "resources", 1)
    assert greedy.failure.startswith("resources: execution.workers: a trial needs 64 CPUs (64 workers)")

    (again,) = run_all(run, ray_cluster, {replace(b, seed=1): "counts"}).values()
    assert again.state == "done", "a hold ends with its run"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_that_stops_saves_begins_nothing_new_and_goes_on_later(
    store: Store, tiny_grid: list[TrialConfig], ray_cluster: Cluster
):
    run = store.runs("toy", "tiny")
    hows = {replace(tiny_grid[0], seed=seed): how for seed, how in enumerate(("is stopped", "one", "two", "three"))}
    orders = [make_order(run, trial, how) for trial, how in hows.items()]
    run_trials(orders, concurrent=1, storage=run.path / "ray")
    stopped, *others = read_states(run, list(hows))
    assert (stopped.state, stopped.folder.latest_attempt().number) == ("interrupted", 1)
    assert (
        next(iter_records(stopped.folder)).ended and "stopped after step 1" in stopped.folder.attempt(1).log.read_text()
    )
    assert not any((state.folder.path / "position").exists() for state in others[1:])
    assert {state.state for state in others[1:]} == {"pending"}

    run.stop.unlink()
    (taken,) = run_all(run, ray_cluster, {replace(tiny_grid[0], seed=9): "is taken away"}).values()
    assert taken.state == "interrupted" and find_failure(taken.folder.attempt(1)) is None, "a stop is no failure"

    run.stop.unlink()
    run_trials(orders, concurrent=2, storage=run.path / "ray")
    assert {state.state for state in read_states(run, list(hows))} == {"done"}
    assert stopped.folder.attempt(2).log.read_text().count("working on step") == 2
