"""Static files, read once at start and served under the hash of their content, so browsers can cache them for good.

`asset_url("app.css")` is `/static/3f2a…/app.css`: a changed file has another address, so a stale copy is never used.
"""

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request, Response

from services.runtime.errors import NotFound

FOLDER: Final = Path(__file__).parent / "static"
FOREVER: Final = "public, max-age=31536000, immutable"
A_DAY: Final = "public, max-age=86400"
SERVED: Final = frozenset({".css", ".js", ".svg"})

router = APIRouter(include_in_schema=False)


class AssetNotFound(NotFound):
    """No static file of this name and content."""


@dataclass(frozen=True)
class Asset:
    """One static file, also compressed."""

    content: bytes
    packed: bytes
    digest: str
    media_type: str


@cache
def assets() -> dict[str, Asset]:
    """Every static file by its path below the folder."""
    files = (file for file in sorted(FOLDER.rglob("*")) if file.suffix in SERVED)
    return {file.relative_to(FOLDER).as_posix(): _read(file) for file in files}


def asset_url(name: str) -> str:
    """The address of a static file. Raises KeyError for an unknown name."""
    return f"/static/{assets()[name].digest}/{name}"


def _read(file: Path) -> Asset:
    content = file.read_bytes()
    media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return Asset(content, gzip.compress(content, mtime=0), hashlib.sha256(content).hexdigest()[:16], media_type)


@router.get("/static/{digest}/{name:path}")
def get_asset(digest: str, name: str, request: Request) -> Response:
    """A static file; needs no login. Errors: AssetNotFound (404)."""
    found = assets().get(name)
    if found is None or found.digest != digest:
        raise AssetNotFound(f"no static file {name[:100]!r} with this content")
    return _serve(found, request, FOREVER)


@router.get("/favicon.ico")
def get_favicon(request: Request) -> Response:
    """The icon under its traditional name."""
    return _serve(assets()["favicon.svg"], request, A_DAY)


def _serve(found: Asset, request: Request, caching: str) -> Response:
    headers = {"Cache-Control": caching, "Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(found.packed, headers={**headers, "Content-Encoding": "gzip"}, media_type=found.media_type)
    return Response(found.content, headers=headers, media_type=found.media_type)
