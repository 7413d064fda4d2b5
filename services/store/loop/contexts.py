"""Contexts of draws: what the teacher was shown that drew some of a group's rollouts.

Their words may quote metadata of a task, at second hand too, and so may the rollouts drawn after them. Who may not read
that metadata sees neither, and no expert from outside that was not granted it is asked about such a rollout.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Select, Text, cast, exists, func, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerStatus
from services.contracts.consultations import ConsultationStatus
from services.contracts.rollouts import GroupStatus, RolloutStatus
from services.contracts.sources import ContextSource, ShownContext
from services.store.core.id_lists import Ids, listed
from services.store.loop import trust
from services.store.tables.loop import AnswerRow, ConsultationRow, ExpertRow, GroupRow, RolloutRow

WITHDRAWN = "what its teacher was shown was withdrawn"
WITHOUT_METADATA = frozenset({ContextSource.OWN_SUCCESS, ContextSource.NOTHING})
"""Sources that show only what the policy wrote after the plain prompt; the verdicts behind it are not shown."""


def prepare(session: Session, context: ShownContext) -> ShownContext:
    """The context as a new group keeps it: with the metadata keys that its messages may quote, of whichever task, and
    without the messages if an answer behind them was withdrawn meanwhile.

    Holds the answers until the transaction ends, so that whoever withdraws one finds the group.
    """
    behind = select(AnswerRow.status, AnswerRow.derived_from).where(AnswerRow.id.in_(context.answers))
    said = session.execute(behind.order_by(AnswerRow.id).with_for_update(read=True)).all()
    keys = {key for _, derived_from in said for key in derived_from}
    if context.source is ContextSource.REFERENCE:
        keys.add("reference")
    stands = all(status == AnswerStatus.CURRENT.value for status, _ in said)
    quotes = [] if context.source in WITHOUT_METADATA else sorted(keys)
    return context.model_copy(update={"quotes": quotes, "messages": context.messages if stands else []})


def still_counts(session: Session, context: ShownContext) -> bool:
    """Whether every answer behind this context may still train (`trust.counts`): no expert was paused, sent back to
    probation or given no weight since it was made."""
    counted = (
        select(func.count())
        .select_from(AnswerRow)
        .join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
        .where(AnswerRow.id.in_(context.answers), trust.counts(AnswerRow, ExpertRow))
    )
    return session.scalars(counted).one() == len(set(context.answers))


def quoted_in(session: Session, rollout: RolloutRow) -> list[str]:
    """The metadata keys that a rollout may quote, because the teacher that drew it was shown them."""
    context = of_group(session, rollout.group_id) if rollout.shown else None
    return [] if context is None else context.quotes


def of_group(session: Session, group_id: UUID) -> ShownContext | None:
    """The context of a group; None where the policy alone draws."""
    content = session.get_one(GroupRow, group_id).context
    return None if content is None else ShownContext.model_validate(content)


def made_of(answers: Ids) -> Select[UUID]:
    """The groups whose contexts were made of some of these answers."""
    gone = answers.subquery("gone")
    behind = GroupRow.context["answers"].contains(func.jsonb_build_array(cast(gone.c.id, Text)))
    return select(GroupRow.id).where(GroupRow.context.is_not(None), exists(select(gone.c.id).where(behind)))


def shown_in(groups: Ids) -> Select[UUID]:
    """The rollouts of these groups that their teachers drew."""
    return select(RolloutRow.id).where(RolloutRow.group_id.in_(groups), RolloutRow.shown)


def withdraw(session: Session, answers: Ids) -> Sequence[UUID]:
    """Delete the words of contexts made of these answers, and what teachers drew after them: it may repeat the words.

    The policy draws a group alone that is still planned; a probe ends. Call this after the answers are withdrawn, so
    that no group is planned with them meanwhile. Returns the answers about what was drawn, which are the caller's to
    withdraw, as are its lessons.
    """
    ids = session.scalars(made_of(answers).order_by(GroupRow.id).with_for_update()).all()
    if not ids:
        return []
    groups = listed(ids)
    drawn = session.scalars(shown_in(groups).order_by(RolloutRow.id).with_for_update()).all()
    is_probe = GroupRow.num_shown == GroupRow.size
    planned = GroupRow.status.in_([GroupStatus.PENDING.value, GroupStatus.ASKED.value])
    unsettled = (ConsultationStatus.PENDING.value, ConsultationStatus.ASKED.value, ConsultationStatus.WAITING.value)
    of_groups = update(GroupRow).where(GroupRow.id.in_(groups))
    of_rollouts = update(RolloutRow).where(RolloutRow.id.in_(listed(drawn)))
    probes = select(GroupRow.id).where(GroupRow.id.in_(groups), is_probe)
    for step in (
        of_groups.values(context=func.jsonb_set(GroupRow.context, ["messages"], cast([], JSONB))),
        of_groups.where(planned, is_probe).values(status=GroupStatus.DEAD.value, reason=WITHDRAWN, lease_until=None),
        of_groups.where(planned, ~is_probe).values(
            status=GroupStatus.PENDING.value, lease_until=None, sent_at=None, reason=WITHDRAWN
        ),
        of_rollouts.where(RolloutRow.group_id.in_(probes)).values(prompt_token_ids=[]),
        of_rollouts.values(text="", token_ids=[], action_mask=[], turns=None, answer_start=0),
        of_rollouts.where(RolloutRow.status != RolloutStatus.SET_ASIDE.value).values(
            status=RolloutStatus.SET_ASIDE.value,
            reason=WITHDRAWN,
            settled_at=func.coalesce(RolloutRow.settled_at, func.now()),
        ),
        update(ConsultationRow)
        .where(ConsultationRow.rollout_id.in_(listed(drawn)), ConsultationRow.status.in_(unsettled))
        .values(status=ConsultationStatus.DEAD.value, reason=WITHDRAWN, lease_until=None, settled_at=func.now()),
    ):
        session.execute(step.execution_options(synchronize_session=False))
    return session.scalars(select(AnswerRow.id).where(AnswerRow.rollout_id.in_(listed(drawn)))).all()
