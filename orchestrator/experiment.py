"""An experiment: a name, a hypothesis, and the function that declares its grid for a scale. Importing one starts nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from model.configs import TrialConfig
from orchestrator.scales import Scale

Declare = Callable[[Scale, int], list[TrialConfig]]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One question, as a file under experiments/ asks it; also the name of the MLflow experiment."""

    name: str
    hypothesis: str  # the experiment file's docstring
    declare: Declare  # (scale, number of seeds) -> the trials, in the order they are reported

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name):
            raise ValueError(f"experiment.name: {self.name!r} names a folder; use lower-case letters, digits, - and _")
        if not self.hypothesis.strip():
            raise ValueError(f"experiment {self.name}: hypothesis: write it in the docstring of the experiment's file")
