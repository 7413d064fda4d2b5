"""Erasing what a person wrote: the text is nowhere in the database, its hashes and numbers are, and nothing trains."""

import hashlib
from collections.abc import Callable, Iterator, Sized
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import Engine, event, select, text

from services.contracts.answers import AnswerKind, Feedback
from services.contracts.base import Json, JsonObject
from services.contracts.experts import Ask, ConsultAbstain, ConsultLater, ConsultResult, ContextAnswer
from services.contracts.ids import new_id
from services.contracts.persons import Role
from services.contracts.rollouts import Purpose, Sampling
from services.contracts.sources import ContextSource
from services.contracts.updates import TermKind, TermRecord
from services.store.core.transaction import Store
from services.store.corrections import effects
from services.store.ledger import lesson_facts, lessons, updates
from services.store.ledger.distributions import TopK
from services.store.loop import consultations, experts, groups, settling
from services.store.loop.consultations import ClaimedConsultation
from services.store.people import erasing, logins, passwords
from services.store.tables.corrections import CorrectionRow, EffectRow
from services.store.tables.housekeeping import IdempotencyRow
from services.store.tables.ledger import LessonRow, TeacherChoicesRow, UpdateLessonRow, UpdateRow
from services.store.tables.loop import AnswerRow, ConsultationRow, ExpertRow, GroupRow, RolloutRow
from services.store.tables.people import ApiKeyRow, ErasedTextRow, LoginSessionRow, PasswordRow, PersonRow
from services.store.tables.schema import METADATA
from services.store.teaching.material import find_fixed
from tests.api.conftest import Api, made, refused
from tests.rows import start_update
from tests.store.conftest import World, show

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
            settling.settle(session, question, ConsultResult(score=0.0))
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
        for name in METADATA.tables:
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
        held = lessons.claim(session, world.lineage_id, owner, num_rollouts=0, max_late=1, lease_seconds=60)
        row = start_update(session, world.lineage_id, owner, [lesson.id for lesson in held])
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


def test_what_teachers_drew_that_were_shown_a_correction_goes_with_it(
    api: Api, store: Store, world: World, corrected: UUID
) -> None:
    behind = correction_answer(store).id
    context = show(ContextSource.CORRECTION, behind, words=SAID[0])
    with store.transaction() as session:
        task = world.task(session)
        [own, shown] = world.drawn(session, task, 2, context=context, num_shown=1)
        [probe] = world.drawn(session, task, 1, Purpose.PROBE, context=context, num_shown=1)
        shown.text = probe.text = SAID[0]
        [question] = consultations.claim(session, consultations.pending_of(session, [shown.id]), lease_seconds=60)
        planned = groups.add(
            session, task, purpose=Purpose.TRAIN, size=2, sampling=Sampling(), context=context, num_shown=1
        )
        probed = groups.add(
            session, task, purpose=Purpose.PROBE, size=1, sampling=Sampling(), context=context, num_shown=1
        )
    with store.transaction() as session:
        settling.settle(session, question, ConsultResult(score=1.0, feedback=Feedback(text=SAID[0])))
        assert session.scalars(select(LessonRow.status).where(LessonRow.rollout_id == shown.id)).all() == ["ready"]
    before = made(api.get(f"/v1/persons/{corrected}/erasure"))
    done = made(api.post(f"/v1/persons/{corrected}/erase"))
    assert done == before | {"is_done": True}
    assert done["texts"] == {"answer": 3, "correction": 3, "rollout": 2, "rollout_group": 4}
    assert find_words(store, "zebra") == {}
    with store.transaction() as session:
        gone = [session.get_one(RolloutRow, row.id) for row in (shown, probe)]
        assert [(row.status, row.text, row.token_ids) for row in gone] == [("set_aside", "", [])] * 2
        assert [row.prompt_token_ids for row in gone] == [[7], []]
        assert session.scalars(select(LessonRow.status).where(LessonRow.rollout_id == shown.id)).all() == ["withdrawn"]
        assert session.get_one(RolloutRow, own.id).text == "answer 0"
        asked = session.scalars(select(ConsultationRow.status).where(ConsultationRow.rollout_id == probe.id))
        assert asked.all() == ["dead"]
        [draw] = groups.claim(session, [planned.id, probed.id], lease_seconds=60)
        assert (draw.group_id, draw.context and draw.context.messages) == (planned.id, [])
        assert session.get_one(GroupRow, probed.id).status == "dead"


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
        assert not any(find_fixed(session, world.lineage_id, tasks).values())
        on_time = lessons.claim(session, world.lineage_id, new_id(), num_rollouts=72, max_late=9, lease_seconds=60)
        assert len(on_time) == 3, "what others said about the rollouts still trains"
        said = [answer for facts in lesson_facts.load(session, on_time) for answer in facts.answers]
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


