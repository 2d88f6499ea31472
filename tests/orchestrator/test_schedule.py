"""Trials on a real local Ray: one that ends well, one that fails, one whose worker is killed; and requests that can never be met."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.encoder_states import StateKey
from model.configs import Execution, TrialConfig
from orchestrator.attempts import AttemptSuperseded, attempt_costs, open_attempt
from orchestrator.identity import fingerprint, trial_id, write_config
from orchestrator.layout import RunFolder, Store, TrialFolder
from orchestrator.ledger import read_states
from orchestrator.ray_session import Cluster, open_ray
from orchestrator.schedule import concurrent_trials, in_turns, run_trials
from orchestrator.trial_driver import TrialOrder


def cluster(*, cpus: float, gpus: float = 0.0) -> Cluster:
    return Cluster(address="local", local=True, cpus=cpus, cpus_now=cpus, gpus=gpus, nodes=1)


def test_as_many_trials_at_once_as_the_scarcer_device_allows():
    assert concurrent_trials(cluster(cpus=2), Execution()) == 2
    gpus = Execution(workers=4, use_gpu=True, cpus_per_worker=4)
    assert concurrent_trials(cluster(cpus=64, gpus=16), gpus) == 4
    assert concurrent_trials(cluster(cpus=32, gpus=16), gpus) == 2


def test_a_request_that_can_never_be_met_is_an_error_not_an_endless_wait():
    with pytest.raises(
        ValueError, match=r"needs 8 CPUs and 8 GPUs \(8 workers\) and there is this machine: 2 CPUs; .*--scale"
    ):
        concurrent_trials(cluster(cpus=2), Execution(workers=8, use_gpu=True))


def test_the_first_trial_of_every_canary_comes_before_anybody_waits(store: Store, tiny_grid: list[TrialConfig]):
    run = store.runs("toy", "tiny")
    orders = [make_order(run, trial) for trial in tiny_grid[:6]]
    canaries = [replace(orders[0], trial_id=f"canary-{name}") for name in "ab"]
    behind = [replace(order, canary=canaries[number // 3]) for number, order in enumerate(orders)]
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


def make_order(run: RunFolder, config: TrialConfig) -> TrialOrder:
    """An order whose trial is a few checkpoints of nothing: seed 1 raises, seed 2's worker is killed after its second one."""

    def count_to_three(order: TrialOrder, config: TrialConfig, hooks):
        import os
        import signal
        from types import SimpleNamespace

        position = order.folder / "position"
        for step in range(int(position.read_text()) if position.exists() else 0, 3):
            print(f"working on step {step + 1}")
            if config.seed == 1:
                raise ValueError("manifest.jsonl: line 3: broken; mend it")
            position.write_text(str(step + 1))
            hooks.on_checkpoint(step + 1)
            if config.seed == 2 and step == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return SimpleNamespace(
            headline_inference_mode="direct",
            scores={"eval/partial_f1": 0.5},
            validation_scores={"validation/partial_f1": 0.5},
            counts={"test": 1},
            seconds={"train": 1.0},
        )

    folder = run.trial(trial_id(config))
    write_config(folder.config, config)
    return TrialOrder(
        trial_id=trial_id(config),
        folder=folder.path,
        fingerprint=fingerprint(config),
        execution=Execution(),
        corpus=run.path,
        encoder_states=run.path,
        encoder_key=StateKey(encoder_name="none", weights_sha256="0" * 64, padding="none", width=512),
        ray_storage=run.path / "ray",
        run_trial=count_to_three,
    )


@pytest.mark.slow
def test_failures_are_rows_and_a_killed_worker_goes_on_from_its_checkpoint(
    store: Store, tiny_grid: list[TrialConfig], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    run = store.runs("toy", "tiny")
    trials = [replace(tiny_grid[0], seed=seed) for seed in range(3)]
    with open_ray() as ray_cluster:
        run_trials(
            [make_order(run, trial) for trial in trials],
            concurrent=concurrent_trials(ray_cluster, Execution()),
            storage=run.path / "ray",
        )
    good, failing, killed = read_states(run, trials)

    assert good.state == "done" and good.result and good.result.costs["attempts"] == 1
    assert not (run.path / "ray").exists()

    assert failing.state == "failed"
    assert failing.failure == "ValueError: manifest.jsonl: line 3: broken; mend it"
    attempt = failing.folder.latest_attempt()
    assert attempt and attempt.number == 1  # an error in the code or the data is not tried again
    assert "working on step 1" in attempt.log.read_text() and "Traceback" in attempt.log.read_text()

    assert killed.state == "done" and killed.result and killed.result.costs["attempts"] == 2
    first = json.loads(killed.folder.attempt(1).failure.read_text())
    assert first["cause"] == "WorkerDied"
    assert killed.folder.attempt(2).log.read_text().count("working on step") == 1
