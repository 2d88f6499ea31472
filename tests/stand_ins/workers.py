"""Worker processes in place of Ray Train's: trials on a group of gloo processes on this machine."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

from model.configs import Execution, TrialConfig
from model.trial import TrialPaths

Job = tuple[TrialConfig, Execution, TrialPaths]

ROOT = Path(__file__).parents[2]
STOPPED = 7
_WORKER = """
import os, pickle, sys
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(world), DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
import torch
from model.trial import run_trial
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
with open(f"{folder}/jobs", "rb") as stream:
    jobs, stop_at = pickle.load(stream)
def on_checkpoint(step):
    if step == stop_at:
        os._exit(7)
for config, execution, paths in jobs:
    run_trial(config, execution, paths, on_checkpoint=on_checkpoint)
"""


def run_on_workers(jobs: list[Job], folder: Path, *, workers: int = 2, stop_at: int = -1) -> list[int]:
    """Run trials one after the other on one group of processes; returns their exit codes, `STOPPED` for one that ended at step `stop_at`.

    `folder` is a new one of the caller's. Raises AssertionError with the tail of their errors when a process failed.
    """
    folder.mkdir()
    (folder / "jobs").write_bytes(pickle.dumps((jobs, stop_at)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = []
    for rank in range(workers):
        with (folder / f"errors-{rank}").open("w") as stream:
            command = [sys.executable, "-c", _WORKER, str(rank), str(workers), str(folder)]
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=stream))
    try:
        codes = [process.wait(timeout=280) for process in processes]
    finally:
        for process in processes:
            process.kill()
    errors = [(folder / f"errors-{rank}").read_text()[-2000:] for rank in range(workers)]
    assert set(codes) <= {0, STOPPED}, "\n".join(errors)
    return codes
