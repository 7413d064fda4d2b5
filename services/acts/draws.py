"""Drawing prompts again whose draws failed as often as they may. The sweep sends their messages within a second."""

from uuid import UUID

from services.acts.call import Call
from services.contracts.consultations import Requeued
from services.contracts.draws import Draw
from services.store.loop import dead_letters
from services.store.views import browse


def requeue(call: Call, draw_id: UUID) -> Draw:
    """Try a dead draw again. Errors: DrawNotFound (404), IllegalStatusChange (409)."""
    with call.begin() as act:
        [requeued] = browse.view_draws(act.session, [dead_letters.requeue_draw(act.session, draw_id)])
        act.keep(requeued)
        act.record("draws.requeue", "draw", draw_id)
    return requeued


def requeue_all(call: Call) -> Requeued:
    """Try dead draws again, the oldest first and at most `dead_letters.MAX_AT_ONCE`."""
    with call.begin() as act:
        num = dead_letters.requeue_draws(act.session, act.lineage.id)
        requeued = act.keep(Requeued(num_requeued=num, has_more=num == dead_letters.MAX_AT_ONCE))
        act.record("draws.requeue_all", "lineage", act.lineage.id, {"draws": num})
    return requeued
