"""Which foundation LLM, under which supervision mode, makes the best speechLLM for slot filling?

The full grid: every foundation of the scale x regular, reasoning and hybrid supervision x seeds, with the same budget
for every cell. The paper's claims, to be confirmed or refuted here:

C1  Under regular supervision the reasoning-distilled foundation is the worst of its family.
C2  Reasoning supervision helps base, instruct and reasoning-distilled foundations alike; base ends best.
C3  Reasoning-only supervision hurts small models.
C4  For hybrid foundations: hybrid supervision beats regular, and regular beats reasoning-only.
C5  A hybrid-trained model keeps both modes: the mode token alone decides whether it thinks.

    python experiments/grid.py plan      # what would run, and what is there already
    python experiments/grid.py           # run it; again: only what is missing or failed
"""

import sys

from model.configs import TrialConfig
from orchestrator.cli import main
from orchestrator.experiment import Experiment
from orchestrator.grid import product
from orchestrator.scales import Scale


def declare(scale: Scale, seeds: int) -> list[TrialConfig]:
    """Every foundation of the scale in every mode, for each seed."""
    return product(
        scale.trial, exclude=scale.excludes, foundation=scale.foundations, mode=scale.modes, seed=range(seeds)
    )


EXPERIMENT = Experiment(name="grid", hypothesis=__doc__, declare=declare)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
