"""The loop: its state at one glance and its switches."""

from services.acts import loop as acts
from services.api.auth import needs
from services.api.calls import CallDep
from services.api.deps import SettingsDep, StoreDep
from services.api.routes.common import build_router, problems
from services.contracts.persons import Right
from services.contracts.status import LoopState, LoopSwitch, Status
from services.runtime import space
from services.store.loop import lineages
from services.store.views import status

router = build_router("loop")


@router.get("/status", dependencies=[needs(Right.READ)])
def get_status(store: StoreDep, settings: SettingsDep) -> Status:
    """The loop: switches, counts by status, the backlog, pass rates, the last updates and each process's heartbeat."""
    with store.reading() as session:
        return status.status(
            session,
            lineages.get(session, settings.lineage),
            max_backlog=settings.max_backlog_lessons,
            max_groups_per_task=settings.max_groups_per_task,
            group_size=settings.group_size,
            shortage=space.find_shortage(settings),
        )


@router.post("/loop", dependencies=[needs(Right.OPERATE)], responses=problems(409, 413, 415, 422))
def switch_loop(body: LoopSwitch, call: CallDep) -> LoopState:
    """Turn sampling and training on or off; omitted switches stay as they are.

    `max_updates` stops the loop after the update with that number; `no_end` removes the limit.
    """
    return acts.switch(call, body)
