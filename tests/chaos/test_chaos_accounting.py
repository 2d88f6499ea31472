"""The chaos benchmark's own checks, on made-up files: each promise that it watches is seen broken when it is broken."""

import os
import random
from pathlib import Path

import pytest

from benchmarks.chaos import recoveries
from benchmarks.chaos_accounting import Look, TrialWatch, compare_points, differences, file_points, look, training_rows
from benchmarks.chaos_faults import (
    DAMAGES,
    DECK,
    KILLS,
    Fault,
    damage_a_file,
    jump_clock,
    moment_has_come,
    schedule,
)
from data.atomic import write_json, write_jsonl, write_sealed_json
from data.metric_lines import MetricRow, metric_line
from orchestrator.attempts import open_attempt
from orchestrator.layout import RunFolder, TrialFolder


@pytest.fixture
def trial(tmp_path: Path) -> TrialFolder:
    return RunFolder(tmp_path / "grid-smoke").trial("tiny-hybrid.hybrid.seed0")


def train(folder: TrialFolder, step: int, *, commits: tuple[int, ...] = (), saving: bool = False) -> None:
    """Leave what a trial at this step leaves."""
    for committed in commits:
        write_json(folder.checkpoints / f"step-{committed:06d}" / "commit.json", {"step": committed})
    if saving:
        (folder.checkpoints / ".writing-1").mkdir(parents=True)
    write_json(folder.status, {"phase": "training", "time": 1e12, "step": step, "steps": 12})


def begin(folder: TrialFolder) -> None:
    open_attempt(folder, devices=1).note("started")


def test_a_look_tells_where_a_trial_stands(trial: TrialFolder) -> None:
    assert look(trial) == Look()
    begin(trial)
    assert look(trial) == Look(attempt=1)
    train(trial, 7, commits=(4,), saving=True)
    commit = (trial.checkpoints / "step-000004" / "commit.json").stat().st_ino
    assert look(trial) == training(1, 7, 4, saving=True, commit=commit)
    write_jsonl(trial.path / "predictions-direct.part-0.jsonl", [{"predictions": [1, 2]}, {"predictions": [3]}])
    assert look(trial).answers == 3
    write_jsonl(trial.path / "predictions-direct.jsonl", [{}, {}, {}, {}])
    write_json(trial.result, {})
    assert (look(trial).answers, look(trial).done) == (4, True)


def test_what_an_earlier_attempt_said_is_not_taken_for_the_new_ones(trial: TrialFolder) -> None:
    begin(trial)
    write_json(trial.status, {"phase": "training", "time": 0.0, "step": 7, "steps": 12})
    assert look(trial).phase == ""


def test_what_a_killed_writer_left_is_not_taken_for_saving(trial: TrialFolder) -> None:
    train(trial, 7, commits=(4,), saving=True)
    os.utime(trial.checkpoints / ".writing-1", (0, 0))
    begin(trial)
    assert not look(trial).saving


def test_a_damaged_status_tells_nothing(trial: TrialFolder) -> None:
    begin(trial)
    trial.status.write_text('{"phase": "trai')
    assert look(trial) == Look(attempt=1)


def watch(*looks: Look) -> TrialWatch:
    watched = TrialWatch(interval=4, steps=12)
    for seen in looks:
        watched.see(seen)
    return watched


def training(attempt: int, step: int, committed: int, saving: bool = False, commit: int = 0) -> Look:
    return Look(attempt=attempt, phase="training", step=step, committed=committed, saving=saving, commit=commit)


def test_steps_done_again_are_counted() -> None:
    [loss] = watch(training(1, 1, 0), training(1, 7, 4), Look(attempt=2, committed=4), training(2, 5, 4)).losses
    assert (loss.reached, loss.resumed, loss.redone) == (7, 4, 3)
    assert loss.breach(4) == ""


def test_a_checkpoint_that_was_being_saved_counts_as_reached() -> None:
    [loss] = watch(training(1, 7, 4), training(1, 7, 4, saving=True), training(2, 5, 4)).losses
    assert loss.redone == 4
    assert loss.breach(4) == ""


def test_a_start_from_nothing_breaks_the_promise() -> None:
    [loss] = watch(training(1, 7, 4), training(1, 9, 8), training(2, 1, 8)).losses
    assert loss.redone == 9
    assert "step 8 was committed" in loss.breach(4)


