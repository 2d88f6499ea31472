"""Turns the trials that are not done into a Ray Tune run: one driver per trial, as many at once as the devices allow and one more.

A new Tuner every time, never `Tuner.restore`: what is done is read from the trial folders, so a grid may grow, shrink or change order between runs.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from model.configs import Execution
from orchestrator.ray_session import Cluster
from orchestrator.reclaim import reclaiming
from orchestrator.trial_driver import TrialOrder, drive_trial

WAITING_TRIALS = 1
"""Trials started beyond the free devices: their driver and controller start while the devices are still taken."""


def concurrent_trials(cluster: Cluster, execution: Execution) -> int:
    """How many trials fit the cluster at once. Raises ValueError when not even one does: Ray would wait for ever."""
    workers, sharing = execution.workers, execution.trials_per_gpu
    cpus, gpus = workers * execution.cpus_per_worker, workers if execution.use_gpu else 0
    if cluster.cpus < cpus or cluster.gpus * sharing < gpus:
        need = f"{cpus} CPUs" + (f" and {gpus} GPUs" if gpus else "")
        raise ValueError(
            f"execution.workers: a trial needs {need} ({workers} workers) and there is {cluster.describe()}; "
            "choose another --scale, or start Ray on more machines and set RAY_ADDRESS"
        )
    by_cpu = int(cluster.cpus // cpus)
    return min(by_cpu, int(cluster.gpus * sharing // gpus)) if gpus else by_cpu


def run_trials(orders: Sequence[TrialOrder], *, concurrent: int, storage: Path) -> None:
    """Run every trial to its end: done or failed, as its folder then tells. A failed trial never stops the others.

    The first trials of all canaries are started first, so that one foundation's others do not wait in the places where another's canary
    could run (`in_turns`). `storage`: a folder for what Ray writes, on storage that every machine of the cluster shares; removed before and after.
    """
    from ray import tune

    shutil.rmtree(storage, ignore_errors=True)  # a killed run's
    by_id = {order.trial_id: order for order in in_turns(orders)}

    def trainable(cell: dict[str, str], orders_by_id: dict[str, TrialOrder]) -> None:
        tune.report({"state": drive_trial(orders_by_id[cell["trial_id"]])})

    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trainable, orders_by_id=by_id), _driver_resources()),
        param_space={"trial_id": tune.grid_search(list(by_id))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=concurrent + WAITING_TRIALS,
            reuse_actors=True,  # a driver's imports are paid once, not once a trial
            trial_dirname_creator=lambda trial: trial.config["trial_id"],
        ),
        run_config=tune.RunConfig(
            name=f"tune-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}",
            storage_path=str(storage),
            verbose=0,
            # drive_trial does not raise for a failed trial: what Tune retries is a driver that was killed.
            failure_config=tune.FailureConfig(max_failures=2),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        with reclaiming():
            tuner.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def in_turns(orders: Sequence[TrialOrder]) -> list[TrialOrder]:
    """The first order of all that wait for the same, then the second of each, ...; those that wait for nothing keep their order and come first."""
    taken: Counter[str] = Counter()
    turns = {}
    for order in orders:
        awaited = [before.trial_id for before in order.first[:1]]
        turns[order.trial_id] = sum(taken[name] for name in awaited)
        taken.update(awaited)
    return sorted(orders, key=lambda order: turns[order.trial_id])


def _driver_resources() -> dict[str, float]:
    """Drivers sit on the head node and take no CPU: a fraction of one would keep the last worker from its place on a full machine."""
    from ray._common.constants import HEAD_NODE_RESOURCE_NAME

    return {"CPU": 0, HEAD_NODE_RESOURCE_NAME: 0.001}
