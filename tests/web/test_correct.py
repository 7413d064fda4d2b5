"""The correction page as plain forms: what people can do, and what is refused, without a script."""

import json
import re
from collections.abc import Callable
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import func, select, update

from services.contracts.answers import FeedbackSpan
from services.contracts.base import Json
from services.store.core.transaction import Store
from services.store.corrections import claims, drafts
from services.store.tables.corrections import CorrectionRow
from services.store.tables.loop import AnswerRow
from services.store.tables.people import AuditRow
from services.web.visitors import SESSION_COOKIE
from tests.store.conftest import World
from tests.web.conftest import Browser
from tests.web.correcting import Queue, Said

pytestmark = pytest.mark.integration

EVIL = '"><script>alert(1)</script></textarea><img src=x onerror=alert(2)>'


@pytest.fixture
def queue(store: Store, world: World) -> Queue:
    """A queue with two experts beside the people."""
    made = Queue(store, world)
    made.experts("tests", "reviewer")
    return made


@pytest.fixture
def visit(queue: Queue, browser: Callable[[], Browser]) -> Callable[[str], tuple[UUID, Browser]]:
    """A function that gives an annotator's id and their browser, logged in."""

    def make(name: str) -> tuple[UUID, Browser]:
        person, token = queue.person(name)
        opened = browser()
        opened.http.cookies.set(SESSION_COOKIE, token)
        return person, opened

    return make


def put(queue: Queue, key: str = "t", answer: str = "six", **said: Said) -> UUID:
    return queue.ask(queue.draw(key, f"What is {key}?", answer, said))


def claim(queue: Queue, page: Browser, answer: str = "six", **said: Said) -> UUID:
    """Put an item into the queue and take it."""
    item = put(queue, "t", answer, **said)
    page.send("/correct/next", seen_on="/correct")
    return item


def call(page: Browser, path: str, body: Json) -> httpx2.Response:
    """What the page's own script sends."""
    headers = {"X-CSRF-Token": page.token("/correct/history"), "Accept": "application/json"}
    return page.http.post(path, json=body, headers=headers)


def test_an_answer_is_corrected_from_claim_to_submission(
    queue: Queue, visit: Callable[[str], tuple[UUID, Browser]]
) -> None:
    item = put(queue, tests=Said(score=0.0, feedback="expected 7"), reviewer=Said(score=1.0))
    ana, page = visit("ana")
    start = page.get("/correct").text
    assert "Correct the next answer" in start
    assert page.send("/correct/next", seen_on="/correct").headers["location"] == f"/correct/{item}"
    desk = page.get(f"/correct/{item}").text
    assert "What is t?" in desk
    assert "expected 7" in desk
    assert "A correction of this answer was requested" in desk
    sent = page.send(
        f"/correct/{item}/submit", seen_on=f"/correct/{item}", text="seven\r\n", comment="count", verdict="corrected"
    )
    assert sent.headers["location"] == "/correct"
    row = queue.read(item)
    assert (row.status, row.person_id, row.text, row.comment) == ("submitted", ana, "seven", "count")
    assert row.held_until is not None
    with queue.store.transaction() as session:
        acts = session.scalars(select(AuditRow.action).where(AuditRow.noun == "correction").order_by(AuditRow.id))
        assert acts.all() == ["corrections.claim", "corrections.submit"]
    assert "Undo" in page.get("/correct").text
    page.send(f"/correct/{item}/undo", seen_on="/correct")
    assert "seven" in page.get(f"/correct/{item}").text
    assert queue.read(item).status == "claimed"


def test_after_a_decision_the_next_item_is_there(queue: Queue, visit: Callable[[str], tuple[UUID, Browser]]) -> None:
    second, first = put(queue, "a"), put(queue, "b")
    _, page = visit("ana")
    page.send("/correct/next", seen_on="/correct")
    assert page.get("/correct").headers["location"] == f"/correct/{first}"
    sent = page.send(f"/correct/{first}/submit", seen_on=f"/correct/{first}", verdict="fine", text="six")
    assert sent.headers["location"] == f"/correct/{second}"
    assert (queue.read(first).verdict, queue.read(first).text) == ("fine", None)


