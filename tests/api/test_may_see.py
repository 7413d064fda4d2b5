"""What callers without the right to a task's metadata see of what experts made of it."""

from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import select, update

from services.contracts.answers import AnswerKind, Feedback
from services.contracts.experts import ConsultResult
from services.contracts.persons import RIGHTS, Role
from services.contracts.rollouts import Purpose
from services.contracts.sources import ContextSource
from services.store.core.transaction import Store
from services.store.loop import consultations, rollouts, settling
from services.store.tables.loop import AttemptRow, ConsultationRow, ExpertRow
from services.store.views import heat_map
from tests.api.conftest import Api, items, made
from tests.store.conftest import World, show

pytestmark = pytest.mark.integration

QUOTED = "the hidden case returned 41"


@pytest.fixture
def judged(store: Store, world: World) -> UUID:
    """A rollout that a judge with a grant and a critic without one have said something about."""
    with store.transaction() as session:
        world.expert(session, "judge", metadata_keys=("answer",), granted=("answer",))
        world.expert(session, "critic", kinds=(AnswerKind.FEEDBACK,), verifier=False)
        world.expert(session, "human", kinds=(AnswerKind.SOLUTION,), verifier=False).group_fraction = 0
        [rollout] = world.drawn(session, world.task(session), size=1)
        ids = session.scalars(select(ConsultationRow.id)).all()
        questions = consultations.claim(session, ids, lease_seconds=60)
    for question in questions:
        words = Feedback(text="too long")
        said = ConsultResult(feedback=words)
        if question.expert_name == "judge":
            words = Feedback(text=QUOTED)
            said = ConsultResult(score=0.0, feedback=words, solution=QUOTED, evidence={"got": QUOTED})
        with store.transaction() as session:
            settling.settle(session, question, said)
    return rollout.id


@pytest.mark.parametrize("role", [Role.ANNOTATOR, Role.SERVICE])
def test_words_that_may_quote_metadata_are_null_for_who_may_not_read_metadata(
    api: Api, someone: Callable[[str, Role], Api], judged: UUID, role: Role
) -> None:
    path = f"/v1/rollouts/{judged}/answers"
    assert QUOTED in str(items(api.get(path)))
    assert QUOTED in str(items(someone("olga", Role.OPERATOR).get(path)))
    critic, judge = items(someone("sam", role).get(path))
    assert (judge["feedback"], judge["solution"], judge["evidence"], judge["score"]) == (None, None, None, 0)
    assert "too long" in str(critic["feedback"])


@pytest.mark.parametrize("role", [Role.ANNOTATOR, Role.SERVICE])
def test_reasons_that_may_quote_metadata_are_null_for_who_may_not_read_metadata(
    api: Api, someone: Callable[[str, Role], Api], judged: UUID, store: Store, role: Role
) -> None:
    with store.transaction() as session:
        session.execute(update(ExpertRow).values(status="quarantined", reason=f"answers 500: {QUOTED}"))
        session.execute(update(ConsultationRow).values(reason=QUOTED))
        session.execute(update(AttemptRow).values(reason=QUOTED))
        judge, critic = (
            session.execute(
                select(ConsultationRow.id, ExpertRow.id)
                .join(ExpertRow, ExpertRow.id == ConsultationRow.expert_id)
                .where(ExpertRow.name == name)
            ).one()
            for name in ("judge", "critic")
        )
    told = [f"/v1/consultations/{judge[0]}", f"/v1/consultations?expert_id={judge[1]}", f"/v1/experts/{judge[1]}"]
    other = someone("sam", role)
    for path in told:
        assert QUOTED in api.get(path).text, path
        assert QUOTED not in other.get(path).text, path
    for path in (f"/v1/consultations/{critic[0]}", f"/v1/rollouts/{judged}/consultations", "/v1/experts"):
        assert QUOTED in other.get(path).text, f"the critic was given nothing: {path}"
    of_rollout = items(other.get(f"/v1/rollouts/{judged}/consultations"))
    assert {one["expert_name"]: one["reason"] for one in of_rollout} == {"judge": None, "critic": QUOTED}


def test_an_owners_key_that_is_narrowed_to_reading_does_not_read_them(api: Api, judged: UUID) -> None:
    key = made(api.post("/v1/keys", {"name": "ci", "scopes": ["read"]}))["api_key"]
    assert QUOTED not in str(items(Api(api.http, str(key)).get(f"/v1/rollouts/{judged}/answers")))


def test_an_annotators_item_has_no_words_that_may_quote_metadata(
    api: Api, someone: Callable[[str, Role], Api], judged: UUID
) -> None:
    item = made(api.post("/v1/corrections", {"rollout_id": str(judged)}))["id"]
    assert QUOTED in str(made(api.post(f"/v1/corrections/{item}/claim"))["opinions"])
    made(api.post(f"/v1/corrections/{item}/release"))
    opinions = made(someone("ann", Role.ANNOTATOR).post(f"/v1/corrections/{item}/claim"))["opinions"]
    assert QUOTED not in str(opinions)
    assert "too long" in str(opinions)


def test_what_a_teacher_drew_shows_what_it_was_shown_to_who_may_read_it(
    api: Api, someone: Callable[[str, Role], Api], store: Store, world: World
) -> None:
    with store.transaction() as session:
        plain, after_key = world.drawn(
            session, world.task(session), 2, context=show(ContextSource.REFERENCE, words=QUOTED), num_shown=1
        )
        _, after_own = world.drawn(
            session, world.task(session), 2, context=show(ContextSource.OWN_SUCCESS, words="ours"), num_shown=1
        )
    reader = someone("sam", Role.SERVICE)
    for caller, sees in ((api, True), (reader, False)):
        found = made(caller.get(f"/v1/rollouts/{after_key.id}"))
        assert (found["shown"], found["prompt_token_ids"], bool(found["text"])) == (True, [7] if sees else None, sees)
        assert (QUOTED in str(found["shown_after"])) is sees
        assert "reference" in str(found["shown_after"])
        listed = {one["id"]: one for one in items(caller.get("/v1/rollouts"))}
        assert bool(listed[str(after_key.id)]["text"]) is sees
        assert [listed[str(row.id)]["shown"] for row in (plain, after_key, after_own)] == [False, True, True]
    assert "ours" in str(made(reader.get(f"/v1/rollouts/{after_own.id}"))["shown_after"])
    assert made(reader.get(f"/v1/rollouts/{plain.id}"))["shown_after"] is None


def test_prompt_and_words_of_a_probe_that_was_shown_the_reference_are_for_who_may_read_it(
    api: Api, someone: Callable[[str, Role], Api], store: Store, world: World
) -> None:
    with store.transaction() as session:
        [plain] = world.drawn(session, world.task(session), size=1, purpose=Purpose.PROBE)
        context = show(ContextSource.REFERENCE)
        [shown] = world.drawn(session, world.task(session), 1, Purpose.PROBE, context=context, num_shown=1)
    reader = someone("sam", Role.SERVICE)
    for caller, rollout, prompt in ((api, shown, [7]), (reader, plain, [7]), (reader, shown, None)):
        found = made(caller.get(f"/v1/rollouts/{rollout.id}"))
        assert found["prompt_token_ids"] == prompt
        listed = {one["id"]: one["text"] for one in items(caller.get("/v1/rollouts"))}[found["id"]]
        assert bool(found["text"]) == bool(found["token_ids"]) == bool(listed) == (prompt is not None)
    with store.transaction() as session:
        row = rollouts.get(session, shown.id)
        assert heat_map.read(session, row).tokens
        assert not heat_map.read(session, row, rights=RIGHTS[Role.SERVICE]).tokens
