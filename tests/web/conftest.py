"""The api with its pages over a database of the test's own, and browsers: small ones here, and a real one."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from services.contracts.persons import Role
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.people import keys, persons
from services.web.app import create_app
from tests.api.conftest import broker, policy_url, settings, store, world
from tests.serving import serve
from tests.store.conftest import World

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium

__all__ = ["broker", "policy_url", "settings", "store", "world"]

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE = 60_000.0  # milliseconds for a step in a page; the machine is shared
CHROMIUM_ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TOKEN = re.compile(r'name="csrf_token" value="([^"]+)"')


@pytest.fixture
def app(settings: Settings, world: World) -> FastAPI:
    """The api with its pages."""
    return create_app(settings)


@dataclass(frozen=True)
class Browser:
    """Somebody's browser without script: keeps cookies, follows no redirect, sends the tokens of forms."""

    http: httpx2.Client

    def get(self, path: str, **params: str) -> httpx2.Response:
        return self.http.get(path, params=params or None, headers={"Accept": "text/html"})

    def send(self, path: str, *, seen_on: str = "/login", **fields: str | list[str]) -> httpx2.Response:
        """A form of the page it was seen on, filled in."""
        return self.send_as(self.token(seen_on), path, **fields)

    def send_as(self, token: str, path: str, **fields: str | list[str]) -> httpx2.Response:
        return self.http.post(path, data={"csrf_token": token, **fields}, headers={"Accept": "text/html"})

    def token(self, path: str) -> str:
        page = self.get(path)
        found = TOKEN.search(page.text)
        assert found is not None, (page.status_code, page.text[:2000])
        return found[1]

    def log_in(self, key: str) -> httpx2.Response:
        response = self.send("/login", key=key)
        assert response.status_code == 303, response.text
        return response


@pytest.fixture
def browser(app: FastAPI) -> Iterator[Callable[[], Browser]]:
    """A function that opens a browser of its own cookies; all look at one app."""
    opened: list[TestClient] = []
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False):

        def make() -> Browser:
            client = TestClient(app, raise_server_exceptions=False, follow_redirects=False)
            opened.append(client)
            return Browser(client)

        yield make
    for client in opened:
        client.close()


@pytest.fixture
def person(store: Store) -> Callable[[str, Role], str]:
    """A function that adds a person and gives their key."""

    def make(name: str, role: Role) -> str:
        with store.transaction() as session:
            return persons.create(session, name, role)[1]

    return make


@pytest.fixture
def owner_key(store: Store, world: World) -> str:
    """The first owner's key."""
    with store.transaction() as session:
        key = persons.ensure_owner(session)
    assert key is not None
    return key


@pytest.fixture
def owner(browser: Callable[[], Browser], owner_key: str) -> Browser:
    """The first owner's browser, logged in."""
    made = browser()
    made.log_in(owner_key)
    return made


def key_id_of(store: Store, secret: str) -> str:
    """The id of the key with this secret."""
    with store.transaction() as session:
        found = keys.authenticate(session, secret)
    assert found is not None
    return str(found[1].id)


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Chromium]":
    """The system's Chromium, driven by Playwright; skips, and says so, where there is none.

    Ends with the module: while Playwright runs, no other test of this process may start an event loop.
    """
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(CHROMIUM_ARGS), timeout=0)
        yield made
        made.close()


@pytest.fixture
def site(app: FastAPI) -> Iterator[str]:
    """The address of the app on a real server."""
    with serve(app) as url:
        yield url
