"""Trials that write down which examples each step trained on, worker by worker."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from model.trial_data import TrialData
from stand_ins.trials import Job, run_jobs


@contextmanager
def noting_samples(file: Path) -> Iterator[None]:
    """Append a line to `file`.<rank> for every step's share of this worker: the step, and the examples in their order."""
    micro_batches = TrialData.micro_batches

    def noted(self: TrialData, step: int, **share: Any) -> Any:
        batches = micro_batches(self, step, **share)
        examples = [example for batch in batches for example in batch.example_ids]
        with file.with_suffix(f".{torch.distributed.get_rank()}").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps([step, examples]) + "\n")
        return batches

    TrialData.micro_batches = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        TrialData.micro_batches = micro_batches  # type: ignore[method-assign]


def run_noting_samples(jobs: list[Job]) -> None:
    """Run trials one after the other, each with its notes in its output folder."""
    for job in jobs:
        with noting_samples(job.paths.output / "samples"):
            run_jobs([job])


def samples_by_step(folder: Path) -> list[list[str]]:
    """The examples of every step that was trained, of all workers together, in the order of the steps; sorted within one step."""
    steps: dict[int, list[str]] = {}
    for file in sorted(folder.glob("samples.*")):
        for line in file.read_text(encoding="utf-8").splitlines():
            step, examples = json.loads(line)
            steps.setdefault(step, []).extend(examples)
    return [sorted(steps[step]) for step in sorted(steps)]
