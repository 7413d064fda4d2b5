"""The data folder: where each thing lies, and the secrets made on the first start.

Everything Preceptor keeps on one machine is below one folder; deleting it forgets everything. (One exception, when
run as root below a folder that is closed to others: the database's files, see `services/local/servers/postgres.py`.)
"""

from __future__ import annotations

import base64
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, SecretStr

from services.local.processes.process import LocalError
from services.runtime.secret_files import find_secret

LOOPBACK = "127.0.0.1"
ROOT = Path(__file__).resolve().parents[2]
"""The folder that the packages lie in."""


class LocalSecrets(BaseModel):
    """Secrets of this installation, made once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    internal_key: SecretStr  # API key of our own processes
    expert_signing_secret: SecretStr  # Standard Webhooks secret: `whsec_` and base64 of 32 random bytes


class FolderIncomplete(LocalError):
    """The data folder is the remainder of a failed restore; no process may run on it."""

    title = "Data folder incomplete"
    hint = "Delete the folder and restore again, or name another with --home."


@dataclass(frozen=True)
class Layout:
    """Paths below the data folder `root`."""

    root: Path

    @classmethod
    def open(cls, root: Path | None = None) -> Layout:
        """The layout of `root` (by default `default_home()`), its folders made where they are missing.

        Errors: LocalError when they cannot be made, or when a restore into the folder was interrupted.
        """
        layout = cls((root or default_home(os.environ)).expanduser().resolve())
        layout.require_complete()
        # 0711 for root: the database runs as another user and must be able to walk through; files stay closed
        make_folder(layout.root, 0o711 if os.geteuid() == 0 else 0o700)
        for folder in (layout.logs, layout.artifacts, layout.checkpoints, layout.reports):
            make_folder(folder, 0o700)
        return layout

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def valkey(self) -> Path:
        return self.root / "valkey"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def secrets_file(self) -> Path:
        return self.root / "secrets.json"

    @property
    def run_file(self) -> Path:
        """The running processes, for `preceptor status` and `down`; absent when there are none."""
        return self.root / "run.json"

    @property
    def lock_file(self) -> Path:
        return self.root / "run.lock"

    @property
    def incomplete_file(self) -> Path:
        """There while a restore fills the folder, and for good if the restore was interrupted."""
        return self.root / "INCOMPLETE"

    def require_complete(self) -> None:
        """Errors: FolderIncomplete when the folder holds part of a backup."""
        if self.incomplete_file.exists():
            raise FolderIncomplete(f"a restore into {self.root} was interrupted; the folder is incomplete")

    def log(self, name: str) -> Path:
        """The log file of one process."""
        return self.logs / f"{name}.log"

    def secrets(self) -> LocalSecrets:
        """The installation's secrets, generated on the first call and kept in a file only we can read."""
        if not self.secrets_file.exists():
            made = {
                "internal_key": secrets.token_urlsafe(32),
                "expert_signing_secret": "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(),
            }
            lines = ",\n".join(f'  "{name}": "{value}"' for name, value in made.items())
            write_private(self.secrets_file, f"{{\n{lines}\n}}\n")
        return LocalSecrets.model_validate_json(self.secrets_file.read_bytes())


def default_home(environ: Mapping[str, str]) -> Path:
    """The data folder when none is named: `$PRECEPTOR_HOME`, else `~/.local/share/preceptor`."""
    return Path(environ.get("PRECEPTOR_HOME") or Path.home() / ".local/share/preceptor")


def given_database_url(environ: Mapping[str, str]) -> str | None:
    """The database the environment or a secret names, which wins over the embedded Postgres; None without either."""
    named = environ.get("PRECEPTOR_DATABASE_URL") or environ.get("DATABASE_URL")
    return named or find_secret("PRECEPTOR_DATABASE_URL", environ) or None


def given_redis_url(environ: Mapping[str, str]) -> str | None:
    """The broker the environment or a secret names, which wins over the embedded Valkey; None without either."""
    named = environ.get("PRECEPTOR_REDIS_URL") or environ.get("REDIS_URL")
    return named or find_secret("PRECEPTOR_REDIS_URL", environ) or None


def free_port() -> int:
    """A loopback TCP port that was free a moment ago; the caller must be ready to lose the race for it."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def make_folder(path: Path, mode: int) -> None:
    """Make the folder with exactly these permissions regardless of the umask; an existing one keeps its own.

    Errors: LocalError when it cannot be made.
    """
    if path.is_dir():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=mode)
        path.chmod(mode)
    except OSError as error:
        raise LocalError(
            f"the folder {path} cannot be made: {error.strerror}",
            hint="Set PRECEPTOR_HOME to a folder that is yours, every step of it open to be walked through.",
        ) from error


def write_private(path: Path, content: str) -> None:
    """Write a file that only we can read, whole or not at all."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def keep_password(path: Path) -> str:
    """The password kept in `path`, generated when there is none."""
    if not path.exists():
        write_private(path, secrets.token_urlsafe(24))
    return path.read_text()
