"""The settings of one sandbox server, read once at its entrypoint."""

import os
import tempfile
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from sandbox.contract import Level


class BackendName(StrEnum):
    """What runs are isolated by."""

    NAMESPACES = "namespaces"
    """This process's own means."""
    DOCKER = "docker"
    """An engine, for machines that forbid namespaces."""


def _two_per_core() -> int:
    return 2 * (os.cpu_count() or 1)


class SandboxSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    slots: int = Field(default_factory=_two_per_core, ge=1, le=1024)
    """Runs at one time: two per core, since a run waits for its pipes and mounts part of its time."""
    queue_limit: int = Field(256, ge=0)
    """Runs that may wait for a slot; the next one is answered 429."""
    minimum_level: Level = Level.FULL_NOCGROUP
    """The weakest isolation to accept. `weak` must be asked for by name."""
    backend: BackendName = BackendName.NAMESPACES
    """Isolation by this process's own namespaces, or by a Docker engine where those are forbidden."""
    docker_image: str = "python:3.11-slim"
    """For the backend `docker`: what is in its containers. It needs python3; what else it has, runs can use."""
    data_dir: Path = Path(tempfile.gettempdir())
    """Where the level `weak` makes the folders of its runs; the other levels write nothing to disk."""
    api_key: SecretStr | None = None
    """When set, every call but /healthz and /v1/ping must carry it as `Authorization: Bearer`; /metrics only from
    another machine."""
    metrics_key: SecretStr | None = None
    """Opens /metrics to another machine, and nothing else."""
