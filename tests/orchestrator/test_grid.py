"""The grid algebra: order, excluded cells, name clashes, and what --only selects."""

from dataclasses import replace

import pytest

from model.configs import Budget, TrialConfig
from orchestrator.grid import check_trials, product, select_trials
from orchestrator.identity import trial_id
from orchestrator.scales import SCALES

TINY = SCALES["tiny"]


def test_the_last_axis_turns_fastest_and_the_rule_leaves_cells_out() -> None:
    trials = product(
        TINY.trial,
        exclude=lambda trial: trial.foundation.kind == "base" and trial.mode == "hybrid",
        foundation=TINY.foundations[:2],
        mode=TINY.modes,
        seed=range(2),
    )
    assert [trial_id(trial) for trial in trials][:5] == [
        "tiny-base.regular.seed0",
        "tiny-base.regular.seed1",
        "tiny-base.reasoning.seed0",
        "tiny-base.reasoning.seed1",
        "tiny-instruct.regular.seed0",
    ]
    assert len(trials) == 10


def test_adding_a_seed_changes_no_other_trial() -> None:
    axes = {"foundation": TINY.foundations, "mode": TINY.modes}
    assert set(product(TINY.trial, **axes, seed=range(1))) < set(product(TINY.trial, **axes, seed=range(2)))


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="no trial is left"):
        product(TINY.trial, exclude=lambda trial: True, foundation=TINY.foundations, mode=TINY.modes, seed=[0])


def test_one_name_for_two_trials_is_refused(tiny_grid: list[TrialConfig]) -> None:
    other = replace(tiny_grid[0], budget=Budget(steps=1, batch_size=16))
    with pytest.raises(
        ValueError, match=r"two different trials are called tiny-base\.regular\.seed0 \(budget\.steps: \d+ -> 1\)"
    ):
        check_trials([*tiny_grid, other])
    assert check_trials([*tiny_grid, tiny_grid[0]]) == tiny_grid


def test_only_joins_axes_and_offers_values_of_one_axis(tiny_grid: list[TrialConfig]) -> None:
    selected = select_trials(tiny_grid, ["mode=hybrid", "kind=base", "kind=reasoning"])
    assert [trial_id(trial) for trial in selected] == ["tiny-base.hybrid.seed0", "tiny-reasoning.hybrid.seed0"]
    assert select_trials(tiny_grid, []) == tiny_grid


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (["hybrid"], "'hybrid' is not AXIS=VALUE"),
        (["size=big"], "no axis 'size'; the axes are kind, foundation, mode, seed"),
        (["mode=quick"], "no trial has mode 'quick'; this grid has regular, reasoning, hybrid"),
        (["kind=base", "foundation=tiny-hybrid"], "no trial has kind=base and foundation=tiny-hybrid together"),
    ],
)
def test_a_selection_of_nothing_says_what_there_is(tiny_grid: list[TrialConfig], only: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_trials(tiny_grid, only)


def test_only_can_only_name_values_of_the_grid(tiny_grid: list[TrialConfig]) -> None:
    with pytest.raises(ValueError, match="no trial has seed '7'; this grid has 0"):
        select_trials(tiny_grid, ["seed=7"])
