"""What ended an attempt and what follows: causes told from real exceptions, and the decisions as a table."""

import errno
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfDiskError,
    OutOfMemoryError,
    RayTaskError,
)
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from model.configs import Execution
from model.hub import HubUnreachable
from orchestrator.canaries import CanaryFailed
from orchestrator.failures import (
    CAUSES,
    POLICIES,
    Cause,
    Held,
    ResourcesMissing,
    check_not_held,
    classify,
    decide,
    hold_siblings,
    left_alone,
    next_action,
    smaller_batches,
)
from orchestrator.layout import TrialFolder
from orchestrator.results import describe_failure
from orchestrator.trial_worker import TrialFailed


def raised(act: Callable[[], object]) -> BaseException:
    try:
        act()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def from_(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def dead_actor(message: str, *, preempted: bool = False) -> ActorDiedError:
    reason = NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED if preempted else NodeDeathInfo.UNSPECIFIED
    info = NodeDeathInfo(reason=reason) if preempted else None
    return ActorDiedError(
        ActorDiedErrorContext(error_message=message, actor_id=b"0" * 16, class_name="Worker", node_death_info=info)
    )


def worker_group(*failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("rank 0: it broke", dict(enumerate(failures)))


def unreachable() -> BaseException:
    return raised(lambda: httpx.get("http://127.0.0.1:1/", timeout=1))


REFUSED = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co/x"))
KILLED = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
MONITOR = "1 worker(s) were killed due to the node running low on memory."
NODE = "The actor died because its node has died. Node Id: 5f"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (raised(lambda: torch.empty(2**50)), "out-of-memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "out-of-memory"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."), "out-of-memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "out-of-memory"),
        (raised(lambda: bytearray(2**60)), "out-of-memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out-of-memory"),
        (OutOfMemoryError(MONITOR), "out-of-memory"),
        (worker_group(WorkerHealthCheckFailedError("rank 0", dead_actor(MONITOR))), "out-of-memory"),
        (dead_actor("Worker exit type: NODE_OUT_OF_MEMORY Worker exit detail: ..."), "out-of-memory"),
        (from_(RuntimeError("the step failed"), MemoryError()), "out-of-memory"),
        (dead_actor(KILLED), "worker-died"),
        (ActorUnavailableError("no answer", b"0" * 16), "worker-died"),
        (
            worker_group(TrialFailed("rank 0 broke, too"), WorkerHealthCheckFailedError("", dead_actor(KILLED))),
            "worker-died",
        ),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2201"), "worker-died"),
        (dead_actor(NODE), "node-lost"),
        (dead_actor(KILLED, preempted=True), "node-lost"),
        (ControllerError(NodeDiedError("gone")), "node-lost"),
        (worker_group(TrialFailed("x: CUDA out of memory")), "code"),
        (raised(lambda: Path("/nowhere/at/all").read_text()), "io"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "io"),
        (unreachable(), "io"),
        (OfflineModeIsEnabled("offline"), "io"),
        (from_(OSError("We couldn't connect to 'https://huggingface.co'"), TimeoutError()), "io"),
        (RayTaskError("f", "Traceback ...", ConnectionError("no route")).as_instanceof_cause(), "io"),
        (from_(OSError("a gated repo"), GatedRepoError("403", response=REFUSED)), "input"),
        (raised(lambda: int("x")), "input"),
        (from_(ValueError("corpus.json: is missing; run prepare"), FileNotFoundError(2, "")), "input"),
        (from_(ValueError("bad"), raised(lambda: {}["x"])), "input"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk-full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk-full"),
        (RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"), "disk-full"),
        (from_(OSError("cannot save"), OSError(errno.ENOSPC, "No space left on device")), "disk-full"),
        (OutOfDiskError("full"), "disk-full"),
        (FloatingPointError("the loss is nan after step 3"), "nan"),
        (CanaryFailed("0 of 8"), "canary"),
        (from_(HubUnreachable("the hub answered 503"), unreachable()), "io"),
        (Held("a sibling"), "held"),
        (ResourcesMissing("8 GPUs"), "resources"),
        (raised(lambda: {}["x"]), "code"),
        (AssertionError("ours"), "code"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "code"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{type(value).__name__}-{str(value)[:30]}",
)
def test_the_cause_is_told_from_the_exception(error: BaseException, cause: Cause):
    assert classify(error) == cause


def test_a_failure_is_described_by_the_exception_that_names_the_cause(tmp_path: Path):
    died = describe_failure(
        worker_group(WorkerHealthCheckFailedError("rank 0", dead_actor(KILLED))), TrialFolder(tmp_path)
    )
    assert (died.cause, died.error) == ("worker-died", "ActorDiedError")
    assert died.line.startswith("worker-died: a worker process ended without a word: killed")
    short = describe_failure(
        worker_group(WorkerHealthCheckFailedError("rank 0", dead_actor(MONITOR))), TrialFolder(tmp_path)
    )
    assert short.line == f"out-of-memory: The actor died unexpectedly before finishing this task. {MONITOR}"
    empty = describe_failure(from_(RuntimeError("the step failed"), MemoryError()), TrialFolder(tmp_path))
    assert empty.line == "out-of-memory: the step failed"
    assert describe_failure(KeyError("x"), TrialFolder(tmp_path)).line == "code: KeyError: 'x'"


def test_a_chain_that_bites_its_tail_is_no_endless_walk():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert classify(first) == "input"


def test_every_cause_has_a_policy_and_says_what_to_do():
    assert set(POLICIES) == set(CAUSES)
    assert all(len(next_action(cause, "qwen.hybrid.seed0")) > 20 for cause in CAUSES)
    assert "explain qwen.hybrid.seed0" in next_action("canary", "qwen.hybrid.seed0")


def test_run_leaves_alone_what_would_only_fail_again_unless_it_is_told():
    assert {cause for cause in CAUSES if left_alone(cause, ())} == {"nan", "out-of-memory"}
    assert left_alone("nan", ["out-of-memory"]) and not left_alone("nan", ["nan"])
    assert not left_alone(None, ())


def waits(cause: Cause, idle: list[int]) -> list[float | None]:
    """The wait before the next attempt after attempts that got no further that often in a row; None where there is none."""
    declared = Execution()
    decisions = [
        decide(POLICIES[cause], idle=n, declared=declared, current=declared, batch_size=8, evaluating=False)
        for n in idle
    ]
    return [decision.wait_s if decision.execution else None for decision in decisions]


def test_retries_are_counted_by_attempts_that_got_no_further():
    assert waits("worker-died", [0, 0, 1, 2, 0, 3]) == [0, 0, 0, 0, 0, None]
    assert waits("node-lost", [0, 1, 2, 19, 20]) == [5, 5, 15, 60, None]
    assert waits("io", [0, 1, 2, 3, 4, 5]) == [5, 5, 15, 45, 135, None]
    for cause in ("nan", "code", "input", "disk-full", "resources", "held", "canary", "alignment"):
        assert waits(cause, [1]) == [None], cause


def halved(*, micro_batches: int, workers: int, batch_size: int) -> list[int]:
    declared = Execution(micro_batches=micro_batches, workers=workers)
    current: Execution | None = declared
    taken = []
    while current := smaller_batches(declared, current, batch_size, evaluating=False):
        taken.append(current.micro_batches)
    return taken


def test_micro_batches_are_halved_twice_where_the_global_batch_divides():
    assert halved(micro_batches=2, workers=1, batch_size=16) == [4, 8]
    assert halved(micro_batches=1, workers=4, batch_size=8) == [2]
    assert halved(micro_batches=1, workers=1, batch_size=7) == []


def test_batches_of_answers_are_halved_when_training_is_over():
    declared = Execution(evaluation_batch_size=5)
    twice = smaller_batches(declared, declared, 8, evaluating=True)
    assert twice == Execution(evaluation_batch_size=2)
    once = smaller_batches(declared, twice, 8, evaluating=True)
    assert once == Execution(evaluation_batch_size=1)
    assert smaller_batches(declared, once, 8, evaluating=True) is None
    assert smaller_batches(declared, once, 8, evaluating=False) == Execution(micro_batches=2, evaluation_batch_size=1)


def test_a_hold_is_for_one_foundation_and_gone_with_the_folder(tmp_path: Path):
    hold_siblings(tmp_path, "qwen3-4b", "qwen3-4b.hybrid.seed0 failed (code: KeyError: 'x')")
    check_not_held(tmp_path, "llama-8b")
    with pytest.raises(Held, match="seed0 failed"):
        check_not_held(tmp_path, "qwen3-4b")
