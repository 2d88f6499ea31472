"""Attempts: a newer one ends the older one's worker, no note is lost, and a damaged record stops nothing and invents nothing."""

import fcntl
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator import attempts
from orchestrator.attempts import (
    EXIT_SUPERSEDED,
    Attempt,
    AttemptSuperseded,
    attempt_costs,
    open_attempt,
    read_record,
)
from orchestrator.layout import TrialFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trial(tmp_path: Path) -> TrialFolder:
    return TrialFolder(tmp_path / "trial")


def test_a_worker_in_the_middle_of_a_long_step_ends_within_seconds_of_a_newer_attempt(trial: TrialFolder) -> None:
    code = (
        "import sys, time; from pathlib import Path; from orchestrator.attempts import open_attempt; "
        "from orchestrator.layout import TrialFolder\n"
        "attempt = open_attempt(TrialFolder(Path(sys.argv[1])), devices=1)\n"
        "with attempt.watch():\n    print('working', flush=True)\n    while True: pass"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(trial.path)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None and worker.stdout.readline() == b"working\n"
        begun = time.monotonic()
        open_attempt(trial, devices=1)
        assert worker.wait(timeout=10) == EXIT_SUPERSEDED
        assert time.monotonic() - begun < 5
        assert worker.stderr is not None and b"attempt 2 took over" in worker.stderr.read()


def test_a_watch_ends_with_its_block(trial: TrialFolder) -> None:
    attempt = open_attempt(trial, devices=1)
    with attempt.watch():
        pass
    open_attempt(trial, devices=1)
    time.sleep(0.7)  # longer than between two looks: this process would be gone


@pytest.mark.parametrize("what", ["token", "folder"])
def test_an_attempt_whose_token_or_trial_is_gone_is_superseded(trial: TrialFolder, what: str) -> None:
    attempt = open_attempt(trial, devices=1)
    if what == "token":
        (attempt.folder.path / "token").write_bytes(b"\xff")
    else:
        trial.path.rename(trial.path.with_name("set-aside"))
    with pytest.raises(AttemptSuperseded):
        attempt.check_current()
    if what == "token":
        open_attempt(trial, devices=1).check_current()


def _note_often(attempt: Attempt, event: str) -> None:
    for step in range(10):
        attempt.note(event, step=step)  # type: ignore[arg-type]


def test_no_note_is_lost_when_several_processes_note_at_once(trial: TrialFolder) -> None:
    attempt = open_attempt(trial, devices=1)
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        events = ("started", "checkpointed", "ended")
        processes = [context.Process(target=_note_often, args=(attempt, event)) for event in events]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        record = read_record(attempt.folder)
        assert record.started and record.checkpointed and record.ended and record.step == 9


@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "deleted", "garbage"])
@pytest.mark.parametrize("which", ["old", "latest"])
def test_a_damaged_record_stops_nothing_and_its_cost_is_said_to_be_unknown(
    trial: TrialFolder, damage: str, which: str
) -> None:
    first = open_attempt(trial, devices=2)
    first.folder.log.write_text("working")
    first.note("started")
    path = first.folder.path / "attempt.json"
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        flipped = bytes([content[40] ^ 1])
        path.write_bytes(
            {
                "truncated": content[: len(content) // 2],
                "emptied": b"",
                "flipped": content[:40] + flipped + content[41:],
                "garbage": b"\xfe" * len(content),
            }[damage]
        )
    if which == "latest":
        first.note("checkpointed", step=3)
        first.note("ended")
        assert read_record(first.folder).step == 3
    second = open_attempt(trial, devices=2)
    second.note("started")
    second.note("ended")
    costs = attempt_costs(trial)
    assert costs["attempts"] == 2 and costs["attempts_of_unknown_cost"] == 1
    assert costs["lost_device_seconds"] == 0
    assert "attempts_of_unknown_cost" not in attempt_costs_of_whole(trial.path.with_name("whole"))


def attempt_costs_of_whole(path: Path) -> dict[str, float]:
    """The costs of a trial whose records are all there."""
    attempt = open_attempt(TrialFolder(path), devices=1)
    attempt.note("started")
    attempt.note("ended")
    return attempt_costs(TrialFolder(path))


def test_a_record_that_another_process_keeps_is_not_waited_for_for_ever(
    trial: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = open_attempt(trial, devices=1)
    monkeypatch.setattr(attempts, "_LOCKED_WITHIN_S", 0.1)
    with (attempt.folder.path / "lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match=r"lock: another process has kept it .* run again"):
            attempt.note("ended")
    attempt.note("ended")
    assert read_record(attempt.folder).ended
