"""Erasing what a person wrote: the text is nowhere in the database, its hashes and numbers are, and nothing trains."""

import hashlib
from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import select, text

from services.contracts.answers import AnswerKind
from services.contracts.base import Json, JsonObject
from services.contracts.experts import Ask, ConsultResult, ContextAnswer
from services.contracts.ids import new_id
from services.contracts.persons import Role
from services.contracts.updates import TermKind, TermRecord
from services.store import consultations, erasing, lessons, logins, passwords, updates
from services.store.models import (
    AnswerRow,
    ApiKeyRow,
    Base,
    CorrectionRow,
    ErasedTextRow,
    ExpertRow,
    IdempotencyRow,
    LessonRow,
    LoginSessionRow,
    PasswordRow,
    PersonRow,
    RolloutRow,
    UpdateLessonRow,
    UpdateRow,
)
from services.store.store import Store
from tests.api.conftest import Api, made, refused
from tests.store.conftest import World

pytestmark = pytest.mark.integration

HUMAN = (AnswerKind.SCORE, AnswerKind.FEEDBACK, AnswerKind.SOLUTION)
SAID = ("zebra crossing", "because of the zebra", "no zebra today")


@pytest.fixture
def ann(someone: Callable[[str, Role], Api]) -> Api:
    """The annotator who will be erased."""
    return someone("ann", Role.ANNOTATOR)


@pytest.fixture
def corrected(api: Api, ann: Api, store: Store, world: World) -> UUID:
    """One correction by ann, one item she skipped and one she holds; her id."""
    with store.transaction() as session:
        world.expert(session, "human", kinds=HUMAN, verifier=False).group_fraction = 0
        world.expert(session, "judge")
        rollouts = world.drawn(session, world.task(session), size=3)
        ids = consultations.pending_of(session, [rollout.id for rollout in rollouts])
        questions = consultations.claim(session, ids, lease_seconds=60)
    with store.transaction() as session:
        for question in questions:
            consultations.settle(session, question, ConsultResult(score=0.0))
    for rollout in rollouts:
        made(api.post("/v1/corrections", {"rollout_id": str(rollout.id)}))
    first = made(ann.post("/v1/corrections/claim"))["id"]
    decision: JsonObject = {"verdict": "corrected", "text": SAID[0], "comment": SAID[1]}
    made(ann.post(f"/v1/corrections/{first}/submit", decision))
    second = made(ann.post("/v1/corrections/claim"))["id"]
    made(ann.post(f"/v1/corrections/{second}/skip", {"reason": SAID[2]}))
    made(ann.post("/v1/corrections/claim"))
    me = UUID(str(made(ann.get("/v1/persons/me"))["id"]))
    with store.transaction() as session:
        passwords.put(session, me, passwords.hash_password("ann", "correct horse battery"))
        logins.start(session, me, None, "192.0.2.1", "a browser")
    return me


def find_words(store: Store, word: str) -> dict[str, int]:
    """How many rows of which table hold the word, anywhere in them."""
    found = {}
    with store.transaction() as session:
        for name in Base.metadata.tables:
            holding = f'SELECT count(*) FROM "{name}" t WHERE t::text LIKE :word'  # noqa: S608 - our own names
            num = session.scalar(text(holding), {"word": f"%{word}%"})
            if num:
                found[name] = num
    return found


def correction_answer(store: Store) -> AnswerRow:
    with store.transaction() as session:
        query = select(AnswerRow).join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
        return session.scalars(query.where(ExpertRow.name == "human")).one()


def begin_update(store: Store, world: World, owner: UUID) -> UUID:
    """An update a trainer has begun on the late lesson, with the correction in its terms."""
    answer = correction_answer(store)
    with store.transaction() as session:
        held = lessons.claim(session, world.lineage_id, owner, num_groups=0, max_late=1, lease_seconds=60)
        row = updates.start(
            session,
            world.lineage_id,
            owner,
            objective="distil",
            settings={},
            parent_sha256=None,
            batch_sha256="b",
            lesson_ids=[lesson.id for lesson in held],
        )
        term = TermRecord(kind=TermKind.IMITATION, answers=[answer.id], weight=1.0, share=1.0)
        session.get_one(UpdateLessonRow, (row.id, held[0].id)).terms = [term.model_dump(mode="json")]
        return row.id


