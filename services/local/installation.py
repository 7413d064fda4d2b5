"""An installation as a command from outside finds it: the processes on the data folder, and the environment.

The processes of `preceptor up` get their addresses and secrets at the start; later commands read them from the data
folder. The environment wins.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from services.local.layout import Layout, given_database_url, given_redis_url
from services.local.processes.lock import FolderOfAnother
from services.local.servers import postgres, valkey
from services.local.supervise.run_state import RunState, read_running
from services.runtime.settings import Settings

NAMED_BY_RUN = {"api": "api_url", "policy": "policy_url", "sandbox": "sandbox_url", "experts": "experts_url"}


@dataclass(frozen=True)
class Installation:
    """An installation. database_url, redis_url: None if no server runs and the environment names none."""

    layout: Layout
    settings: Settings
    run: RunState | None
    database_url: str | None
    redis_url: str | None
    is_ours: bool
    """Whether the database is the embedded one of this data folder."""

    @property
    def is_up(self) -> bool:
        """Whether there is a database to talk to."""
        return self.database_url is not None


def find(layout: Layout, environ: Mapping[str, str] = os.environ) -> Installation:
    """The installation on a data folder; changes nothing. Errors: FolderOfAnother."""
    try:
        return _find(layout, environ)
    except PermissionError as error:
        raise FolderOfAnother(layout.root) from error


def _find(layout: Layout, environ: Mapping[str, str]) -> Installation:
    run = read_running(layout)
    given = given_database_url(environ)
    database_url = given or postgres.find_running_url(layout.postgres)
    redis_url = given_redis_url(environ) or valkey.find_running_url(layout.valkey)
    found: dict[str, object] = {"home": layout.root}
    if database_url is not None:
        found["database_url"] = database_url
    if redis_url is not None:
        found["redis_url"] = redis_url
    for process in () if run is None else run.processes:
        if process.url is not None and process.name in NAMED_BY_RUN:
            found[NAMED_BY_RUN[process.name]] = process.url
    if layout.secrets_file.exists() and "PRECEPTOR_INTERNAL_KEY" not in environ:
        secrets = layout.secrets()
        found["internal_key"] = secrets.internal_key.get_secret_value()
        found["expert_secret"] = secrets.expert_signing_secret.get_secret_value()
    return Installation(
        layout, Settings().model_copy(update=found), run, database_url, redis_url, is_ours=given is None
    )
