"""The app of the api process: the api, and over it the pages."""

from fastapi import FastAPI

from services.api import app as api
from services.settings import Settings
from services.web import assets, faults
from services.web.pages import account, login
from services.web.security import Guarded

PAGES = (
    login,
    account,
)


def create_app(settings: Settings) -> FastAPI:
    """The api and the pages over the database, policy and networks of these settings."""
    app = api.create_app(settings)
    app.add_middleware(Guarded, is_open=settings.api_open)
    faults.install(app)
    app.include_router(assets.router)
    for module in PAGES:
        app.include_router(module.router)
    return app
