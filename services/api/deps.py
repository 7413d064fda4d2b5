"""Dependencies of routes: the store, the settings, the policy client, the cursor of a list, free disk space.

Dependencies that never block are coroutines: FastAPI would send others to a thread and back.
"""

from dataclasses import dataclass
from typing import Annotated, Final

import anyio
from fastapi import Depends, Query, Request
from fastapi.params import Depends as Dependency

from services.api.space import SpaceGuard
from services.policy.client import PolicyClient
from services.runtime.settings import Settings
from services.store.core.transaction import Store


@dataclass(frozen=True)
class AppState:
    """The objects that one api process holds for its whole life."""

    settings: Settings
    store: Store
    policy: PolicyClient
    schema: str
    """The migration this code expects the database to be at."""
    space: SpaceGuard
    health_threads: anyio.CapacityLimiter
    """For the health check, which must answer while every other thread waits for the database."""


async def get_app_state(request: Request) -> AppState:
    """The process's own objects."""
    app_state: AppState = request.app.state.shared
    return app_state


AppStateDep = Annotated[AppState, Depends(get_app_state)]


async def _get_store(app_state: AppStateDep) -> Store:
    return app_state.store


async def _get_settings(app_state: AppStateDep) -> Settings:
    return app_state.settings


def _check_space(app_state: AppStateDep) -> None:
    app_state.space.check()


needs_space: Final[Dependency] = Depends(_check_space)
"""A dependency that passes while there is room. Errors: OutOfSpace (507)."""
StoreDep = Annotated[Store, Depends(_get_store)]
SettingsDep = Annotated[Settings, Depends(_get_settings)]


@dataclass(frozen=True)
class Paging:
    """Where in a list to begin, and how many items to give."""

    cursor: str | None
    limit: int


async def _get_paging(
    cursor: Annotated[
        str | None, Query(max_length=64, description="`next_cursor` of the page before; the newest without it.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="How many items at most.")] = 50,
) -> Paging:
    return Paging(cursor=cursor, limit=limit)


PagingDep = Annotated[Paging, Depends(_get_paging)]