@pytest.mark.parametrize("how", ["as a precedent", "by what its teacher drew"])
def test_what_a_correction_taught_about_another_task_is_said_and_forgotten(
    api: Api, store: Store, world: World, corrected: UUID, how: str
) -> None:
    behind, owner = correction_answer(store).id, new_id()
    with store.transaction() as session:
        context = show(ContextSource.PRECEDENTS, behind, words=SAID[0]) if how != "as a precedent" else None
        rollouts = world.drawn(session, world.task(session, "other"), 2, context=context, num_shown=int(bool(context)))
        ids = consultations.pending_of(session, [rollout.id for rollout in rollouts])
        questions = consultations.claim(session, ids, lease_seconds=60)
    with store.transaction() as session:
        for question in questions:
            settling.settle(session, question, ConsultResult(score=1.0))
        used = session.scalars(
            select(LessonRow).where(LessonRow.rollout_id.in_([row.id for row in rollouts])).order_by(LessonRow.id)
        ).all()
        own, shown = sorted(used, key=lambda lesson: session.get_one(RolloutRow, lesson.rollout_id).shown)
        lessons.claim(session, world.lineage_id, owner, num_rollouts=72, max_late=0, lease_seconds=60)
        row = start_update(session, world.lineage_id, owner, [own.id, shown.id])
        verdicts = select(AnswerRow.id).where(AnswerRow.rollout_id == own.rollout_id)
        other = session.scalars(verdicts).first() or new_id()
        choices = TopK(np.array([[1]], np.int32), np.array([[0.0]]), np.array([0.0]))
        contributions = [
            updates.Contribution(
                lesson.id,
                terms=(TermRecord(kind=TermKind.CONDITIONED, answers=said, weight=1.0, share=0.5),),
                choices=choices,
            )
            for lesson, said in ((own, [other]), (shown, [behind]))
        ]
        updates.apply(session, row.id, owner, checkpoint_sha256="c", metrics={}, contributions=contributions)
    for report in (
        made(api.get(f"/v1/persons/{corrected}/erasure")),
        made(api.post(f"/v1/persons/{corrected}/erase")),
    ):
        assert report["updates"] == [{"lineage": "main", "number": 1}]
    with store.transaction() as session:
        assert session.scalars(select(TeacherChoicesRow.lesson_id)).all() == [own.id], "no other teacher was shown it"
        [group] = session.scalars(select(GroupRow).where(GroupRow.id == rollouts[0].group_id))
        assert group.context is None or group.context["messages"] == []
    assert find_words(store, "zebra") == {}


def test_an_expert_that_was_shown_the_text_loses_its_answer_too(
    api: Api, store: Store, world: World, corrected: UUID
) -> None:
    with store.transaction() as session:
        teacher = world.expert(session, "teacher", kinds=(AnswerKind.FEEDBACK,), verifier=False, needs_answers=True)
        answer = session.scalars(select(AnswerRow).where(AnswerRow.solution.is_not(None))).one()
        rollout = consultations.get(session, answer.consultation_id).rollout_id
        shown = [ContextAnswer(expert="human", solution=SAID[0]), ContextAnswer(expert="judge", score=0.0)]
        ask = Ask(kinds=[AnswerKind.FEEDBACK], context=shown)
        judged = session.scalars(select(AnswerRow.id).where(AnswerRow.solution.is_(None))).first() or new_id()
        on = session.get_one(RolloutRow, rollout)
        question = consultations.open_one(session, on, teacher, 2, ask, shown=[answer.id, judged])
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


def decide_early(api: Api, ann: Api, store: Store, world: World, key: str) -> tuple[str, UUID]:
    """An item ann decided before the judge answered, and its rollout: a reader is shown what she wrote, and is not
    asked yet."""
    with store.transaction() as session:
        if not session.scalars(select(ExpertRow).where(ExpertRow.name == "reader")).all():
            world.expert(session, "reader", kinds=(AnswerKind.FEEDBACK,), verifier=False, needs_answers=True)
        [rollout] = world.drawn(session, world.task(session, key), size=1)
        ids = consultations.pending_of(session, [rollout.id])
        questions = consultations.claim(session, ids, lease_seconds=60)
    item = str(made(api.post("/v1/corrections", {"rollout_id": str(rollout.id)}))["id"])
    made(ann.post(f"/v1/corrections/{item}/claim"))
    decision: JsonObject = {"verdict": "corrected", "text": f"zebra of {key}", "comment": SAID[1]}
    made(ann.post(f"/v1/corrections/{item}/submit", decision))
    with store.transaction() as session:
        for question in questions:
            settling.settle(session, question, ConsultResult(score=0.0))
    return item, rollout.id


