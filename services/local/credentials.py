"""How this installation's own command line reaches its api: an address and a key, kept in the data folder."""

from pathlib import Path

from pydantic import BaseModel

from services.local.layout import Layout


class Credentials(BaseModel):
    """The api's address and the owner's key; kept in a file only its owner can read."""

    api_url: str
    api_key: str


def credentials_file(layout: Layout) -> Path:
    """Where the command line finds the api and its key."""
    return layout.root / "credentials.json"


def read_credentials(layout: Layout) -> Credentials | None:
    """The credentials of the last start; None before the first."""
    try:
        return Credentials.model_validate_json(credentials_file(layout).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
