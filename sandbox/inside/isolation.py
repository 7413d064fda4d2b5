"""Where a run lives: the namespaces of its slot, and the folders, limits and privileges of the run itself.

Two steps. `enter_slot` is taken once by the process that becomes a slot's zygote, PID 1 of a new pid namespace: empty
network, own hostname, own /proc, another user, one capability left. `enter_box` is taken by the fork of the zygote
that becomes a run: fresh tmpfs folders, no capability, the seccomp filter. As an ordinary user the spawner first
becomes "root" of a user namespace of its own; from there on both cases are the same.

Runs of one slot come one after another and share its namespaces; between two of them every process is dead, and the
folders belong to a mount namespace that died with them. No other path there is writable.

What it does not protect against: a bug in the kernel reached through an allowed call; side channels between runs on
one machine (caches, timing); runs slowing each other down. Without a cgroup files in the run's folders are not counted
as its memory; their size is bounded. Only the standard library; loads under `python -S`.
"""

import contextlib
import math
import os
import resource

from sandbox.inside import kernel
from sandbox.inside.kernel import Mount, Namespace
from sandbox.inside.policy import UNCOUNTED_DEVICES
from sandbox.inside.wire import ForkOrder

SLOT_UID_BASE = 1_879_048_192
"""When the server is root, slot i runs as this uid + i: high enough to be free on the host."""
INSIDE_UID = 65534
BOX = "/box"
BOX_BYTES, SHM_BYTES, BOX_INODES = 64 << 20, 16 << 20, 4096
"""Room in each of /box and /tmp, in /dev/shm, and files in each."""
FILE_BYTES = 64 << 20
OPEN_FILES = 256

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
_DEVICES = ("null", "zero", "full", "random", "urandom")
PACKAGES = "/packages"
"""Where the flavour `numpy` finds its package in the root."""

ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": BOX,
    "TMPDIR": "/tmp",  # noqa: S108 -- the run's own
    "LANG": "C.UTF-8",
    "PYTHONUTF8": "1",
    "PYTHONHASHSEED": "0",  # the same code gives the same answer each time
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNOUSERSITE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OPENSSL_CONF": "/dev/null",  # the host's may not be read at the level `weak`, without which node does not start
    "MALLOC_ARENA_MAX": "1",  # an arena reserves 64 MiB of address space for each thread
}

_SLOT_LIMITS = {
    resource.RLIMIT_FSIZE: (FILE_BYTES, FILE_BYTES),
    # no core dump either way: where the host has a program take them, the kernel goes by this 1, and not by 0
    resource.RLIMIT_CORE: (1, 1),
    resource.RLIMIT_MEMLOCK: (1 << 16, 1 << 16),
    resource.RLIMIT_MSGQUEUE: (0, 0),
    resource.RLIMIT_SIGPENDING: (256, 256),
    resource.RLIMIT_STACK: (8 << 20, 64 << 20),
}
_BOX_FLAGS = Mount.NO_SETUID | Mount.NO_DEVICES


def devices(*, has_cgroup: bool) -> tuple[str, ...]:
    """The names in /dev that runs may use."""
    return tuple(name for name in _DEVICES if has_cgroup or name not in UNCOUNTED_DEVICES)


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


