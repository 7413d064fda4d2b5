"""The act on the loop: its switches."""

from services.acts.call import Call
from services.contracts.base import Json
from services.contracts.status import LoopState, LoopSwitch
from services.jobs import dispatch
from services.store.loop import switches


def switch(call: Call, wanted: LoopSwitch) -> LoopState:
    """Turn sampling or training on or off, or set the last update; what is left out stays as it is."""
    asked: dict[str, Json] = wanted.model_dump(exclude_defaults=True)
    with call.begin() as act:
        lineage = act.lineage
        row = switches.switch(act.session, lineage.id, sampling=wanted.sampling, training=wanted.training)
        if wanted.no_end or wanted.max_updates is not None:
            row = switches.stop_after(act.session, lineage.id, wanted.max_updates)
        state = act.keep(LoopState(sampling=row.sampling, training=row.training, max_updates=row.max_updates))
        act.record("loop.switch", "lineage", lineage.id, asked)
    dispatch.lessons()
    return state
