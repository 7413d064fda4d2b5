"""The api: a factory that puts the routes behind their limits, keys and problem documents.

Routes are synchronous and run in the threadpool; each opens its one transaction where it can be seen.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from services.api import once, problems
from services.api.deps import House
from services.api.limits import RequestLimits
from services.api.routes import (
    audit,
    consultations,
    corrections,
    evaluations,
    experts,
    health,
    keys,
    loop,
    persons,
    policies,
    rollouts,
    tasks,
    updates,
)
from services.policy.client import PolicyClient
from services.settings import Settings
from services.store import migrate
from services.store.store import Store

DESCRIPTION = """
Trains a language model continuously from every kind of feedback its owner has.

* Every call carries `Authorization: Bearer pk_…`.
* Every POST takes an `Idempotency-Key`: the same key with the same body has its effect once and gets the same answer.
* Every error is a problem document (RFC 9457): `detail` says what is wrong, `hint` what to do.
* Every list is newest first; `next_cursor` is given back as `cursor`.
"""

ROUTERS = (
    health,
    tasks,
    rollouts,
    experts,
    consultations,
    corrections,
    policies,
    updates,
    evaluations,
    loop,
    persons,
    keys,
    audit,
)


def create_app(settings: Settings) -> FastAPI:
    """The api over the database, policy and networks of these settings."""
    house = House(
        settings=settings,
        store=Store(settings.database_url),
        policy=PolicyClient(settings.policy_url, settings.internal_key),
        schema=migrate.find_head(),
    )

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        yield
        house.policy.close()
        house.store.close()

    app = FastAPI(title="Preceptor", description=DESCRIPTION, version="1", lifespan=live, docs_url=None, redoc_url=None)
    app.state.house = house
    app.add_middleware(RequestLimits)
    problems.install(app)
    once.install(app)
    for module in ROUTERS:
        app.include_router(module.router)
    return app