def enter_slot(drop_to_uid: int | None, program: dict[str, bytes]) -> int:
    """Close this process, PID 1 of a new pid namespace, off from everything, with the zygote's program in /box; gives
    an open /proc that runs cannot see.

    `drop_to_uid` is the slot's user when the server is root. Raises OSError when the system refuses a step.
    """
    kernel.unshare(Namespace.MOUNT | Namespace.NET | Namespace.IPC | Namespace.UTS | Namespace.CGROUP)
    kernel.set_hostname("sandbox")
    # one /proc for the zygote, which measures every process; over it the runs' own, which hides it and the machine
    kernel.mount("proc", "/proc", "proc", _BOX_FLAGS | Mount.NO_EXEC)
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    kernel.mount("proc", "/proc", "proc", _BOX_FLAGS | Mount.NO_EXEC | Mount.READ_ONLY, "hidepid=2,subset=pid")
    kernel.mount("tmpfs", BOX, "tmpfs", _BOX_FLAGS, "size=1m,nr_inodes=64,mode=755")
    os.chdir(BOX)
    write_files(program)
    uid, gid = os.getuid(), os.getgid()
    if drop_to_uid is not None:
        uid = gid = drop_to_uid
        with contextlib.suppress(PermissionError):
            # when memory runs out the run dies, not its zygote. A container's root may lack the capability; runs raise
            # their own score too
            write_at(proc, "self/oom_score_adj", "-1000")
        drop_to(drop_to_uid)
        kernel.set_dumpable(True)  # a change of user made our own id maps unwritable
    kernel.unshare(Namespace.USER)
    _map_ids(proc, inside_id=INSIDE_UID, outside_uid=uid, outside_gid=gid)
    kernel.keep_mounting_across_exec()
    return proc


def drop_to(uid: int) -> None:
    """Become this user, and its group, for good."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def enter_box() -> None:
    """Give this fork of the zygote folders of its own, and go there."""
    kernel.unshare(Namespace.MOUNT)
    common = f"mode=700,uid={INSIDE_UID},gid={INSIDE_UID},nr_inodes={BOX_INODES}"
    kernel.mount("tmpfs", BOX, "tmpfs", _BOX_FLAGS, f"size={BOX_BYTES},{common}")
    kernel.mount("tmpfs", "/tmp", "tmpfs", _BOX_FLAGS, f"size={BOX_BYTES},{common}")  # noqa: S108 -- the run's own
    kernel.mount("tmpfs", "/dev/shm", "tmpfs", _BOX_FLAGS | Mount.NO_EXEC, f"size={SHM_BYTES},{common}")  # noqa: S108
    os.chdir(BOX)


def write_files(files: dict[str, bytes], executable: str = "") -> None:
    """Write files into the current folder, one of them to be executed."""
    for path, data in files.items():
        if "/" in path:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        mode = 0o755 if path == executable else 0o644
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb", buffering=0) as file:
            kernel.write_whole(file.fileno(), data)


def limit_slot() -> None:
    """Set the limits common to all runs on a zygote and every process it forks."""
    for kind, limits in _SLOT_LIMITS.items():
        _limit(kind, *limits)


def limit_run(order: ForkOrder, *, has_cgroup: bool, num_others: int | None) -> None:
    """Set the run's limits on its first process and every process that one starts.

    `num_others` processes of the same user do not belong to the code: the zygote. None where their number says nothing
    and something else bounds it.
    """
    # the zygote measures the time of all processes; the kernel's own count, by sampling, can run a third ahead: a
    # second net
    cpu_seconds = math.ceil(1.5 * order.cpu_seconds) + 1
    _limit(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)
    # not the zygote's: the kernel measures the open files that all processes of a user have under way in sockets, also
    # those of other slots' runs, by this limit of the one who sends another
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
    if num_others is not None:
        _limit(resource.RLIMIT_NPROC, order.processes + num_others, order.processes + num_others)
    if not has_cgroup:
        data_bytes = order.memory_bytes + order.data_slack_bytes
        _limit(resource.RLIMIT_DATA, data_bytes, data_bytes)
        # a fork of the zygote starts with the zygote's mappings, many for numpy; a program starts with none
        address_bytes = order.memory_bytes + order.address_slack_bytes + (0 if order.argv else _mapped_bytes())
        _limit(resource.RLIMIT_AS, address_bytes, address_bytes)


def _mapped_bytes() -> int:
    """The address space of this process."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _limit(kind: int, soft: int, hard: int) -> None:
    current_hard = resource.getrlimit(kind)[1]
    if current_hard != resource.RLIM_INFINITY:
        soft, hard = min(soft, current_hard), min(hard, current_hard)
    resource.setrlimit(kind, (soft, hard))
