"""One driver at a time: a dead one's place is taken, a live one's never, whatever the clocks and a damaged lease.json say."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from data.atomic import read_sealed_json, write_sealed_json
from orchestrator import lease as lease_module
from orchestrator.layout import RunFolder, Store
from orchestrator.lease import (
    LEASE_EXPIRES_S,
    UNKNOWN,
    WATCH_S,
    Holder,
    LeaseHeldError,
    LeaseLostError,
    hold_lease,
    read_holder,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(store: Store) -> RunFolder:
    run = store.runs("grid", "tiny")
    run.path.mkdir(parents=True)
    return run


def tell(run: RunFolder, *, heartbeat: float, token: str = "t") -> None:
    """Write what a driver on another machine writes. `heartbeat`: seconds from now, by its clock."""
    now = time.time()
    holder = Holder(pid=1, host="elsewhere", token=token, since=now - 900, heartbeat=now + heartbeat)
    write_sealed_json(run.lease, asdict(holder))


def test_a_second_driver_is_told_who_is_at_work(run: RunFolder) -> None:
    with hold_lease(run) as lease:
        lease.check()
        holder = read_holder(run)
        assert holder is not None and holder.pid == os.getpid()
        with pytest.raises(LeaseHeldError, match=rf"process {os.getpid()} on .* since"), hold_lease(run):
            pytest.fail("two drivers")
    assert read_holder(run) is None
    with hold_lease(run):
        pass


def test_the_lease_of_a_killed_driver_is_taken_over_at_once(run: RunFolder) -> None:
    code = (
        "import sys, time; from pathlib import Path; from orchestrator.lease import hold_lease; "
        "from orchestrator.layout import RunFolder\n"
        "with hold_lease(RunFolder(Path(sys.argv[1]))): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    ) as driver:
        assert driver.stdout is not None and driver.stdout.readline() == b"held\n"
        with pytest.raises(LeaseHeldError, match=f"process {driver.pid}"), hold_lease(run):
            pytest.fail("two drivers")
        driver.send_signal(signal.SIGKILL)
    assert run.lease.is_file()
    assert read_holder(run) is None
    begun = time.monotonic()
    with hold_lease(run):
        assert time.monotonic() - begun < WATCH_S / 2


def test_a_fresh_heartbeat_of_another_machine_counts(run: RunFolder) -> None:
    tell(run, heartbeat=0)
    holder = read_holder(run)
    assert holder is not None and holder.host == "elsewhere"
    with pytest.raises(LeaseHeldError, match="process 1 on elsewhere"), hold_lease(run):
        pytest.fail("two drivers")


@pytest.mark.parametrize("heartbeat", [-LEASE_EXPIRES_S - 1, -1e6, 3600.0])
def test_an_old_or_future_heartbeat_that_does_not_move_is_of_a_dead_driver(run: RunFolder, heartbeat: float) -> None:
    tell(run, heartbeat=heartbeat)
    assert read_holder(run) is None
    with hold_lease(run, watch_s=0.2) as lease:
        assert read_sealed_json(run.lease)["token"] == lease.holder.token


@pytest.mark.parametrize("heartbeat", [-1e6, 3600.0])
def test_a_heartbeat_that_moves_is_of_a_live_driver_with_another_clock(run: RunFolder, heartbeat: float) -> None:
    tell(run, heartbeat=heartbeat)
    beat = threading.Timer(0.3, tell, args=(run,), kwargs={"heartbeat": heartbeat})
    beat.start()
    with pytest.raises(LeaseHeldError, match="process 1 on elsewhere"), hold_lease(run, watch_s=20):
        pytest.fail("two drivers")
    beat.join()


@pytest.mark.parametrize("jump_s", [-1e6, 1e6])
def test_a_jumping_clock_steals_no_live_lease_and_keeps_no_dead_one(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    now = time.time()
    with hold_lease(run) as lease:
        monkeypatch.setattr(time, "time", lambda: now + jump_s)
        with pytest.raises(LeaseHeldError), hold_lease(run):
            pytest.fail("two drivers")
        lease.check()
        dead = run.lease.read_bytes()
    run.lease.write_bytes(dead)
    begun = time.monotonic()
    with hold_lease(run):
        assert time.monotonic() - begun < WATCH_S / 2


@pytest.mark.parametrize("content", [b"", b'{"pid": 1', b"\xff\x00", b"[]"])
def test_a_damaged_lease_is_mended(run: RunFolder, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(lease_module, "_LOOK_EVERY_S", 0.1)
    run.lease.write_bytes(content)
    assert read_holder(run) is None
    with hold_lease(run, watch_s=0.2) as lease:
        run.lease.write_bytes(content)
        holder = read_holder(run)
        assert holder is not None
        with pytest.raises(LeaseHeldError, match="another driver is at work here"), hold_lease(run, watch_s=0.2):
            pytest.fail("two drivers")
        lease.check()
        until = time.monotonic() + 20
        while (holder := read_holder(run)) == UNKNOWN:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert holder is not None and holder.token == lease.holder.token
    assert not run.lease.exists()


@pytest.mark.parametrize("taken", ["over", "over and given back"])
def test_a_driver_that_was_taken_over_is_told_and_does_not_end_the_new_lease(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    monkeypatch.setattr(lease_module, "_LOOK_EVERY_S", 0.1)
    with hold_lease(run) as lease:
        assert not lease.lost.is_set()
        tell(run, heartbeat=0, token="new")
        if taken != "over":
            run.lease.unlink()
        assert lease.lost.wait(20)
        by = "process 1 on elsewhere" if taken == "over" else "somebody who has ended"
        with pytest.raises(LeaseLostError, match=f"taken over by {by}"):
            lease.check()
    assert run.lease.exists() == (taken == "over")


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
@pytest.mark.parametrize("taken", ["over", "over and given back"])
def test_a_heartbeat_that_slept_through_a_take_over_leaves_the_new_lease(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, call: str, taken: str
) -> None:
    """The process is stopped in the middle of writing its heartbeat, and goes on with that when another driver has taken over."""
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(lease_module, "_LOOK_EVERY_S", 0.1)
    real, slept = getattr(os, call), threading.Event()

    def sleep_first(*args: Any) -> Any:
        if threading.current_thread().name == "lease-heartbeat" and not slept.is_set():
            slept.set()
            tell(run, heartbeat=0, token="new")
            if taken != "over":
                run.lease.unlink()
        return real(*args)

    with hold_lease(run) as lease:
        monkeypatch.setattr(os, call, sleep_first)
        assert slept.wait(20) and lease.lost.wait(20)
        with pytest.raises(LeaseLostError, match="taken over by"):
            lease.check()
    assert run.lease.exists() == (taken == "over")
    if taken == "over":
        assert read_sealed_json(run.lease)["token"] == "new"


def test_whoever_loses_the_wider_lease_has_lost_the_narrower(
    run: RunFolder, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "_LOOK_EVERY_S", 0.1)
    wider = store.runs("bucket", "tiny")
    with hold_lease(wider) as outer, hold_lease(run, within=outer) as inner:
        inner.check()
        tell(wider, heartbeat=0, token="new")
        assert inner.lost.wait(20)
        with pytest.raises(LeaseLostError, match=f"{wider.lease}: taken over by process 1 on elsewhere"):
            inner.check()
    assert wider.lease.exists()
