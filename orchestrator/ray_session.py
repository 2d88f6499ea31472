"""Opens Ray: the cluster that RAY_ADDRESS names, else a fresh Ray of our own on this machine, closed again whatever happens.

Never `address="auto"`: on a head that runs several Rays it picks a stranger's, and can hang.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.layout import Store

_log = logging.getLogger(__name__)

_TELL_EVERY_S = 45.0
_SESSION_PREFIX = "slotgrid-ray-"
_LONGEST_SESSION_ROOT = (
    40  # characters; Ray's sockets lie 60 characters below it and the kernel's limit for a socket path is 107
)
_ANSWERS_WITHIN_S = 5.0
_ACCELERATOR = "accelerator_type:"
"""Ray gives every node with GPUs one of a resource that is named after their type."""
_UNSET = "unset RAY_ADDRESS to run on this machine alone"
_OBJECT_STORE_BYTES = 256 * 1024**2  # data travel through files; only task arguments and results pass through Ray

_QUIET_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the default of 2 s is what every ray.train.report would wait for
    # Trials beyond the free devices wait for them; by default the controller gives up after 60 s.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(7 * 24 * 3600),
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Read by the drivers, the controllers and the workers."""

_HEAD_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is KeyboardInterrupt here
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is never read again
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # tasks cancelled after the first error
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # raylet messages: they would break the progress display, and the attempts' logs say more
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # the paths a user gave may be relative
}
"""Read by this process, where Tune runs."""

_PASSED_ON = (
    "HF_HUB_OFFLINE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "SLOTGRID_OFFLINE",
    "SLOTGRID_DEBUG",
)  # no token: Ray shows them to anyone


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the Ray that was opened has to give."""

    address: str
    local: bool  # our own Ray on this machine, gone when the session ends
    cpus: float  # a cluster that scales by itself counts with what it can grow to
    cpus_now: float  # of the machines that are there: preparing data must not start GPU machines
    gpus: float
    nodes: int
    elsewhere: bool = False  # has, or may grow to have, other machines than this one

    def check_sees(self, store: Store) -> None:
        """Raise ValueError when the store has its working folder here and other machines would work on it."""
        if store.remote and self.elsewhere:
            raise ValueError(
                f"--store: the working folder of {store.remote} is on this machine, and {self.describe()} has others, which do not see it; "
                "give a folder on a mount that all its machines share"
            )

    def describe(self) -> str:
        """One line for people: "this machine: 2 CPUs"."""
        place = "this machine" if self.local else f"the Ray cluster at {self.address} ({self.nodes} nodes)"
        return f"{place}: {self.cpus:g} CPUs" + (f", {self.gpus:g} GPUs" if self.gpus else "")


def usable_cpus() -> int:
    """The CPUs this process may really use: its affinity, cut by the container's quota (cgroup v2 or v1), at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = _cgroup_quota(Path("/sys/fs/cgroup"))
    return max(1, min(count, int(quota))) if quota else count


def _cgroup_quota(root: Path) -> float | None:
    """The CPU quota of a container in CPUs; None where there is none."""
    v2, v1_quota, v1_period = root / "cpu.max", root / "cpu/cpu.cfs_quota_us", root / "cpu/cpu.cfs_period_us"
    if v2.is_file():
        quota, period = v2.read_text().split()
    elif v1_quota.is_file() and v1_period.is_file():
        quota, period = v1_quota.read_text().strip(), v1_period.read_text().strip()
    else:
        return None
    return None if quota in ("max", "-1") else float(quota) / float(period)


