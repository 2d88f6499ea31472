"""What a driver does before any worker starts: it waits for others, gives up when they failed, stops when it is asked to. No Ray here."""

import fcntl
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from data.encoder_states import StateKey
from model.configs import Execution, TrialConfig
from orchestrator.attempts import open_attempt
from orchestrator.failures import hold_siblings
from orchestrator.identity import fingerprint, trial_id, write_config
from orchestrator.layout import RunFolder, Store, TrialFolder
from orchestrator.lease import LeaseFile, hold_lease
from orchestrator.ledger import read_state
from orchestrator.results import Failure, find_failure, write_failure
from orchestrator.trial_driver import TrialOrder, drive_trial, resumed_execution

NO_MEMORY = Failure(cause="out-of-memory", error="OutOfMemoryError", message="CUDA out of memory")


@pytest.fixture
def run(store: Store) -> RunFolder:
    return store.runs("toy", "tiny")


@pytest.fixture
def order(run: RunFolder, tiny_grid: list[TrialConfig]) -> TrialOrder:
    return order_of(run, tiny_grid[0])


def order_of(run: RunFolder, config: TrialConfig, **changes) -> TrialOrder:
    folder = run.trial(changes.get("trial_id", trial_id(config)))
    write_config(folder.config, config)
    order = TrialOrder(
        trial_id=trial_id(config),
        folder=folder.path,
        fingerprint=fingerprint(config),
        execution=Execution(),
        corpus=run.path,
        encoder_states=run.path,
        encoder_key=StateKey(encoder_name="none", weights_sha256="0" * 64, padding="none", width=512),
        ray_storage=run.path / "ray",
        stop_file=run.stop,
    )
    return replace(order, **changes)


def test_nothing_begins_while_the_run_stops(run: RunFolder, order: TrialOrder):
    run.stop.touch()
    assert drive_trial(order) == "interrupted"
    assert not TrialFolder(order.folder).attempts.exists()


def test_nothing_begins_for_a_run_that_another_driver_has_taken_over(run: RunFolder, order: TrialOrder):
    with hold_lease(run) as mine:
        order = replace(order, claim=mine.claim)
        run.lease.unlink()
        LeaseFile(run.lease).write(replace(mine.holder, token="another", host="elsewhere"))
        assert drive_trial(order) == "interrupted"
    assert not TrialFolder(order.folder).attempts.exists()


def test_a_driver_that_waits_for_another_one_stops_when_it_is_asked_to(
    run: RunFolder, order: TrialOrder, tiny_grid: list[TrialConfig]
):
    alignment = order_of(run, tiny_grid[0], trial_id="alignment-a", role="alignment")
    ends: list[str] = []
    with (alignment.folder / "lock").open("a") as held_by_another:
        fcntl.flock(held_by_another, fcntl.LOCK_EX)
        waiting = threading.Thread(target=lambda: ends.append(drive_trial(replace(order, first=(alignment,)))))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        run.stop.touch()
        waiting.join(10)
    assert ends == ["interrupted"]
    assert not TrialFolder(alignment.folder).attempts.exists()


def fail(order: TrialOrder, failure: Failure, *, execution: Execution | None = None) -> None:
    attempt = open_attempt(TrialFolder(order.folder), devices=1, execution=execution)
    attempt.folder.log.touch()
    write_failure(attempt.folder, failure)


def test_a_trial_fails_with_what_it_waits_for_and_says_why(
    run: RunFolder, order: TrialOrder, tiny_grid: list[TrialConfig]
):
    alignment = order_of(run, tiny_grid[0], trial_id="alignment-a", role="alignment")
    fail(alignment, Failure(cause="code", error="KeyError", message="'x'"))
    assert drive_trial(replace(order, first=(alignment,))) == "failed"
    state = read_state(TrialFolder(order.folder), tiny_grid[0])
    assert (state.state, state.cause) == ("failed", "alignment")
    assert state.failure == "alignment: alignment-a: code: KeyError: 'x'"
    assert str(alignment.folder) in state.folder.latest_attempt().log.read_text()


def test_a_held_trial_does_not_begin_and_the_next_run_takes_it_up(
    run: RunFolder, order: TrialOrder, tiny_grid: list[TrialConfig]
):
    hold_siblings(order.ray_storage, tiny_grid[0].foundation.name, "tiny-base.hybrid.seed7 failed (input: line 3)")
    assert drive_trial(order) == "failed"
    state = read_state(TrialFolder(order.folder), tiny_grid[0])
    assert (state.cause, state.failure) == ("held", "held: tiny-base.hybrid.seed7 failed (input: line 3)")


def test_a_damaged_failure_is_none_so_that_the_trial_is_tried_again(order: TrialOrder, tiny_grid: list[TrialConfig]):
    fail(order, NO_MEMORY)
    path: Path = TrialFolder(order.folder).attempt(1).failure
    assert read_state(TrialFolder(order.folder), tiny_grid[0]).state == "failed"
    for damage in ("", path.read_text()[:-30], path.read_text().replace("CUDA", "CUDB"), json.dumps({"cause": "odd"})):
        path.write_text(damage)
        assert find_failure(TrialFolder(order.folder).attempt(1)) is None
        assert read_state(TrialFolder(order.folder), tiny_grid[0]).state == "interrupted"


def test_halved_batches_outlive_a_run_that_was_killed_and_not_a_failure_for_good(order: TrialOrder):
    declared = order.execution
    assert resumed_execution(order, 8) == declared
    fail(order, replace(NO_MEMORY, goes_on=True), execution=declared)
    open_attempt(TrialFolder(order.folder), devices=1, execution=replace(declared, micro_batches=2))
    assert resumed_execution(order, 8) == replace(declared, micro_batches=2)
    assert resumed_execution(order, 7) == declared, "another global batch that cannot be divided"
    fail(order, NO_MEMORY, execution=replace(declared, micro_batches=4, evaluation_batch_size=16))
    assert resumed_execution(order, 8) == declared
