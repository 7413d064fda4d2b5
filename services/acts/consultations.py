"""Consultations: answering one late, and asking dead ones again."""

from uuid import UUID

from services.acts.call import Act, Call
from services.contracts.consultations import ConsultationDetail, Requeued
from services.contracts.experts import ConsultResponse
from services.contracts.persons import Right
from services.jobs import dispatch
from services.store.loop import consultations, dead_letters, experts, settling
from services.store.views import browse


def answer(call: Call, consultation_id: UUID, said: ConsultResponse) -> ConsultationDetail:
    """Settle a consultation whose expert said that its answer comes later.

    Errors: ConsultationNotFound (404), NotWaiting (409).
    """
    with call.begin() as act:
        settling.settle_late(act.session, consultation_id, said)
        settled = act.keep(_view(act, consultation_id))
        act.record("consultations.answer", "consultation", consultation_id)
        opened = consultations.pending_of(act.session, [settled.rollout_id])
    dispatch.consultations(opened)
    dispatch.lessons()
    return settled


def requeue(call: Call, consultation_id: UUID) -> ConsultationDetail:
    """Ask a dead consultation again.

    Errors: ConsultationNotFound (404); IllegalStatusChange (409), ExpertRetired (409) as its expert answers no more.
    """
    with call.begin() as act:
        experts.require_not_retired(act.session, consultations.requeue(act.session, consultation_id).expert_id)
        requeued = act.keep(_view(act, consultation_id))
        act.record("consultations.requeue", "consultation", consultation_id)
    dispatch.consultations([consultation_id])
    return requeued


def requeue_all(call: Call) -> Requeued:
    """Ask dead consultations again, the oldest first and at most `dead_letters.MAX_AT_ONCE`."""
    with call.begin() as act:
        ids = dead_letters.requeue_consultations(act.session, act.lineage.id)
        requeued = act.keep(Requeued(num_requeued=len(ids), has_more=len(ids) == dead_letters.MAX_AT_ONCE))
        act.record("consultations.requeue_all", "lineage", act.lineage.id, {"consultations": len(ids)})
    dispatch.consultations(ids)
    return requeued


def _view(act: Act, consultation_id: UUID) -> ConsultationDetail:
    act.session.expire_all()
    return browse.consultation(act.session, consultation_id, frozenset(Right))
