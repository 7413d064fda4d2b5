"""The correction page in a real browser: the difference as it is typed, drafts that survive, keys, two people."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeAlias
from uuid import UUID

import pytest
from sqlalchemy import func, update

from services.contracts.answers import FeedbackSpan
from services.store.core.transaction import Store
from services.store.corrections import claims, drafts
from services.store.people import logins
from services.store.tables.corrections import CorrectionRow
from services.web.visitors import SESSION_COOKIE
from tests.store.conftest import World
from tests.web.conftest import PATIENCE
from tests.web.correcting import Queue, Said

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium
    from playwright.sync_api import Page, Route

pytestmark = pytest.mark.integration

EVIL = '<img src=x onerror="document.title=1"><b>6</b>'
Open: TypeAlias = "Callable[[str], Page]"


@pytest.fixture
def queue(store: Store, world: World) -> Queue:
    """A queue with two experts beside the people."""
    made = Queue(store, world)
    made.experts("tests", "reviewer")
    return made


@pytest.fixture
def open_as(queue: Queue, site: str, chromium: "Chromium") -> Iterator[Open]:
    """A function that opens a new browser window of a person, without anything a browser remembers."""
    tokens: dict[str, str] = {}
    with ExitStack() as windows:

        def make(name: str) -> "Page":
            if name not in tokens:
                tokens[name] = queue.person(name)[1]
            window = chromium.new_context()
            windows.callback(window.close)
            window.add_cookies([{"name": SESSION_COOKIE, "value": tokens[name], "url": site}])
            page = window.new_page()
            page.set_default_timeout(PATIENCE)
            page.on("pageerror", _fail)
            page.goto(f"{site}/correct")
            return page

        yield make


def _fail(error: Exception) -> None:
    raise AssertionError(f"the page's script failed: {error}")


def put(queue: Queue, key: str = "t", answer: str = "one two three", **said: Said) -> UUID:
    return queue.ask(queue.draw(key, f"What is {key}?", answer, said))


def arrive(page: "Page", item: UUID | None = None) -> None:
    """Wait for the desk, of this item if one is given, with its script: a key pressed before that is lost."""
    page.wait_for_selector("#desk" if item is None else f"#desk[data-id='{item}']")
    page.wait_for_load_state("load")


def begin(page: "Page") -> None:
    """Claim the next item, and wait for the page with its script."""
    page.click("#next")
    arrive(page)


def wait_saved(page: "Page") -> None:
    page.wait_for_selector(r"#state:text-matches('^Draft saved \\d')")


def open_stale(open_as: Open, written_elsewhere: str) -> "Page":
    """A tab of ana's on the next item, of which another tab has saved a draft since."""
    stale = open_as("ana")
    begin(stale)
    other = open_as("ana")
    arrive(other)
    other.fill("#text", written_elsewhere)
    wait_saved(other)
    return stale


def test_a_correction_shows_its_difference_is_submitted_and_can_be_taken_back(queue: Queue, open_as: Open) -> None:
    item = put(queue)
    page = open_as("ana")
    begin(page)
    page.fill("#text", "one 2 three")
    page.wait_for_selector("#diff ins")
    assert (page.text_content("#diff del"), page.text_content("#diff ins")) == ("two", "2")
    assert page.text_content("#summary") == "1 word added, 1 removed"
    page.click("#submit")
    page.wait_for_url("**/correct")
    assert (queue.read(item).status, queue.read(item).text) == ("submitted", "one 2 three")
    page.click("#undo")
    arrive(page)
    assert queue.read(item).status == "claimed"
    assert page.input_value("#text") == "one 2 three"


def test_a_draft_survives_a_closed_browser_and_appears_on_another_device(queue: Queue, open_as: Open) -> None:
    put(queue)
    page = open_as("ana")
    begin(page)
    page.fill("#text", "half of what I wan")
    wait_saved(page)
    page.type("#text", "t to say")
    page.context.close()  # the last words are sent as the page goes
    again = open_as("ana")
    arrive(again)
    assert again.input_value("#text").startswith("half of what I wan")


