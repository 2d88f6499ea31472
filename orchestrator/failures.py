"""An exception that ended an attempt -> its cause, one of a few, and what follows from it: another attempt, after what wait, or none.

Ray's and torch's exceptions are known by the names of their classes, so that nothing heavy is imported here.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from data.atomic import write_json
from model.configs import Execution

Cause = Literal[
    "disk-full",
    "out-of-memory",
    "node-lost",
    "worker-died",
    "resources",
    "held",
    "canary",
    "alignment",
    "nan",
    "input",
    "io",
    "code",
]
"""Why an attempt ended badly. Of several in one chain of exceptions the first in this order counts: the more telling one."""
CAUSES: tuple[Cause, ...] = get_args(Cause)


class Held(Exception):
    """The trial was not begun: another one of its foundation has shown an error that it would meet too."""


class ResourcesMissing(Exception):
    """The cluster cannot have what the trial needs, now or grown."""


HALVINGS = 2
"""How often a trial's micro-batches, and its batches of answers, are halved for want of memory."""
DEAD_WORKERS = 3
LOST_NODES = 20
LOST_NODE_WAITS_S = (5.0, 15.0, 30.0, 60.0)
"""For another machine to come; the last one again and again: about 20 minutes in all."""
IO_WAITS_S = (5.0, 15.0, 45.0, 135.0)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What follows when an attempt ends by one cause."""

    next_action: str  # what the user can do when the trial has failed; {trial}: its id
    attempts: int = 1  # of this cause, in a row, that got no further, and the trial has failed
    waits_s: tuple[
        float, ...
    ] = ()  # before the next attempt, by how many got no further; later ones wait like the last
    halves: bool = False  # the next attempt works in halves (`smaller_batches`), instead of counting attempts
    holds: bool = False  # trials of the same foundation that have not begun are left to the next run
    final: bool = False  # another run would end in the same way: only `run --retry` tries again


POLICIES: Mapping[Cause, Policy] = {
    "disk-full": Policy(next_action="free some space (status --disk shows what takes it), then run again"),
    "out-of-memory": Policy(
        halves=True,
        final=True,
        next_action="take larger devices, more workers or a higher zero_stage, then run --retry out-of-memory",
    ),
    "node-lost": Policy(
        attempts=LOST_NODES,
        waits_s=LOST_NODE_WAITS_S,
        next_action="see that the cluster's machines stay, then run again",
    ),
    "worker-died": Policy(
        attempts=DEAD_WORKERS,
        next_action="see the end of the log, and whether the machine's memory was full (dmesg), then run again",
    ),
    "resources": Policy(
        next_action="start Ray with more devices, or choose another --scale or --hardware, then run again"
    ),
    "held": Policy(next_action="put right what stopped the trial that is named, then run again"),
    "canary": Policy(next_action="see the canary's log, and the chat template with explain {trial}, then run again"),
    "alignment": Policy(next_action="see the alignment's log, then run again"),
    "nan": Policy(
        final=True, next_action="see the loss in metrics.jsonl and lower the learning rate, or run --retry nan"
    ),
    "input": Policy(holds=True, next_action="put right what the message names, then run again"),
    "io": Policy(
        attempts=1 + len(IO_WAITS_S),
        waits_s=IO_WAITS_S,
        next_action="see whether the storage and the hub can be reached, then run again",
    ),
    "code": Policy(holds=True, next_action="see the traceback, mend the code, then run again"),
}


def next_action(cause: Cause, trial_id: str) -> str:
    """What the user can do about a trial that has failed by this cause, in words."""
    return POLICIES[cause].next_action.format(trial=trial_id)


def left_alone(cause: Cause | None, retry: Collection[Cause]) -> bool:
    """Whether `run` leaves a trial alone that has failed by this cause: it would fail again, and `--retry` does not name the cause."""
    return cause is not None and POLICIES[cause].final and cause not in retry


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the driver does after an attempt that ended badly."""

    execution: Execution | None  # of the next attempt; None: the trial has failed
    wait_s: float = 0.0  # before it


def decide(
    policy: Policy, *, idle: int, declared: Execution, current: Execution, batch_size: int, evaluating: bool
) -> Decision:
    """What follows after an attempt under `current` has ended badly.

    `idle`: the attempts in a row, with this one, that ended by the same cause and got no further; 0 when this one did. `declared`: how
    the trial is to run. `batch_size`: examples in a global batch. `evaluating`: training was over.
    """
    if policy.halves:
        return Decision(execution=smaller_batches(declared, current, batch_size, evaluating=evaluating))
    if idle >= policy.attempts:
        return Decision(execution=None)
    wait_s = policy.waits_s[min(max(idle, 1), len(policy.waits_s)) - 1] if policy.waits_s else 0.0
    return Decision(execution=current, wait_s=wait_s)


