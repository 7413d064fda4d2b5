"""Options that many commands share, and how they are resolved."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from services.cli.client import ApiClient
from services.contracts.base import Json
from services.local.credentials import read_credentials
from services.local.layout import Layout, default_home
from services.local.supervise.run_state import Presence, find_presence
from services.runtime.errors import PreceptorError
from services.runtime.secret_files import find_secret

Home = Annotated[
    Path | None,
    typer.Option("--home", help="The data folder. [PRECEPTOR_HOME, else ~/.local/share/preceptor]", show_default=False),
]
Url = Annotated[
    str | None,
    typer.Option("--url", help="The api. [PRECEPTOR_API_URL, else the data folder's]", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
AsJsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON document per line for each event.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="Maximum number of rows, newest first.")]


HINTS_OF_PRESENCE = {
    Presence.STARTING: "The stack on this data folder is starting: try again in a moment.",
    Presence.STOPPING: "The stack on this data folder is stopping: start it again with `preceptor up`.",
}
"""What to do where its api does not answer."""


class ApiKeyMissing(PreceptorError):
    """The stored key does not belong to the named api."""

    status_code = 401
    title = "No API key for this api"
    hint = "Set PRECEPTOR_API_KEY to a key of that api; the key in the data folder is sent only to its own api."


def layout_of(home: Path | None) -> Layout:
    """The data folder as it is; creates no folder."""
    return Layout((home or default_home(os.environ)).expanduser().resolve())


def api_of(home: Path | None, url: str | None, given_key: str | None = None) -> ApiClient:
    """A client for the named api, or for the one last started on the data folder.

    Errors: ApiKeyMissing if the stored key is not for the named api and no other is given.
    """
    layout = layout_of(home)
    kept = read_credentials(layout)
    named = url or os.environ.get("PRECEPTOR_API_URL")
    address = named or (kept.api_url if kept else "http://127.0.0.1:8700")
    key = given_key or find_secret("PRECEPTOR_API_KEY")
    if not key and kept is not None and address.rstrip("/") == kept.api_url.rstrip("/"):
        key = kept.api_key
    if not key and named:
        raise ApiKeyMissing(f"no API key is known for {named}")
    return ApiClient(address, key, explain=lambda: None if named else HINTS_OF_PRESENCE.get(find_presence(layout)))


def show(result: BaseModel | Json, as_json: bool, words: Callable[[], None]) -> None:
    """Print a result as one JSON document, or as text."""
    if not as_json:
        words()
    elif isinstance(result, BaseModel):
        typer.echo(result.model_dump_json(indent=2))
    else:
        typer.echo(json.dumps(result, indent=2))