def ask_reader(store: Store, rollout_id: UUID) -> ClaimedConsultation:
    with store.transaction() as session:
        [question] = consultations.claim(session, consultations.pending_of(session, [rollout_id]), lease_seconds=60)
    assert "zebra" in question.request.model_dump_json()
    return question


def test_nothing_is_left_where_somebody_else_has_the_item_now(
    api: Api, ann: Api, store: Store, world: World, corrected: UUID, someone: Callable[[str, Role], Api]
) -> None:
    ben = someone("ben", Role.ANNOTATOR)
    item, _ = decide_early(api, ann, store, world, "a")
    made(ann.post(f"/v1/corrections/{item}/undo"))
    made(ann.post(f"/v1/corrections/{item}/release"))
    made(ben.post(f"/v1/corrections/{item}/claim"))
    made(ben.post(f"/v1/corrections/{item}/submit", {"verdict": "fine"}))
    with store.transaction() as session:
        skipped = session.scalars(select(CorrectionRow).where(CorrectionRow.skip_reason == SAID[2])).one()
    again = made(api.post("/v1/corrections", {"rollout_id": str(skipped.rollout_id)}))
    assert (again["status"], again["skip_reason"]) == ("open", None)
    made(api.post(f"/v1/persons/{corrected}/erase"))
    assert find_words(store, "zebra") == {}


def test_what_others_were_answered_about_a_correction_is_kept_without_its_words(
    api: Api, store: Store, corrected: UUID
) -> None:
    with store.transaction() as session:
        done = session.scalars(select(CorrectionRow).where(CorrectionRow.verdict.is_not(None))).one()
    body: JsonObject = {"rollout_id": str(done.rollout_id)}
    shown = made(api.post("/v1/corrections", body, once="k"))
    assert shown["text"] == SAID[0]
    assert made(api.post("/v1/corrections", body, once="k")) == shown | {"text": None, "comment": None}
    made(api.post(f"/v1/persons/{corrected}/erase"))
    assert find_words(store, "zebra") == {}


def test_what_a_version_learned_to_answer_goes_and_is_not_measured_again(
    api: Api, store: Store, world: World, corrected: UUID
) -> None:
    begun = begin_update(store, world, new_id())
    with store.transaction() as session:
        item = session.scalars(select(CorrectionRow.id).where(CorrectionRow.verdict.is_not(None))).one()
        measured = {"text_logprob": -1.0, "answer": SAID[0]}
        session.add(
            EffectRow(correction_id=item, update_id=begun, side="before", version="v", status="measured", **measured)
        )
        session.add(EffectRow(correction_id=item, update_id=begun, side="after", version="w"))
    with store.transaction() as session:
        [asked] = effects.claim(session, session.scalars(select(EffectRow.id)).all())
    before = made(api.get(f"/v1/persons/{corrected}/erasure"))
    assert before["texts"] == {"answer": 2, "correction": 3, "correction_effect": 1}
    assert made(api.post(f"/v1/persons/{corrected}/erase")) == before | {"is_done": True}
    with store.transaction() as session:
        effects.record(session, asked, effects.Reading(3, 0, 3, -1.0, -1.0, "a late zebra"))
    assert find_words(store, "zebra") == {}
    with store.transaction() as session:
        left = session.execute(select(EffectRow.status, EffectRow.text_logprob).order_by(EffectRow.side.desc())).all()
    assert left == [("measured", -1.0), ("gone", None)]


