"""The operator's pages in a real browser: live without reload, by keyboard, on a phone, in the dark."""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute

from services.contracts.base import Json
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.people import persons
from services.store.tables.ledger import LessonRow, UpdateRow
from services.store.tables.loop import ConsultationRow, EvaluationRow, ExpertRow, GroupRow, RolloutRow, TaskRow
from services.store.tables.people import PersonRow
from services.web.app import create_app
from tests.serving import serve
from tests.web.conftest import PATIENCE
from tests.web.fill import fill

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium
    from playwright.sync_api import Page

pytestmark = pytest.mark.integration

NUM_UPDATES = 25  # with 8 rollouts each: 200 rows in the longest list
PATHS = (
    "/",
    "/tasks",
    "/tasks/{task}",
    "/rollouts",
    "/rollouts/{rollout}",
    "/experts",
    "/experts/{expert}",
    "/measurements",
    "/policies",
    "/policies/main-v1",
    "/evaluations",
    "/evaluations/{evaluation}",
    "/updates",
    "/updates/4",
    "/dead",
    "/correct",
    "/correct/history",
    "/account",
    "/persons",
    "/persons/{person}",
    "/persons/{person}/erasure",
    "/audit",
)
PHONE = 390
MAX_PHONE_PIXELS = 5_000  # of a page's height: six screens


@pytest.fixture(scope="module")
def place(fresh_database: Callable[[], str], broker: str) -> Iterator[tuple[str, Store]]:
    """The address of an open installation on a store that a loop has run on, and the store."""
    url = fresh_database()
    store = Store(url, pool_size=4)
    fill(store, num_updates=NUM_UPDATES)
    with store.transaction() as session:
        persons.ensure_owner(session)
    settings = Settings.model_validate({"database_url": url, "api_open": True, "redis_url": broker})
    with serve(create_app(settings)) as address:
        yield address, store
    store.close()


@pytest.fixture
def look(chromium: "Chromium") -> "Iterator[Callable[..., Page]]":
    """A function that opens a page; in the end the browser may have complained about nothing."""
    complaints: list[str] = []
    opened = []

    def make(address: str, *, width: int = 1280, dark: bool = False, script: bool = True) -> "Page":
        context = chromium.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            java_script_enabled=script,
        )
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        return page

    yield make
    for context in opened:
        context.close()
    assert complaints == []


EDGES = "all => all.map(one => one.getBoundingClientRect()).map(box => [box.left, box.right])"
ROOM_BESIDE_TILES = """() => [...document.querySelectorAll(".stats")].flatMap((box) => {
    const ends = new Map();
    for (const tile of box.children) {
      const { top, right } = tile.getBoundingClientRect();
      ends.set(Math.round(top), Math.max(right, ends.get(Math.round(top)) ?? 0));
    }
    return [...ends.values()].map((end) => box.getBoundingClientRect().right - end);
  })"""


def at(place: tuple[str, Store], path: str) -> str:
    """The address of the page at this path; in braces, the noun of whose rows one is taken."""
    address, store = place
    columns: dict[str, InstrumentedAttribute[UUID]] = {
        "{task}": TaskRow.id,
        "{rollout}": RolloutRow.id,
        "{expert}": ExpertRow.id,
        "{evaluation}": EvaluationRow.id,
        "{person}": PersonRow.id,
    }
    with store.transaction() as session:
        for noun, column in columns.items():
            if noun in path:
                path = path.replace(noun, str(session.scalars(select(column)).first()))
    return address + path


def trained(store: Store) -> str:
    with store.transaction() as session:
        row = session.query(RolloutRow).join(LessonRow).filter(LessonRow.status == "used").first()
        assert row is not None
        return f"/rollouts/{row.id}"


def test_the_overview_changes_without_being_loaded_again(place: tuple[str, Store], look: "Callable[..., Page]") -> None:
    address, store = place
    page = look(address + "/")
    page.evaluate("window.stayed = true")
    queue = page.locator("#now").get_by_text("Prompts to sample").locator("xpath=following-sibling::dd[1]")
    assert queue.inner_text() == "1"
    with store.transaction() as session:
        task = session.query(GroupRow).filter_by(status="pending").one()
        for _ in range(3):
            session.add(
                GroupRow(
                    lineage_id=task.lineage_id,
                    task_id=task.task_id,
                    split="train",
                    purpose="train",
                    size=1,
                    sampling={},
                )
            )
    queue.filter(has_text=re.compile(r"^\s*4\s*$")).wait_for()
    assert page.evaluate("window.stayed") is True


def test_a_chart_is_read_under_the_pointer_and_in_its_table(
    place: tuple[str, Store], look: "Callable[..., Page]"
) -> None:
    page = look(place[0] + "/")
    panel = page.locator("section", has=page.locator("#chart-loss"))
    plot = panel.locator(".plot")
    box = plot.bounding_box()
    assert box is not None
    for share, number in ((0.01, 1), (0.99, NUM_UPDATES)):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 20)
        shown = panel.locator(".hover").inner_text().split()
        row = panel.locator(
            "tbody tr", has=page.get_by_role("rowheader", name=str(number), exact=True, include_hidden=True)
        )
        assert shown[:2] == ["update", str(number)]
        assert shown[2:4] == ["loss", row.locator("td").first.text_content()]
    page.mouse.move(0, 0)
    panel.locator(".hover").wait_for(state="detached")


