"""The read-only root of all runs, built once by the spawner: the system's libraries and one Python, no other part of
the host.

Only the standard library; loads under `python -S`.
"""

import os
import sys
from dataclasses import dataclass

from sandbox.inside import kernel
from sandbox.inside.isolation import INSIDE_UID, PACKAGES, SYSTEM, SYSTEM_FILES, devices
from sandbox.inside.kernel import Mount, Namespace

_STAGE = "/sys"
"""Where the new root is put together, in the spawner's own mount namespace: a folder that every Linux has and no
program uses, so that no folder has to be made on the host and removed."""
_THIRD_PARTY = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Interpreter:
    """The Python that runs the code: the base installation behind the server's environment, without its packages."""

    executable: str
    prefix: str

    @classmethod
    def of_this_process(cls) -> "Interpreter":
        executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
        return cls(executable, os.path.realpath(sys.base_prefix))

    def paths(self) -> tuple[str, ...]:
        """The paths it needs to run: not its whole prefix, which may hold other environments."""
        return (f"{self.prefix}/lib", f"{self.prefix}/lib64", self.executable)


def enter_root(interpreter: Interpreter, packages: tuple[str, ...], *, has_cgroup: bool) -> None:
    """Build the read-only root and move this process into it; the host's files are then out of its reach.

    `packages` are folders of installed packages that runs of the flavour `numpy` import. Without a cgroup devices are
    left out that create uncounted memory.
    """
    kernel.unshare(Namespace.MOUNT)
    kernel.mount("none", "/", None, Mount.RECURSIVE | Mount.PRIVATE)
    kernel.mount("tmpfs", _STAGE, "tmpfs", Mount.NO_SETUID, "size=1m,nr_inodes=1024,mode=755")
    for path in (*SYSTEM, *SYSTEM_FILES):
        _show(path)
    shown = list(SYSTEM)
    for path in interpreter.paths():
        if not any(_is_below(path, folder) for folder in shown):
            _show(path)
            shown.append(path)
    for folder in ("proc", "box", "tmp", "dev/shm", "etc", PACKAGES[1:]):
        os.makedirs(f"{_STAGE}/{folder}", exist_ok=True)
    for path in packages:
        _show(path, at=f"{PACKAGES}/{os.path.basename(path)}")
    for name in devices(has_cgroup=has_cgroup):
        _show(f"/dev/{name}", devices=True)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"{_STAGE}/dev/{name}")
    for name, line in (
        ("passwd", f"nobody:x:{INSIDE_UID}:{INSIDE_UID}::/box:/bin/sh"),
        ("group", f"nobody:x:{INSIDE_UID}:"),
    ):
        with open(f"{_STAGE}/etc/{name}", "w", encoding="ascii") as file:
            file.write(line + "\n")
    _hide_third_party(interpreter)
    kernel.restrict_mount(_STAGE, Mount.READ_ONLY | Mount.NO_SETUID)
    # a run may mount its own /proc only where a whole one is visible; its own covers this one
    kernel.mount("/proc", f"{_STAGE}/proc", None, Mount.BIND | Mount.RECURSIVE)
    kernel.pivot_to(_STAGE)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _show(path: str, *, at: str = "", devices: bool = False) -> None:
    """Make a path of the host visible in the new root, at the same place if no other is given, read-only; links stay
    links."""
    target = _STAGE + (at or path)
    if not os.path.lexists(path):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))
    kernel.mount(path, target, None, Mount.BIND | Mount.RECURSIVE)
    if not devices:
        kernel.restrict_mount(target, Mount.READ_ONLY | Mount.NO_SETUID | Mount.NO_DEVICES)


def _hide_third_party(interpreter: Interpreter) -> None:
    """Cover the interpreter's installed packages, so that a run sees the standard library on every machine alike."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for library in (
        f"{interpreter.prefix}/lib/{version}",
        f"{interpreter.prefix}/lib/python3",
        f"/usr/local/lib/{version}",
    ):
        for name in _THIRD_PARTY:
            folder = f"{_STAGE}{library}/{name}"
            if os.path.isdir(folder) and not os.path.islink(folder):
                kernel.mount(
                    "tmpfs", folder, "tmpfs", Mount.READ_ONLY | Mount.NO_SETUID | Mount.NO_DEVICES, "size=0,mode=755"
                )
