"""The few Linux calls the standard library lacks, as typed functions that raise OSError. Only the standard library;
loads under `python -S`."""

import ctypes
import os
import platform
from enum import IntFlag

from sandbox.inside.syscalls import number_of

_libc = ctypes.CDLL(None, use_errno=True)

MACHINE = platform.machine()

_LANDLOCK_READ = 0b1101  # execute, read a file, read a folder
_LANDLOCK_ON_FILES = 0b1100000000000111  # execute, write, read; truncate, ioctl
LANDLOCK_TRUNCATES = 3
"""Since this version Landlock keeps files from being emptied, which an open for reading could ask for before."""
LANDLOCK_SCOPES = 6
"""Since this version Landlock keeps signals from leaving."""

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 2, 4
_CAP_SETPCAP, _CAP_SYS_ADMIN = 8, 21
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_NUM_CAPABILITIES = 64
"""More than any kernel has: dropping one that does not exist fails with EINVAL, which ends the loop."""
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x02, 0x04, 0x08


class Namespace(IntFlag):
    MOUNT = 0x00020000
    CGROUP = 0x02000000
    UTS = 0x04000000
    IPC = 0x08000000
    USER = 0x10000000
    PID = 0x20000000
    NET = 0x40000000


class Mount(IntFlag):
    NONE = 0
    READ_ONLY = 1
    NO_SETUID = 2
    NO_DEVICES = 4
    NO_EXEC = 8
    BIND = 4096
    RECURSIVE = 16384
    PRIVATE = 1 << 18


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


class _OpenHow(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("flags", "mode", "resolve")]


class _LandlockRules(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("handled_access_fs", "handled_access_net", "scoped")]


class _LandlockRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def _check(result: int, call: str) -> int:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{call}: {os.strerror(errno)}")
    return result


def _syscall(name: str, what: str, *arguments: object) -> int:
    return _check(_libc.syscall(ctypes.c_long(number_of(name, MACHINE)), *arguments), what)


def _prctl(option: int, *arguments: object) -> int:
    padded = [*arguments, *[ctypes.c_ulong(0)] * (4 - len(arguments))]
    return int(_libc.prctl(ctypes.c_int(option), *padded))


def unshare(namespaces: Namespace) -> None:
    _check(_libc.unshare(ctypes.c_int(namespaces)), f"unshare {namespaces!r}")


def mount(source: str | None, target: str, kind: str | None, flags: Mount, options: str = "") -> None:
    result = _libc.mount(
        source.encode() if source else None,
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _check(result, f"mount {kind or 'of'} {source or ''} on {target}")


def restrict_mount(target: str, flags: Mount) -> None:
    """Add READ_ONLY, NO_SETUID, NO_DEVICES or NO_EXEC to a mount and all below it; flags it has already stay (Linux
    5.12)."""
    attributes = _MountAttributes(attr_set=int(flags))
    _syscall(
        "mount_setattr",
        f"mount_setattr {target}",
        ctypes.c_int(_AT_FDCWD),
        target.encode(),
        ctypes.c_uint(_AT_RECURSIVE),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )


def pivot_to(root: str) -> None:
    """Make the mount `root` the root of this mount namespace; the old root is gone from it."""
    os.chdir(root)
    _syscall("pivot_root", "pivot_root", b".", b".")
    _check(_libc.umount2(b".", ctypes.c_int(_MNT_DETACH)), "umount of the old root")
    os.chdir("/")


def open_beneath(folder_fd: int, path: str, flags: int) -> int:
    """Open a path below an open folder, following no link on the way and never leaving it (Linux 5.6)."""
    how = _OpenHow(flags=flags, resolve=_RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)
    return _syscall(
        "openat2",
        f"openat2 {path}",
        ctypes.c_int(folder_fd),
        path.encode(),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )


def set_hostname(name: str) -> None:
    encoded = name.encode()
    _check(_libc.sethostname(encoded, ctypes.c_size_t(len(encoded))), "sethostname")


def die_with_parent(signal_number: int) -> None:
    """Get this signal when the parent ends. Cleared by a change of user, so call it after one."""
    _check(_prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal_number)), "PR_SET_PDEATHSIG")


def set_dumpable(dumpable: bool) -> None:
    """A process that is not dumpable can not be traced, nor its memory and files read, by others of its user."""
    _check(_prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(dumpable)), "PR_SET_DUMPABLE")