def worker_environment(*, use_gpu: bool) -> dict[str, str]:
    """The environment of every Ray process: quiet, one thread each where there is no GPU, the user's hub settings."""
    environment = dict(_QUIET_ENVIRONMENT)
    if not use_gpu:
        # Several processes with several threads each spin against each other on few cores: up to 10x slower.
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment |= {
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
        }  # trials of a CPU scale on a machine with GPUs
    return environment | {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


@contextmanager
def open_ray(*, use_gpu: bool = False) -> Iterator[Cluster]:
    """Open Ray for the block: attach to RAY_ADDRESS if it is set, else start our own; shut down or detach at the end.

    Raises ValueError when RAY_ADDRESS names a cluster that does not answer.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    local = address in ("", "local")
    environment = worker_environment(use_gpu=use_gpu)
    if local:
        environment["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # an actor per trial, and nobody preempts our own Ray
        environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = (
            "10"  # a killed GCS does not come back here; the default waits 60 s
        )
        # Read when ray is imported. Without it Ray turns the loopback address that we give it into the machine's own and listens to the network.
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    with _environment(_HEAD_ENVIRONMENT | environment):
        import ray

        session = _new_session_folder() if local else None
        try:
            if session is not None:
                _start_local(session)
            else:
                _attach(address, environment)
            yield describe_cluster("local" if local else address, local=local)
        finally:
            with _telling("closing Ray"):
                ray.shutdown()
            if session is not None:
                _remove_session(session)


def _start_local(session: Path) -> None:
    """Start a Ray of our own on the loopback interface; its processes inherit this process's environment."""
    import ray

    # Processes of a fresh local Ray inherit the environment, so no runtime_env is needed: it would cost every worker an agent's round trip.
    package_root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(
        dict.fromkeys([package_root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
    )
    with _environment({"PYTHONPATH": path}), _signals_to_us_alone(), _telling("starting Ray"):
        ray.init(
            address="local",
            num_cpus=usable_cpus(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=str(session),
            _node_ip_address="127.0.0.1",
        )


@contextmanager
def _signals_to_us_alone() -> Iterator[None]:
    """Processes that are started in the block never hear SIGTERM and SIGHUP, nor do their children: only this process decides when they end.

    They lie in this process's group or control group, to which terminals, batch systems and systemd send their signals, and without them no trial
    could save. Blocked signals are inherited (Ray blocks SIGINT for its processes itself); they end by SIGKILL: when Ray is shut down, which
    therefore takes 4 s more, and when this process dies, by the kernel. For this process a signal waits until the end of the block.
    """
    handler = signal.getsignal(signal.SIGTERM)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has set its own, which exits with the signal's number
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _attach(address: str, environment: Mapping[str, str]) -> None:
    """Join the cluster at `address` ("host:port")."""
    _check_answers(address)
    import ray

    try:
        with _telling(f"joining the Ray cluster at {address}"):
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": dict(environment)},
            )
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"RAY_ADDRESS={address}: {str(error).splitlines()[0]}; {_UNSET}") from error


def cluster_accelerators(address: str) -> list[str]:
    """The type of every GPU that the cluster at `address` has now, as Ray names it ("H100", "A100"). Raises ValueError when it does not answer."""
    with _environment(_HEAD_ENVIRONMENT | _QUIET_ENVIRONMENT):
        import ray

        _attach(address, {})
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        finally:
            ray.shutdown()
    return [
        name.removeprefix(_ACCELERATOR)
        for resources in nodes
        for name in resources
        if name.startswith(_ACCELERATOR)
        for _ in range(int(resources.get("GPU", 0)))
    ]


def _check_answers(address: str) -> None:
    """Raise ValueError when nobody listens at `address`: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise ValueError(f"RAY_ADDRESS={address}: give host:port of the cluster's head, e.g. 10.0.0.1:6379; {_UNSET}")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWERS_WITHIN_S).close()
    except OSError as error:
        raise ValueError(f"RAY_ADDRESS={address}: no Ray answers there ({error}); {_UNSET}") from error


def describe_cluster(address: str, *, local: bool) -> Cluster:
    """What the Ray at `address`, to which this process belongs, has to give now."""
    import ray
    from ray._private.state import state

    now = ray.cluster_resources()
    alive = [node for node in ray.nodes() if node["Alive"]]
    # A cluster that scales by itself counts with what it can grow to: its GPUs come when trials wait for them.
    grown = {} if local else state.get_max_resources_from_cluster_config() or {}
    return Cluster(
        address=address,
        local=local,
        cpus=max(now.get("CPU", 0.0), float(grown.get("CPU", 0.0))),
        cpus_now=now.get("CPU", 0.0),
        gpus=max(now.get("GPU", 0.0), float(grown.get("GPU", 0.0))),
        nodes=len(alive),
        elsewhere=not local
        and (bool(grown) or any(node["NodeManagerHostname"] != socket.gethostname() for node in alive)),
    )


def _new_session_folder() -> Path:
    """A fresh folder with a short path for Ray's sockets and logs; those that killed runs left are removed."""
    root = Path(tempfile.gettempdir())
    if len(str(root)) > _LONGEST_SESSION_ROOT and sys.platform != "win32":
        root = Path("/tmp")
    prefix = f"{_SESSION_PREFIX}{hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]}-"  # containers may share /tmp
    for left_over in root.glob(f"{prefix}*-*"):
        owner = left_over.name.removeprefix(prefix).split("-")[0]
        if owner.isdigit() and not _is_alive(int(owner)):
            _remove_session(left_over)  # another user's cannot be removed, nor need it
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=root))


def _remove_session(folder: Path) -> None:
    """Remove the folder of a Ray that has ended, and what of it lives on: its workers end when they notice, and one that never did was seen once."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            writes = (
                file.path for file in process.open_files() if getattr(file, "mode", "w") != "r"
            )  # only Linux tells
            if process.pid != os.getpid() and any(Path(path).is_relative_to(folder) for path in writes):
                process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Say every now and then that this is still under way: Ray itself waits in silence, for up to minutes."""
    ended, begun = threading.Event(), time.monotonic()

    def tell() -> None:
        while not ended.wait(_TELL_EVERY_S):
            _log.warning("%s: not finished after %.0f s; Ctrl-C ends it", what, time.monotonic() - begun)

    threading.Thread(target=tell, name="ray-telling", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
