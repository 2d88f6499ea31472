"""The states that files alone decide, and the lease: one driver at a time, a dead one's place taken at once."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data.atomic import write_json
from model.configs import TrialConfig
from orchestrator.identity import trial_id, write_config
from orchestrator.layout import RunFolder, Store
from orchestrator.ledger import (
    LEASE_EXPIRES_S,
    LeaseHeldError,
    LeaseLostError,
    hold_lease,
    move_stale_aside,
    read_holder,
    read_state,
    read_states,
)
from orchestrator.results import Failure

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(store: Store) -> RunFolder:
    return store.runs("grid", "tiny")


def test_every_state_is_told_from_files(run: RunFolder, tiny_grid: list[TrialConfig], finish, begin) -> None:
    pending, killed, failed, done, drifted, *_ = tiny_grid
    begin(run, killed, step=40)
    begin(run, failed, step=7, failure=Failure(cause="OutOfMemoryError", message="no memory left"))
    finish(run, done)
    begin(run, replace(drifted, seed=0, optim=replace(drifted.optim, lora_learning_rate=0.5)))
    states = read_states(run, [pending, killed, failed, done, drifted])
    assert [state.state for state in states] == ["pending", "interrupted", "failed", "done", "stale"]
    assert states[1].last_step == 40
    assert states[2].failure == "OutOfMemoryError: no memory left"
    assert states[3].result is not None and states[3].result.scores["eval/partial_f1"] == 0.5
    assert states[4].changed == (f"optim.lora_learning_rate: 0.5 -> {drifted.optim.lora_learning_rate}",)


def test_only_the_latest_attempt_counts(run: RunFolder, tiny_grid: list[TrialConfig], begin) -> None:
    """A retry after a failure that is killed is interrupted, not failed; attempt 10 is later than attempt 9."""
    for _ in range(9):
        begin(run, tiny_grid[0], failure=Failure(cause="E", message=""))
    begin(run, tiny_grid[0])
    assert read_state(run.trial(trial_id(tiny_grid[0])), tiny_grid[0]).state == "interrupted"


def test_a_trial_that_only_has_its_config_is_pending(run: RunFolder, tiny_grid: list[TrialConfig]) -> None:
    folder = run.trial(trial_id(tiny_grid[0]))
    write_config(folder.config, tiny_grid[0])
    assert read_state(folder, tiny_grid[0]).state == "pending"


def test_a_done_trial_of_another_config_is_stale(run: RunFolder, tiny_grid: list[TrialConfig], finish) -> None:
    finish(run, tiny_grid[0])
    changed = replace(tiny_grid[0], metric_version=99)
    assert read_state(run.trial(trial_id(changed)), changed).state == "stale"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"trial_id": "x"', r"result\.json: line 1: not JSON .*delete this file and run again"),
        ("[]", r"result\.json: line 1: a JSON object is expected"),
        ('{"trial_id": "x"}', r"result\.json\.fingerprint: missing field.*delete this file"),
        ("", r"result\.json: line 1: not JSON"),
    ],
)
def test_a_damaged_result_names_the_file_and_the_remedy(
    run: RunFolder, tiny_grid: list[TrialConfig], finish, content: str, message: str
) -> None:
    finish(run, tiny_grid[0])
    folder = run.trial(trial_id(tiny_grid[0]))
    folder.result.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_states(run, tiny_grid)


def test_stale_folders_are_set_aside_one_after_the_other(run: RunFolder, tiny_grid: list[TrialConfig], finish) -> None:
    moved = []
    for _ in range(2):
        finish(run, tiny_grid[0])
        moved.append(move_stale_aside(run.trial(trial_id(tiny_grid[0]))).name)
    assert moved == ["tiny-base.regular.seed0.stale-1", "tiny-base.regular.seed0.stale-2"]
    assert (run.trials / moved[0] / "result.json").is_file()
    assert read_states(run, tiny_grid)[0].state == "pending"


def test_a_second_driver_is_told_who_is_at_work(run: RunFolder) -> None:
    with hold_lease(run) as lease:
        lease.check()
        holder = read_holder(run)
        assert holder is not None and holder.pid == os.getpid()
        with pytest.raises(LeaseHeldError, match=rf"process {os.getpid()} on .* since"), hold_lease(run):
            pytest.fail("two drivers")
    assert read_holder(run) is None
    with hold_lease(run):
        pass


def test_the_lease_of_a_killed_driver_is_taken_over_at_once(run: RunFolder) -> None:
    code = (
        "import sys, time; from pathlib import Path; from orchestrator.ledger import hold_lease; "
        "from orchestrator.layout import RunFolder\n"
        "with hold_lease(RunFolder(Path(sys.argv[1]))): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    ) as driver:
        assert driver.stdout is not None and driver.stdout.readline() == b"held\n"
        with pytest.raises(LeaseHeldError, match=f"process {driver.pid}"), hold_lease(run):
            pytest.fail("two drivers")
        driver.send_signal(signal.SIGKILL)
    assert run.lease.is_file()
    assert read_holder(run) is None
    begun = time.monotonic()
    with hold_lease(run):
        assert time.monotonic() - begun < 1


def test_a_driver_on_another_machine_counts_until_its_heartbeat_is_old(run: RunFolder) -> None:
    lease = {"pid": 1, "host": "elsewhere", "token": "t", "since": time.time() - 900, "heartbeat": time.time()}
    write_json(run.lease, lease)
    with pytest.raises(LeaseHeldError, match="process 1 on elsewhere"), hold_lease(run):
        pytest.fail("two drivers")
    write_json(run.lease, lease | {"heartbeat": time.time() - LEASE_EXPIRES_S - 1})
    assert read_holder(run) is None
    with hold_lease(run):
        pass


def test_a_driver_that_was_taken_over_is_told_and_does_not_end_the_new_lease(run: RunFolder) -> None:
    with hold_lease(run) as lease:
        taken = {"pid": 2, "host": "elsewhere", "token": "new", "since": time.time(), "heartbeat": time.time()}
        write_json(run.lease, taken)
        with pytest.raises(LeaseLostError, match="taken over by process 2 on elsewhere"):
            lease.check()
    assert json.loads(run.lease.read_text())["token"] == "new"
