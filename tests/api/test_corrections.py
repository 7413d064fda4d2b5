"""The human queue: two people never get the same item, and what they write trains."""

import threading
from collections.abc import Callable
from uuid import UUID

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import func, select, text, update

from services.contracts.answers import AnswerKind
from services.contracts.base import JsonObject
from services.contracts.experts import ConsultResult
from services.contracts.ids import new_id
from services.contracts.persons import Role
from services.contracts.rollouts import Purpose
from services.contracts.tasks import Split
from services.contracts.updates import TermKind, TermRecord
from services.store.core.transaction import Store
from services.store.corrections import claims, corrections
from services.store.loop import consultations, settling
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import LessonAnswerRow, LessonRow, UpdateLessonRow
from services.store.tables.loop import AnswerRow, ConsultationRow, ExpertRow, RolloutRow
from tests.api.conftest import Api, items, made, refused
from tests.rows import start_update
from tests.serving import serve
from tests.store.conftest import World

pytestmark = pytest.mark.integration

HUMAN = (AnswerKind.SCORE, AnswerKind.FEEDBACK, AnswerKind.SOLUTION)


@pytest.fixture
def drawn(store: Store, world: World) -> list[RolloutRow]:
    """Rollouts of a train task that a judge has answered, and the human expert may be asked about."""
    with store.transaction() as session:
        world.expert(session, "human", kinds=HUMAN, verifier=False).group_fraction = 0
        world.expert(session, "judge")
        rollouts = world.drawn(session, world.task(session), size=3)
        ids = consultations.pending_of(session, [rollout.id for rollout in rollouts])
        questions = consultations.claim(session, ids, lease_seconds=60)
    with store.transaction() as session:
        for question in questions:
            settling.settle(session, question, ConsultResult(score=0.0))
    return rollouts


def read_correction(store: Store) -> AnswerRow:
    """The human expert's one answer."""
    with store.transaction() as session:
        query = select(AnswerRow).join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
        return session.scalars(query.where(ExpertRow.name == "human")).one()


def ask(api: Api, rollout: RolloutRow) -> UUID:
    return UUID(str(made(api.post("/v1/corrections", {"rollout_id": str(rollout.id)}))["id"]))


def test_a_correction_goes_from_the_request_to_an_answer_and_a_late_lesson(
    api: Api, store: Store, drawn: list[RolloutRow], person_id: UUID
) -> None:
    asked = ask(api, drawn[0])
    item = made(api.post("/v1/corrections/claim"))
    assert (item["id"], item["status"], item["person_id"]) == (str(asked), "claimed", str(person_id))
    assert item["messages"] == [{"role": "user", "content": "What is t?"}]
    assert item["rollout_text"] == "answer 0"
    decision: JsonObject = {"verdict": "corrected", "text": "1", "comment": "just the number"}
    done = made(api.post(f"/v1/corrections/{asked}/submit", decision))
    assert (done["status"], done["text"], done["update_numbers"]) == ("submitted", "1", [])
    row = read_correction(store)
    assert (row.score, row.solution) == (0.0, "1")
    assert row.feedback is not None
    assert row.feedback["text"] == "just the number"
    with store.transaction() as session:
        [lesson] = session.scalars(select(LessonRow).where(LessonRow.late)).all()
        used = session.scalars(select(LessonAnswerRow.answer_id).where(LessonAnswerRow.lesson_id == lesson.id)).all()
        consultation = session.get_one(ConsultationRow, row.consultation_id)
    assert (lesson.status, lesson.rollout_id, used) == ("ready", drawn[0].id, [row.id])
    assert consultation.status == "answered"


def test_an_answer_that_is_fine_scores_one(api: Api, store: Store, drawn: list[RolloutRow]) -> None:
    asked = ask(api, drawn[0])
    made(api.post("/v1/corrections/claim"))
    made(api.post(f"/v1/corrections/{asked}/submit", {"verdict": "fine"}))
    row = read_correction(store)
    assert (row.score, row.solution, row.feedback) == (1.0, None, None)


