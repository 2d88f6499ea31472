"""A grid may grow for ever: what is finished stays finished, what was changed says what changed, and nothing is ever deleted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.atomic import file_sha256
from model.configs import TrialConfig
from orchestrator.identity import config_to_json, json_fingerprint, read_document, write_config
from orchestrator.layout import RunFolder, Store
from orchestrator.ledger import move_stale_aside, read_states
from orchestrator.scales import SCALES


@pytest.fixture
def run(store: Store) -> RunFolder:
    return store.runs("toy", "tiny")


def content(run: RunFolder) -> dict[Path, str]:
    return {path: file_sha256(path) for path in run.path.rglob("*") if path.is_file()}


def test_a_seed_a_mode_and_a_foundation_more_rerun_nothing(
    run: RunFolder, tiny_grid: list[TrialConfig], finish
) -> None:
    begun_with = [trial for trial in tiny_grid if trial.mode == "regular"][:2]
    for trial in begun_with:
        finish(run, trial)
    before = content(run)
    grown = [*tiny_grid, *(replace(trial, seed=1) for trial in tiny_grid)]
    states = {state.id: state.state for state in read_states(run, grown)}
    assert [state.id for state in read_states(run, begun_with)] == [
        name for name, state in states.items() if state == "done"
    ]
    assert set(states.values()) == {"done", "pending"} and len(states) == 2 * len(tiny_grid)
    assert content(run) == before


def test_another_corpus_budget_or_rate_makes_a_trial_stale_and_is_named(run: RunFolder, finish) -> None:
    tiny = SCALES["tiny"]
    trial = tiny.trial(foundation=tiny.foundations[0], mode="regular", seed=0)
    finish(run, trial)
    changes = {
        "optim.lora_learning_rate": replace(trial, optim=replace(trial.optim, lora_learning_rate=1e-5)),
        "corpus.fingerprint": replace(trial, corpus=replace(trial.corpus, fingerprint="f" * 64)),
        "budget.steps": replace(trial, budget=replace(trial.budget, steps=451)),
    }
    for field, changed in changes.items():
        (state,) = read_states(run, [changed])
        assert state.state == "stale" and [line.split(":")[0] for line in state.changed] == [field]


def test_code_that_trains_otherwise_makes_every_trial_stale_and_says_so(
    run: RunFolder, tiny_grid: list[TrialConfig], finish
) -> None:
    """As if an older slotgrid had written the config: it is compared as JSON, not refused as another version's."""
    trial = tiny_grid[0]
    finish(run, trial)
    folder = run.trial(read_states(run, [trial])[0].id)
    older = config_to_json(trial) | {"training_version": 0}
    del older["alignment"]  # a field that it did not have
    write_older_config(folder.config, trial, older)
    (state,) = read_states(run, [trial])
    assert state.state == "stale"
    assert state.changed == ("alignment: absent -> null", "training_version: 0 -> 1")


def write_older_config(path: Path, trial: TrialConfig, config: dict) -> None:
    write_config(path, trial)
    path.write_text(json.dumps(read_document(path, "") | {"config": config, "fingerprint": json_fingerprint(config)}))


def test_what_is_set_aside_is_all_still_there(run: RunFolder, tiny_grid: list[TrialConfig], finish) -> None:
    finish(run, tiny_grid[0])
    (state,) = read_states(run, [tiny_grid[0]])
    before = sorted(content(run).values())
    aside = move_stale_aside(state.folder)
    assert aside.is_dir() and not state.folder.path.exists()
    assert set(before) <= set(content(run).values())
    assert read_states(run, [tiny_grid[0]])[0].state == "pending"
