"""The comparison: every trial is a row, failed and missing cells are shown as such, and the same results give the same bytes."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from model.configs import TrialConfig
from orchestrator.experiment import Experiment
from orchestrator.failure_groups import group_failures, print_failures
from orchestrator.identity import trial_id
from orchestrator.layout import RunFolder, Store
from orchestrator.ledger import read_states
from orchestrator.report import compare, write_report
from orchestrator.results import Failure
from orchestrator.scales import SCALES

MEMORY = Failure(cause="out-of-memory", error="OutOfMemoryError", message="no | memory <left>")
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
    begin(run, tiny_grid[5], step=30, failure=MEMORY)
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
    (row,) = [line for line in text.splitlines() if line.startswith("| tiny-instruct.hybrid.seed0 | out-of-memory |")]
    assert r"| 30 | out-of-memory: no \| memory &lt;left> |" in row
    assert "run --retry out-of-memory" in row and "`trials/tiny-instruct.hybrid.seed0/attempts/1/log`" in row
    assert "this one is ours" in text


def test_seeds_become_mean_and_spread(run: RunFolder, tiny_grid: list[TrialConfig], finish, begin) -> None:
    seeds = [replace(tiny_grid[0], seed=seed) for seed in range(3)]
    finish(run, seeds[0], 0.50)
    finish(run, seeds[1], 0.60)
    begin(run, seeds[2], failure=MEMORY)
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


def broken(line: int, key: str) -> Failure:
    traceback = f'Traceback (most recent call last):\n  File "model/train.py", line {line}, in step\n    x[key]\nKeyError: {key!r}\n'
    return Failure(cause="code", error="KeyError", message=repr(key), traceback=traceback)


def test_failures_of_one_origin_are_told_once(run: RunFolder, tiny_grid: list[TrialConfig], begin) -> None:
    a, b, c, d, e, _, g, *_ = tiny_grid
    begin(run, a, failure=broken(7, "first"))
    begin(run, b, failure=broken(7, "second"))
    begin(run, c, failure=broken(8, "third"))
    for trial in (d, e):
        message = f"0 of 8 answers; compare the chat template with `explain {trial_id(trial)}`"
        begin(run, trial, failure=Failure(cause="canary", error="CanaryFailed", message=message))
    begin(run, g, failure=Failure(cause="canary", error="CanaryFailed", message="no answer ends"))
    groups = group_failures(read_states(run, tiny_grid))
    assert [group.trials for group in groups] == [tuple(map(trial_id, some)) for some in ((a, b), (c,), (d, e), (g,))]
    assert groups[0].where == "model/train.py:7 in step"

    write_report(GRID, TINY, run, tiny_grid)
    text = run.report_md.read_text()
    assert text.count("Traceback") == 2 and text.count("line 7, in step") == 1
    assert (
        "tiny-base.regular.seed0, tiny-base.reasoning.seed0: code: KeyError: 'first' (model/train.py:7 in step)" in text
    )

    console = Console(file=io.StringIO(), width=60)
    print_failures(read_states(run, tiny_grid), console)
    told = console.file.getvalue()
    assert told.count("failed:") == 4 and told.count("Traceback") == 2
    assert "  next: see the traceback, mend the code, then run again\n" in told
    assert f"  log: {run.trial(trial_id(a)).attempt(1).log}\n" in told