def test_the_updates_that_used_a_correction_are_shown(
    api: Api, store: Store, world: World, drawn: list[RolloutRow]
) -> None:
    asked = ask(api, drawn[0])
    made(api.post("/v1/corrections/claim"))
    made(api.post(f"/v1/corrections/{asked}/submit", {"verdict": "fine"}))
    used = read_correction(store)
    term = TermRecord(kind=TermKind.CONDITIONED, answers=[used.id], weight=1.0, share=1.0)
    with store.transaction() as session:
        lesson = session.scalars(select(LessonRow).where(LessonRow.late)).one()
        step = start_update(session, world.lineage_id, new_id(), [lesson.id])
        part = session.get_one(UpdateLessonRow, (step.id, lesson.id))
        part.terms = [term.model_dump(mode="json")]
        part.status = step.status = "applied"
        step.checkpoint_sha256 = "c"
    assert made(api.get(f"/v1/corrections/{asked}"))["update_numbers"] == [1]
    update = made(api.get("/v1/updates/1"))
    assert made(api.get("/v1/updates/1/explain")) == update
    [lesson_used] = [one for one in update["lessons"] if isinstance(one, dict)]  # type: ignore[union-attr]
    assert lesson_used["rollout_id"] == str(drawn[0].id)
    assert str(used.id) in str(lesson_used["terms"])


def test_asking_twice_finds_the_item_that_is_there(api: Api, drawn: list[RolloutRow]) -> None:
    assert ask(api, drawn[0]) == ask(api, drawn[0])


def test_only_answers_to_train_tasks_are_corrected(
    api: Api, store: Store, world: World, drawn: list[RolloutRow]
) -> None:
    with store.transaction() as session:
        task = world.task(session, "held", split=Split.HELDOUT)
        rollout = world.external(session, task, purpose=Purpose.EVALUATION)
    problem = refused(api.post("/v1/corrections", {"rollout_id": str(rollout.id)}), 422)
    assert "only train tasks" in str(problem["detail"])


def test_what_was_set_aside_is_not_corrected(api: Api, store: Store, world: World) -> None:
    with store.transaction() as session:
        [rollout] = world.drawn(session, world.task(session), size=1)  # no expert to answer
    problem = refused(api.post("/v1/corrections", {"rollout_id": str(rollout.id)}), 422)
    assert "set aside: no expert answered" in str(problem["detail"])


def test_without_a_human_expert_there_is_no_queue(api: Api, store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "judge")
        rollout = world.external(session, world.task(session))
    assert "human" in str(refused(api.post("/v1/corrections", {"rollout_id": str(rollout.id)}), 409)["detail"])


def test_two_people_who_claim_at_once_never_get_the_same_item(
    app: FastAPI, api: Api, someone: Callable[[str, Role], Api], drawn: list[RolloutRow]
) -> None:
    for rollout in drawn:
        ask(api, rollout)
    people = [someone(f"p{n}", Role.ANNOTATOR) for n in range(6)]
    got: list[httpx2.Response] = []
    with serve(app) as url:
        barrier = threading.Barrier(len(people))

        def claim(person: Api) -> None:
            barrier.wait()
            headers = {"Authorization": f"Bearer {person.key}"}
            got.append(httpx2.post(f"{url}/v1/corrections/claim", headers=headers, timeout=120))

        threads = [threading.Thread(target=claim, args=(person,)) for person in people]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(response.status_code for response in got) == [200] * 3 + [404] * 3
    assert len({response.json()["id"] for response in got if response.is_success}) == 3


def test_who_holds_an_item_gets_it_again(api: Api, drawn: list[RolloutRow]) -> None:
    ask(api, drawn[0])
    ask(api, drawn[1])
    first = made(api.post("/v1/corrections/claim"))
    assert made(api.post("/v1/corrections/claim"))["id"] == first["id"]


