"""The comparison: every trial is a row, failed and missing cells are shown as such, and the same results give the same bytes."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from model.configs import TrialConfig
from orchestrator.experiment import Experiment
from orchestrator.layout import RunFolder, Store
from orchestrator.ledger import read_states
from orchestrator.report import compare, write_report
from orchestrator.results import Failure
from orchestrator.scales import SCALES

TINY = SCALES["tiny"]
GRID = Experiment(name="grid", hypothesis="Hybrid | wins.", declare=lambda scale, seeds: [])


@pytest.fixture
def run(store: Store) -> RunFolder:
    return store.runs("grid", "tiny")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def half_done(run: RunFolder, tiny_grid: list[TrialConfig], finish, begin) -> list[TrialConfig]:
    for trial, f1 in zip(tiny_grid[:5], (0.5, 0.61, 0.925, 0.4, 0.3), strict=True):
        finish(run, trial, f1)
    begin(run, tiny_grid[5], step=30, failure=Failure(cause="OutOfMemoryError", message="no | memory <left>"))
    begin(run, tiny_grid[6], step=30)
    return tiny_grid


def test_every_trial_is_a_row_in_grid_order(run: RunFolder, half_done: list[TrialConfig]) -> None:
    write_report(GRID, TINY, run, half_done)
    rows = rows_of(run.results_csv)
    assert [row["state"] for row in rows] == ["done"] * 5 + ["failed", "interrupted"] + ["pending"] * 5
    assert rows[2]["eval/partial_f1"] == "0.925" and rows[2]["eval/think/partial_f1"] == "0.925"
    assert rows[2]["validation/partial_f1"] == "0.925"
    assert rows[5]["eval/partial_f1"] == ""
    assert rows_of(run.costs_csv)[0]["device_seconds"] == "10.0"


def test_costs_stay_out_of_the_deterministic_results(store: Store, tiny_grid: list[TrialConfig], finish) -> None:
    written = []
    for seconds in (10.0, 99.0):
        run = store.runs("grid", f"tiny{seconds:.0f}")
        finish(run, tiny_grid[0], seconds=seconds)
        write_report(GRID, TINY, run, tiny_grid)
        written.append((run.results_csv.read_bytes(), run.costs_csv.read_bytes()))
    assert written[0][0] == written[1][0]
    assert written[0][1] != written[1][1]


def test_the_report_shows_what_failed_and_what_is_missing(run: RunFolder, half_done: list[TrialConfig]) -> None:
    paths = write_report(GRID, TINY, run, half_done)
    assert paths[0] == run.report_md and all(path.is_file() for path in paths)
    text = run.report_md.read_text()
    assert "5 of 12 trials done" in text
    assert "| base | 0.500 | 0.610 | **0.925** |" in text
    assert "| instruct | 0.400 | 0.300 | failed |" in text
    assert "| reasoning | interrupted | pending | pending |" in text
    assert "Best: tiny-base (base) under hybrid supervision, 0.925." in text
    assert r"OutOfMemoryError: no \| memory &lt;left>" in text
    assert "trials/tiny-instruct.hybrid.seed0/attempts/1/log" in text
    assert "this one is ours" in text


def test_seeds_become_mean_and_spread(run: RunFolder, tiny_grid: list[TrialConfig], finish, begin) -> None:
    seeds = [replace(tiny_grid[0], seed=seed) for seed in range(3)]
    finish(run, seeds[0], 0.50)
    finish(run, seeds[1], 0.60)
    begin(run, seeds[2], failure=Failure(cause="E", message=""))
    ((_, (cell,)),) = compare(read_states(run, seeds)).rows
    assert cell.text == "0.550 ± 0.071 (2 of 3 seeds, 1 failed)"


def test_several_foundations_of_a_kind_are_rows_of_their_own(run: RunFolder) -> None:
    trials = [
        SCALES["paper"].trial(foundation=f, mode="regular", seed=0) for f in reversed(SCALES["paper"].foundations)
    ]
    labels = [label for label, _ in compare(read_states(run, trials)).rows]
    assert labels[0] == "llama-3.1-8b (base)"
    assert labels[2:] == ["r1-distill-llama-8b (reasoning)", "qwen3-0.6b (hybrid)", "qwen3-4b (hybrid)"]


def test_cells_that_the_grid_leaves_out_are_dashes(run: RunFolder, tiny_grid: list[TrialConfig]) -> None:
    write_report(GRID, TINY, run, [tiny_grid[0], tiny_grid[5]])
    text = run.report_md.read_text()
    assert "| base | pending | - |" in text and "| instruct | - | pending |" in text
    assert "Best: no trial is done yet." in text
