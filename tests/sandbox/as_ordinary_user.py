"""Run a command as an ordinary user: `python as_ordinary_user.py UID COMMAND…`; without namespaces if UID ends in "!".

From root it becomes that user, and stays root if UID is 0; as another user it stays who it is.

The interpreter and the repository may lie under a folder closed to others (/root). In a mount namespace of this process
only, such folders are replaced by open ones that hold nothing else.
"""

import errno
import os
import struct
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from sandbox.inside import kernel  # noqa: E402
from sandbox.inside.kernel import Mount, Namespace  # noqa: E402
from sandbox.inside.syscalls import number_of  # noqa: E402

ASIDE = Path("/mnt")


def _closed_ancestor(path: Path) -> Path | None:
    for ancestor in reversed(path.parents):
        if not ancestor.stat().st_mode & 0o001:
            return ancestor
    return None


def open_paths(paths: list[Path]) -> None:
    kernel.unshare(Namespace.MOUNT)
    kernel.mount("none", "/", None, Mount.RECURSIVE | Mount.PRIVATE)
    kernel.mount("tmpfs", str(ASIDE), "tmpfs", Mount.NO_SETUID, "mode=755")
    closed: dict[Path, list[tuple[Path, Path]]] = {}
    for number, path in enumerate(paths):
        ancestor = _closed_ancestor(path)
        if ancestor is not None:
            aside = ASIDE / str(number)
            aside.mkdir()
            kernel.mount(str(path), str(aside), None, Mount.BIND | Mount.RECURSIVE)
            closed.setdefault(ancestor, []).append((path, aside))
    for ancestor, moved in closed.items():
        kernel.mount("tmpfs", str(ancestor), "tmpfs", Mount.NO_SETUID, "mode=755")
        for path, aside in moved:
            path.mkdir(parents=True, exist_ok=True)
            kernel.mount(str(aside), str(path), None, Mount.BIND | Mount.RECURSIVE)


def forbid_namespaces() -> None:
    """Deny `unshare` to all that follows, as container runtimes and hardened systems do."""
    load, equal, give_back, allow, denied = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000 | errno.EPERM
    unshare = number_of("unshare", kernel.MACHINE)
    program = ((load, 0, 0, 0), (equal, 0, 1, unshare), (give_back, 0, 0, denied), (give_back, 0, 0, allow))
    if os.getuid() != 0:
        kernel.drop_capabilities()
    kernel.install_filter(b"".join(struct.pack("<HBBI", *instruction) for instruction in program))


def main(uid: int, command: list[str], *, without_namespaces: bool) -> None:
    if os.getuid() == 0 and uid != 0:
        open_paths([Path(os.path.realpath(sys.base_prefix)), Path(sys.prefix), REPOSITORY])
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if without_namespaces:
        forbid_namespaces()
    os.chdir("/")
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(int(sys.argv[1].rstrip("!")), sys.argv[2:], without_namespaces=sys.argv[1].endswith("!"))
