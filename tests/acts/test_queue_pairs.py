"""Acts on the human queue, on consultations, draws and answers: a page's form and the api's route leave the same."""

from itertools import count
from uuid import UUID

import pytest
from sqlalchemy import select, update

from services.contracts.answers import AnswerKind
from services.contracts.corrections import CorrectionSubmit, DraftSave
from services.contracts.rollouts import Purpose, Sampling
from services.store.corrections import claims, corrections, drafts
from services.store.loop import groups
from services.store.people import persons
from services.store.tables.corrections import CorrectionRow
from services.store.tables.loop import AnswerRow, ConsultationRow, ExpertRow, GroupRow
from tests.acts.pairs import Pair, Scene, by_api, by_page
from tests.web.correcting import Queue

pytestmark = pytest.mark.integration

numbers = count()
UNDECIDED = ("open", "claimed", "skipped")


def queued(scene: Scene) -> UUID:
    """The one item of the queue."""
    queue = Queue(scene.store, scene.world)
    with scene.store.transaction() as session:
        is_first = session.scalar(select(ExpertRow.id).where(ExpertRow.name == "human")) is None
        session.execute(update(CorrectionRow).where(CorrectionRow.status.in_(UNDECIDED)).values(status="withdrawn"))
    if is_first:
        queue.experts("reviewer")
    return queue.ask(queue.draw(f"task {next(numbers)}", "What is it?", "six", {}))


def held(scene: Scene) -> UUID:
    """An item in front of the owner."""
    item = queued(scene)
    with scene.store.transaction() as session:
        claims.claim_one(session, item, persons.find_owner(session).id)
    return item


def begun(scene: Scene) -> UUID:
    """An item of which the owner has a draft."""
    item = held(scene)
    with scene.store.transaction() as session:
        row = corrections.lock(session, item)
        drafts.save(session, row, persons.find_owner(session).id, DraftSave(version=0, text="sev"))
    return item


def submitted(scene: Scene) -> UUID:
    """An item that the owner has decided."""
    item = held(scene)
    with scene.store.transaction() as session:
        decided = CorrectionSubmit(verdict="corrected", text="seven")
        corrections.submit(session, item, persons.find_owner(session).id, decided)
    return item


def answered(scene: Scene) -> UUID:
    """An answer to withdraw."""
    queued(scene)
    with scene.store.transaction() as session:
        newest = select(AnswerRow.id).where(AnswerRow.status == "current").order_by(AnswerRow.id.desc()).limit(1)
        return session.scalars(newest).one()


def dead_consultation(scene: Scene) -> UUID:
    """The one dead consultation, of an expert that is asked."""
    with scene.store.transaction() as session:
        session.execute(update(ConsultationRow).where(ConsultationRow.status == "dead").values(status="pending"))
        expert = scene.world.expert(session, f"judge {next(numbers)}", kinds=(AnswerKind.SCORE,))
        scene.world.drawn(session, scene.world.task(session, f"task {next(numbers)}"), size=1)
        mine = ConsultationRow.expert_id == expert.id
        session.execute(update(ConsultationRow).where(mine).values(status="asked"))
        session.execute(update(ConsultationRow).where(mine).values(status="dead", reason="no route to it"))
        return session.scalars(select(ConsultationRow.id).where(mine)).one()


def dead_draw(scene: Scene) -> UUID:
    """The one dead draw."""
    with scene.store.transaction() as session:
        session.execute(update(GroupRow).where(GroupRow.status == "dead").values(status="pending"))
        task = scene.world.task(session, f"task {next(numbers)}")
        row = groups.add(session, task, purpose=Purpose.TRAIN, size=4, sampling=Sampling())
        row.status, row.reason, row.failures = "dead", "the policy did not answer", 5
        return row.id


SEVEN = {"verdict": "corrected", "text": "seven"}

