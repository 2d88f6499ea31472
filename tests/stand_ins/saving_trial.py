"""A trial that saves checkpoint after checkpoint without any model, and a driver that does so in a bucket until it is killed."""

import sys
import time

from data.metric_lines import MetricRow, metric_line
from model.checkpoint_folder import commit_checkpoint, new_checkpoint
from orchestrator.bucket import drive
from orchestrator.layout import TrialFolder, open_store


def save_step(folder: TrialFolder, step: int, seed: str = "", size: int = 1) -> None:
    """What a trainer does at a checkpoint: curves first, then the files, then the commit; older ones go."""
    rows = [MetricRow(step=n, time=n, metrics={"train/loss": 1.0}) for n in range(1, step + 1)]
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.metrics.write_text("".join(map(metric_line, rows)))
    writing = new_checkpoint(folder.checkpoints)
    for name in ("trainable.safetensors", "optimizer.safetensors", "random-0.safetensors"):
        of_seed = "" if name.startswith("random") else seed
        (writing / name).write_bytes(f"{name} {step} {of_seed} ".encode() * size)
    commit_checkpoint(writing, step=step, world=1, samples=step * 8)


def drive_until_killed(uri: str, trial: str) -> None:
    """Save a checkpoint every few tenths of a second."""
    drive.SETTLE_S, drive.PASS_EVERY_S = 0.1, 0.1
    store = open_store(uri, buckets=True)
    run = store.runs("grid", "smoke")
    with drive.drive_bucket(store, run, [], print):
        for step in range(10, 10_000, 10):
            save_step(run.trial(trial), step, size=20_000)
            time.sleep(0.2)


if __name__ == "__main__":
    drive_until_killed(*sys.argv[1:])
