"""Trials that share a GPU, on a real local Ray with one logical GPU: two at once, the third when one of them has ended."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARE = """
import json, sys, time
import ray
from model.configs import Execution
from orchestrator.ray_session import describe_cluster
from orchestrator.schedule import concurrent_trials
from orchestrator.trial_driver import gpus_per_worker

execution = Execution(use_gpu=True, trials_per_gpu=2)
ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1])
try:
    at_once = concurrent_trials(describe_cluster("local", local=True), execution)

    @ray.remote(num_cpus=execution.cpus_per_worker, num_gpus=gpus_per_worker(execution))
    class Worker:
        def place(self):
            return ray.get_gpu_ids()

    workers = [Worker.remote() for _ in range(3)]
    places = {worker: worker.place.remote() for worker in workers}
    first, waiting = ray.wait(list(places.values()), num_returns=2, timeout=120)
    third, _ = ray.wait(waiting, timeout=5)
    gpus = ray.get(first)
    ended = next(worker for worker, place in places.items() if place in first)
    ray.kill(ended)
    then, _ = ray.wait(waiting, timeout=120)
    print(json.dumps({"at_once": at_once, "gpus": gpus, "third": len(third), "then": ray.get(then)}))
finally:
    ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_trials_run_on_one_gpu_at_once_and_a_third_waits(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What Ray is asked for. The trials' own process group needs NCCL, which a machine without a GPU has not."""
    session = tmp_path_factory.mktemp("ray")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", SHARE, str(session)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"at_once": 2, "gpus": [[0], [0]], "third": 0, "then": [[0]]}