def test_what_a_model_or_an_expert_writes_is_only_ever_text(
    queue: Queue, visit: Callable[[str], tuple[UUID, Browser]]
) -> None:
    remark = FeedbackSpan(start=0, end=4, text=EVIL)
    said = Said(score=0.0, feedback=EVIL, spans=[remark], solution=EVIL)
    item = queue.ask(queue.draw(EVIL, EVIL, EVIL, {"tests": said}))
    _, page = visit("ana")
    page.send("/correct/next", seen_on="/correct")
    page.send(f"/correct/{item}/save", seen_on=f"/correct/{item}", text=EVIL + "!", comment=EVIL)
    shown = [page.get(f"/correct/{item}").text]
    page.send(f"/correct/{item}/submit", seen_on=f"/correct/{item}", text=EVIL + "!", comment=EVIL)
    shown += [page.get(path).text for path in (f"/correct/{item}", "/correct", "/correct/history")]
    for html in shown:
        assert "<script>alert" not in html
        assert "<img src=x" not in html
    assert "&lt;script&gt;alert(1)" in shown[0]


def test_no_page_shows_a_hidden_character_without_its_mark(
    queue: Queue, visit: Callable[[str], tuple[UUID, Browser]], owner: Browser
) -> None:
    evil = "is \u202eevil\u202c"
    said = Said(score=0.0, feedback=evil, spans=[FeedbackSpan(start=0, end=4, text=evil)], solution=evil)
    rollout = queue.draw("t", evil, evil, {"tests": said})
    item = queue.ask(rollout)
    _, page = visit("ana")
    page.send("/correct/next", seen_on="/correct")
    page.send(f"/correct/{item}/save", seen_on=f"/correct/{item}", text=evil + "!", comment=evil)
    shown = [page.get(f"/correct/{item}").text, page.get("/correct/history").text]
    page.send(f"/correct/{item}/submit", seen_on=f"/correct/{item}", text=evil + "!", comment=evil, version="1")
    shown += [page.get(path).text for path in (f"/correct/{item}", "/correct", "/correct/history")]
    shown += [owner.get(path).text for path in (f"/rollouts/{rollout}", "/rollouts")]
    for html in shown:
        fields = re.sub(r"<textarea.*?</textarea>|<bdi [^>]*>\u202e</bdi>", "", html, flags=re.DOTALL)
        assert "\u202e" not in fields
    assert sum("U+202E" in html for html in shown) == len(shown) - 1


def test_a_refused_correction_comes_back_with_everything_that_was_typed(
    queue: Queue, visit: Callable[[str], tuple[UUID, Browser]]
) -> None:
    _, page = visit("ana")
    item = claim(queue, page)
    seen = f"/correct/{item}"
    again = page.send(f"{seen}/submit", seen_on=seen, text="six", comment="a long remark", verdict="corrected")
    assert again.status_code == 422
    assert "a long remark" in again.text
    assert "Your text is not lost" in again.text
    unreadable = page.send(f"{seen}/submit", seen_on=seen, text="seven", spans="[{]", verdict="corrected")
    assert unreadable.status_code == 422
    assert "seven" in unreadable.text
    assert queue.read(item).status == "claimed"


def test_a_remark_is_put_on_the_tokens_of_the_words_it_quotes(
    queue: Queue, visit: Callable[[str], tuple[UUID, Browser]]
) -> None:
    ana, page = visit("ana")
    item = claim(queue, page, answer="two plus two")
    seen = f"/correct/{item}"
    page.send(f"{seen}/save", seen_on=seen, text="two plus two", quote="plus", remark="a word, please a sign")
    with queue.store.transaction() as session:
        assert drafts.get(session, item, ana).spans == [FeedbackSpan(start=4, end=8, text="a word, please a sign")]
    missing = page.send(f"{seen}/save", seen_on=seen, text="two plus two", quote="minus", remark="where", version="1")
    assert missing.status_code == 422
    assert "does not contain" in missing.text
    spans = '[{"start": 4, "end": 8, "text": "a sign"}]'
    page.send(f"{seen}/submit", seen_on=seen, text="2 + 2", spans=spans, version="1", verdict="corrected")
    with queue.store.transaction() as session:
        answer = session.scalars(select(AnswerRow).where(AnswerRow.solution == "2 + 2")).one()
    assert answer.feedback is not None
    assert answer.feedback["spans"] == [{"start": 4, "end": 8, "text": "a sign"}]


def test_two_tabs_without_a_script_are_told_of_each_other(
    queue: Queue, visit: Callable[[str], tuple[UUID, Browser]]
) -> None:
    ana, page = visit("ana")
    item = claim(queue, page)
    seen = f"/correct/{item}"
    assert page.send(f"{seen}/save", seen_on=seen, text="one", version="0").status_code == 303
    late = page.send(f"{seen}/save", seen_on=seen, text="two", version="0")
    assert late.status_code == 409
    assert "two" in late.text
    with queue.store.transaction() as session:
        assert drafts.get(session, item, ana).text == "one"