def test_a_damaged_newest_checkpoint_may_cost_one_interval_more() -> None:
    watched = watch(training(1, 1, 0), training(1, 11, 8))
    watched.excused = 4
    loss = watched.see(training(2, 5, 4))
    assert loss is not None
    assert (loss.redone, loss.breach(4)) == (7, "")
    assert watched.see(training(3, 1, 8)), "the excuse is for one resume"
    assert watched.losses[-1].breach(4)


def test_a_resume_is_also_seen_by_its_first_checkpoint() -> None:
    """The status is written once a second: a short attempt may be seen late."""
    [loss] = watch(training(1, 7, 4), Look(attempt=2, committed=4), Look(attempt=2, committed=8)).losses
    assert (loss.resumed, loss.redone) == (4, 3)


@pytest.mark.parametrize("commits", [1, 0], ids=["after its first checkpoint", "before it"])
def test_a_checkpoint_that_was_passed_over_is_not_missed_again(commits: int) -> None:
    """A damaged metrics file: training begins anew, and the checkpoints that it cannot use lie there until its own first one replaces them."""
    watched = watch(training(1, 7, 4), training(1, 9, 8, commit=1))
    watched.excused = 12
    watched.see(Look(attempt=2, committed=8, commit=1))
    watched.see(training(2, 1, 8, commit=1))
    watched.see(training(2, 3, 8, commit=1, saving=True))
    if commits:
        watched.see(Look(attempt=3, committed=4, commit=2))
        watched.see(training(3, 5, 4, commit=2))
    else:
        watched.see(Look(attempt=3, committed=8, commit=1))
        watched.see(training(3, 1, 8, commit=1))
    first, second = watched.losses
    assert first.breach(4) == "" and first.redone == 9
    assert second.breach(4) == "" and second.redone == (0 if commits else 4)

    watched.see(training(3, 9, 8, commit=3))
    watched.see(training(4, 5, 8, commit=3))
    assert "step 8 was committed" in watched.losses[-1].breach(4), "the same step again, by a training that counts"


def test_an_attempt_killed_before_it_trained_loses_nothing() -> None:
    watched = watch(training(1, 7, 4), Look(attempt=2, committed=4), Look(attempt=3, committed=4), training(3, 5, 4))
    assert [loss.redone for loss in watched.losses] == [3]


def test_answers_that_vanish_are_counted() -> None:
    watched = watch(
        Look(attempt=1, phase="evaluating", committed=12, answers=6),
        Look(attempt=2, phase="evaluating", committed=12, answers=0),
    )
    assert watched.answers_lost == 6


ROWS = [
    MetricRow(step=1, time=10, metrics={"train/loss": 2.0, "perf/tokens_per_second": 5.0}),
    MetricRow(step=10, time=20, metrics={"train/loss": 1.0}),
]
MIRRORED = [("train/loss", 1, 2.0, 10), ("perf/tokens_per_second", 1, 5.0, 10), ("train/loss", 10, 1.0, 20)]


def write_rows(folder: TrialFolder, rows: list[MetricRow]) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.metrics.write_text("".join(map(metric_line, rows)))


@pytest.fixture
def points(trial: TrialFolder) -> dict:
    write_rows(trial, ROWS)
    return file_points(trial)


def test_an_equal_mirror_has_no_breaches(points: dict) -> None:
    check = compare_points("t", points, [*MIRRORED, ("eval/f1", 12, 0.5, 99)], results={"eval/f1": 0.5})
    assert (check.breaches, check.points) == ([], 3)


@pytest.mark.parametrize(
    ("mirrored", "kind"),
    [
        (MIRRORED[1:], "lost"),
        ([*MIRRORED, ("train/loss", 10, 1.0, 21)], "doubled"),
        ([*MIRRORED[:2], ("train/loss", 10, 1.5, 20)], "changed"),
        ([*MIRRORED[:2], ("train/loss", 10, 1.0, 25)], "changed"),
        ([*MIRRORED, ("train/loss", 5, 1.0, 20)], "strange"),
    ],
)
def test_a_mirror_that_is_not_the_files_is_noticed(points: dict, mirrored: list, kind: str) -> None:
    check = compare_points("t", points, mirrored, results={})
    assert len(getattr(check, kind)) == 1
    assert len(check.breaches) == 1


def test_a_score_that_never_arrived_or_arrived_twice_is_noticed(points: dict) -> None:
    assert compare_points("t", points, MIRRORED, results={"eval/f1": 0.5}).lost == ["t eval/f1"]
    twice = [*MIRRORED, ("eval/f1", 12, 0.5, 30), ("eval/f1", 12, 0.5, 31)]
    assert compare_points("t", points, twice, results={"eval/f1": 0.5}).doubled == ["t eval/f1 step 12"]


