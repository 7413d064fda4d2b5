"""The operator's pages in a real browser: live without reload, by keyboard, on a phone, in the dark."""

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.tables.ledger import LessonRow
from services.store.tables.loop import ConsultationRow, ExpertRow, GroupRow, RolloutRow
from services.web.app import create_app
from tests.serving import serve
from tests.web.fill import fill

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium
    from playwright.sync_api import Page

pytestmark = pytest.mark.integration

PATIENCE = 30_000.0  # milliseconds; the machine is shared
PATHS = ("/", "/tasks", "/rollouts", "/experts", "/policies", "/policies/main-v1", "/updates", "/updates/4", "/dead")


@pytest.fixture(scope="module")
def place(fresh_database: Callable[[], str], broker: str) -> Iterator[tuple[str, Store]]:
    """The address of an open installation on a store that a loop has run on, and the store."""
    url = fresh_database()
    store = Store(url, pool_size=4)
    fill(store, num_updates=5)
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


def trained(store: Store) -> str:
    with store.transaction() as session:
        row = session.query(RolloutRow).join(LessonRow).filter(LessonRow.status == "used").first()
        assert row is not None
        return f"/rollouts/{row.id}"


def test_the_overview_changes_without_being_loaded_again(place: tuple[str, Store], look: "Callable[..., Page]") -> None:
    address, store = place
    page = look(address + "/")
    page.evaluate("window.stayed = true")
    queue = page.locator("#now").get_by_text("Prompts to be drawn").locator("xpath=following-sibling::dd[1]")
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
    assert page.locator(".chart .uplot").count() >= 6


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
    for told in ("Cost", "Cost-to-go", "Drawn with", "our teacher, in update"):
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
    for key in ("Tab", "Tab", "Enter", "Tab"):  # the second link of the page skips to the tokens
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.dataset.index") == "0"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.index") == "1"


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
    assert page.locator("svg.curves").count() == 0
    assert look(address + "/", script=False).locator("svg.curves polyline").count() >= 6


def test_a_dead_letter_is_requeued(place: tuple[str, Store], look: "Callable[..., Page]") -> None:
    address, store = place
    page = look(address + "/dead")
    rows = page.locator("section").first.locator("tbody tr")
    before = rows.count()
    page.get_by_role("button", name="Ask old-linter again").first.click()
    page.get_by_text("The consultation will be retried.").wait_for()
    assert rows.count() == before - 1
    with store.transaction() as session:
        assert session.query(ConsultationRow).filter_by(status="pending").count() == 1


def test_the_overview_says_since_when_it_is_not_up_to_date(place: tuple[str, Store], chromium: "Chromium") -> None:
    window = chromium.new_context()
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


def test_the_strip_of_links_on_a_phone_begins_where_one_is(
    place: tuple[str, Store], look: "Callable[..., Page]"
) -> None:
    page = look(place[0] + "/policies", width=375)
    box = page.locator(".links [aria-current=page]").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 375


def test_the_labels_of_an_axis_are_read_whole_on_a_phone(place: tuple[str, Store], look: "Callable[..., Page]") -> None:
    page = look(place[0] + "/", width=375, script=False)
    ticks = page.locator("svg.curves .tick")
    assert ticks.count() > 10
    lefts = ticks.evaluate_all(
        "all => all.map(one => one.getBBox().x).concat([...document.querySelectorAll('.line, .dot')]"
        ".map(one => one.getBBox().x - 60))"
    )
    assert min(lefts) >= 0


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
    assert "4 nats and more" in scale.inner_text()
    page.get_by_role("button", name="Cost-to-go").click()
    assert "the most of this answer" in scale.inner_text()


@pytest.mark.parametrize("path", PATHS)
def test_pages_fit_a_phone(place: tuple[str, Store], look: "Callable[..., Page]", path: str) -> None:
    page = look(place[0] + path, width=375)
    page.wait_for_load_state("networkidle")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_a_rollout_fits_a_phone(place: tuple[str, Store], look: "Callable[..., Page]") -> None:
    page = look(place[0] + trained(place[1]), width=375)
    page.get_by_text("Every token as a table").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_pages_are_dark_where_the_device_is(place: tuple[str, Store], look: "Callable[..., Page]") -> None:
    light, dark = (look(place[0] + "/", dark=is_dark) for is_dark in (False, True))

    def brightness(page: "Page") -> int:
        said: str = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        return sum(int(part) for part in said.removeprefix("rgb(").removesuffix(")").split(",")[:3])

    assert brightness(dark) < 200 < 600 < brightness(light)


def test_every_figure_has_a_name_a_screen_reader_says(place: tuple[str, Store], look: "Callable[..., Page]") -> None:
    page = look(place[0] + "/")
    page.locator(".chart .uplot").first.wait_for()
    for chart in page.locator(".chart .uplot").all():
        assert "from" in (chart.get_attribute("aria-label") or "")
    page.get_by_text("As a table").first.click()
    assert page.get_by_role("region", name="Loss terms as a table").get_by_role("row").count() == 6