def test_submitting_never_throws_away_a_draft_that_was_not_seen(
    queue: Queue, visit: Callable[[str], tuple[UUID, Browser]]
) -> None:
    ana, page = visit("ana")
    item = claim(queue, page)
    seen = f"/correct/{item}"
    token = page.token(seen)
    page.send_as(token, f"{seen}/save", text="an hour of work", comment="long", version="0")
    for verdict in ("corrected", "fine"):
        late = page.send_as(token, f"{seen}/submit", text="stale words", version="0", verdict=verdict)
        assert late.status_code == 409
        for words in ("changed in another tab", "stale words", "an hour of work"):
            assert words in late.text
    assert queue.read(item).status == "claimed"
    with queue.store.transaction() as session:
        kept = drafts.get(session, item, ana)
    assert kept.text == "an hour of work"
    assert f'name="version" id="version" value="{kept.version}"' in late.text  # who was told may go on
    again = page.send_as(token, f"{seen}/submit", text="stale words", version=str(kept.version), verdict="corrected")
    assert again.status_code == 303
    assert queue.read(item).text == "stale words"


def test_who_was_told_of_the_other_draft_may_save_over_it(
    queue: Queue, visit: Callable[[str], tuple[UUID, Browser]]
) -> None:
    ana, page = visit("ana")
    item = claim(queue, page)
    seen = f"/correct/{item}"
    page.send(f"{seen}/save", seen_on=seen, text="one", version="0")
    page.send(f"{seen}/discard", seen_on="/correct/history")
    gone = page.send(f"{seen}/save", seen_on=seen, text="two", version="1")
    assert gone.status_code == 409
    assert 'name="version" id="version" value="0"' in gone.text
    page.send(f"{seen}/save", seen_on=seen, text="two", version="0")
    with queue.store.transaction() as session:
        assert drafts.get(session, item, ana).text == "two"


@pytest.mark.parametrize("way", ["save", "submit"])
@pytest.mark.parametrize(
    ("spans", "why"),
    [
        (json.dumps([{"start": 0, "end": 1, "text": "so"}] * 201), "200 are kept at most"),
        ('[{"start": 0, "end": 1, "text": "a\\u0000b"}]', "NUL character"),
    ],
    ids=["too-many", "nul"],
)
def test_remarks_that_cannot_be_kept_are_refused_with_the_words(
    queue: Queue, visit: Callable[[str], tuple[UUID, Browser]], way: str, spans: str, why: str
) -> None:
    _, page = visit("ana")
    item = claim(queue, page)
    seen = f"/correct/{item}"
    refused = page.send(f"{seen}/{way}", seen_on=seen, text="my long words", spans=spans)
    assert refused.status_code == 422
    assert why in refused.text
    assert "my long words" in refused.text
    assert queue.read(item).status == "claimed"


def test_an_item_in_the_queue_is_called_what_it_is(queue: Queue, visit: Callable[[str], tuple[UUID, Browser]]) -> None:
    item = put(queue)
    _, page = visit("ana")
    waiting = page.get(f"/correct/{item}").text
    assert "<h1>An answer in the queue</h1>" in waiting
    assert "Effect of a correction" not in waiting


def test_who_lost_the_item_is_told_and_finds_their_words(
    queue: Queue, visit: Callable[[str], tuple[UUID, Browser]]
) -> None:
    ana, page = visit("ana")
    item = claim(queue, page)
    seen = f"/correct/{item}"
    token = page.token(seen)
    page.send_as(token, f"{seen}/save", text="half of it")
    with queue.store.transaction() as session:
        session.execute(update(CorrectionRow).values(lease_until=func.now()))
    ben, other = visit("ben")
    other.send("/correct/next", seen_on="/correct")
    assert queue.read(item).person_id == ben
    lost = page.send_as(token, f"{seen}/submit", text="all of it", version="1", verdict="corrected")
    assert lost.status_code == 409
    assert "held by someone else" in lost.text
    assert "all of it" in lost.text
    kept = page.get(seen).text
    assert "Your draft" in kept
    assert "half of it" in kept
    assert "half of it" not in other.get(seen).text
    assert ana != ben