def contribution(store: Store, update_id: UUID) -> updates.Contribution:
    with store.transaction() as session:
        used = session.scalars(select(UpdateLessonRow).where(UpdateLessonRow.update_id == update_id)).one()
        return updates.Contribution(used.lesson_id, terms=tuple(TermRecord.model_validate(t) for t in used.terms))


def test_the_text_is_gone_from_every_table_and_its_hashes_stay(api: Api, store: Store, corrected: UUID) -> None:
    assert set(find_words(store, "zebra")) == {"correction", "answer", "idempotency"}
    before = made(api.get(f"/v1/persons/{corrected}/erasure"))
    assert before["is_done"] is False
    done = made(api.post(f"/v1/persons/{corrected}/erase"))
    assert done == before | {"is_done": True}
    assert (done["texts"], done["answers"]) == ({"answer": 2, "correction": 3}, 1)
    assert find_words(store, "zebra") == {}
    with store.transaction() as session:
        kept = session.scalars(select(ErasedTextRow)).all()
        hashes = {row.sha256 for row in kept}
        assert sum(row.num_chars for row in kept) == done["chars"]
    assert {hashlib.sha256(said.encode()).hexdigest() for said in SAID} <= hashes
    assert made(api.post(f"/v1/persons/{corrected}/erase")) == done
    assert made(api.get(f"/v1/persons/{corrected}/erasure")) == done


def test_the_person_is_a_pseudonym_and_can_log_in_no_more(api: Api, ann: Api, store: Store, corrected: UUID) -> None:
    made(api.post(f"/v1/persons/{corrected}/erase"))
    refused(ann.get("/v1/persons/me"), 401)
    with store.transaction() as session:
        person = session.get_one(PersonRow, corrected)
        assert person.name == f"erased-{corrected.hex[-12:]}"
        for table in (ApiKeyRow, LoginSessionRow, PasswordRow):
            assert session.scalars(select(table).where(table.person_id == corrected)).all() == []
        assert session.scalars(select(IdempotencyRow).where(IdempotencyRow.principal == str(corrected))).all() == []
        held = session.scalars(select(CorrectionRow.status).where(CorrectionRow.status == "claimed")).all()
        assert held == [], "what she held goes back to the queue"
    assert find_words(store, '"ann"') == {}
    refused(api.post("/v1/keys", {"name": "x", "person_id": str(corrected)}), 409)
    refused(api.post(f"/v1/persons/{corrected}/rotate-key"), 409)
    refused(api.post(f"/v1/persons/{corrected}/password-link"), 409)
    trail: list[Json] = made(api.get("/v1/audit", person_id=str(corrected)))["items"]  # type: ignore[assignment]
    assert [e["action"] for e in trail if isinstance(e, dict)][-1] == "corrections.claim"
    assert {e["address"] for e in trail if isinstance(e, dict)} == {None}


def test_numbers_stay(api: Api, store: Store, corrected: UUID) -> None:
    made(api.post(f"/v1/persons/{corrected}/erase"))
    answer = correction_answer(store)
    assert (answer.score, answer.solution, answer.feedback, answer.status) == (0.0, None, None, "withdrawn")
    with store.transaction() as session:
        decided = session.scalars(select(CorrectionRow).where(CorrectionRow.verdict.is_not(None))).one()
    assert (decided.verdict, decided.person_id, decided.text, decided.comment) == ("corrected", corrected, None, None)
    assert decided.decided_at is not None


def test_a_lesson_not_yet_used_never_trains_on_it(api: Api, store: Store, world: World, corrected: UUID) -> None:
    done = made(api.post(f"/v1/persons/{corrected}/erase"))
    assert done["lessons"] == 1
    with store.transaction() as session:
        late = session.scalars(select(LessonRow).where(LessonRow.late)).one()
        assert (late.status, late.reason) == ("withdrawn", erasing.REASON)
        tasks = session.scalars(text("SELECT id FROM task")).all()
        assert lessons.earlier_corrections(session, tasks) == []
        on_time = lessons.claim(session, world.lineage_id, new_id(), num_groups=9, max_late=9, lease_seconds=60)
        assert len(on_time) == 3, "what others said about the rollouts still trains"
        said = [answer for facts in lessons.load(session, on_time) for answer in facts.answers]
    assert {answer.expert for answer in said} == {"judge"}


