"""Dependencies of routes: the store, the settings, the policy client, the place in a list, room on the disks.

Dependencies that wait for nothing are coroutines: FastAPI would send others to a thread and back.
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
class House:
    """What one api process holds for its whole life."""

    settings: Settings
    store: Store
    policy: PolicyClient
    schema: str
    """The migration this code expects the database to be at."""
    space: SpaceGuard
    health_threads: anyio.CapacityLimiter
    """Those of the health check, which must answer while every other thread waits for the database."""


async def get_house(request: Request) -> House:
    """The process's own things."""
    house: House = request.app.state.house
    return house


HouseDep = Annotated[House, Depends(get_house)]


async def _get_store(house: HouseDep) -> Store:
    return house.store


async def _get_settings(house: HouseDep) -> Settings:
    return house.settings


def _check_space(house: HouseDep) -> None:
    house.space.check()


needs_space: Final[Dependency] = Depends(_check_space)
"""A dependency that passes while there is room. Errors: OutOfSpace (507)."""
StoreDep = Annotated[Store, Depends(_get_store)]
SettingsDep = Annotated[Settings, Depends(_get_settings)]


@dataclass(frozen=True)
class Paging:
    """Where in a list to begin, and how much of it to give."""

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