def test_charts_follow_new_updates_and_an_open_table_stays_open(
    place: tuple[str, Store], look: "Callable[..., Page]"
) -> None:
    page = look(place[0] + "/")
    page.locator("#chart-kl-summary").click()
    page.locator("#curves").evaluate("box => box.setAttribute('data-old', '')")
    page.evaluate("htmx.ajax('GET', '/overview/curves', { target: '#curves', swap: 'outerHTML' })")
    page.locator("#curves:not([data-old])").wait_for()
    page.locator("#chart-kl-figures[open]").wait_for()


def test_the_heat_map_is_read_by_keyboard(place: tuple[str, Store], look: "Callable[..., Page]") -> None:
    address, store = place
    page = look(address + trained(store))
    tokens = page.locator(".token")
    assert page.locator('.token[tabindex="0"]').count() == 1  # one stop of the Tab key for the whole map
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.index") == "2"
    detail = page.locator("[data-heat-detail]")
    for told in ("Cost", "Cost-to-go", "Policy’s probability", "our teacher, in update"):
        assert told in detail.inner_text(), told
    assert detail.get_attribute("aria-live") == "polite"
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.index") == str(tokens.count() - 1)
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.dataset.index") != str(tokens.count() - 1)
    page.get_by_role("button", name="Cost-to-go").click()
    hottest = tokens.first.get_attribute("data-to-go")
    assert f"heat-{hottest}" in (tokens.first.get_attribute("class") or "")


def test_the_first_token_of_the_heat_map_is_reached_with_few_keys(
    place: tuple[str, Store], look: "Callable[..., Page]"
) -> None:
    address, store = place
    page = look(address + trained(store))
    for key in ("Tab", "Tab", "Enter"):  # the second link of the page skips to the tokens
        page.keyboard.press(key)
    page.wait_for_url("**#tokens")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.index") == "0"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.index") == "1"


def test_arrow_keys_enter_the_heat_map_right_after_its_skip_link(
    place: tuple[str, Store], look: "Callable[..., Page]"
) -> None:
    page = look(place[0] + trained(place[1]))
    for _ in range(2):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.hash") == "#tokens"
    page.keyboard.press("Enter")
    page.wait_for_url("**#tokens")
    for place_in_answer in ("0", "1", "2"):
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.dataset.index") == place_in_answer


def test_the_heat_map_is_read_by_hovering_and_by_tapping(place: tuple[str, Store], look: "Callable[..., Page]") -> None:
    address, store = place
    page = look(address + trained(store))
    detail = page.locator("[data-heat-detail]")
    page.locator(".token").nth(3).hover()
    first = detail.inner_text()
    page.locator(".token").nth(5).click()
    assert detail.inner_text() != first
    assert page.url.endswith(trained(store))  # a tap does not leave the place


def test_without_script_a_token_leads_to_its_row(place: tuple[str, Store], look: "Callable[..., Page]") -> None:
    address, store = place
    page = look(address + trained(store), script=False)
    assert page.locator(".token").nth(4).get_attribute("href") == "#token-4"
    assert page.locator("#token-4").count() == 1
    assert look(address + "/", script=False).locator(".chart polyline").count() >= 6


def test_a_dead_letter_is_requeued(place: tuple[str, Store], look: "Callable[..., Page]") -> None:
    address, store = place
    page = look(address + "/dead")
    rows = page.locator("section").first.locator("tbody tr")
    before = rows.count()
    page.get_by_role("button", name="Retry old-linter").first.click()
    page.get_by_text("The consultation will be retried.").wait_for()
    page.wait_for_load_state("load")  # the table below it may still be coming
    assert rows.count() == before - 1
    with store.transaction() as session:
        assert session.query(ConsultationRow).filter_by(status="pending").count() == 1


def test_the_overview_says_since_when_it_is_not_up_to_date(place: tuple[str, Store], chromium: "Chromium") -> None:
    window = chromium.new_context()
    window.set_default_timeout(PATIENCE)
    page = window.new_page()
    page.goto(place[0] + "/")
    window.set_offline(True)
    page.wait_for_selector("#stale:has-text('Not up to date since'):has-text('cannot be reached')")
    assert page.locator("html[data-stale]").count() == 1
    window.set_offline(False)
    page.wait_for_selector("#stale", state="hidden")
    page.route("**/overview/now", lambda route: route.fulfill(status=500, body=""))
    page.wait_for_selector("#stale:has-text('could not answer')")
    window.close()


def test_on_a_phone_every_page_is_reached_through_the_menu(
    place: tuple[str, Store], look: "Callable[..., Page]"
) -> None:
    page = look(place[0] + "/policies", width=PHONE)
    links = page.locator(".links a")
    assert not links.first.is_visible()
    page.get_by_role("button", name="Menu").click()
    assert links.count() == 11
    for link in links.all():
        box = link.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE
    page.get_by_role("link", name="Dead letters").click()
    page.wait_for_url("**/dead")


