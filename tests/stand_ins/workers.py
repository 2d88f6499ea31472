"""Worker processes in place of Ray Train's: the same function on a group of gloo processes on this machine."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_WORKER = """
import os, pickle, sys
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(world), DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
import torch
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
with open(f"{folder}/call", "rb") as stream:
    function, arguments = pickle.load(stream)
result = function(*arguments)
with open(f"{folder}/result-{rank}", "wb") as stream:
    pickle.dump(result, stream)
"""


def run_on_workers(
    function: Callable[..., Any], *arguments: Any, folder: Path, workers: int = 2, exit_code: int = 0
) -> list[Any]:
    """Call a function of the package `stand_ins` in every process of a new group; returns what each returned.

    `folder` is a new one. With another `exit_code` every process must end with it, and nothing is returned. Raises AssertionError with the end
    of the processes' errors when they end otherwise.
    """
    folder.mkdir()
    (folder / "call").write_bytes(pickle.dumps((function, arguments)))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
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
    errors = "\n".join((folder / f"errors-{rank}").read_text()[-2000:] for rank in range(workers))
    assert set(codes) == {exit_code}, errors
    if exit_code:
        return []
    return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(workers)]
