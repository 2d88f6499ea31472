"""The states that files alone decide, and what is damaged among them."""

import json
from dataclasses import replace

import pytest

from data.atomic import read_sealed_json, write_sealed_json
from data.metric_lines import MetricRow, metric_line
from model.configs import TrialConfig
from orchestrator.identity import trial_id, write_config
from orchestrator.layout import RunFolder, Store, TrialFolder
from orchestrator.ledger import hash_files, move_stale_aside, read_state, read_states, set_damaged_aside
from orchestrator.results import Failure, read_result, write_result


@pytest.fixture
def run(store: Store) -> RunFolder:
    return store.runs("grid", "tiny")


def test_every_state_is_told_from_files(run: RunFolder, tiny_grid: list[TrialConfig], finish, begin) -> None:
    pending, killed, failed, done, drifted, *_ = tiny_grid
    begin(run, killed, step=40)
    begin(
        run, failed, step=7, failure=Failure(cause="out-of-memory", error="OutOfMemoryError", message="no memory left")
    )
    finish(run, done)
    begin(run, replace(drifted, seed=0, optim=replace(drifted.optim, lora_learning_rate=0.5)))
    states = read_states(run, [pending, killed, failed, done, drifted])
    assert [state.state for state in states] == ["pending", "interrupted", "failed", "done", "stale"]
    assert states[1].last_step == 40
    assert states[2].failure == "out-of-memory: no memory left"
    assert states[3].result is not None and states[3].result.scores["eval/partial_f1"] == 0.5
    assert states[4].changed == (f"optim.lora_learning_rate: 0.5 -> {drifted.optim.lora_learning_rate}",)


def test_only_the_latest_attempt_counts(run: RunFolder, tiny_grid: list[TrialConfig], begin) -> None:
    """A retry after a failure that is killed is interrupted, not failed; attempt 10 is later than attempt 9."""
    for _ in range(9):
        begin(run, tiny_grid[0], failure=Failure(cause="io", error="E", message=""))
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


@pytest.mark.parametrize("content", ['{"trial_id": "x"', "[]", '{"trial_id": "x"}', "", "\0\0\xff"])
def test_a_damaged_result_is_no_result(run: RunFolder, tiny_grid: list[TrialConfig], finish, content: str) -> None:
    finish(run, tiny_grid[0])
    folder = run.trial(trial_id(tiny_grid[0]))
    folder.result.write_text(content)
    state = read_states(run, tiny_grid)[0]
    assert (state.state, state.result) == ("interrupted", None)
    assert state.note == "result.json is damaged: made again from the last checkpoint"
    assert [path.name for path in set_damaged_aside(state)] == ["result.json.damaged-1"]
    assert not folder.result.exists()


def test_a_result_of_another_version_names_the_field_and_the_remedy(
    run: RunFolder, tiny_grid: list[TrialConfig], finish
) -> None:
    finish(run, tiny_grid[0])
    folder = run.trial(trial_id(tiny_grid[0]))
    write_sealed_json(folder.result, read_sealed_json(folder.result) | {"colour": "blue"})
    with pytest.raises(ValueError, match=r"result\.json\.colour: unknown field.*delete this file and run again"):
        read_states(run, tiny_grid)


@pytest.fixture
def done(run: RunFolder, tiny_grid: list[TrialConfig], finish) -> tuple[TrialFolder, TrialConfig]:
    """A done trial with predictions and metrics that its result rests on."""
    finish(run, tiny_grid[0])
    folder = run.trial(trial_id(tiny_grid[0]))
    (folder.path / "predictions-direct.jsonl").write_text('{"output_text": "a"}\n')
    lines = [metric_line(MetricRow(step=step, time=0, metrics={"train/loss": 1.0})) for step in (1, 10, 20)]
    folder.metrics.write_text("".join(lines))
    write_result(folder, replace(read_result(folder), files=hash_files(folder)))
    return folder, tiny_grid[0]


@pytest.mark.parametrize("change", ["flip", "delete"])
def test_damaged_predictions_are_never_trusted(done: tuple[TrialFolder, TrialConfig], change: str) -> None:
    folder, trial = done
    assert read_state(folder, trial).state == "done" and read_state(folder, trial).note == ""
    predictions = folder.path / "predictions-direct.jsonl"
    if change == "flip":
        predictions.write_text('{"output_text": "c"}\n')
    else:
        predictions.unlink()
    state = read_state(folder, trial)
    what = {"flip": "is damaged", "delete": "is missing"}[change]
    assert state.state == "interrupted"
    assert state.note == f"predictions-direct.jsonl {what}: answered again from the last checkpoint"
    aside = [path.name for path in set_damaged_aside(state)]
    assert aside == ["predictions-direct.jsonl.damaged-1", "result.json.damaged-1"][change == "delete" :]
    assert read_state(folder, trial).state != "done"


def test_damaged_metrics_of_a_done_trial_are_told_with_their_line(done: tuple[TrialFolder, TrialConfig]) -> None:
    folder, trial = done
    folder.metrics.write_bytes(folder.metrics.read_bytes().replace(b'"step": 10', b'"step": 11'))
    state = read_state(folder, trial)
    assert state.state == "done" and state.result is not None
    assert state.note == (
        "metrics.jsonl is damaged (line 2): the scores do not rest on it; to train its steps again delete result.json and run"
    )


@pytest.mark.parametrize("what", ["attempts", "checkpoints", "result"])
def test_work_without_its_config_is_not_taken_for_anything(
    run: RunFolder, tiny_grid: list[TrialConfig], finish, begin, what: str
) -> None:
    folder = run.trial(trial_id(tiny_grid[0]))
    (finish if what == "result" else begin)(run, tiny_grid[0])
    if what == "checkpoints":
        folder.attempts.rename(folder.checkpoints)
    folder.config.unlink()
    with pytest.raises(ValueError, match=r"config\.json: missing.*put it back, or move the trial's folder away"):
        read_states(run, tiny_grid)


def test_stale_folders_are_set_aside_one_after_the_other(run: RunFolder, tiny_grid: list[TrialConfig], finish) -> None:
    moved = []
    for _ in range(2):
        finish(run, tiny_grid[0])
        moved.append(move_stale_aside(run.trial(trial_id(tiny_grid[0])), ["seed: 1 -> 0"]).name)
    assert moved == ["tiny-base.regular.seed0.stale-1", "tiny-base.regular.seed0.stale-2"]
    assert (run.trials / moved[0] / "result.json").is_file()
    assert json.loads((run.trials / moved[0] / "stale.json").read_text())["changed"] == ["seed: 1 -> 0"]
    assert read_states(run, tiny_grid)[0].state == "pending"