def test_no_draft_is_called_saved_while_later_words_wait_to_be_sent(queue: Queue, open_as: Open) -> None:
    put(queue)
    page = open_as("ana")
    begin(page)
    page.evaluate("""() => {
        const state = document.getElementById("state");
        window.seen = [];
        new MutationObserver(() => window.seen.push(state.textContent))
            .observe(state, { childList: true, characterData: true, subtree: true });
    }""")
    held: list[Route] = []
    page.route("**/draft", lambda route: route.continue_() if held else held.append(route))
    with page.expect_request("**/draft"):
        page.fill("#text", "half")
    page.fill("#text", "half and half")
    with page.expect_response(lambda answer: "half and half" in (answer.request.post_data or "")):
        held[0].continue_()
    wait_saved(page)
    seen = page.evaluate("window.seen")
    assert [words.startswith("Draft saved") for words in seen].count(True) == 1, seen


def test_words_written_while_the_server_is_away_are_kept_and_sent_when_it_is_back(queue: Queue, open_as: Open) -> None:
    item = put(queue)
    page = open_as("ana")
    begin(page)
    page.context.set_offline(True)
    page.fill("#text", "written on a train")
    page.wait_for_selector("#state[data-state=offline]")
    page.context.set_offline(False)
    wait_saved(page)
    with queue.store.transaction() as session:
        assert drafts.get(session, item, _holder(queue, item)).text == "written on a train"


def _holder(queue: Queue, item: UUID) -> UUID:
    holder = queue.read(item).person_id
    assert holder is not None
    return holder


def test_two_tabs_are_told_of_each_other_and_the_person_chooses(queue: Queue, open_as: Open) -> None:
    item = put(queue)
    first = open_as("ana")
    begin(first)
    second = open_as("ana")
    arrive(second)
    first.fill("#text", "of the first tab")
    wait_saved(first)
    second.fill("#text", "of the second tab")
    second.wait_for_selector("#conflict:not([hidden])")
    assert second.input_value("#text") == "of the second tab"
    second.click("#take-theirs")
    second.wait_for_selector("#conflict", state="hidden")
    assert second.input_value("#text") == "of the first tab"
    second.fill("#text", "of both tabs")
    wait_saved(second)
    first.fill("#text", "of the first tab again")
    first.click("#keep-mine")
    wait_saved(first)
    with queue.store.transaction() as session:
        assert drafts.get(session, item, _holder(queue, item)).text == "of the first tab again"


def log_out(queue: Queue, item: UUID) -> UUID:
    """End every session of who holds the item, as by an owner or by time; who that is."""
    person = _holder(queue, item)
    with queue.store.transaction() as session:
        logins.end_all(session, person)
    return person


def log_in(queue: Queue, page: "Page", person: UUID, site: str) -> None:
    """As in another tab of the same browser."""
    with queue.store.transaction() as session:
        token = logins.start(session, person, None, None, None)[1]
    page.context.add_cookies([{"name": SESSION_COOKIE, "value": token, "url": site}])


WAYS = ["#submit", "#fine", "Control+Enter"]


def decide(page: "Page", way: str) -> None:
    """Press the button or the key; to call an edited answer fine takes two."""
    if way.startswith("#"):
        page.click(way)
        if way == "#fine":
            page.click(way)
    else:
        page.focus("#text")
        page.keyboard.press(way)


@pytest.mark.parametrize("way", WAYS)
def test_deciding_when_the_session_has_ended_keeps_the_words_and_goes_on_after_a_login(
    queue: Queue, open_as: Open, site: str, way: str
) -> None:
    item = put(queue)
    page = open_as("ana")
    begin(page)
    person = log_out(queue, item)
    page.fill("#text", "ten minutes of work")
    decide(page, way)
    page.wait_for_selector("#decide-words:has-text('no longer logged in')")
    assert page.is_visible("#logged-out a[href='/login']")
    assert page.input_value("#text") == "ten minutes of work"
    log_in(queue, page, person, site)
    page.click("#fine" if way == "#fine" else "#submit")
    page.wait_for_url("**/correct")
    row = queue.read(item)
    assert (row.status, row.text) == ("submitted", None if way == "#fine" else "ten minutes of work")