def test_an_expert_that_is_shown_the_text_right_now_is_not_heard(
    api: Api, ann: Api, store: Store, world: World, corrected: UUID
) -> None:
    asked, later, abstained, dead = (
        ask_reader(store, decide_early(api, ann, store, world, key)[1]) for key in ("a", "b", "c", "d")
    )
    with store.transaction() as session:
        settling.settle(session, later, ConsultLater(reason="a zebra takes its time"))
        settling.settle(session, abstained, ConsultAbstain(reason="I know no zebra"))
        settling.release(session, dead, "no zebra", retry_after=None, max_attempts=1, quarantine_after=9)
    made(api.post(f"/v1/persons/{corrected}/erase"))
    with store.transaction() as session:
        settling.settle(session, asked, ConsultResult(feedback=Feedback(text="zebra")))
        with pytest.raises(settling.NotWaiting):
            settling.settle_late(session, later.consultation_id, ConsultResult(feedback=Feedback(text="zebra")))
        left = [consultations.get(session, one.consultation_id) for one in (asked, later, abstained, dead)]
        assert [row.status for row in left] == ["pending", "abstained", "abstained", "dead"]
    assert find_words(store, "zebra") == {}
    with store.transaction() as session:
        [again] = consultations.claim(session, [asked.consultation_id], lease_seconds=60)
    assert [said.expert for said in again.request.ask.context] == ["judge"]


def test_an_expert_was_shown_the_text_though_people_were_not_asked_any_more(
    api: Api, ann: Api, store: Store, world: World, corrected: UUID
) -> None:
    with store.transaction() as session:
        human = session.scalars(select(ExpertRow).where(ExpertRow.name == "human")).one()
    with store.transaction() as session:
        world.expert(session, "reader", kinds=(AnswerKind.FEEDBACK,), verifier=False, needs_answers=True)
        [rollout] = world.drawn(session, world.task(session, "a"), size=1)
        ids = consultations.pending_of(session, [rollout.id])
        [question] = consultations.claim(session, ids, lease_seconds=60)
    item = made(api.post("/v1/corrections", {"rollout_id": str(rollout.id)}))["id"]
    made(ann.post(f"/v1/corrections/{item}/claim"))
    made(ann.post(f"/v1/corrections/{item}/submit", {"verdict": "corrected", "text": "one more zebra"}))
    with store.transaction() as session:
        settling.settle(session, question, ConsultResult(score=0.0))
    ask_reader(store, rollout.id)
    with store.transaction() as session:
        experts.pause(session, human.id, "nobody is there")
    made(api.post(f"/v1/persons/{corrected}/erase"))
    assert find_words(store, "zebra") == {}


COPIED = ("rollout", "consultation", "answer", "lesson", "lesson_answer", "correction")
OF_IT = {
    "rollout": "t.id = c.rollout_id",
    "consultation": "t.id = c.consultation_id",
    "answer": "t.consultation_id = c.consultation_id",
    "lesson": "t.late",
    "lesson_answer": "t.lesson_id = (SELECT id FROM lesson WHERE late ORDER BY ordinal LIMIT 1)",
    "correction": "t.id = c.id",
}


def copy_correction(store: Store, num: int) -> None:
    """So many more of the one correction there is, each with a rollout, a question, an answer and a lesson."""
    with store.transaction() as session:
        for table in COPIED:
            ids = ", ".join(f"'{noun}_id', md5('{noun}' || n)::uuid" for noun in COPIED if noun != "lesson_answer")
            changes = f"jsonb_build_object('id', md5('{table}' || n)::uuid, 'index_in_group', 1000 + n, {ids})"
            session.execute(
                text(
                    f"INSERT INTO {table} SELECT (jsonb_populate_record(t, {changes})).* FROM {table} t"  # noqa: S608
                    f" JOIN correction c ON c.verdict IS NOT NULL AND {OF_IT[table]}, generate_series(1, :num) n"
                ),
                {"num": num},
            )


@pytest.fixture
def num_parameters() -> Iterator[list[int]]:
    """How many parameters each statement to the database has had."""
    seen: list[int] = []

    def count(_conn: object, _cursor: object, _statement: str, parameters: Sized, *_: object) -> None:
        seen.append(len(parameters))

    event.listen(Engine, "before_cursor_execute", count)
    yield seen
    event.remove(Engine, "before_cursor_execute", count)


def test_however_much_somebody_wrote_no_statement_grows_with_it(
    api: Api, store: Store, corrected: UUID, num_parameters: list[int]
) -> None:
    copy_correction(store, 200)
    num_parameters.clear()
    before = made(api.get(f"/v1/persons/{corrected}/erasure"))
    done = made(api.post(f"/v1/persons/{corrected}/erase"))
    assert max(num_parameters) < 100
    assert len(num_parameters) < 200
    assert done == before | {"is_done": True}
    assert (done["texts"], done["answers"], done["lessons"]) == ({"answer": 402, "correction": 403}, 201, 201)
    assert find_words(store, "zebra") == {}


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
