"""Contexts of draws: what the teacher was shown that drew some of a group's rollouts.

Their words may quote metadata of a task, at second hand too, and so may the rollouts drawn after them. Who may not read
that metadata sees neither, and no expert from outside that was not granted it is asked about such a rollout.
"""

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.contracts.sources import ContextSource, ShownContext
from services.store.tables.loop import AnswerRow, GroupRow, RolloutRow

WITHOUT_METADATA = frozenset({ContextSource.OWN_SUCCESS, ContextSource.NOTHING})
"""Sources that show only what the policy wrote after the plain prompt; the verdicts behind it are not shown."""


def find_quotes(session: Session, context: ShownContext) -> list[str]:
    """The metadata keys that the messages of a context may quote, of whichever task."""
    if context.source in WITHOUT_METADATA:
        return []
    said = session.scalars(select(AnswerRow.derived_from).where(AnswerRow.id.in_(context.answers)))
    keys = {key for each in said for key in each}
    if context.source is ContextSource.REFERENCE:
        keys.add("reference")
    return sorted(keys)


def quoted_in(session: Session, rollout: RolloutRow) -> list[str]:
    """The metadata keys that a rollout may quote, because the teacher that drew it was shown them."""
    context = of_group(session, rollout.group_id) if rollout.shown else None
    return [] if context is None else context.quotes


def of_group(session: Session, group_id: UUID) -> ShownContext | None:
    """The context of a group; None where the policy alone draws."""
    content = session.get_one(GroupRow, group_id).context
    return None if content is None else ShownContext.model_validate(content)
