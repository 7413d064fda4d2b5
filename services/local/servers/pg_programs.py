"""pg_dump and pg_restore: the embedded wheel's, or the machine's own where the server is newer than the wheel.

Passwords travel in the environment, never on a command line.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from psycopg.conninfo import conninfo_to_dict

from services.local.processes.process import LocalError
from services.local.servers.postgres import wheel_folder
from services.store.core import migrate
from services.store.core.transaction import sqlalchemy_url

VARIABLES: Final[Mapping[str, str]] = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
    "options": "PGOPTIONS",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "passfile": "PGPASSFILE",
}
"""libpq's variables, by the parameter of a URL."""


class ProgramFailed(LocalError):
    """pg_dump or pg_restore ended with an error; its own words say which."""

    title = "A database program failed"


def plain_url(url: str) -> str:
    """The URL as libpq reads it. Errors: DatabaseUrlWrong."""
    migrate.check_url(url)
    return sqlalchemy_url(url).replace("postgresql+psycopg://", "postgresql://", 1)


NO_HARM: Final = 'unrecognized configuration parameter "transaction_timeout"'
"""The error pg_restore 17 and newer gets from older servers, whose sessions lack the limit it wants to lift."""


def run(program: str, server_major: int, url: str, arguments: Sequence[str | Path]) -> None:
    """Run one of the programs against the database of a URL, to its end. Errors: ProgramFailed, LocalError."""
    named = {
        VARIABLES[name]: str(value) for name, value in conninfo_to_dict(plain_url(url)).items() if name in VARIABLES
    }
    ended = subprocess.run(
        [find(program, server_major), *arguments],
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", **named},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    errors = [line for line in ended.stdout.splitlines() if ": error:" in line]
    if ended.returncode and not (errors and all(NO_HARM in line for line in errors)):
        raise ProgramFailed(f"{program} ended with {ended.returncode}:\n{ended.stdout[-2000:].strip()}")


def find(program: str, server_major: int) -> Path:
    """The program in a version no older than the server: the wheel's, else the one on PATH. Errors: LocalError."""
    candidates = []
    with suppress(LocalError):  # the wheel is left out where all servers are external
        candidates.append(wheel_folder() / "pginstall" / "bin" / program)
    if (here := shutil.which(program)) is not None:
        candidates.append(Path(here))
    for candidate in candidates:
        if candidate.exists() and _major(candidate) >= server_major:
            return candidate
    raise LocalError(
        f"the server is Postgres {server_major}, and no {program} on this machine is that new",
        hint=f"Install Postgres {server_major}'s client programs and have {program} on PATH.",
    )


def _major(program: Path) -> int:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"(\d+)", said)
    return int(found[1]) if found else 0
