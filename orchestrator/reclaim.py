"""Placement groups whose creator was killed -> free devices again, for as long as a block lasts.

Ray keeps a placement group for as long as its job lives, also when the actor that made it (Ray Train's controller) is dead. Ray's own cleaner asks
the dashboard's state API, which our own Ray does not start; without it a killed controller's devices were never free again, and every later attempt
waited for them without end (ray 2.60, measured).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LOOK_S = 5.0

_log = logging.getLogger(__name__)


@contextmanager
def reclaiming() -> Iterator[None]:
    """Give back, from a thread of its own, what killed actors of this job have reserved. Ray must be open."""
    ended = threading.Event()

    def look_now_and_then() -> None:
        from ray.exceptions import RayError

        while not ended.wait(LOOK_S):
            try:
                reclaim()
            except (RayError, ConnectionError, RuntimeError) as error:  # Ray is going down: so does this block
                _log.warning("devices of killed workers could not be given back: %s", error)

    thread = threading.Thread(target=look_now_and_then, name="reclaim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LOOK_S)


def reclaim() -> int:
    """Remove every placement group of this job that an actor made which is dead now. Returns how many."""
    import ray
    from ray._private.state import state
    from ray._raylet import ActorID, PlacementGroupID
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    removed = 0
    for raw in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(raw)
        by_an_actor = not ActorID(
            group.creator_actor_id
        ).is_nil()  # those of this process itself count as an actor's that is dead
        gone = group.state == PlacementGroupTableData.REMOVED
        if group.creator_job_id.hex() == job and by_an_actor and group.creator_actor_dead and not gone:
            _log.info(
                "placement group %s: its creator was killed; its devices are given back", group.name or "of a trial"
            )
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
            removed += 1
    return removed