def smaller_batches(declared: Execution, current: Execution, batch_size: int, *, evaluating: bool) -> Execution | None:
    """`current` with half the micro-batch (the global batch stays), or half the batch of answers when `evaluating`.

    None when that cannot be divided, or was halved `HALVINGS` times.
    """
    if evaluating:
        half = current.evaluation_batch_size // 2
        enough = half >= max(1, declared.evaluation_batch_size // 2**HALVINGS)
        return replace(current, evaluation_batch_size=half) if enough else None
    double = 2 * current.micro_batches
    enough = double <= declared.micro_batches * 2**HALVINGS and batch_size % (current.workers * double) == 0
    return replace(current, micro_batches=double) if enough else None


def hold_siblings(storage: Path, foundation: str, why: str) -> None:
    """Keep the trials of a foundation that have not begun from beginning. `storage` is removed with every run, and the hold with it."""
    write_json(_hold(storage, foundation), {"why": why})


def check_not_held(storage: Path, foundation: str) -> None:
    """Raise Held, with the reason, when the trials of this foundation are not to begin."""
    hold = _hold(storage, foundation)
    if hold.exists():
        raise Held(json.loads(hold.read_text(encoding="utf-8"))["why"])


def _hold(storage: Path, foundation: str) -> Path:
    return storage / "held" / f"{foundation}.json"


def classify(error: BaseException) -> Cause:
    """The cause that an exception stands for, with those it was raised from and those that Ray carries in it."""
    return _cause_of(telling_error(error))


def telling_error(error: BaseException) -> BaseException:
    """The one that names the cause, of an exception, those it was raised from and those that Ray carries in it."""
    return min(_chain(error), key=lambda link: CAUSES.index(_cause_of(link)))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, what it was raised from, and what Ray Train's and Ray's exceptions hold."""
    seen: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        link = waiting.pop()
        if not isinstance(link, BaseException) or any(link is other for other in seen):
            continue
        seen.append(link)
        yield link
        waiting += [link.__cause__, *getattr(link, "worker_failures", {}).values()]
        waiting += [
            getattr(link, name, None) for name in ("health_check_failure", "controller_failure", "cause", "_base_exc")
        ]


_BY_CLASS: Mapping[str, Cause] = {
    # ours
    "TrialFailed": "code",  # what it was lies in the attempt's failure.json; its message repeats it
    "CanaryFailed": "canary",
    "HubUnreachable": "io",
    "Held": "held",
    "ResourcesMissing": "resources",
    # torch's and Ray's
    "OutOfMemoryError": "out-of-memory",
    # Ray's (ray.exceptions, ray.train.v2)
    "OutOfDiskError": "disk-full",
    "NodeDiedError": "node-lost",
    "LocalRayletDiedError": "node-lost",
    "PreemptionError": "node-lost",
    "WorkerCrashedError": "worker-died",
    "OwnerDiedError": "worker-died",
    "ActorUnavailableError": "worker-died",
    "NCCLHangError": "worker-died",
    "WorkerHealthCheckTimeoutError": "worker-died",
    "WorkerGroupStartupFailedError": "worker-died",
    "WorkerGroupStartupTimeoutError": "resources",
    "InsufficientClusterResourcesError": "resources",
    "TaskUnschedulableError": "resources",
    "ActorUnschedulableError": "resources",
    "RpcError": "io",
    # the hub's: waiting changes nothing
    "GatedRepoError": "input",
    "RepositoryNotFoundError": "input",
    "RevisionNotFoundError": "input",
    "RemoteEntryNotFoundError": "input",
}
_HTTP = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp")
_BY_ERRNO: Mapping[int | None, Cause] = {
    errno.ENOSPC: "disk-full",
    errno.EDQUOT: "disk-full",
    errno.ENOMEM: "out-of-memory",
}
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")
_NO_MEMORY = re.compile(
    r"CUDA(?: driver)? error: out of memory|CUDA out of memory|HIP out of memory"
    r"|DefaultCPUAllocator: (?:can't allocate|not enough) memory"
    r"|(?:CUDNN|CUBLAS|CUSPARSE|CUFFT)_STATUS_ALLOC_FAILED|NCCL .*out of memory"
)
"""Of RuntimeErrors: torch raises its own OutOfMemoryError from the CUDA caching allocator only."""
_PEER_GONE = re.compile(r"Connection (?:closed|reset) by peer|[Rr]emote process exited|Broken pipe")
"""Of a RuntimeError of gloo or NCCL: the worker at the other end died, this one only noticed."""
_NODE_GONE = re.compile(r"its node has died|actor's node was terminated")
_KILLED_FOR_MEMORY = re.compile(r"node running low on memory|NODE_OUT_OF_MEMORY")
"""What Ray says of an actor that its memory monitor killed."""


def _cause_of(error: BaseException) -> Cause:
    """The cause of one exception, whatever it was raised from."""
    classes, text = type(error).__mro__, str(error)
    for known in classes:
        if cause := _BY_CLASS.get(known.__name__):
            return cause
    if _DISK_FULL.search(text):  # safetensors, Arrow and torch put the system's words into exceptions of their own
        return "disk-full"
    if any(known.__name__ == "RayActorError" for known in classes):
        return _cause_of_death(error, text)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        return "out-of-memory"
    if isinstance(error, OSError):
        return _BY_ERRNO.get(error.errno, "io")
    if any(known.__module__.partition(".")[0] in _HTTP for known in classes):
        return "io"
    if isinstance(error, FloatingPointError):
        return "nan"
    if isinstance(error, ValueError):
        return "input"
    return "worker-died" if isinstance(error, RuntimeError) and _PEER_GONE.search(text) else "code"


def _cause_of_death(error: BaseException, text: str) -> Cause:
    """The cause of a RayActorError."""
    if _KILLED_FOR_MEMORY.search(text):
        return "out-of-memory"
    if getattr(error, "preempted", False) or _NODE_GONE.search(text):
        return "node-lost"
    return "code" if getattr(error, "actor_init_failed", False) else "worker-died"
