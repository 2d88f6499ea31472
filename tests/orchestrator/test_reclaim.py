"""On a real Ray: what a killed actor had reserved is free again, what the living reserved is not touched."""

import os
import signal
import time

import pytest

from orchestrator.ray_session import open_ray
from orchestrator.reclaim import reclaim, reclaiming


@pytest.mark.slow
def test_devices_of_a_killed_actor_are_given_back_and_no_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with open_ray():
        import ray
        from ray.util.placement_group import placement_group

        @ray.remote(num_cpus=0)
        class Controller:
            def reserve(self) -> int:
                ray.get(placement_group([{"CPU": 0.5}]).ready())
                return os.getpid()

        def free() -> float:
            return ray.available_resources().get("CPU", 0.0)

        before = free()
        ray.get(placement_group([{"CPU": 0.25}]).ready())  # this process's own, as Tune's are
        killed, living = Controller.remote(), Controller.remote()
        pid, _ = ray.get([killed.reserve.remote(), living.reserve.remote()])
        assert reclaim() == 0
        with reclaiming():
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 60
            while free() < before - 0.75 and time.monotonic() < deadline:
                time.sleep(0.2)
        assert free() == pytest.approx(before - 0.75)
        assert reclaim() == 0
