"""The system calls a run may make, as data: those that programs of tasks need, some of them only with the arguments
listed here.

An allow list: every other call is refused. So no call is open by oversight: extended attributes and
access lists, System V and POSIX queues, watching files, leases and the owner of a descriptor's signals, new rule sets,
sockets, tracing, namespaces, mounts, keys, asynchronous input and output, the machine itself. It does not protect
against a bug in an allowed call. The numbers are in `syscalls`, the filter made of both in `seccomp`. Only the standard
library; loads under `python -S`.
"""

import errno
from dataclasses import dataclass
from typing import Final

ALLOWED: Final = (
    # files and folders
    "read", "write", "open", "openat", "openat2", "creat", "close", "close_range", "lseek", "pread64", "pwrite64",
    "readv", "writev", "preadv", "pwritev", "preadv2", "pwritev2", "stat", "fstat", "lstat", "newfstatat", "statx",
    "access", "faccessat", "faccessat2", "getdents", "getdents64", "getcwd", "chdir", "fchdir", "rename", "renameat",
    "renameat2", "mkdir", "mkdirat", "rmdir", "link", "linkat", "unlink", "unlinkat", "symlink", "symlinkat",
    "readlink", "readlinkat", "truncate", "ftruncate", "fsync", "fdatasync", "sendfile", "copy_file_range", "umask",
    "statfs", "fstatfs", "flock", "dup", "dup2", "dup3", "pipe", "pipe2",
    # memory
    "mprotect", "munmap", "mremap", "msync", "brk", "membarrier",
    # processes, threads and users
    "fork", "vfork", "execve", "execveat", "exit", "exit_group", "wait4", "waitid", "pidfd_open", "getpid", "getppid",
    "gettid", "getpgid", "getpgrp", "setpgid", "getsid", "setsid", "getuid", "geteuid", "getgid", "getegid",
    "getresuid", "getresgid", "getgroups", "capget", "getpriority", "sched_yield", "sched_getaffinity",
    "sched_getparam", "sched_getscheduler", "sched_getattr", "sched_get_priority_max", "sched_get_priority_min",
    "sched_rr_get_interval", "getcpu", "getrlimit", "getrusage", "times", "uname", "sysinfo", "futex",
    "set_tid_address", "set_robust_list", "rseq", "restart_syscall", "getrandom",
    # signals and timers
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "rt_sigtimedwait", "rt_sigsuspend",
    "sigaltstack", "pause", "alarm", "getitimer", "setitimer", "nanosleep", "clock_nanosleep", "clock_gettime",
    "clock_getres", "gettimeofday", "time", "timer_create", "timer_settime", "timer_gettime", "timer_getoverrun",
    "timer_delete",
    # waiting for several at once, and pairs of sockets, as asyncio does
    "poll", "ppoll", "select", "pselect6", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait",
    "epoll_pwait2", "eventfd", "eventfd2", "signalfd", "signalfd4", "timerfd_create", "timerfd_settime",
    "timerfd_gettime", "sendto", "recvfrom", "recvmsg", "shutdown", "getsockname", "getpeername",
)  # fmt: skip
"""With any arguments."""

SIGNALS: Final = ("kill", "tkill", "tgkill", "pidfd_send_signal")
"""Allowed where a pid namespace or Landlock keeps a signal from reaching the server's own processes."""

ATTRIBUTES: Final = (
    "chmod", "fchmod", "fchmodat", "fchmodat2", "utime", "utimes", "utimensat", "futimesat",
)  # fmt: skip
"""Allowed where the run sees no file of the host's that can be changed. At the level `weak` some may be its own user's:
Landlock keeps it from their contents, not from their modes and times, neither by path nor by an open file."""

MESSAGES: Final = ("sendmsg",)
"""Allowed where a cgroup counts open files in transit through sockets and the run has a user of its own: the kernel
counts them per user."""

ANSWERS: Final = {
    # clone3 hides its flags from a filter, and a memfd is memory that no process shows as its own
    errno.ENOSYS: ("clone3", "memfd_create"),
    # the answer of a file system without extended attributes, which file copiers accept: after EPERM
    # `cp -a`, `install` and `mv` from one file system to another fail
    errno.EOPNOTSUPP: (
        "getxattr", "lgetxattr", "fgetxattr", "getxattrat", "listxattr", "llistxattr", "flistxattr", "listxattrat",
        "setxattr", "lsetxattr", "fsetxattr", "setxattrat", "removexattr", "lremovexattr", "fremovexattr",
        "removexattrat",
    ),
}  # fmt: skip
"""Error numbers other than EPERM for some refused calls, so that libraries fall back."""
FIRST_OPTIONAL: Final = 449
"""Refused calls from this number on (Linux 5.16 and newer) return ENOSYS: libraries that know them have a fallback."""


@dataclass(frozen=True)
class Check:
    """Lets a call through only where the low half of an argument, under a mask, is one of these values; or, with
    `forbids`, is none of them. Otherwise EPERM."""

    argument: int
    """From 0 on."""
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    forbids: bool = False


def _only_flags(argument: int, flags: int) -> Check:
    """Lets through none but these bits."""
    return Check(argument, (0,), mask=0xFFFFFFFF ^ flags)


