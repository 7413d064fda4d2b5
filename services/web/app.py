"""The app of the api process: the api, and over it the pages."""

from fastapi import FastAPI
from fastapi.routing import APIRoute

from sandbox.http.access_log import LogRequests
from services.api import app as api
from services.runtime.settings import Settings
from services.web import assets, faults
from services.web.pages import (
    account,
    audit,
    correction_calls,
    corrections,
    dead,
    experts,
    keys,
    login,
    measurements,
    overview,
    persons,
    policies,
    rollouts,
    tasks,
    updates,
)
from services.web.security import Guarded

PAGES = (
    overview,
    tasks,
    rollouts,
    experts,
    measurements,
    policies,
    updates,
    dead,
    login,
    account,
    corrections,
    correction_calls,
    keys,
    persons,
    audit,
)


def create_app(settings: Settings) -> FastAPI:
    """The api and the pages over the database, policy and networks of these settings."""
    app = api.create_app(settings)
    app.add_middleware(Guarded, is_open=settings.api_open)
    app.add_middleware(LogRequests)
    faults.install(app)
    app.include_router(assets.router)
    for module in PAGES:
        app.include_router(module.router)
    app.state.pages = frozenset(
        route.path for module in PAGES for route in module.router.routes if isinstance(route, APIRoute)
    )
    return app