def test_an_update_that_had_read_the_text_does_not_count(api: Api, store: Store, world: World, corrected: UUID) -> None:
    owner = new_id()
    begun = begin_update(store, world, owner)
    part = contribution(store, begun)
    made(api.post(f"/v1/persons/{corrected}/erase"))
    with pytest.raises(updates.LeaseLost), store.transaction() as session:
        updates.apply(session, begun, owner, checkpoint_sha256="c", metrics={}, contributions=[part])
    with store.transaction() as session:
        assert session.get_one(UpdateRow, begun).reason == erasing.REASON


def test_what_was_trained_is_said(api: Api, store: Store, world: World, corrected: UUID) -> None:
    owner = new_id()
    begun = begin_update(store, world, owner)
    with store.transaction() as session:
        updates.apply(
            session, begun, owner, checkpoint_sha256="c", metrics={}, contributions=[contribution(store, begun)]
        )
        session.execute(
            text(
                "INSERT INTO policy_version (id, lineage_id, number, name, status, artifact_sha256, update_number)"
                " SELECT gen_random_uuid(), id, 1, 'main-1', 'candidate', 'c', 1 FROM lineage"
            )
        )
    for report in (
        made(api.get(f"/v1/persons/{corrected}/erasure")),
        made(api.post(f"/v1/persons/{corrected}/erase")),
        made(api.get(f"/v1/persons/{corrected}/erasure")),
    ):
        assert report["updates"] == [{"lineage": "main", "number": 1}]
        assert report["policy_versions"] == ["main-1"]
        assert report["lessons"] == 0


def test_an_expert_that_was_shown_the_text_loses_its_answer_too(
    api: Api, store: Store, world: World, corrected: UUID
) -> None:
    with store.transaction() as session:
        teacher = world.expert(session, "teacher", kinds=(AnswerKind.FEEDBACK,), verifier=False, needs_answers=True)
        answer = session.scalars(select(AnswerRow).where(AnswerRow.solution.is_not(None))).one()
        rollout = consultations.get(session, answer.consultation_id).rollout_id
        shown = [ContextAnswer(expert="human", solution=SAID[0]), ContextAnswer(expert="judge", score=0.0)]
        ask = Ask(kinds=[AnswerKind.FEEDBACK], context=shown)
        question = consultations.open_one(session, session.get_one(RolloutRow, rollout), teacher, 2, ask)
        consultation_id = question.id
        session.add(
            AnswerRow(
                lineage_id=world.lineage_id,
                consultation_id=consultation_id,
                rollout_id=rollout,
                split="train",
                expert_id=teacher.id,
                expert_version="1",
                feedback={"text": "say zebra crossing"},
            )
        )
    done = made(api.post(f"/v1/persons/{corrected}/erase"))
    assert done["answers"] == 2
    assert find_words(store, "zebra") == {}
    with store.transaction() as session:
        left = consultations.get(session, consultation_id).ask["context"]
    assert [said["expert"] for said in left if isinstance(said, dict)] == ["judge"]  # type: ignore[union-attr]


def test_the_last_owner_is_not_erased_and_nobody_but_an_owner_erases(
    api: Api, ann: Api, person_id: UUID, corrected: UUID
) -> None:
    refused(ann.post(f"/v1/persons/{corrected}/erase"), 403)
    refused(ann.get(f"/v1/persons/{corrected}/erasure"), 403)
    refused(api.post(f"/v1/persons/{person_id}/erase"), 409)
    assert api.get("/v1/persons/me").status_code == 200
    refused(api.post(f"/v1/persons/{new_id()}/erase"), 404)


def test_a_person_who_wrote_nothing_can_be_erased(api: Api, store: Store, someone: Callable[[str, Role], Api]) -> None:
    ben = UUID(str(made(someone("ben", Role.ANNOTATOR).get("/v1/persons/me"))["id"]))
    done = made(api.post(f"/v1/persons/{ben}/erase"))
    assert (done["texts"], done["chars"], done["updates"]) == ({}, 0, [])