def test_an_item_whose_lease_ran_out_goes_to_the_next_person(
    api: Api, store: Store, someone: Callable[[str, Role], Api], drawn: list[RolloutRow]
) -> None:
    asked = ask(api, drawn[0])
    ann, ben = someone("ann", Role.ANNOTATOR), someone("ben", Role.ANNOTATOR)
    made(ann.post("/v1/corrections/claim"))
    refused(ben.post("/v1/corrections/claim"), 404)
    with store.transaction() as session:
        session.execute(update(CorrectionRow).values(lease_until=text("now() - interval '1 second'")))
    assert made(ben.post("/v1/corrections/claim"))["id"] == str(asked)
    assert "someone else" in str(
        refused(ann.post(f"/v1/corrections/{asked}/submit", {"verdict": "fine"}), 409)["detail"]
    )
    made(ben.post(f"/v1/corrections/{asked}/submit", {"verdict": "fine"}))


def test_expired_items_return_to_the_queue_and_ended_ones_leave_it(
    api: Api, store: Store, drawn: list[RolloutRow]
) -> None:
    expired, ended = ask(api, drawn[0]), ask(api, drawn[1])
    claimed = UUID(str(made(api.post("/v1/corrections/claim"))["id"]))
    with store.transaction() as session:
        session.execute(update(CorrectionRow).values(lease_until=text("now() - interval '1 second'")))
        other = ended if claimed == expired else expired
        question = corrections.get(session, other).consultation_id
        session.execute(
            update(ConsultationRow).where(ConsultationRow.id == question).values(status="dead", reason="deadline")
        )
        claims.free_expired(session)
    with store.transaction() as session:
        assert corrections.get(session, claimed).status == "open"
        assert corrections.get(session, other).status == "withdrawn"


def test_nobody_decides_an_item_they_did_not_claim(api: Api, drawn: list[RolloutRow]) -> None:
    asked = ask(api, drawn[0])
    refused(api.post(f"/v1/corrections/{asked}/submit", {"verdict": "fine"}), 409)
    refused(api.post(f"/v1/corrections/{asked}/skip", {"reason": "hard"}), 409)


def test_an_item_is_decided_once(api: Api, drawn: list[RolloutRow]) -> None:
    asked = ask(api, drawn[0])
    made(api.post("/v1/corrections/claim"))
    first = made(api.post(f"/v1/corrections/{asked}/submit", {"verdict": "fine"}, once="k1"))
    assert made(api.post(f"/v1/corrections/{asked}/submit", {"verdict": "fine"}, once="k1")) == first
    refused(api.post(f"/v1/corrections/{asked}/submit", {"verdict": "fine"}), 409)
    refused(api.post(f"/v1/corrections/{asked}/skip", {"reason": "hard"}), 409)


def test_a_skipped_item_goes_to_someone_else_last(
    api: Api, someone: Callable[[str, Role], Api], drawn: list[RolloutRow]
) -> None:
    skipped = ask(api, drawn[0])
    made(api.post("/v1/corrections/claim"))
    assert made(api.post(f"/v1/corrections/{skipped}/skip", {"reason": "too hard"}))["skip_reason"] == "too hard"
    refused(api.post("/v1/corrections/claim"), 404)
    other = ask(api, drawn[1])
    ann, ben = someone("ann", Role.ANNOTATOR), someone("ben", Role.ANNOTATOR)
    assert made(ann.post("/v1/corrections/claim"))["id"] == str(other)
    assert made(ben.post("/v1/corrections/claim"))["id"] == str(skipped)


def test_spans_that_do_not_fit_the_rollout_are_refused_and_nothing_is_decided(
    api: Api, store: Store, drawn: list[RolloutRow]
) -> None:
    asked = ask(api, drawn[0])
    made(api.post("/v1/corrections/claim"))
    decision: JsonObject = {"verdict": "fine", "spans": [{"start": 0, "end": 4, "text": "here"}]}
    assert "token 4" in str(refused(api.post(f"/v1/corrections/{asked}/submit", decision), 422)["detail"])
    assert made(api.get(f"/v1/corrections/{asked}"))["status"] == "claimed"
    with store.transaction() as session:
        assert session.scalar(select(func.count()).select_from(AnswerRow)) == len(drawn)  # the judge's only


def test_a_person_sees_what_they_decided(
    api: Api, someone: Callable[[str, Role], Api], drawn: list[RolloutRow]
) -> None:
    for rollout in drawn[:2]:
        ask(api, rollout)
    ann = someone("ann", Role.ANNOTATOR)
    mine = made(ann.post("/v1/corrections/claim"))
    assert [item["id"] for item in items(ann.get("/v1/corrections", mine="true"))] == [mine["id"]]
    assert items(api.get("/v1/corrections", mine="true")) == []
    assert len(items(api.get("/v1/corrections"))) == 2
    assert len(items(api.get("/v1/corrections", status="open"))) == 1