def drop_capabilities() -> None:
    """Give up every capability for good, and the means of an exec to bring one back."""
    _drop_bounds()
    forget_capabilities()


def forget_capabilities() -> None:
    """Give up the capabilities this process has; the bounds were dropped before."""
    _check(_prctl(_PR_CAP_AMBIENT, ctypes.c_ulong(_PR_CAP_AMBIENT_CLEAR_ALL)), "PR_CAP_AMBIENT")
    _set_capabilities(0, inherited=0)


def keep_mounting_across_exec() -> None:
    """Keep only the capability to mount and to make namespaces, also in the program executed next."""
    kept = 1 << _CAP_SYS_ADMIN
    _set_capabilities(kept | 1 << _CAP_SETPCAP, inherited=kept)  # while the bounds still allow to inherit it
    _drop_bounds()
    _set_capabilities(kept, inherited=kept)
    raised = _prctl(_PR_CAP_AMBIENT, ctypes.c_ulong(_PR_CAP_AMBIENT_RAISE), ctypes.c_ulong(_CAP_SYS_ADMIN))
    _check(raised, "PR_CAP_AMBIENT_RAISE")


def _drop_bounds() -> None:
    for capability in range(_NUM_CAPABILITIES):
        if _prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability)) < 0:
            break
    _check(_prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1)), "PR_SET_NO_NEW_PRIVS")


def _set_capabilities(owned: int, inherited: int) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(owned, owned, inherited)  # effective, permitted, inheritable; then their high halves
    _syscall("capset", "capset", ctypes.byref(header), ctypes.byref(data))


def become_subreaper() -> None:
    """Inherit the orphans among one's descendants."""
    _check(_prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1)), "PR_SET_CHILD_SUBREAPER")


def landlock_version() -> int:
    """The version of Landlock this kernel offers. Raises OSError when it offers none."""
    return _syscall("landlock_create_ruleset", "Landlock", None, ctypes.c_size_t(0), ctypes.c_uint(1))


def restrict_files(readable: list[str], writable: list[str]) -> None:
    """Let this process, and all it will start, reach these files and what is below them, and no others (Landlock).

    It has to be of version LANDLOCK_TRUNCATES or newer. Where it can, TCP and signals to processes outside are closed
    as well. Paths that do not exist are left out.
    """
    version = landlock_version()
    everything = (1 << (15 if version <= 4 else 16)) - 1
    attributes = _LandlockRules(everything, 3 if version >= 4 else 0, 3 if version >= LANDLOCK_SCOPES else 0)
    size = 24 if version >= LANDLOCK_SCOPES else 16 if version >= 4 else 8
    rules = _syscall(
        "landlock_create_ruleset", "Landlock", ctypes.byref(attributes), ctypes.c_size_t(size), ctypes.c_uint(0)
    )
    try:
        for paths, access in ((readable, _LANDLOCK_READ), (writable, everything)):
            for path in paths:
                if os.path.exists(path):
                    _allow_below(
                        rules, path, access if os.path.isdir(path) else access & _LANDLOCK_ON_FILES & everything
                    )
        _syscall("landlock_restrict_self", "landlock_restrict_self", ctypes.c_int(rules), ctypes.c_uint(0))
    finally:
        os.close(rules)


def _allow_below(rules: int, path: str, access: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _LandlockRule(access, descriptor)
        arguments = (ctypes.c_int(rules), ctypes.c_int(1), ctypes.byref(rule), ctypes.c_uint(0))
        _syscall("landlock_add_rule", f"landlock_add_rule {path}", *arguments)
    finally:
        os.close(descriptor)


def write_whole(descriptor: int, data: bytes) -> None:
    """Write all of it, however little the descriptor takes at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def close_from(first: int) -> None:
    """Close every open file from this number on (Linux 5.9)."""
    _syscall("close_range", "close_range", ctypes.c_uint(first), ctypes.c_uint(0xFFFFFFFF), ctypes.c_uint(0))


def install_filter(program: bytes) -> None:
    """Put a seccomp filter (packed `struct sock_filter`s) on this process and all it will start."""
    instructions = ctypes.create_string_buffer(program, len(program))
    header = _FilterProgram(len(program) // 8, ctypes.addressof(instructions))
    _check(_prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(header)), "PR_SET_SECCOMP")