def leave_results(run: RunFolder, *, loss: float = 2.0, answer: str = "yes", f1: str = "0.5") -> RunFolder:
    folder = run.trial("tiny-hybrid.hybrid.seed0")
    write_rows(folder, [MetricRow(step=1, time=10, metrics={"train/loss": loss, "perf/mfu": random.random()})])
    write_jsonl(folder.path / "predictions-direct.jsonl", [{"answer": answer}])
    run.results_csv.write_text(f"trial,f1\n{folder.path.name},{f1}\n")
    return run


def test_results_are_compared_to_the_byte_and_the_machines_speed_is_not(tmp_path: Path) -> None:
    reference = leave_results(RunFolder(tmp_path / "reference"))
    assert training_rows(reference.trial("tiny-hybrid.hybrid.seed0")) == [{"step": 1, "metrics": {"train/loss": 2.0}}]
    assert differences(reference, leave_results(RunFolder(tmp_path / "same"))) == []
    for number, changed in enumerate(({"loss": 2.1}, {"answer": "no"}, {"f1": "0.6"})):
        other = leave_results(RunFolder(tmp_path / f"other-{number}"), **changed)  # type: ignore[arg-type]
        assert len(differences(reference, other)) == 1, changed
    assert len(differences(reference, RunFolder(tmp_path / "empty"))) == 3


def test_a_schedule_is_its_seeds_and_strikes_everything() -> None:
    def faults(seed: int) -> list[Fault]:
        return [fault for fault, _ in zip(schedule(seed), range(2 * len(DECK)), strict=False)]

    assert faults(3) == faults(3) != faults(4)
    assert {fault.victim for fault in faults(3)} == {victim for victim, _, _ in DECK} > set(KILLS)


def test_faults_wait_for_their_moment() -> None:
    done, saving = Look(attempt=1, done=True), training(1, 7, 4, saving=True)
    assert moment_has_come("anytime", {})
    assert moment_has_come("saving", {"a": done, "b": saving})
    assert not moment_has_come("saving", {"a": done, "b": training(1, 7, 4)})
    assert moment_has_come("closing", {"a": done})
    assert not moment_has_come("closing", {"a": done, "b": saving})


def test_a_clock_jump_moves_every_stamp(trial: TrialFolder) -> None:
    run = RunFolder(trial.path.parents[1])
    write_sealed_json(run.lease, {"since": 1000.0, "heartbeat": 2000.0, "token": "t"})
    train(trial, 3)
    before = trial.status.stat().st_mtime
    assert "clock jumped" in jump_clock(run, random.Random(1))
    assert abs(trial.status.stat().st_mtime - before) >= 3600
    assert '"token": "t"' in run.lease.read_text() and "2000.0" not in run.lease.read_text()


def test_damage_changes_one_file_and_says_what_it_may_cost(trial: TrialFolder) -> None:
    run = RunFolder(trial.path.parents[1])
    rng = random.Random(0)
    ways, costs = set(), set()
    for _ in range(40):
        train(trial, 9, commits=(4, 8))
        write_rows(trial, ROWS)
        before = {path: path.read_bytes() for path in trial.path.rglob("*") if path.is_file()}
        damaged = damage_a_file(run, {trial.path.name: training(1, 9, 8)}, rng)
        assert damaged is not None
        after = {path: path.read_bytes() for path in trial.path.rglob("*") if path.is_file()}
        [changed] = [path for path in before if before[path] != after.get(path)]
        assert damaged.newest_checkpoint == ("step-000008" in changed.parts)
        assert damaged.metrics == (changed == trial.metrics)
        ways |= {way for way in DAMAGES if damaged.what.endswith(way)}
        costs.add((damaged.newest_checkpoint, damaged.metrics))
    assert ways == set(DAMAGES)
    assert costs == {(True, False), (False, True), (False, False)}
    assert damage_a_file(RunFolder(run.path / "empty"), {}, rng) is None


def test_kills_without_work_to_go_on_with_are_no_recoveries() -> None:
    def row(victim: str, recovered_s: float | None, *trials: str) -> dict:
        return {"victim": victim, "recovered_s": recovered_s, "trials": dict(enumerate(trials))}

    counted = row("head", 30.0, "done", "training 1/12")
    closing, overtaken, elsewhere = (
        row("head", 3.0, "done", "done"),
        row("worker", None, "starting"),
        row("mlflow", 13.0, "starting"),
    )
    assert recoveries([counted, closing, overtaken, elsewhere]) == [30.0]