def test_the_labels_of_axes_are_whole_and_apart_on_a_phone(
    place: tuple[str, Store], look: "Callable[..., Page]"
) -> None:
    page = look(place[0] + "/", width=PHONE, script=False)
    for axis in page.locator(".axis.x").all():
        boxes = sorted(axis.locator("text").evaluate_all(EDGES))
        assert boxes
        assert boxes[0][0] >= 0
        assert boxes[-1][1] <= PHONE
        assert all(left[1] < right[0] for left, right in pairwise(boxes)), boxes
    lefts = page.locator(".axis.y text").evaluate_all("all => all.map(one => one.getBoundingClientRect().left)")
    assert min(lefts) >= 0


@pytest.mark.parametrize("width", [PHONE, 768, 1280, 1600])
def test_tiles_fill_their_rows(place: tuple[str, Store], look: "Callable[..., Page]", width: int) -> None:
    for path in ("/", "/tasks", "/updates/4", "/experts/{expert}"):
        page = look(at(place, path), width=width)
        gaps = page.evaluate(ROOM_BESIDE_TILES)
        assert gaps
        assert max(gaps) < 3, (path, gaps)


def test_retiring_an_expert_is_asked_for_twice(place: tuple[str, Store], look: "Callable[..., Page]") -> None:
    address, store = place
    with store.transaction() as session:
        expert = session.query(ExpertRow).filter(ExpertRow.status == "active").first()
        assert expert is not None
    page = look(f"{address}/experts/{expert.id}", script=False)
    button = page.get_by_role("button", name=f"Retire {expert.name} for good")
    assert not button.is_visible()
    page.locator("summary", has_text="Retire…").click()
    assert button.is_visible()


def test_the_scale_of_the_heat_map_says_what_its_ends_are(
    place: tuple[str, Store], look: "Callable[..., Page]"
) -> None:
    page = look(place[0] + trained(place[1]))
    scale = page.locator(".scale")
    assert "0 nats" in scale.inner_text()
    assert "4 nats or more" in scale.inner_text()
    page.get_by_role("button", name="Cost-to-go").click()
    assert "the highest in this answer" in scale.inner_text()


@pytest.mark.parametrize("path", PATHS)
def test_pages_fit_a_phone_and_stay_short(place: tuple[str, Store], look: "Callable[..., Page]", path: str) -> None:
    page = look(at(place, path), width=PHONE)
    page.wait_for_load_state("load")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE
    assert page.evaluate("document.documentElement.scrollHeight") <= MAX_PHONE_PIXELS


def test_tables_of_hundreds_of_rows_and_long_texts_scroll_within_a_short_page(
    place: tuple[str, Store], look: "Callable[..., Page]"
) -> None:
    with place[1].transaction() as session:
        expert = session.query(ExpertRow).first()
        assert expert is not None
        checks: list[Json] = [{"name": f"c{n}", "passed": True, "detail": "ok", "required": True} for n in range(200)]
        expert.report = {**expert.report, "checks": checks}
        update = session.query(UpdateRow).filter_by(number=2).one()
        update.settings = {f"setting_{n}": n for n in range(200)}
        rollout = session.query(RolloutRow).first()
        assert rollout is not None
        task = session.get_one(TaskRow, rollout.task_id)
        task.messages = [{"role": "user", "content": "a line of a very long prompt\n" * 500}]
        paths = (f"/experts/{expert.id}", "/updates/2", f"/rollouts/{rollout.id}", f"/tasks/{task.id}")
    for path in paths:
        page = look(place[0] + path, width=PHONE)
        assert page.evaluate("document.documentElement.scrollHeight") <= MAX_PHONE_PIXELS, path


def test_a_rollout_fits_a_phone(place: tuple[str, Store], look: "Callable[..., Page]") -> None:
    page = look(place[0] + trained(place[1]), width=PHONE)
    page.get_by_text("Every token as a table").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE


def test_pages_are_dark_where_the_device_is(place: tuple[str, Store], look: "Callable[..., Page]") -> None:
    light, dark = (look(place[0] + "/", dark=is_dark) for is_dark in (False, True))

    def brightness(page: "Page") -> int:
        said: str = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        return sum(int(part) for part in said.removeprefix("rgb(").removesuffix(")").split(",")[:3])

    assert brightness(dark) < 200 < 600 < brightness(light)


def test_every_figure_has_a_name_a_screen_reader_says(place: tuple[str, Store], look: "Callable[..., Page]") -> None:
    page = look(place[0] + "/")
    charts = page.locator(".charts").get_by_role("img").all()
    assert len(charts) == 8
    assert all(": " in (chart.get_attribute("aria-label") or "") for chart in charts)
    page.get_by_text("As a table").first.click()
    table = page.get_by_role("region", name="Loss terms as a table")
    assert table.get_by_role("row").count() == NUM_UPDATES + 1
