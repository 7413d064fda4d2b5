"""A task of reasoning-gym all the way: imported, drawn, judged over HTTP by its verifier, a lesson."""

import pytest
from sqlalchemy import select

from services.cli.commands import reasoning
from services.experts.own.reasoning_gym import ReasoningGymExpert, write_answer
from services.experts.protocol.app import create_expert_app
from services.jobs.app import app
from services.jobs.consult import consult
from services.jobs.runtime import runtime
from services.store.core.transaction import Store
from services.store.loop import tasks
from services.store.tables.ledger import LessonRow
from services.store.tables.loop import AnswerRow, ConsultationRow
from tests.serving import serve
from tests.store.conftest import World

pytestmark = pytest.mark.integration


def test_an_imported_question_is_judged_and_becomes_a_lesson(
    store: Store, world: World, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRECEPTOR_DATABASE_URL", database_url)
    monkeypatch.setenv("PRECEPTOR_REDIS_URL", redis_url)
    monkeypatch.setattr(app.conf, "broker_url", redis_url)
    runtime.cache_clear()
    expert = ReasoningGymExpert()
    [task] = reasoning.make_tasks(reasoning.parse("reasoning-gym:chain_sum?size=1&heldout=0"))
    right = str(task.metadata["reference"])
    with serve(create_expert_app(expert)) as endpoint:
        with store.transaction() as session:
            row = tasks.add(session, world.lineage_id, task)[0]
            registered = world.expert(
                session, "reasoning-gym", metadata_keys=("reasoning_gym",), granted=("reasoning_gym",)
            )
            registered.endpoint = endpoint
            registered.descriptor = expert.descriptor.model_dump(mode="json")
            drawn = world.drawn(session, row)
            for rollout, text in zip(drawn, (right, write_answer("no")), strict=True):
                rollout.text = text
            ids = [str(i) for i in session.scalars(select(ConsultationRow.id))]
        consult(ids)
        with store.transaction() as session:
            scores = session.scalars(select(AnswerRow.score).order_by(AnswerRow.score)).all()
            assert scores == [0.0, 1.0]
            assert len(session.scalars(select(LessonRow)).all()) == 2
    runtime().close()
