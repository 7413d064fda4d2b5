"""Lessons: rollouts with the answers that may train them, and why some never do."""

from uuid import UUID

from services.api.auth import needs
from services.api.deps import PagingDep, SettingsDep, StoreDep
from services.api.routes.common import build_router, problems
from services.contracts.base import Page
from services.contracts.lessons import Lesson, LessonStatus
from services.contracts.persons import Right
from services.store.loop import lineages
from services.store.views import browse

router = build_router("lessons")


@router.get("/lessons", dependencies=[needs(Right.READ)], responses=problems(422))
def list_lessons(
    store: StoreDep,
    settings: SettingsDep,
    paging: PagingDep,
    status: LessonStatus | None = None,
    rollout_id: UUID | None = None,
) -> Page[Lesson]:
    """Lessons with their status and its reason, newest first. Errors: BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        return browse.list_lessons(
            session, lineage.id, status=status, rollout_id=rollout_id, cursor=paging.cursor, limit=paging.limit
        )