PAIRS = (
    Pair("claim the next item", queued, "/correct/next", ("POST", "/v1/corrections/claim")),
    Pair("claim an item", queued, "/correct/{id}/claim", ("POST", "/v1/corrections/{id}/claim")),
    Pair("give an item back", held, "/correct/{id}/release", ("POST", "/v1/corrections/{id}/release")),
    Pair(
        "submit a correction",
        held,
        "/correct/{id}/submit",
        ("POST", "/v1/corrections/{id}/submit"),
        fields={**SEVEN, "comment": "count"},
        body={**SEVEN, "comment": "count"},
        wakes_trainer=True,
    ),
    Pair(
        "submit that an answer is fine",
        held,
        "/correct/{id}/submit",
        ("POST", "/v1/corrections/{id}/submit"),
        fields={"verdict": "fine", "text": "six"},
        body={"verdict": "fine"},
        wakes_trainer=True,
    ),
    Pair(
        "skip an item",
        held,
        "/correct/{id}/skip",
        ("POST", "/v1/corrections/{id}/skip"),
        fields={"kind": "unclear"},
        body={"kind": "unclear"},
    ),
    Pair("take a decision back", submitted, "/correct/{id}/undo", ("POST", "/v1/corrections/{id}/undo")),
    Pair(
        "withdraw an answer",
        answered,
        "/answers/{id}/withdraw",
        ("POST", "/v1/answers/{id}/withdraw"),
        wakes_trainer=True,
    ),
    Pair(
        "requeue a consultation",
        dead_consultation,
        "/dead/consultations/{id}/requeue",
        ("POST", "/v1/consultations/{id}/requeue"),
    ),
    Pair(
        "requeue consultations", dead_consultation, "/dead/consultations/requeue", ("POST", "/v1/consultations/requeue")
    ),
    Pair("requeue a draw", dead_draw, "/dead/draws/{id}/requeue", ("POST", "/v1/draws/{id}/requeue")),
    Pair("requeue draws", dead_draw, "/dead/draws/requeue", ("POST", "/v1/draws/requeue")),
)

UNRECORDED = (
    Pair(
        "save a draft",
        held,
        "/correct/{id}/save",
        ("PUT", "/v1/corrections/{id}/draft"),
        fields={"text": "sev"},
        body={"version": 0, "text": "sev"},
    ),
    Pair("discard a draft", begun, "/correct/{id}/discard", ("DELETE", "/v1/corrections/{id}/draft")),
    Pair("hold an item longer", held, "/correct/{id}/renew", ("POST", "/v1/corrections/{id}/renew")),
    Pair("leave an item", held, "/correct/{id}/leave", ("POST", "/v1/corrections/{id}/leave")),
)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_an_act_on_the_queue_leaves_the_same_behind_by_its_page_and_by_the_api(scene: Scene, pair: Pair) -> None:
    left = by_page(scene, pair)
    assert left.entries
    assert (["lessons", None, {}] in left.messages) is pair.wakes_trainer
    assert left == by_api(scene, pair)


@pytest.mark.parametrize("pair", UNRECORDED, ids=lambda pair: pair.name)
def test_drafts_and_leases_leave_nothing_in_the_audit_trail(scene: Scene, pair: Pair) -> None:
    assert by_page(scene, pair).entries == []
    assert by_api(scene, pair).entries == []


def test_the_verdict_in_the_audit_trail_is_the_one_that_was_kept(scene: Scene) -> None:
    only_a_newline = Pair(
        "submit an answer as it was but for a newline",
        held,
        "/correct/{id}/submit",
        ("POST", "/v1/corrections/{id}/submit"),
        fields={"verdict": "corrected", "text": "six\n"},
        body={"verdict": "corrected", "text": "six\n"},
    )
    for left in (by_page(scene, only_a_newline), by_api(scene, only_a_newline)):
        assert left.entries == [["corrections.submit", "correction", "ID", {"verdict": "fine"}]]
