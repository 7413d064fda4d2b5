"""Rollouts: the list, and one rollout with its answers and the update that used it."""

from typing import Annotated
from uuid import UUID

from fastapi import Query
from starlette.responses import Response

from services.acts import answers
from services.api.deps import SettingsDep, StoreDep
from services.contracts.persons import Right
from services.contracts.rollouts import Purpose, RolloutStatus
from services.store.ledger import policies
from services.store.loop import lineages, rollouts
from services.store.tables.loop import GroupRow
from services.store.views import browse, heat_map, rollout_story
from services.store.views.heat_map import HOTTEST, MAX_TOKENS
from services.web.forms import build_pages
from services.web.lists import Chosen, RowsDep, list_path
from services.web.visitors import CallDep, VisitorDep, go_to, needs, page

NUM_VERSIONS = 50  # in the filter, the newest

router = build_pages()


@router.get("/rollouts", dependencies=[needs(Right.READ)])
def show_rollouts(
    visitor: VisitorDep,
    store: StoreDep,
    settings: SettingsDep,
    paging: RowsDep,
    status: Chosen[RolloutStatus] = None,
    purpose: Chosen[Purpose] = None,
    version: Chosen[str] = None,
    task_id: Chosen[UUID] = None,
    group_id: Chosen[UUID] = None,
) -> Response:
    """Rollouts, newest first. Errors: LineageNotFound (404), BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        found = browse.list_rollouts(
            session,
            lineage.id,
            visitor.caller.rights,
            task_id=task_id,
            group_id=group_id,
            status=status,
            purpose=purpose,
            policy_version=version,
            cursor=paging.cursor,
            limit=paging.limit,
        )
        group = None if group_id is None else session.get(GroupRow, group_id)
        versions = [row.name for row in policies.newest(session, lineage.id, before=None, limit=NUM_VERSIONS)]
    return page(
        visitor,
        "rollouts/list.html",
        rollouts=found,
        group=group,
        path=list_path(
            "/rollouts", status=status, purpose=purpose, version=version, task_id=task_id, group_id=group_id
        ),
        statuses=[*RolloutStatus],
        purposes=[*Purpose],
        versions=versions,
        chosen={"status": status, "purpose": purpose, "version": version, "task_id": task_id, "group_id": group_id},
    )


@router.get("/rollouts/{rollout_id}", dependencies=[needs(Right.READ)])
def show_rollout(
    rollout_id: UUID, visitor: VisitorDep, store: StoreDep, start: Annotated[int, Query(ge=0, le=2**20)] = 0
) -> Response:
    """One rollout; of a long one the tokens from `start` on. Errors: RolloutNotFound (404)."""
    with store.reading() as session:
        row = rollouts.get(session, rollout_id)
        rights = visitor.caller.rights
        story = rollout_story.read(session, row, rights)
        heat = heat_map.read(session, row, start // MAX_TOKENS * MAX_TOKENS, rights=rights)
    return page(visitor, "rollouts/one.html", story=story, heat=heat, page_size=MAX_TOKENS, hottest=HOTTEST)


@router.post("/answers/{answer_id}/withdraw", dependencies=[needs(Right.OPERATE)])
def withdraw_answer(answer_id: UUID, visitor: VisitorDep, call: CallDep) -> Response:
    """Withdraw an answer permanently. Errors: AnswerNotFound (404), IllegalStatusChange (409)."""
    withdrawn = answers.withdraw(call, answer_id)
    notice = "The answer is withdrawn and no longer trained on."
    return go_to(visitor, f"/rollouts/{withdrawn.rollout_id}", notice=notice)
