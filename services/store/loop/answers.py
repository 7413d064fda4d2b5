"""The answers of experts, with their distributions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import ColumnElement, any_, select
from sqlalchemy.orm import Session, aliased

from services.contracts.answers import (
    Answer,
    AnswerContent,
    AnswerStatus,
    Distribution,
    Feedback,
    SamplesDistribution,
)
from services.contracts.base import JsonObject
from services.contracts.experts import Ask
from services.contracts.persons import RIGHTS, Right, Role
from services.contracts.tasks import Precedent, Split
from services.contracts.updates import Speaker
from services.runtime.errors import NotFound
from services.store.ledger import distributions
from services.store.loop import contexts, trust
from services.store.tables.corrections import CorrectionRow
from services.store.tables.loop import AnswerRow, ConsultationRow, DistributionRow, ExpertRow, RolloutRow, TaskRow
from services.store.tables.people import PersonRow


@dataclass(frozen=True)
class Trace:
    """An answer that the expert of another answer was shown, and who gave it."""

    shown_to: UUID
    answer: AnswerRow
    expert: ExpertRow


class DistributionNotFound(NotFound):
    """The answer has no distribution."""


def record(session: Session, consultation: ConsultationRow, rollout: RolloutRow, content: AnswerContent) -> AnswerRow:
    """Store an answer, with whether it may ever train. Of a task that is not for training no solution or precedent is
    kept."""
    expert = session.get_one(ExpertRow, consultation.expert_id)
    task = session.get_one(TaskRow, rollout.task_id)
    shown = _find_shown(session, consultation, expert)
    row = AnswerRow(
        lineage_id=rollout.lineage_id,
        consultation_id=consultation.id,
        rollout_id=rollout.id,
        split=rollout.split,
        expert_id=consultation.expert_id,
        expert_version=consultation.expert_version,
        could_train=trust.may_train(expert),
        derived_from=sorted(trust.derive(expert, task.metadata_, shown).union(contexts.quoted_in(session, rollout))),
        score=content.score,
        feedback=None if content.feedback is None else content.feedback.model_dump(mode="json"),
        solution=content.solution if rollout.split == Split.TRAIN.value else None,
        precedents=_keep_precedents(content) if rollout.split == Split.TRAIN.value else None,
        distribution_kind=None if content.distribution is None else content.distribution.kind,
        evidence=content.evidence,
    )
    session.add(row)
    session.flush()
    if content.distribution is not None:
        distributions.add(session, row, _note_draw(Ask.model_validate(consultation.ask), content.distribution))
    return row


def _note_draw(ask: Ask, distribution: Distribution) -> Distribution:
    """Samples at places that we drew, with the probabilities of our draw; none where the expert answered at some of
    them only, since then it chose."""
    if not isinstance(distribution, SamplesDistribution) or not ask.prefixes:
        return distribution
    drawn = dict(zip(ask.prefixes, ask.probabilities, strict=bool(ask.probabilities)))
    is_whole = bool(drawn) and set(distribution.prefixes) == drawn.keys()
    probabilities = [drawn[prefix] for prefix in distribution.prefixes] if is_whole else None
    return distribution.model_copy(update={"probabilities": probabilities})


def _keep_precedents(content: AnswerContent) -> list[JsonObject] | None:
    return None if content.precedents is None else [one.model_dump(mode="json") for one in content.precedents]


def _find_shown(session: Session, consultation: ConsultationRow, expert: ExpertRow) -> Sequence[AnswerRow]:
    """The answers that the expert saw when it answered: a person at the desk sees all of the others' so far."""
    if not trust.is_people(expert):
        return session.scalars(select(AnswerRow).where(AnswerRow.id.in_(consultation.shown))).all()
    role = session.scalar(
        select(PersonRow.role)
        .join(CorrectionRow, CorrectionRow.person_id == PersonRow.id)
        .where(CorrectionRow.consultation_id == consultation.id)
    )
    rights = RIGHTS[Role(role)] if role else frozenset[Right]()
    return [row for row in current(session, consultation.rollout_id) if trust.may_see(rights, row)]


def view(row: AnswerRow, rights: frozenset[Right]) -> Answer:
    """The contract of a row, as a person with these rights may see it: without words that may quote metadata that is
    hidden from them."""
    answer = Answer.model_validate(row)
    if trust.may_see(rights, row):
        return answer
    return answer.model_copy(update={"feedback": None, "solution": None, "precedents": None, "evidence": None})


def current(session: Session, rollout_id: UUID) -> Sequence[AnswerRow]:
    """The answers about a rollout that were not withdrawn, oldest first."""
    return session.scalars(
        select(AnswerRow)
        .where(AnswerRow.rollout_id == rollout_id, AnswerRow.status == AnswerStatus.CURRENT.value)
        .order_by(AnswerRow.id)
    ).all()


