"""Where a run lives: the read-only root built once for all runs, and the namespaces, limits and privileges of each
single run.

Two steps. `enter_root` is taken once by the spawner: a private mount namespace whose root holds the system's libraries
and one Python, read-only, and nothing else of the host. `enter_box` is taken by PID 1 of each run: new namespaces,
fresh tmpfs folders, its own /proc, another user, no capabilities, the seccomp filter. As an ordinary user the spawner
first becomes "root" of a user namespace of its own; from there on both cases are the same.

What it does not protect against: a bug in the kernel reached through an allowed call; side channels between runs on
one machine (caches, timing); runs slowing each other down. Without a cgroup, memory that belongs to no process's
address space (pipe buffers) is not counted. Only the standard library; loads under `python -S`.
"""

import contextlib
import math
import os
import resource
import signal
import sys
from dataclasses import dataclass

from sandbox import kernel, seccomp
from sandbox.kernel import Mount, Namespace
from sandbox.wire import Job

SLOT_UID_BASE = 1_879_048_192
"""When the server is root, slot i runs as this uid + i: high enough to belong to nobody else on the host."""
INSIDE_UID = 65534
MAIN_FILE = "main.py"
BOX_BYTES, SHM_BYTES, BOX_INODES = 64 << 20, 16 << 20, 4096
"""Room in each of /box and /tmp, in /dev/shm, and files in each."""
FILE_BYTES = 64 << 20
OPEN_FILES = 256
ADDRESS_SPACE_SLACK_BYTES = 256 << 20
"""Address space a process may hold beyond its memory limit: libraries and thread stacks that are mapped but not
used."""

_STAGE = "/sys"
"""Where the new root is put together, in the spawner's own mount namespace: a folder that every Linux has and no
program lives in. So nothing is made on the host that would have to be removed."""
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
DEVICES = ("null", "zero", "full", "random", "urandom")
_THIRD_PARTY = ("site-packages", "dist-packages")

ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/box",
    "TMPDIR": "/tmp",  # noqa: S108 -- the run's own
    "LANG": "C.UTF-8",
    "PYTHONUTF8": "1",
    "PYTHONHASHSEED": "0",  # the same code gives the same answer each time
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNOUSERSITE": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",  # an arena reserves 64 MiB of address space for each thread
}


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
        """What it needs to run: not its whole prefix, which may hold other environments."""
        return (f"{self.prefix}/lib", f"{self.prefix}/lib64", self.executable)


def become_root_of_own_namespace() -> None:
    """Give an ordinary user the means to mount, inside a user namespace of its own. Raises OSError where the system
    forbids it."""
    uid, gid = os.getuid(), os.getgid()
    kernel.unshare(Namespace.USER)
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _map_ids(proc, inside_id=0, outside_uid=uid, outside_gid=gid)
    finally:
        os.close(proc)


def _map_ids(proc: int, inside_id: int, outside_uid: int, outside_gid: int) -> None:
    write_at(proc, "self/setgroups", "deny")
    write_at(proc, "self/uid_map", f"{inside_id} {outside_uid} 1")
    write_at(proc, "self/gid_map", f"{inside_id} {outside_gid} 1")


def write_at(folder: int, path: str, text: str) -> None:
    """Write a small kernel file below an open folder in one call."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def enter_root(interpreter: Interpreter) -> None:
    """Build the read-only root and move this process into it; the host's files are then out of its reach."""
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
    for folder in ("proc", "box", "tmp", "dev/shm", "etc"):
        os.makedirs(f"{_STAGE}/{folder}", exist_ok=True)
    for name in DEVICES:
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


def _show(path: str, *, devices: bool = False) -> None:
    """Make a path of the host visible at the same place of the new root, read-only; links stay links."""
    target = _STAGE + path
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


