"""Asking experts."""

import asyncio
import time
from uuid import UUID

import structlog

from services.contracts.consultations import InvalidAnswer
from services.experts.client import ExpertUnavailable
from services.jobs import dispatch
from services.jobs.app import app
from services.jobs.metrics import name_outcome
from services.jobs.runtime import Runtime, runtime
from services.store import consultations
from services.store.consultations import Outcome, Question
from services.tracing import Kind, Span, place_of

log = structlog.get_logger(__name__)


@app.task(name="consult")
def consult(consultation_ids: list[str]) -> None:
    """Ask these questions side by side and write down how each ended; safe to deliver twice."""
    held = runtime()
    with held.store.transaction() as session:
        questions = consultations.claim(
            session,
            [UUID(i) for i in consultation_ids],
            lease_seconds=held.settings.consultation_lease_seconds,
        )
    if not questions:
        return
    replies = held.run(_ask_all(held, questions))
    opened: list[UUID] = []
    for question, reply in zip(questions, replies, strict=True):
        with held.store.transaction() as session:
            if isinstance(reply, ExpertUnavailable):
                log.warning("expert unavailable", **_name(question), attempt=question.attempt, reason=str(reply))
                consultations.release(
                    session,
                    question,
                    str(reply),
                    retry_after=reply.retry_after,
                    max_attempts=held.settings.max_attempts,
                    quarantine_after=held.settings.quarantine_after_failures,
                )
            else:
                opened += consultations.settle(session, question, reply)
                log.info("consultation settled", **_name(question), outcome=_say(reply))
    dispatch.consultations(sorted(set(opened)))
    dispatch.lessons()


def _name(question: Question) -> dict[str, str]:
    """What is asked, of whom, as it is logged."""
    return {
        "consultation_id": str(question.consultation_id),
        "rollout_id": str(question.rollout_id),
        "expert": question.expert_name,
    }


def _say(outcome: Outcome) -> str:
    return f"invalid: {outcome.reason}" if isinstance(outcome, InvalidAnswer) else outcome.outcome


async def _ask_all(held: Runtime, questions: list[Question]) -> list[Outcome | ExpertUnavailable]:
    return await asyncio.gather(*(_ask(held, question) for question in questions))


async def _ask(held: Runtime, question: Question) -> Outcome | ExpertUnavailable:
    async with held.slots(question.endpoint, question.max_concurrency):
        began, began_at = time.perf_counter(), time.time_ns()
        asker = place_of(question.group_id, question.rollout_id)
        place = asker.make_child()
        reply: Outcome | ExpertUnavailable
        try:
            reply = await held.experts.consult(
                question.endpoint,
                question.request,
                secret=question.signing_secret,
                timeout=question.timeout_seconds,
                traceparent=place.traceparent if held.tracing.is_on else None,
            )
        except ExpertUnavailable as error:
            reply = error
        held.meter.asked(question.expert_name, reply, time.perf_counter() - began)
        held.tracing.record(
            Span(
                name="consultation",
                place=place,
                parent=asker,
                began=began_at,
                ended=time.time_ns(),
                kind=Kind.CLIENT,
                attributes={
                    "preceptor.consultation": str(question.consultation_id),
                    "preceptor.rollout": str(question.rollout_id),
                    "preceptor.expert": question.expert_name,
                    "preceptor.attempt": question.attempt,
                    "preceptor.outcome": name_outcome(reply),
                },
                failed=str(reply) if isinstance(reply, ExpertUnavailable) else None,
            )
        )
        return reply
