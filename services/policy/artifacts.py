"""Weights by content address: a file or folder is stored under its sha256 and verified whenever it is read.

The digest of a folder covers its sorted relative file names, sizes and bytes; links and anything that is
not a plain file are refused. The content of an address never changes: storing it again is a no-op.
Not covered: deleting unreferenced weights (retention belongs to the store).
"""

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Final

from services.runtime.errors import InvalidInput, NotFound, PreceptorError

ADAPTER_FILES: Final = frozenset({"adapter_config.json", "adapter_model.safetensors"})
_ADDRESS: Final = re.compile(r"[0-9a-f]{64}")


class ArtifactNotFound(NotFound):
    """No artifact is stored under this sha256."""

    title = "Artifact not found"


class ArtifactDamaged(PreceptorError):
    """The stored bytes no longer have the digest they are stored under; they are not used."""

    status_code = 409
    title = "Artifact damaged"
    hint = "Restore the artifact from a backup, or publish the version again."


class ArtifactRefused(InvalidInput):
    """The path is not an artifact: missing, a link, or empty."""

    title = "Artifact refused"


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes, in lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tree(path: Path) -> str:
    """The content address of a file or folder. Raises ArtifactRefused for links, special files and empty folders.

    A file's address is the sha256 of its bytes; a folder's covers every file's relative name, size and digest.
    """
    if path.is_symlink() or not path.exists():
        raise ArtifactRefused(f"{path} is a link or does not exist")
    if path.is_file():
        return hash_file(path)
    digest = hashlib.sha256()
    names = _list_files(path)
    if not names:
        raise ArtifactRefused(f"{path} holds no file")
    for name in names:
        file = path / name
        digest.update(f"{len(name.encode())}:{name}:{file.stat().st_size}:{hash_file(file)}\n".encode())
    return digest.hexdigest()


def _list_files(folder: Path) -> list[str]:
    names: list[str] = []
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ArtifactRefused(f"{path} is neither a plain file nor a folder")
        if path.is_file():
            names.append(path.relative_to(folder).as_posix())
    return sorted(names)


class ArtifactStore:
    """A folder of artifacts, each under its sha256. Safe for several processes on one file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def store(self, source: Path) -> str:
        """Copy a file or folder in and return its sha256; it is durable when this returns.

        Raises ArtifactRefused if the source is missing, empty, or holds links.
        """
        address = hash_tree(source)
        target = self.root / address
        if target.exists():
            return address
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".storing-") as scratch:
            copy = Path(scratch) / address
            if source.is_file():
                shutil.copyfile(source, copy)
            else:
                shutil.copytree(source, copy)
            if hash_tree(copy) != address:
                raise ArtifactRefused(f"{source} changed while it was being stored")
            _sync_tree(copy)
            try:
                os.rename(copy, target)
            except OSError:
                # Another process stored the same bytes first: a folder cannot be renamed onto a full one.
                if not target.exists():
                    raise
        _sync(self.root)
        return address

    def contains(self, address: str) -> bool:
        """Whether something is stored under this sha256; says nothing about damage."""
        return _ADDRESS.fullmatch(address) is not None and (self.root / address).exists()

    def path(self, address: str) -> Path:
        """The path of the artifact, after checking its bytes.

        Raises ArtifactNotFound (404) if there is none, ArtifactDamaged (409) if its bytes have another digest.
        """
        if not self.contains(address):
            raise ArtifactNotFound(f"no artifact {address} in {self.root}")
        target = self.root / address
        try:
            found = hash_tree(target)
        except ArtifactRefused as error:
            raise ArtifactDamaged(f"artifact {address}: {error.detail}") from error
        if found != address:
            raise ArtifactDamaged(f"artifact {address} now has sha256 {found}")
        return target

    def adapter(self, address: str) -> Path:
        """The folder of a stored LoRA adapter. Raises as `path`, and ArtifactRefused if it is not an adapter."""
        folder = self.path(address)
        names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        if not names >= ADAPTER_FILES:
            raise ArtifactRefused(f"artifact {address} is not an adapter: it needs {', '.join(sorted(ADAPTER_FILES))}")
        return folder


def _sync_tree(path: Path) -> None:
    if path.is_dir():
        for entry in path.rglob("*"):
            _sync(entry)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
