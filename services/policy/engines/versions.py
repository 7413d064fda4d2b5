"""Which versions an engine holds, what each may be used for, and which one serves. Loads no torch.

A name is bound to weights the first time it is used, for as long as the process lives. Not covered: locking; an engine
uses its table under its own lock.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.contracts.base import check_change
from services.policy.contract import (
    BASE_VERSION,
    VERSION_CHANGES,
    ProbeResult,
    Version,
    VersionCreate,
    VersionStatus,
)
from services.policy.engines.base import VersionConflict, VersionNotFound, VersionNotProved

Weights = TypeVar("Weights")


@dataclass
class HeldVersion(Generic[Weights]):
    """A version and the engine's copy of its weights."""

    view: Version
    weights: Weights


class VersionTable(Generic[Weights]):
    """The versions of one engine; the base is there from the start and serves."""

    def __init__(self, base: Weights) -> None:
        view = Version(name=BASE_VERSION, sha256=None, status=VersionStatus.SERVING)
        self._held = {BASE_VERSION: HeldVersion(view, base)}
        self._names_used: dict[str, str] = {}
        self.serving = BASE_VERSION

    def held(self) -> list[HeldVersion[Weights]]:
        """All versions, in the order they were loaded."""
        return list(self._held.values())

    def find(self, name: str) -> HeldVersion[Weights]:
        """The version of this name. Raises VersionNotFound."""
        if name not in self._held:
            raise VersionNotFound(f"no version {name!r} is loaded; the serving one is {self.serving!r}")
        return self._held[name]

    def find_usable(self, name: str | None) -> HeldVersion[Weights]:
        """The version of this name, or the serving one. Raises VersionNotFound, VersionNotProved."""
        held = self.find(name or self.serving)
        if held.view.status not in (VersionStatus.PROVED, VersionStatus.SERVING):
            raise VersionNotProved(f"version {held.view.name!r} is {held.view.status.value}")
        return held

    def find_loaded(self, request: VersionCreate) -> Version | None:
        """The version if exactly it is held already. Raises VersionConflict if the name belongs to other weights."""
        if request.name == BASE_VERSION or self._names_used.get(request.name, request.sha256) != request.sha256:
            raise VersionConflict(f"the name {request.name!r} belongs to other weights")
        return self._held[request.name].view if request.name in self._held else None

    def add(self, request: VersionCreate, weights: Weights) -> Version:
        """Hold a version, unless another thread has just done so. Raises VersionConflict as `find_loaded`."""
        if (loaded := self.find_loaded(request)) is not None:
            return loaded
        view = Version(name=request.name, sha256=request.sha256, status=VersionStatus.LOADED)
        self._held[request.name] = HeldVersion(view, weights)
        self._names_used[request.name] = request.sha256
        return view

    def record_probe(self, name: str, result: ProbeResult) -> Version:
        """The version with the outcome of its probe. Raises VersionNotFound."""
        held = self.find(name)
        status = VersionStatus.PROVED if result.passed else VersionStatus.REFUSED
        if held.view.status is VersionStatus.SERVING:
            # A serving version is only measured again: taking it away here would leave none to serve.
            status = VersionStatus.SERVING
        else:
            check_change(VERSION_CHANGES, held.view.status, status)
        held.view = held.view.model_copy(update={"status": status, "probe": result})
        return held.view

    def serve(self, name: str) -> Version:
        """Make a proved version the serving one. Raises VersionNotFound, VersionNotProved."""
        held = self.find(name)
        if name == self.serving:
            return held.view
        if held.view.status is not VersionStatus.PROVED:
            raise VersionNotProved(f"version {name!r} is {held.view.status.value}")
        before = self.find(self.serving)
        before.view = before.view.model_copy(update={"status": VersionStatus.PROVED})
        held.view = held.view.model_copy(update={"status": VersionStatus.SERVING})
        self.serving = name
        return held.view

    def remove(self, name: str, in_use: AbstractSet[str]) -> HeldVersion[Weights]:
        """Forget a version. Raises VersionNotFound, VersionConflict if it is in use, serves or is the base."""
        self.find(name)
        if name in in_use | {BASE_VERSION, self.serving}:
            raise VersionConflict(f"version {name!r} is in use")
        return self._held.pop(name)
