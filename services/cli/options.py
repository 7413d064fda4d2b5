"""Options that many commands share, and what they make of them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from services.cli.client import ApiClient
from services.contracts.base import Json
from services.local.layout import Layout, default_home
from services.local.stack import credentials_file, read_credentials

Home = Annotated[
    Path | None,
    typer.Option("--home", help="The data folder. [PRECEPTOR_HOME, else ~/.local/share/preceptor]", show_default=False),
]
Url = Annotated[
    str | None,
    typer.Option("--url", help="The api. [PRECEPTOR_API_URL, else the data folder's]", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of words.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="How many at most, newest first.")]


def layout_of(home: Path | None) -> Layout:
    """The data folder, made if it is not there."""
    return Layout.open(home)


def api_of(home: Path | None, url: str | None) -> ApiClient:
    """A client for the api that was named, or for the one that the data folder's last start left."""
    root = (home or default_home(os.environ)).expanduser().resolve()
    kept = read_credentials(Layout(root)) if credentials_file(Layout(root)).exists() else None
    address = url or os.environ.get("PRECEPTOR_API_URL") or (kept.api_url if kept else "http://127.0.0.1:8700")
    key = os.environ.get("PRECEPTOR_API_KEY") or (kept.api_key if kept else "")
    return ApiClient(address, key)


def show(result: BaseModel | Json, as_json: bool, words: Callable[[], None]) -> None:
    """Print a result as one JSON document, or in words."""
    if not as_json:
        words()
    elif isinstance(result, BaseModel):
        typer.echo(result.model_dump_json(indent=2))
    else:
        typer.echo(json.dumps(result, indent=2))