def test_retiring_the_human_expert_empties_the_queue(api: Api, store: Store, drawn: list[RolloutRow]) -> None:
    asked = ask(api, drawn[0])
    [human] = [expert for expert in items(api.get("/v1/experts")) if expert["name"] == "human"]
    made(api.post(f"/v1/experts/{human['id']}/retire"))
    assert made(api.get(f"/v1/corrections/{asked}"))["status"] == "withdrawn"
    refused(api.post("/v1/corrections/claim"), 404)


def test_an_item_whose_question_ended_without_its_holder_is_given_to_nobody(
    api: Api, store: Store, drawn: list[RolloutRow]
) -> None:
    asked = made(api.post("/v1/corrections", {"rollout_id": str(drawn[0].id)}))
    held = made(api.post("/v1/corrections/claim"))
    assert held["id"] == asked["id"]
    with store.transaction() as session:
        settling.settle_late(session, UUID(str(held["consultation_id"])), ConsultResult(score=1.0))
    assert made(api.get(f"/v1/corrections/{held['id']}"))["status"] == "withdrawn"
    refused(api.post("/v1/corrections/claim"), 404)
    refused(api.post(f"/v1/corrections/{held['id']}/submit", {"verdict": "fine"}), 409)


def test_a_withdrawn_item_returns_when_its_question_is_asked_once_more(
    api: Api, store: Store, drawn: list[RolloutRow]
) -> None:
    item = made(api.post("/v1/corrections", {"rollout_id": str(drawn[0].id)}))
    with store.transaction() as session:
        settling.kill(session, session.get_one(ConsultationRow, UUID(str(item["consultation_id"]))), "too late")
    assert made(api.get(f"/v1/corrections/{item['id']}"))["status"] == "withdrawn"
    again = made(api.post("/v1/corrections", {"rollout_id": str(drawn[0].id)}))
    assert (again["id"], again["status"]) == (item["id"], "open")


def test_a_blank_correction_is_refused(api: Api, drawn: list[RolloutRow]) -> None:
    api.post("/v1/corrections", {"rollout_id": str(drawn[0].id)})
    held = made(api.post("/v1/corrections/claim"))
    refused(api.post(f"/v1/corrections/{held['id']}/submit", {"verdict": "corrected", "text": " \n"}), 422)


def test_people_answer_the_human_experts_questions_by_corrections_only(api: Api, drawn: list[RolloutRow]) -> None:
    item = made(api.post("/v1/corrections", {"rollout_id": str(drawn[0].id)}))
    answer: JsonObject = {"outcome": "result", "score": 1}
    problem = refused(api.post(f"/v1/consultations/{item['consultation_id']}/answer", answer), 409)
    assert "/v1/corrections/claim" in str(problem["hint"])


def test_an_item_is_held_longer_kept_as_a_draft_given_back_and_claimed_by_name(
    api: Api, someone: Callable[[str, Role], Api], drawn: list[RolloutRow]
) -> None:
    asked = ask(api, drawn[0])
    ann = someone("ann", Role.ANNOTATOR)
    claimed = made(ann.post("/v1/corrections/claim"))
    path = f"/v1/corrections/{asked}"
    assert str(made(ann.post(f"{path}/renew"))["lease_until"]) > str(claimed["lease_until"])
    refused(api.post(f"{path}/renew"), 409)
    refused(ann.get(f"{path}/draft"), 404)
    body: JsonObject = {"version": 0, "text": "half", "comment": "so far"}
    headers = {"Authorization": f"Bearer {ann.key}"}
    saved = made(ann.http.put(f"{path}/draft", json=body, headers=headers))
    assert (saved["version"], saved["held"]) == (1, True)
    assert made(ann.get(f"{path}/draft"))["text"] == "half"
    refused(ann.http.put(f"{path}/draft", json={**body, "text": "other"}, headers=headers), 409)
    assert made(ann.post(f"{path}/release"))["status"] == "open"
    again = made(ann.post(f"{path}/claim"))
    assert again["draft"] is not None
    assert ann.http.delete(f"{path}/draft", headers=headers).status_code == 204
    refused(ann.get(f"{path}/draft"), 404)
    refused(api.post(f"{path}/claim"), 409)