def enter_box(job: Job, drop_to_uid: int | None) -> int:
    """Close this process, PID 1 of a new pid namespace, off from everything; gives an open /proc that the run itself
    cannot see.

    `drop_to_uid` is the slot's user when the server is root. Raises OSError when the system refuses a step.
    """
    kernel.unshare(Namespace.MOUNT | Namespace.NET | Namespace.IPC | Namespace.UTS | Namespace.CGROUP)
    kernel.set_hostname("sandbox")
    uid, gid = (os.getuid(), os.getgid()) if drop_to_uid is None else (drop_to_uid, drop_to_uid)
    common = f"mode=700,uid={uid},gid={gid},nr_inodes={BOX_INODES}"
    flags = Mount.NO_SETUID | Mount.NO_DEVICES
    kernel.mount("tmpfs", "/box", "tmpfs", flags, f"size={BOX_BYTES},{common}")
    kernel.mount("tmpfs", "/tmp", "tmpfs", flags, f"size={BOX_BYTES},{common}")  # noqa: S108 -- the run's own
    kernel.mount("tmpfs", "/dev/shm", "tmpfs", flags | Mount.NO_EXEC, f"size={SHM_BYTES},{common}")  # noqa: S108
    # one /proc for PID 1, which measures every process; over it the run's own, which hides PID 1 and the machine
    kernel.mount("proc", "/proc", "proc", flags | Mount.NO_EXEC)
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    kernel.mount("proc", "/proc", "proc", flags | Mount.NO_EXEC | Mount.READ_ONLY, "hidepid=2,subset=pid")
    if drop_to_uid is not None:
        with contextlib.suppress(
            PermissionError
        ):  # a container's root may lack the capability; runs raise their own score too
            write_at(
                proc, "self/oom_score_adj", "-1000"
            )  # when memory runs out the run dies, not the process that reports it
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        kernel.set_dumpable(True)  # a change of user made our own id maps unwritable
    kernel.unshare(Namespace.USER)
    _map_ids(proc, inside_id=INSIDE_UID, outside_uid=uid, outside_gid=gid)
    kernel.die_with_parent(signal.SIGKILL)
    os.chdir("/box")
    write_files(job)
    kernel.drop_capabilities()
    kernel.set_dumpable(False)  # the run has the same user: it must not trace PID 1, nor open its files
    kernel.install_filter(seccomp.assemble(kernel.MACHINE))
    return proc


def write_files(job: Job) -> None:
    """Write the code and the files that came with it into the current folder."""
    for path, data in {**job.files, MAIN_FILE: job.code.encode()}.items():
        if "/" in path:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write(data)


def limit_resources(job: Job, *, has_cgroup: bool, num_others: int = 1) -> None:
    """Bound what this process, and each it starts, may use. Taken by the run's first process.

    `num_others` processes of the same user do not belong to the code: PID 1 of the run.
    """
    # PID 1 measures the time of all processes; the kernel's own count, by sampling, can run a third ahead: a second net
    cpu_seconds = math.ceil(1.5 * job.cpu_seconds) + 1
    limits = {
        resource.RLIMIT_CPU: (cpu_seconds, cpu_seconds + 1),
        resource.RLIMIT_NPROC: (job.processes + num_others,) * 2,
        resource.RLIMIT_NOFILE: (OPEN_FILES,) * 2,
        resource.RLIMIT_FSIZE: (FILE_BYTES,) * 2,
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MEMLOCK: (1 << 16,) * 2,
        resource.RLIMIT_MSGQUEUE: (0, 0),
        resource.RLIMIT_SIGPENDING: (256, 256),
        resource.RLIMIT_STACK: (8 << 20, 64 << 20),
    }
    if not has_cgroup:
        limits[resource.RLIMIT_DATA] = (job.memory_bytes,) * 2
        limits[resource.RLIMIT_AS] = (job.memory_bytes + ADDRESS_SPACE_SLACK_BYTES,) * 2
    for kind, (soft, hard) in limits.items():
        current_hard = resource.getrlimit(kind)[1]
        if current_hard != resource.RLIM_INFINITY:
            soft, hard = min(soft, current_hard), min(hard, current_hard)
        resource.setrlimit(kind, (soft, hard))
