"""A sign of life for processes without a server: a file whose time is when the process last did its work.

`PRECEPTOR_ALIVE_FILE` names it; without it nothing is written. docker-compose.yml's healthchecks look at its age.
"""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def _file() -> Path | None:
    named = os.environ.get("PRECEPTOR_ALIVE_FILE")
    return Path(named) if named else None


def touch() -> None:
    """Note that the process has just done its work. Cheap enough for every second."""
    file = _file()
    if file is not None:
        with suppress(OSError):  # a full disk: the file then looks as old as it is
            file.touch()
