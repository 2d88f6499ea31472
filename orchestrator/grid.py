"""Axes -> trials: itertools.product, a rule for the cells to leave out, and the selection of `--only`. Nothing more."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from model.configs import TrialConfig
from orchestrator.identity import changed_fields, config_to_json, trial_id

AXES: dict[str, Callable[[TrialConfig], str]] = {
    "kind": lambda trial: trial.foundation.kind,
    "foundation": lambda trial: trial.foundation.name,
    "mode": lambda trial: trial.mode,
    "seed": lambda trial: str(trial.seed),
}
"""What `--only` can select by, and each trial's value there."""


def product(
    build: Callable[..., TrialConfig],
    *,
    exclude: Callable[[TrialConfig], bool] = lambda trial: False,
    **axes: Iterable[Any],
) -> list[TrialConfig]:
    """`build(**cell)` for every cell of the axes, the last axis turning fastest, less the cells that `exclude` names.

    Raises ValueError when two cells that differ would share a trial id, see `check_trials`.
    """
    cells = itertools.product(*axes.values())
    trials = (build(**dict(zip(axes, cell, strict=True))) for cell in cells)
    return check_trials([trial for trial in trials if not exclude(trial)])


def check_trials(trials: Sequence[TrialConfig]) -> list[TrialConfig]:
    """The trials, repeated ones once. Raises ValueError for an empty grid and for one trial id with two configs."""
    if not trials:
        raise ValueError("grid: no trial is left; the exclude rule or an empty axis leaves out every cell")
    by_id: dict[str, TrialConfig] = {}
    for trial in trials:
        known = by_id.setdefault(trial_id(trial), trial)
        if known != trial:
            changed = "; ".join(changed_fields(config_to_json(known), trial))
            raise ValueError(
                f"grid: two different trials are called {trial_id(trial)} ({changed}); "
                "give the foundations different names, or ask the questions in two experiments"
            )
    return list(by_id.values())


def select_trials(trials: Sequence[TrialConfig], only: Sequence[str]) -> list[TrialConfig]:
    """The trials that every named axis admits: `mode=hybrid seed=0 seed=1` is the hybrid trials of two seeds.

    Raises ValueError for what is not AXIS=VALUE, an unknown axis, and a value that no trial of the grid has.
    """
    wanted: dict[str, set[str]] = {}
    for item in only:
        axis, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--only: {item!r} is not AXIS=VALUE, e.g. mode=hybrid")
        if axis not in AXES:
            raise ValueError(f"--only: there is no axis {axis!r}; the axes are {', '.join(AXES)}")
        present = list(dict.fromkeys(AXES[axis](trial) for trial in trials))
        if value not in present:
            raise ValueError(f"--only: no trial has {axis} {value!r}; this grid has {', '.join(present)}")
        wanted.setdefault(axis, set()).add(value)
    selected = [trial for trial in trials if all(AXES[axis](trial) in values for axis, values in wanted.items())]
    if not selected:
        raise ValueError(f"--only: no trial has {' and '.join(only)} together; `plan` lists the trials")
    return selected
