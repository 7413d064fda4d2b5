"""Pages in a real browser: they log in, look right on a phone and in the dark, and break no rule of their own."""

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from services.contracts.persons import Role
from services.store.core.transaction import Store
from tests.store.conftest import World
from tests.web.conftest import PATIENCE

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium
    from playwright.sync_api import Page

pytestmark = pytest.mark.integration

PATHS = ("/account", "/persons", "/audit")
SMALL = {"width": 320, "height": 640}


@pytest.fixture
def page(chromium: "Chromium", site: str, world: World) -> "Iterator[Page]":
    """A page of its own cookies; whatever it logs as an error fails the test."""
    context = chromium.new_context(base_url=site)
    context.set_default_timeout(PATIENCE)
    made = context.new_page()
    said: list[str] = []
    made.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    made.on("pageerror", lambda error: said.append(str(error)))
    yield made
    context.close()
    assert said == []


def log_in(page: "Page", key: str) -> None:
    page.goto("/login?next=/account")
    page.get_by_text("Log in with an API key").click()
    page.get_by_label("API key", exact=True).fill(key)
    page.get_by_role("button", name="Log in with the key").click()
    page.wait_for_url("**/account")


def test_a_person_sets_a_password_and_logs_in_with_it(page: "Page", person: Callable[[str, Role], str]) -> None:
    log_in(page, person("ann", Role.ANNOTATOR))
    page.get_by_label("New password").fill("a new word or three")
    page.get_by_label("Repeat password").fill("a new word or three")
    page.get_by_role("button", name="Set the password").click()
    page.get_by_role("status").filter(has_text="Your password is set").wait_for()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    page.goto("/login?next=/account")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill("a new word or three")
    page.get_by_label("Password").press("Enter")
    page.wait_for_url("**/account")
    assert page.get_by_role("heading", level=1).inner_text() == "My account"


def test_revoking_a_key_is_asked_for_twice(page: "Page", owner_key: str) -> None:
    log_in(page, owner_key)
    forms = page.locator("form[action$='/revoke'] button")
    assert forms.count() == 1
    assert not forms.is_visible()
    page.locator("summary", has_text="Revoke…").click()
    assert forms.is_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_fit_a_small_phone_and_follow_the_device(
    chromium: "Chromium", site: str, owner_key: str, theme: str
) -> None:
    context = chromium.new_context(base_url=site, viewport=SMALL, color_scheme=theme)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    log_in(page, owner_key)
    for path in PATHS:
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
        shade = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (shade == "rgb(20, 23, 26)") == (theme == "dark"), path
    context.close()


def test_the_chosen_colours_win_over_the_device(chromium: "Chromium", site: str, owner_key: str) -> None:
    context = chromium.new_context(base_url=site, color_scheme="light")
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    log_in(page, owner_key)
    page.locator("footer").get_by_role("button", name="Dark").click()
    page.wait_for_selector("html[data-theme=dark]")
    page.wait_for_load_state("load")
    shade = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert shade == "rgb(20, 23, 26)"
    context.close()


def test_the_keyboard_reaches_the_page_first(page: "Page", owner_key: str) -> None:
    log_in(page, owner_key)
    page.goto("/persons")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.wait_for_url("**#main")
    assert page.evaluate("document.activeElement.id") == "main"


def test_every_control_has_a_name_and_every_page_its_landmarks(page: "Page", owner_key: str) -> None:
    log_in(page, owner_key)
    for path in PATHS:
        page.goto(path)
        for role in ("banner", "navigation", "main", "contentinfo"):
            assert page.get_by_role(role).count() >= 1, (path, role)
        assert page.get_by_role("heading", level=1).count() == 1
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('button, a[href], input:not([type=hidden]), select')]
            .filter(e => !(e.getAttribute('aria-hidden') || e.textContent.trim() || e.labels?.length || e.ariaLabel))
            .map(e => e.outerHTML)"""
        )
        assert nameless == [], path


def test_what_a_name_holds_does_not_run(page: "Page", owner_key: str, store: Store) -> None:
    log_in(page, owner_key)
    with store.transaction() as session:
        session.execute(text("UPDATE person SET name = :name"), {"name": "<img src=x onerror=document.title='x'>"})
    for path in PATHS:
        page.goto(path)
        page.wait_for_load_state("networkidle")
        assert page.title() != "x"
        assert page.locator("img[src=x]").count() == 0


def test_htmx_sends_the_token_of_the_page(page: "Page", owner_key: str) -> None:
    log_in(page, owner_key)
    headers = json.loads(page.locator("body").get_attribute("hx-headers") or "{}")
    assert headers["X-CSRF-Token"] == page.locator("input[name=csrf_token]").first.input_value()
    assert page.evaluate("htmx.config.allowEval") is False
