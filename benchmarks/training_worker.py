"""One job file -> one result file, in a process of its own: `python -m benchmarks.training_worker JOB RESULT`.

A job is {"job": "device"} (what machine is this, how fast are its matrix products?) or {"job": "train", ...} (a `TrainingJob`).
A model that does not fit the GPU is a result, {"failed": "out of memory"}; everything else that goes wrong ends the process.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.matmul_peak import sweep_matmuls
from benchmarks.training_workload import TrainingJob
from data.atomic import write_json


def describe_device() -> dict[str, Any]:
    """The first GPU, or the CPU: its name, its memory, and the rate of its matrix products in the precision that its trials train in."""
    import psutil

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        free, _ = torch.cuda.mem_get_info(0)
        described = {"device": "cuda", "name": properties.name, "precision": "bf16", "cuda": torch.version.cuda}
        rates = sweep_matmuls(torch.device("cuda"), torch.bfloat16)
    else:
        free = psutil.virtual_memory().available
        described = {"device": "cpu", "name": "CPU", "precision": "fp32", "cuda": None}
        rates = sweep_matmuls(torch.device("cpu"), torch.float32, runs=3, run_seconds=0.05)
    return {
        **described,
        "free_memory_bytes": free,
        "threads": torch.get_num_threads(),
        "matmuls": [asdict(rate) for rate in rates],
        "measured_peak_tflops": max(rate.tflops for rate in rates),
    }


def main(job_path: Path, result_path: Path) -> None:
    """Read the job, do it, write the result."""
    job = json.loads(job_path.read_text(encoding="utf-8"))
    if job.pop("job") == "device":
        result = describe_device()
    else:
        from benchmarks.training_loops import run_job  # only where it is used: it imports for seconds

        try:
            result = asdict(run_job(TrainingJob(**job)))
        except torch.OutOfMemoryError:
            result = {"failed": "out of memory"}
    write_json(result_path, result)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
