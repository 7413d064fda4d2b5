"""Makes the secrets of an installation, each in the folder of those who need it: `make_secrets.py ROOT`.

A secret that is there stays; one that the environment gives replaces it; the rest is generated. Run before everything
else, on every `docker compose up`. The folders are volumes; a container sees only those that it mounts.
"""

import base64
import os
import re
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Secret:
    """Where a secret lies below the root, the variable that may give it, and what else is derived from it."""

    folder: str
    file: str
    variable: str
    url: tuple[str, str] | None = None
    is_signing: bool = False


SECRETS = (
    Secret(
        "database",
        "password",
        "PRECEPTOR_POSTGRES_PASSWORD",
        url=("preceptor_database_url", "postgresql://preceptor:{}@postgres:5432/preceptor"),
    ),
    Secret("broker", "password", "PRECEPTOR_REDIS_PASSWORD", url=("preceptor_redis_url", "redis://:{}@redis:6379/0")),
    Secret("policy", "preceptor_internal_key", "PRECEPTOR_INTERNAL_KEY"),
    Secret("sandbox", "preceptor_sandbox_key", "SANDBOX_API_KEY"),
    Secret("experts", "preceptor_expert_secret", "PRECEPTOR_EXPERT_SECRET", is_signing=True),
    Secret("metrics", "preceptor_metrics_key", "PRECEPTOR_METRICS_KEY"),
)
PLAIN = re.compile(r"[A-Za-z0-9._~-]{16,}")
"""What stands in a URL, in SQL and in a configuration as it is."""
SIGNING = re.compile(r"whsec_[A-Za-z0-9+/]{32,}={0,2}")


class Refused(Exception):
    """A secret that was given cannot be used."""


def find(secret: Secret, root: Path) -> str:
    """The secret: as the environment gives it, as it is kept, or a new one. Raises Refused."""
    given = os.environ.get(secret.variable, "")
    if given:
        if not (SIGNING if secret.is_signing else PLAIN).fullmatch(given):
            form = "whsec_ and base64 of 24 bytes or more" if secret.is_signing else "16 or more of A-Z a-z 0-9 . _ ~ -"
            raise Refused(f"{secret.variable} must be {form}")
        return given
    kept = root / secret.folder / secret.file
    if kept.exists():
        return kept.read_text()
    if secret.is_signing:
        return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_urlsafe(32)


def write(path: Path, content: str) -> None:
    """Write a file whole or not at all. Who sees it may read it: the folder is mounted only where it is due."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444), "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def main(root: Path) -> int:
    """Make what is missing; 2 when a secret that was given cannot be used."""
    os.umask(0)
    try:
        found = [(secret, find(secret, root)) for secret in SECRETS]
    except Refused as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for secret, value in found:
        folder = root / secret.folder
        files = {secret.file: value} | ({} if secret.url is None else {secret.url[0]: secret.url[1].format(value)})
        for name, content in files.items():
            path = folder / name
            if not path.exists() or path.read_text() != content:
                write(path, content)
                sys.stdout.write(f"{path} is new\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
