"""Opening Ray: our own by default, a named one only when it answers, never a stranger's; and the executor on top of it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.ray_executor import RayExecutor
from orchestrator.ray_session import _cgroup_quota, _new_session_folder, open_ray, usable_cpus

ROOT = Path(__file__).parents[2]


def test_a_containers_cpu_quota_is_respected(tmp_path: Path):
    assert _cgroup_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _cgroup_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert _cgroup_quota(tmp_path) == 1.5
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:10001", "127.0.0.1"])
def test_an_address_that_names_no_head_is_refused(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match=r"host:port.*unset RAY_ADDRESS"), open_ray():
        pass


def test_a_dead_cluster_is_told_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ValueError, match="no Ray answers there"), open_ray():
        pass


def test_our_own_ray_runs_tasks_one_thread_each_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")

    def threads(task: int) -> tuple[int, str]:
        return task * task, os.environ["OMP_NUM_THREADS"]

    def fail(task: int) -> int:
        if task == 3:
            raise ValueError("manifest.jsonl: line 3: broken; mend it")
        return task

    fresh = _new_session_folder()
    killed = fresh.rename(str(fresh).replace(f"-{os.getpid()}-", "-999999999-"))  # left by a run whose process is gone
    with (killed / "worker.out").open("w") as log:
        worker = subprocess.Popen(["sleep", "300"], stdout=log)
    with open_ray() as cluster:
        assert not killed.exists() and worker.wait(5) == -signal.SIGKILL
        assert cluster.local and cluster.cpus == usable_cpus()
        import ray

        session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
        assert session.exists() and "slotgrid-ray-" in str(session) and f"-{os.getpid()}-" in str(session)
        executor = RayExecutor(in_flight=3)
        assert sorted(executor.map_unordered(threads, range(8))) == [(n * n, "1") for n in range(8)]
        with pytest.raises(ValueError, match=r"^manifest.jsonl: line 3: broken; mend it$"):
            list(executor.map_unordered(fail, range(8)))
        assert list(executor.map_unordered(fail, [])) == []
    assert not session.exists()
    assert not ray.is_initialized()
    assert os.environ["OMP_NUM_THREADS"] == "7"


CLUSTER = """
import os, ray
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
ray.init(address="local", num_cpus=1, num_gpus=4, resources={"accelerator_type:H100": 1}, include_dashboard=False, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""


@pytest.mark.slow
def test_a_plan_is_made_for_the_gpus_of_the_cluster_that_is_named(tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", CLUSTER], env=environment, **pipes) as cluster:
        assert cluster.stdin and cluster.stdout
        address = cluster.stdout.readline().strip()
        plan = [sys.executable, "experiments/grid.py", "plan", "--scale", "small", "--store", str(tmp_path), "--json"]
        plan += ["--seeds", "4"]
        done = subprocess.run(
            plan, cwd=ROOT, env=environment | {"RAY_ADDRESS": address}, capture_output=True, text=True
        )
        cluster.stdin.close()
    assert done.returncode == 0, done.stderr
    trials = json.loads(done.stdout)["trials"]
    assert {trial["capacity"]["hardware"] for trial in trials} == {"h100-80g"}, done.stderr
    sharing = {trial["capacity"]["execution"]["trials_per_gpu"] for trial in trials}
    assert (len(trials), sharing) == (12, {2}), "on four GPUs; on eight, two to a GPU would leave some idle"