def test_words_of_an_ended_session_are_there_again_after_a_reload_and_a_login(
    queue: Queue, open_as: Open, site: str
) -> None:
    item = put(queue)
    page = open_as("ana")
    begin(page)
    address = page.url
    person = log_out(queue, item)
    page.fill("#text", "ten minutes of work")
    page.click("#submit")
    page.wait_for_selector("#decide-words:has-text('Not submitted')")
    page.reload()
    page.wait_for_url("**/login**")
    log_in(queue, page, person, site)
    page.goto(address)
    wait_saved(page)
    assert page.input_value("#text") == "ten minutes of work"


@pytest.mark.parametrize("way", WAYS)
def test_deciding_while_offline_keeps_the_words_and_says_so(queue: Queue, open_as: Open, way: str) -> None:
    item = put(queue)
    page = open_as("ana")
    begin(page)
    page.context.set_offline(True)
    page.fill("#text", "written on a train")
    decide(page, way)
    page.wait_for_selector("#decide-words:has-text('server cannot be reached')")
    assert "kept in this browser" in (page.text_content("#decide-words") or "")
    assert page.input_value("#text") == "written on a train"
    page.context.set_offline(False)
    page.click("#fine" if way == "#fine" else "#submit")
    page.wait_for_url("**/correct")
    assert queue.read(item).status == "submitted"


def test_a_network_gone_at_the_very_click_loses_nothing(queue: Queue, open_as: Open) -> None:
    item = put(queue)
    page = open_as("ana")
    begin(page)
    address = page.url
    page.fill("#text", "saved, then sent into the void")
    wait_saved(page)
    page.context.set_offline(True)
    with page.expect_event("requestfailed", lambda request: request.is_navigation_request()):
        page.click("#submit", no_wait_after=True)
    page.wait_for_url("chrome-error:**")  # until then the browser's own page of the failure would stop the next one
    page.context.set_offline(False)
    page.goto(address)
    arrive(page)
    assert page.input_value("#text") == "saved, then sent into the void"
    page.fill("#text", "saved, and sent at last")
    wait_saved(page)
    page.click("#submit")
    page.wait_for_url("**/correct")
    assert queue.read(item).text == "saved, and sent at last"


def test_what_is_typed_before_the_script_has_come_is_saved_too(queue: Queue, open_as: Open) -> None:
    item = put(queue)
    page = open_as("ana")
    held = list["Route"]()
    page.route("**/correct*.js*", lambda route: held.append(route))
    page.click("#next", no_wait_after=True)
    page.fill("#text", "typed at once")
    while not held:
        page.wait_for_timeout(20)  # milliseconds, in which the browser is heard
    held.pop().continue_()
    page.unroute("**/correct*.js*")
    wait_saved(page)
    assert page.input_value("#text") == "typed at once"
    page.click("#submit")
    page.wait_for_url("**/correct")
    assert queue.read(item).text == "typed at once"


def test_skipping_with_unsaved_words_is_told_first_and_may_go_on(queue: Queue, open_as: Open) -> None:
    item = put(queue)
    page = open_as("ana")
    begin(page)
    address = page.url
    page.context.set_offline(True)
    page.fill("#text", "half a thought")
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    page.click("#skip button")
    page.wait_for_selector("#skip [data-refused]:has-text('Press again')")
    page.route("**/draft", lambda route: route.abort())
    page.context.set_offline(False)
    page.click("#skip button")
    page.wait_for_url("**/correct")
    assert queue.read(item).status == "skipped"
    page.unroute("**/draft")
    page.goto(address)
    page.click("text=Correct this one")
    wait_saved(page)
    assert page.input_value("#text") == "half a thought"


