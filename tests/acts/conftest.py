"""A page and the api over one store, for tests that an act leaves the same behind whichever way it is called."""

from collections.abc import Callable, Iterator

import pytest
from fastapi import FastAPI
from redis import Redis
from starlette.testclient import TestClient

from services.store.core.transaction import Store
from tests.acts.pairs import Scene
from tests.api.conftest import Api, broker, policy_url, settings, store, world
from tests.store.conftest import World
from tests.web.conftest import Browser, app, browser, owner, owner_key

__all__ = ["app", "broker", "browser", "owner", "owner_key", "policy_url", "settings", "store", "world"]


@pytest.fixture
def scene(
    app: FastAPI,
    store: Store,
    world: World,
    owner: Browser,
    owner_key: str,
    browser: Callable[[], Browser],
    broker: str,
) -> Iterator[Scene]:
    """The first owner in front of a browser, and with their key at the api."""
    with Redis.from_url(broker) as redis:
        http = TestClient(app, raise_server_exceptions=False)
        yield Scene(store, world, owner, Api(http, owner_key), browser, redis)
        http.close()