def counting(session: Session, rollout_id: UUID) -> Sequence[AnswerRow]:
    """The answers about a rollout that may train now, oldest first."""
    return session.scalars(
        select(AnswerRow)
        .join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
        .where(AnswerRow.rollout_id == rollout_id, stands())
        .order_by(AnswerRow.id)
    ).all()


def stands() -> ColumnElement[bool]:
    """The condition on answers and their experts that an answer counts, and all that its expert was shown."""
    heard, heard_from = aliased(AnswerRow), aliased(ExpertRow)
    discounted = (
        select(heard.id)
        .join(ConsultationRow, heard.id == any_(ConsultationRow.shown))
        .join(heard_from, heard_from.id == heard.expert_id)
        .where(ConsultationRow.id == AnswerRow.consultation_id, ~trust.counts(heard, heard_from))
        .correlate(AnswerRow)
    )
    return trust.counts(AnswerRow, ExpertRow) & ~discounted.exists()


@dataclass(frozen=True)
class Verdict:
    """The verdict on a rollout as it is now. score: None where none of those that were given counts any more.

    judges: the answers it rests on.
    """

    score: float | None
    judges: tuple[UUID, ...]


def verdicts(session: Session, rollout_ids: Sequence[UUID]) -> dict[UUID, Verdict]:
    """The verdict on each rollout, of the answers that count now, whenever they came: a person's decision, or else the
    lowest score of the verifiers. A rollout that neither ever scored is left out."""
    rows = session.execute(
        select(AnswerRow.rollout_id, AnswerRow.id, AnswerRow.score, trust.is_people(ExpertRow), stands())
        .join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
        .where(AnswerRow.rollout_id.in_(rollout_ids), AnswerRow.score.is_not(None), trust.is_judge(ExpertRow))
        .order_by(AnswerRow.id)
    ).all()
    said: dict[UUID, list[tuple[UUID, float, bool]]] = {rollout_id: [] for rollout_id, *_ in rows}
    for rollout_id, answer_id, score, by_person, counted in rows:
        if counted and score is not None:
            said[rollout_id].append((answer_id, score, by_person))
    return {rollout_id: _judge(scores) for rollout_id, scores in said.items()}


def _judge(said: Sequence[tuple[UUID, float, bool]]) -> Verdict:
    """said: the answers that count, oldest first, with their scores and whether a person gave them."""
    decided = [(answer_id, score) for answer_id, score, by_person in said if by_person]
    if decided:
        answer_id, score = decided[-1]
        return Verdict(score, (answer_id,))
    return Verdict(min((score for _, score, _ in said), default=None), tuple(answer_id for answer_id, *_ in said))


def trace(session: Session, answer_ids: Sequence[UUID]) -> dict[UUID, list[Trace]]:
    """The answers that each answer rests on: those its expert was shown, those shown to their experts, and so on."""
    shown: dict[UUID, list[Trace]] = {}
    asked = set(answer_ids)
    while asked:
        heard = aliased(AnswerRow)
        rows = session.execute(
            select(AnswerRow.id, heard, ExpertRow)
            .join(ConsultationRow, ConsultationRow.id == AnswerRow.consultation_id)
            .join(heard, heard.id == any_(ConsultationRow.shown))
            .join(ExpertRow, ExpertRow.id == heard.expert_id)
            .where(AnswerRow.id.in_(asked))
            .order_by(heard.id)
        )
        found: set[UUID] = set()
        for answer_id, said, expert in rows:
            shown.setdefault(answer_id, []).append(Trace(answer_id, said, expert))
            found.add(said.id)
        asked = found - shown.keys()
    return {answer_id: list(_follow(answer_id, shown)) for answer_id in answer_ids}


def _follow(answer_id: UUID, shown: Mapping[UUID, Sequence[Trace]]) -> Iterator[Trace]:
    for one in shown.get(answer_id, ()):
        yield one
        yield from _follow(one.answer.id, shown)


def name_speaker(answer: AnswerRow, expert: ExpertRow, shown_to: UUID | None = None) -> Speaker:
    """Who said this answer."""
    return Speaker(
        answer_id=answer.id,
        expert_id=expert.id,
        expert=expert.name,
        expert_version=answer.expert_version,
        shown_to=shown_to,
    )


def distribution(session: Session, answer_id: UUID) -> Distribution:
    """The answer's distribution. Errors: DistributionNotFound."""
    row = session.get(DistributionRow, answer_id)
    if row is None:
        raise DistributionNotFound(f"answer {answer_id} has no distribution")
    return distributions.unpack(row)


def content(session: Session, row: AnswerRow) -> AnswerContent:
    """The answer as the contract has it."""
    return AnswerContent.model_construct(
        score=row.score,
        feedback=None if row.feedback is None else Feedback.model_validate(row.feedback),
        solution=row.solution,
        precedents=None if row.precedents is None else [Precedent.model_validate(one) for one in row.precedents],
        distribution=None if row.distribution_kind is None else distribution(session, row.id),
        evidence=row.evidence,
    )