def test_a_stale_tab_cannot_submit_over_a_draft_it_has_not_seen(queue: Queue, open_as: Open) -> None:
    item = put(queue)
    stale = open_stale(open_as, "an hour of work")
    stale.fill("#text", "one two four")
    stale.keyboard.press("Control+Enter")
    stale.wait_for_selector("#conflict:not([hidden])")
    stale.wait_for_selector("#decide-words:has-text('changed elsewhere')")
    assert queue.read(item).status == "claimed"
    stale.click("#take-theirs")
    stale.wait_for_selector("#conflict", state="hidden")
    assert stale.input_value("#text") == "an hour of work"


def test_a_stale_tab_that_calls_it_fine_is_told_by_the_server_and_may_choose(queue: Queue, open_as: Open) -> None:
    item = put(queue)
    stale = open_stale(open_as, "an hour of work")
    stale.click("#fine")
    stale.wait_for_selector("#theirs")
    arrive(stale)
    assert "an hour of work" in (stale.text_content("#theirs") or "")
    assert stale.is_visible("#conflict")
    assert queue.read(item).status == "claimed"
    stale.click("#keep-mine")
    wait_saved(stale)
    stale.click("#fine")
    stale.wait_for_url("**/correct")
    assert queue.read(item).verdict == "fine"


def test_two_people_never_have_the_same_answer_in_front_of_them(queue: Queue, open_as: Open) -> None:
    items = {str(put(queue, f"t{n}")) for n in range(3)}
    pages = [open_as(name) for name in ("ana", "ben", "cleo")]
    for page in pages:
        page.click("#next", no_wait_after=True)
    for page in pages:
        arrive(page)
    assert {page.get_attribute("#desk", "data-id") for page in pages} == items


def test_everything_can_be_done_with_the_keyboard_alone(queue: Queue, open_as: Open) -> None:
    fine, skipped, corrected = put(queue, "c"), put(queue, "b"), put(queue, "a")
    page = open_as("ana")
    page.keyboard.press("n")
    arrive(page, corrected)
    page.keyboard.press("a")
    page.keyboard.press("ArrowRight")
    for _ in range(2):
        page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("c")
    page.keyboard.type("a numeral, please")
    page.keyboard.press("Enter")
    page.keyboard.press("e")
    page.keyboard.press("Control+a")
    page.keyboard.type("1 2 3 fscu?")  # keys with a meaning are only letters while one types
    wait_saved(page)
    page.keyboard.press("Control+Enter")
    arrive(page, skipped)
    row = queue.read(corrected)
    assert (row.status, row.text) == ("submitted", "1 2 3 fscu?")
    page.keyboard.press("s")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    arrive(page, fine)
    assert (queue.read(skipped).status, queue.read(skipped).skip_kind) == ("skipped", "not_my_field")
    page.keyboard.press("f")
    page.wait_for_url("**/correct")
    assert queue.read(fine).verdict == "fine"
    page.keyboard.press("u")
    arrive(page)
    assert queue.read(fine).status == "claimed"
    page.keyboard.press("?")
    page.wait_for_selector("#help[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#help:not([open])", state="attached")


def test_a_remark_made_by_selecting_lies_on_the_selected_tokens(queue: Queue, open_as: Open) -> None:
    item = put(queue, answer="one two three")
    page = open_as("ana")
    begin(page)
    page.evaluate(
        """() => { const range = document.createRange(); const node = document.getElementById("answer").firstChild;
        range.setStart(node, 4); range.setEnd(node, 7); getSelection().removeAllRanges();
        getSelection().addRange(range); }"""
    )
    page.click("#remark-button")
    assert page.text_content("#remark-quote") == "two"
    page.fill("#remark-text", "which two?")
    page.click("#remark-add")
    wait_saved(page)
    with queue.store.transaction() as session:
        kept = drafts.get(session, item, _holder(queue, item)).spans
    assert kept == [FeedbackSpan(start=4, end=7, text="which two?")]