_CLONE_FLAGS = (
    0xFF  # the signal at its end
    | 0x00000F00  # memory, folder, open files and signal handlers shared
    | 0x00001000  # a pidfd
    | 0x00004000  # vfork
    | 0x00010000  # a thread
    | 0x01FC0000  # its local storage, its number written and cleared; obsolete ones
)
_MAP_LOCKED, _MAP_HUGETLB, _MAP_SHARED, _MAP_ANONYMOUS = 0x2000, 0x40000, 0x01, 0x20
_RLIMIT_CORE = 4
_AF_UNIX, _STREAM, _SEQPACKET, _SOCKET_TYPE = 1, 1, 5, 0xF
_SOL_SOCKET = 1
_KIND_OF_FILE = 0xF000

ARGUMENTS: Final = {
    # not those that watch it, lease it, grow a pipe, or say whom a signal goes to
    "fcntl": (
        Check(
            1,
            (
                0, 1, 2, 3, 4,  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL
                5, 6, 7,  # F_GETLK, F_SETLK, F_SETLKW: SQLite needs them
                1030, 1032,  # F_DUPFD_CLOEXEC, F_GETPIPE_SZ
            ),
        ),
    ),
    "ioctl": (
        Check(
            1,
            (
                0x5401, 0x802C542A,  # TCGETS, TCGETS2: whether it is a terminal
                0x540F, 0x5413,  # TIOCGPGRP, TIOCGWINSZ
                0x541B, 0x5421,  # FIONREAD, FIONBIO
                0x5450, 0x5451,  # FIONCLEX, FIOCLEX
            ),
        ),
    ),
    "prctl": (
        Check(
            0,
            (
                2, 3, 7, 15, 16,  # PR_GET_PDEATHSIG, PR_GET_DUMPABLE, PR_GET_KEEPCAPS, PR_SET_NAME, PR_GET_NAME
                21, 23, 27,  # PR_GET_SECCOMP, PR_CAPBSET_READ, PR_GET_SECUREBITS
                30, 37, 38, 39,  # PR_GET_TIMERSLACK, PR_GET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS and PR_GET_…
                42, 51, 52, 54, 56,  # PR_GET_THP_DISABLE, PR_SVE_GET_VL, PR_GET_SPECULATION_CTRL, PR_PAC_RESET_KEYS,
                # PR_GET_TAGGED_ADDR_CTRL
            ),
        ),
    ),
    # the registers of a thread's local storage; the matrix unit of newer processors
    "arch_prctl": (Check(0, (0x1001, 0x1002, 0x1003, 0x1004, 0x1021, 0x1022, 0x1023)),),
    # no namespaces, and no child that is its parent's sibling
    "clone": (_only_flags(0, _CLONE_FLAGS),),
    # not those that merge pages with others' or evict memory shared with the host's programs
    "madvise": (Check(2, (0, 1, 2, 3, 4, 8, 10, 11, 14, 15, 16, 17, 18, 19, 20, 22, 23, 102, 103)),),
    # huge pages are a pool of the whole host's, locked ones a limit of the user's
    "mmap": (Check(3, (0,), mask=_MAP_HUGETLB | _MAP_LOCKED),),
    # not POSIX_FADV_DONTNEED, which empties caches
    "fadvise64": (Check(3, (0, 1, 2, 3, 5)),),
    # a file may be given room only as far as its length, which is limited
    "fallocate": (Check(1, (0,)),),
    # regular files and pipes
    "mknod": (Check(1, (0, 0x1000, 0x8000), mask=_KIND_OF_FILE),),
    "mknodat": (Check(2, (0, 0x1000, 0x8000), mask=_KIND_OF_FILE),),
    # process 0 is oneself: the zygote has the run's user, and must not be slowed down or given a limit. The limit of
    # core dumps stay as `isolation` set them
    "prlimit64": (Check(0, (0,)), Check(1, (_RLIMIT_CORE,), forbids=True)),
    "setrlimit": (Check(0, (_RLIMIT_CORE,), forbids=True),),
    "sched_setaffinity": (Check(0, (0,)),),
    "setpriority": (Check(0, (0,)), Check(1, (0,))),
    # other families' code has no business here; a datagram socket could be pointed at any other one by its path
    "socketpair": (Check(0, (_AF_UNIX,)), Check(1, (_STREAM, _SEQPACKET), mask=_SOCKET_TYPE)),
    # SO_REUSEADDR, SO_KEEPALIVE, SO_LINGER and time limits; no larger buffers, no filters
    "setsockopt": (Check(1, (_SOL_SOCKET,)), Check(2, (2, 9, 13, 20, 21, 66, 67))),
    # and SO_TYPE, SO_ERROR, SO_SNDBUF, SO_RCVBUF, SO_PEERCRED, SO_ACCEPTCONN, SO_PROTOCOL, SO_DOMAIN
    "getsockopt": (Check(1, (_SOL_SOCKET,)), Check(2, (2, 3, 4, 7, 8, 9, 13, 17, 20, 21, 30, 38, 39, 66, 67))),
}  # fmt: skip
"""Allowed where every check lets it through."""

SHARED_MEMORY: Final = {
    "mmap": (Check(3, (_MAP_SHARED | _MAP_ANONYMOUS,), mask=_MAP_SHARED | _MAP_ANONYMOUS, forbids=True),),
}
"""Checked too where no cgroup counts memory: such memory can be let go of by every process and still be there. A file
in a folder of the run, whose size is bounded, can be shared instead; multiprocessing does."""
UNCOUNTED_DEVICES: Final = ("zero",)
"""Not there either then: mapped as shared they are the same memory."""