def test_skipping_needs_a_reason_that_says_something(
    queue: Queue, visit: Callable[[str], tuple[UUID, Browser]]
) -> None:
    _, page = visit("ana")
    item = claim(queue, page)
    assert page.send(f"/correct/{item}/skip", seen_on=f"/correct/{item}", kind="other").status_code == 422
    page.send(f"/correct/{item}/skip", seen_on=f"/correct/{item}", kind="not_my_field")
    assert (queue.read(item).status, queue.read(item).skip_kind) == ("skipped", "not_my_field")
    assert "It is not my field" in page.get("/correct/history").text


def test_stopping_gives_the_item_back_and_keeps_the_draft(
    queue: Queue, visit: Callable[[str], tuple[UUID, Browser]]
) -> None:
    _, page = visit("ana")
    item = claim(queue, page)
    page.send(f"/correct/{item}/save", seen_on=f"/correct/{item}", text="begun")
    page.send(f"/correct/{item}/release", seen_on=f"/correct/{item}")
    assert queue.read(item).status == "open"
    assert "begun" in page.get("/correct").text
    assert page.send("/correct/next", seen_on="/correct").headers["location"] == f"/correct/{item}"


def test_it_is_said_which_update_has_what_can_no_longer_be_taken_back(
    queue: Queue, visit: Callable[[str], tuple[UUID, Browser]]
) -> None:
    _, page = visit("ana")
    item = claim(queue, page)
    page.send(f"/correct/{item}/submit", seen_on=f"/correct/{item}", text="seven")
    token = page.token("/correct/history")
    with queue.store.transaction() as session:
        session.execute(update(CorrectionRow).values(decided_at=text_minutes_ago(11)))
    late = page.send_as(token, f"/correct/{item}/undo")
    assert late.status_code == 409
    assert "10 minutes" in late.text


def text_minutes_ago(minutes: int) -> object:
    return func.now() - func.make_interval(0, 0, 0, 0, 0, minutes)


def test_the_pages_script_saves_renews_and_leaves(queue: Queue, visit: Callable[[str], tuple[UUID, Browser]]) -> None:
    ana, page = visit("ana")
    item = claim(queue, page)
    path = f"/correct/{item}"
    assert call(page, f"{path}/leave", {}).status_code == 204
    short = queue.read(item).lease_until
    renewed = call(page, f"{path}/renew", {}).json()
    assert short is not None
    assert renewed["lease_until"] > short.isoformat()
    body: dict[str, Json] = {"version": 0, "text": "begun", "comment": "", "spans": []}
    saved = call(page, f"{path}/draft", body).json()
    assert (saved["version"], saved["held"]) == (1, True)
    changed = call(page, f"{path}/draft", {**body, "text": "other"})
    assert (changed.status_code, changed.json()["type"].rpartition(":")[2]) == (409, "draft-changed")
    assert call(page, f"{path}/draft", {**body, "text": "\x00"}).status_code == 422
    with queue.store.transaction() as session:
        claims.release(session, item, ana)
    lost = call(page, f"{path}/renew", {})
    assert lost.status_code == 409
    assert "in the queue again" in lost.json()["detail"]


def test_forms_and_calls_without_the_token_are_refused(
    queue: Queue, visit: Callable[[str], tuple[UUID, Browser]]
) -> None:
    _, page = visit("ana")
    item = claim(queue, page)
    for name in ("submit", "save", "skip", "release", "undo", "claim", "discard"):
        assert page.send_as("", f"/correct/{item}/{name}", text="x").status_code == 403
    for name in ("draft", "renew", "leave"):
        assert page.http.post(f"/correct/{item}/{name}", json={}).status_code == 403
    assert queue.read(item).status == "claimed"


def test_the_page_stands_when_the_policy_server_is_away(
    queue: Queue, visit: Callable[[str], tuple[UUID, Browser]], monkeypatch: pytest.MonkeyPatch
) -> None:
    remark = FeedbackSpan(start=0, end=3, text="this")
    _, page = visit("ana")
    item = claim(queue, page, answer="an answer of its own", tests=Said(score=0.0, spans=[remark]))
    app = page.http._transport.app  # type: ignore[attr-defined]
    app.state.shared.policy.close()
    monkeypatch.setattr(app.state.shared.policy, "_http", httpx2.Client(base_url="http://127.0.0.1:9"))
    html = page.get(f"/correct/{item}").text
    assert "policy server cannot be reached" in html
    assert "tokens 0 to 2" in html
    assert not re.search("data-ends=", html)