def test_escape_leaves_the_remark_box_and_keeps_its_words_and_enter_adds_them(queue: Queue, open_as: Open) -> None:
    item = put(queue, answer="one two three")
    page = open_as("ana")
    begin(page)
    for key in ("a", "ArrowRight", "Shift+ArrowRight", "c"):
        page.keyboard.press(key)
    page.keyboard.type("which")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "answer"
    assert page.input_value("#remark-text") == "which"
    page.keyboard.press("c")
    assert page.evaluate("document.activeElement.id") == "remark-text"
    page.keyboard.type(" one?")
    page.keyboard.press("Enter")
    wait_saved(page)
    with queue.store.transaction() as session:
        kept = drafts.get(session, item, _holder(queue, item)).spans
    assert [span.text for span in kept] == ["which one?"]
    page.keyboard.press("?")
    listed = page.inner_text("#help")
    assert "⏎ adds it, Esc leaves it and keeps its words" in " ".join(listed.split())


LEFT = """(box, index) => { const walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) { const at = node.data.indexOf("evil");
      if (at < 0) continue; const range = document.createRange();
      range.setStart(node, at + index); range.setEnd(node, at + index + 1);
      return range.getBoundingClientRect().left; } }"""


def test_an_answer_reads_as_it_is_whatever_direction_it_asks_for(queue: Queue, open_as: Open) -> None:
    evil = "\u202eevil\u202c"
    put(queue, answer=f"is {evil}", tests=Said(score=0.0, feedback=f"says \u2067evil\u2069 and {evil}"))
    page = open_as("ana")
    begin(page)
    for box in ("#answer", "#diff", ".opinions"):
        found = page.locator(box)
        lefts = [found.evaluate(LEFT, index) for index in range(4)]
        assert lefts == sorted(lefts), box
        assert found.locator("[data-code='U+202E']").count() == 1
    assert page.text_content("#answer") == f"is {evil}"
    assert "right-to-left override (U+202E)" in (page.text_content("#hidden-chars") or "")
    page.fill("#text", "is good")
    page.wait_for_selector("#hidden-chars:empty", state="attached")
    page.wait_for_selector("#diff del [data-code='U+202E']")
    wait_saved(page)


def test_marks_of_hidden_characters_do_not_move_remarks(queue: Queue, open_as: Open) -> None:
    item = put(queue, answer="a\x08b\x1bc two")
    page = open_as("ana")
    begin(page)
    assert page.locator("#answer [data-code='U+0008']").count() == 1
    page.evaluate(
        """() => { const range = document.createRange(); const node = document.getElementById("answer").lastChild;
        range.setStart(node, 2); range.setEnd(node, 5); getSelection().removeAllRanges();
        getSelection().addRange(range); }"""
    )
    page.click("#remark-button")
    assert page.text_content("#remark-quote") == "two"
    page.fill("#remark-text", "which two?")
    page.click("#remark-add")
    wait_saved(page)
    with queue.store.transaction() as session:
        assert drafts.get(session, item, _holder(queue, item)).spans == [
            FeedbackSpan(start=6, end=9, text="which two?")
        ]


def test_what_a_model_writes_never_runs(queue: Queue, open_as: Open) -> None:
    remark = FeedbackSpan(start=0, end=4, text=EVIL)
    put(queue, EVIL, EVIL, tests=Said(score=0.0, feedback=EVIL, spans=[remark]))
    page = open_as("ana")
    begin(page)
    page.fill("#text", EVIL + EVIL)
    page.fill("#comment", EVIL)
    page.wait_for_selector("#diff ins")
    wait_saved(page)
    page.reload()
    page.wait_for_selector("#diff ins")
    assert page.locator("main img").count() == 0
    assert page.locator("main b").count() == 0
    assert page.title().startswith("Correct an answer")


