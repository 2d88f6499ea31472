"""What a person sees while a grid runs, read from the files that trials leave."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from data.atomic import write_json
from orchestrator.attempts import open_attempt
from orchestrator.layout import RunFolder, TrialFolder
from orchestrator.progress import GridProgress, TrialProgress, read_progress, seconds_left, stage_progress
from orchestrator.results import Failure, write_failure


def phase(folder: TrialFolder, since: float = 0.0) -> str:
    return read_progress(folder, since=since, now=time.time()).phase


def test_a_trial_is_followed_through_its_phases(tmp_path: Path):
    folder = TrialFolder(tmp_path / "a.regular.seed0")
    assert phase(folder) == ""
    attempt = open_attempt(folder, devices=1)
    assert phase(folder) == "waiting"
    write_json(folder.status, {"phase": "training", "step": 90, "steps": 100, "time": time.time() - 60})
    attempt.note("started")
    assert phase(folder) == "starting"  # the status is an earlier attempt's
    write_json(
        folder.status,
        {"phase": "training", "step": 30, "steps": 100, "loss": 1.25, "examples_per_second": 16.0, "seconds_left": 70.0}
        | {"time": time.time()},
    )
    line = read_progress(folder, since=0, now=time.time()).describe()
    assert line == "training 30/100  loss 1.250  16.0 examples/s  0:01:10 left"
    assert phase(folder, since=time.time() + 1) == ""  # left by a killed run: this run has not begun it yet
    write_failure(attempt.folder, Failure(cause="input", error="ValueError", message="line 3: broken"))
    assert "input: line 3: broken" in read_progress(folder, since=0, now=time.time()).describe()
    folder.result.write_text("{}")
    assert phase(folder) == "done"


def test_the_estimate_uses_ended_trials_then_the_pace_of_training_ones():
    pending = [TrialProgress(trial_id=f"p{n}", phase="") for n in range(4)]
    assert seconds_left(pending, concurrent=2) is None
    training = TrialProgress(trial_id="t", phase="training", elapsed_s=40, seconds_left=60)
    assert seconds_left([training, *pending], concurrent=2) == pytest.approx((60 + 4 * 100) / 2)
    done = TrialProgress(trial_id="d", phase="done", elapsed_s=200)
    assert seconds_left([done, training, *pending], concurrent=2) == pytest.approx((160 + 4 * 200) / 2)


def test_without_a_terminal_every_change_is_one_plain_line(tmp_path: Path):
    run = RunFolder(tmp_path)
    output = io.StringIO()
    finished, fails = run.trial("finished"), run.trial("fails")
    open_attempt(finished, devices=1)
    finished.result.write_text("{}")
    with GridProgress(run, ["finished", "fails"], Console(file=output, width=40), concurrent=1):
        attempt = open_attempt(fails, devices=1)
        attempt.note("started")
        write_failure(
            attempt.folder,
            Failure(cause="input", error="ValueError", message="a long reason that is not wrapped at all"),
        )
    lines = output.getvalue().splitlines()
    assert [line.split()[1:3] for line in lines[:1]] == [["fails", "failed"]]
    assert "input: a long reason that is not wrapped at all" in lines[0]
    assert lines[1].endswith("1 done, 1 failed, 0 running of 2 trials")
    assert not any("finished" in line for line in lines)


def test_a_terminal_shows_running_trials_and_the_sum(tmp_path: Path):
    run = RunFolder(tmp_path)
    output = io.StringIO()
    console = Console(file=output, width=120, force_terminal=True)
    attempt = open_attempt(run.trial("one"), devices=1)
    attempt.note("started")
    with GridProgress(run, ["one", "two"], console, concurrent=1) as progress:
        attempt = open_attempt(run.trial("one"), devices=1)
        time.sleep(1.5)
        assert progress.summary(progress._read()) == "0 done, 1 running of 2 trials"
    assert "waiting" in output.getvalue()


def test_a_preparation_stage_says_nothing_when_it_is_quick():
    output = io.StringIO()
    with stage_progress(Console(file=output), "voicing 10 utterances") as on_progress:
        for done in range(11):
            on_progress(done, 10)
    assert output.getvalue() == ""