def test_a_claimed_item_says_why_it_came_and_what_others_said(api: Api, drawn: list[RolloutRow]) -> None:
    ask(api, drawn[0])
    item = made(api.post("/v1/corrections/claim"))
    assert item["chosen_because"] == "A correction of this answer was requested."
    assert (item["disagreement"], item["uncertainty"], item["draft"]) == (0, 0.5, None)
    [said] = [one for one in item["opinions"] if isinstance(one, dict)]  # type: ignore[union-attr]
    assert (said["expert"], said["score"], said["counted"]) == ("judge", 0, True)


def test_a_correction_is_taken_back_over_the_api(api: Api, drawn: list[RolloutRow]) -> None:
    asked = ask(api, drawn[0])
    made(api.post("/v1/corrections/claim"))
    done = made(api.post(f"/v1/corrections/{asked}/submit", {"verdict": "corrected", "text": "1"}))
    assert done["undo_until"] is not None
    taken = made(api.post(f"/v1/corrections/{asked}/undo", once="k"))
    assert taken["status"] == "claimed"
    assert made(api.post(f"/v1/corrections/{asked}/undo", once="k")) == taken
    made(api.post(f"/v1/corrections/{asked}/submit", {"verdict": "fine"}))


def test_submitting_throws_away_no_draft_that_was_saved_since_the_one_it_names(
    api: Api, drawn: list[RolloutRow]
) -> None:
    asked = ask(api, drawn[0])
    made(api.post("/v1/corrections/claim"))
    headers = {"Authorization": f"Bearer {api.key}"}
    draft = {"version": 0, "text": "an hour of work"}
    made(api.http.put(f"/v1/corrections/{asked}/draft", json=draft, headers=headers))
    stale: JsonObject = {"verdict": "corrected", "text": "stale", "draft_version": 0}
    problem = refused(api.post(f"/v1/corrections/{asked}/submit", stale), 409)
    assert str(problem["type"]).endswith("draft-changed")
    assert made(api.get(f"/v1/corrections/{asked}/draft"))["text"] == "an hour of work"
    made(api.post(f"/v1/corrections/{asked}/submit", {**stale, "draft_version": 1}))


def test_a_remark_by_quote_needs_words_of_the_answer_and_a_policy_that_knows_its_tokens(
    api: Api, store: Store, drawn: list[RolloutRow]
) -> None:
    asked = ask(api, drawn[0])
    made(api.post("/v1/corrections/claim"))
    path = f"/v1/corrections/{asked}/remarks"
    unspelled = refused(api.post(path, {"quote": "answer", "text": "which"}), 422)
    assert str(unspelled["type"]).endswith("tokens-unknown"), "these tokens do not spell the text"
    with store.transaction() as session:
        spelled = [ord(character) for character in "answer 0"]
        values = {"token_ids": spelled, "sampler_logprobs": [-0.5] * len(spelled), "action_mask": [True] * len(spelled)}
        session.execute(update(RolloutRow).where(RolloutRow.id == drawn[0].id).values(**values))
    assert str(refused(api.post(path, {"quote": "nine", "text": "which"}), 422)["type"]).endswith("quote-not-found")
    refused(api.post(path, {"quote": "answer", "text": " "}), 422)
    once = api.post(path, {"quote": "answer", "text": "which"}, once="k")
    assert made(api.post(path, {"quote": "answer", "text": "which"}, once="k")) == made(once)
    kept = made(api.get(f"/v1/corrections/{asked}/draft"))
    assert (kept["text"], kept["spans"]) == ("answer 0", [{"start": 0, "end": 6, "text": "which"}])


def test_leaving_an_item_that_does_not_exist_is_not_found(api: Api) -> None:
    refused(api.post(f"/v1/corrections/{new_id()}/leave"), 404)