def test_an_edited_answer_is_not_called_fine_by_a_slip(queue: Queue, open_as: Open) -> None:
    item = put(queue)
    page = open_as("ana")
    begin(page)
    page.fill("#text", "edited")
    page.click("#fine")
    assert "You edited the answer" in (page.text_content("#decide-words") or "")
    assert queue.read(item).status == "claimed"
    page.click("#fine")
    page.wait_for_url("**/correct")
    assert queue.read(item).verdict == "fine"


def test_a_person_whose_time_ran_out_is_told_while_they_write_and_keeps_the_words(queue: Queue, open_as: Open) -> None:
    item = put(queue)
    page = open_as("ana")
    with page.expect_response("**/renew"):  # which a page that has loaded asks for: it may not come after the lease
        begin(page)
    page.fill("#text", "slow")
    wait_saved(page)
    with queue.store.transaction() as session:
        session.execute(update(CorrectionRow).values(lease_until=func.now()))
    with queue.store.transaction() as session:
        claims.free_expired(session)  # as the sweep does
    other = open_as("ben")
    begin(other)
    page.type("#text", " and steady")
    page.wait_for_selector("#lease-lost:not([hidden])")
    assert page.is_disabled("#submit")
    assert other.input_value("#text") == "one two three"
    page.goto(page.url)
    page.wait_for_selector("h1")
    assert "slow" in (page.text_content("main") or "")
    assert queue.read(item).person_id is not None


def test_a_changed_line_stands_below_the_old_one_with_its_words_marked(queue: Queue, open_as: Open) -> None:
    put(queue, answer="Example usage:\n\ndef f(n):\n    return n % 2\n\nprint(f(2))\nprint(f(3))\nprint(f(4))")
    page = open_as("ana")
    begin(page)
    assert page.locator("#diff .line").count() == 0
    page.fill("#text", "Example usage:\n\ndef f(n):\n    return n % 2 == 0\n\nprint(f(2))\nprint(f(3))\nprint(f(4))")
    page.wait_for_selector("#diff ins")
    lines = page.locator("#diff .line").evaluate_all(
        "all => all.map(one => [one.className, one.lastChild?.textContent ?? ''])"
    )
    assert lines == [
        ["line gap", "1 unchanged line"],
        ["line equal", ""],
        ["line equal", "def f(n):"],
        ["line delete", "    return n % 2"],
        ["line insert", " == 0"],
        ["line equal", ""],
        ["line equal", "print(f(2))"],
        ["line gap", "2 unchanged lines"],
    ]
    wait_saved(page)
    live = page.inner_text("#diff")
    without_script = page.context.browser.new_context(java_script_enabled=False)  # type: ignore[union-attr]
    without_script.add_cookies(page.context.cookies())  # type: ignore[arg-type]
    without_script.set_default_timeout(PATIENCE)
    plain = without_script.new_page()
    plain.goto(page.url)
    assert plain.inner_text("#diff") == live
    without_script.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_no_bar_covers_the_remarks_and_a_phone_begins_with_the_editor(queue: Queue, open_as: Open, width: int) -> None:
    put(queue, answer="a line\n" * 60, tests=Said(score=0.0, feedback="no\n" * 30))
    page = open_as("ana")
    page.set_viewport_size({"width": width, "height": 844})
    begin(page)
    box = page.locator("#text").bounding_box()
    assert box is not None
    assert box["y"] < 844 / 2 if width > 400 else box["y"] < 600
    for name in ("#remarks-title", "#comment", "#submit", "#fine"):
        place = page.locator(name)
        place.scroll_into_view_if_needed()
        assert place.evaluate(
            """one => { const box = one.getBoundingClientRect();
            return one.contains(document.elementFromPoint(box.left + 8, box.top + box.height / 2)); }"""
        ), name


@pytest.mark.parametrize("width", [375, 768, 1440])
def test_the_page_fits_the_screen(queue: Queue, open_as: Open, width: int) -> None:
    put(queue, answer="x" * 400)
    page = open_as("ana")
    page.set_viewport_size({"width": width, "height": 800})
    begin(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
