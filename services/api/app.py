"""The api: a factory that puts the routes behind their limits, keys and problem documents.

Routes are synchronous and run in the threadpool. They read in `store.reading()`, or call one act (`services.acts`).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

from sandbox.http.rendering import DocumentedApp
from services.api import calls, problems
from services.api.deps import AppState
from services.api.group_commit import GroupCommit
from services.api.ingest import Ingest
from services.api.limits import RequestLimits
from services.api.metrics import LoopCollector
from services.api.routes import (
    answers,
    audit,
    consultations,
    corrections,
    draws,
    evaluations,
    experts,
    health,
    keys,
    lessons,
    loop,
    measurements,
    persons,
    policies,
    rollouts,
    sessions,
    tasks,
    updates,
)
from services.api.space import SpaceGuard
from services.api.tokens import Reader
from services.http import metrics
from services.policy.client import PolicyClient
from services.runtime.settings import Settings
from services.store.core import migrate
from services.store.core.connecting import REQUEST
from services.store.core.transaction import Store

DESCRIPTION = """
Trains a language model continuously from every kind of feedback its owner has.

* Every call carries `Authorization: Bearer pk_…`.
* Every POST takes an `Idempotency-Key`: the same key with the same body has its effect once and gets the same answer.
* Every error is a problem document (RFC 9457): `detail` describes the fault, `hint` the remedy.
* Every list is newest first; `next_cursor` is given back as `cursor`.
"""

ROUTERS = (
    health,
    tasks,
    rollouts,
    experts,
    consultations,
    draws,
    answers,
    lessons,
    corrections,
    policies,
    updates,
    evaluations,
    measurements,
    loop,
    persons,
    keys,
    sessions,
    audit,
)


def create_app(settings: Settings) -> FastAPI:
    """The api over the database, policy and networks of these settings."""
    store = Store(settings.database_url, patience=REQUEST)
    app_state = AppState(
        settings=settings,
        store=store,
        policy=PolicyClient(settings.policy_url, settings.internal_key),
        schema=migrate.find_head(),
        space=SpaceGuard(store, settings),
        health_threads=anyio.CapacityLimiter(2),
    )

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(app.state.group_commit.close)
        app_state.policy.close()
        app_state.store.close()

    app = DocumentedApp(
        title="Preceptor", description=DESCRIPTION, version="1", lifespan=live, docs_url=None, redoc_url=None
    )
    app.state.shared = app_state
    app.state.ingest = Ingest(app_state.store, settings, Reader(app_state.policy), app_state.space)
    app.state.group_commit = GroupCommit(app.state.ingest)
    app.add_middleware(RequestLimits)
    problems.install(app)
    calls.install(app)
    for module in ROUTERS:
        app.include_router(module.router)
    registry = metrics.make_registry()
    registry.register(LoopCollector(app_state.store, settings))
    metrics.install(app, registry, settings.metrics_key)
    return app
