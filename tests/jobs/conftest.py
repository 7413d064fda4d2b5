"""The store and the lineage of the store's own tests, and this process as a worker."""

from collections.abc import Iterator

import pytest

from services.jobs.app import app
from services.jobs.runtime import runtime
from tests.api import policy_stand_in
from tests.serving import serve
from tests.store.conftest import store, world

__all__ = ["store", "world"]


@pytest.fixture
def policy_url(versions: dict[str, float]) -> Iterator[str]:
    """A policy over HTTP that holds the module's `versions`; a module may have one of its own."""
    with serve(policy_stand_in.create_app(versions)) as url:
        yield url


@pytest.fixture
def worker(database_url: str, redis_url: str, policy_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as a worker that draws from the policy."""
    monkeypatch.setenv("PRECEPTOR_DATABASE_URL", database_url)
    monkeypatch.setenv("PRECEPTOR_REDIS_URL", redis_url)
    monkeypatch.setenv("PRECEPTOR_POLICY_URL", policy_url)
    monkeypatch.setattr(app.conf, "broker_url", redis_url)
    runtime.cache_clear()
    yield
    runtime().close()
    runtime.cache_clear()
