"""What a run may ask of the kernel, as data: which system calls it may not make, and which only with some arguments.

A deny list: what is not named is allowed, because a Python program may use hundreds of calls. Denied are the calls that
reach outside (sockets, tracing, other processes' memory), make namespaces or mounts, touch the machine, or have a long
record of kernel bugs. It does not protect against a bug in an allowed call. Their numbers are in `syscalls`, the filter
made of both in `seccomp`. Only the standard library; loads under `python -S`.
"""

from dataclasses import dataclass
from typing import Final

DENIED: Final = (
    # other processes: pid namespaces hide the host's, but the zygote has the run's own user
    "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "process_madvise", "process_mrelease",
    "move_pages", "migrate_pages",
    # namespaces and mounts
    "unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "open_tree", "open_tree_attr", "move_mount",
    "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
    # the network: an empty network namespace stops neither AF_VSOCK nor netlink. A socketpair, for asyncio, needs none
    "socket", "bind", "connect", "listen", "accept", "accept4",
    # kernel surface that programs do not need
    "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "keyctl",
    "add_key", "request_key", "fanotify_init", "open_by_handle_at", "name_to_handle_at", "lookup_dcookie", "modify_ldt",
    "uselib", "ustat", "sysfs", "personality", "mbind", "set_mempolicy", "set_mempolicy_home_node", "vmsplice",
    "sched_setscheduler", "sched_setattr", "sched_setparam", "ioprio_set",
    # what the host counts for all its users together, or all of one user's programs, and what empties its caches
    "io_setup", "inotify_init", "inotify_init1", "sync", "syncfs",
    # memory that no process shows as its own
    "memfd_secret", "shmget", "semget", "msgget", "mq_open",
    # the machine itself
    "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "swapon", "swapoff",
    "acct", "settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "sethostname", "setdomainname", "iopl",
    "ioperm", "quotactl", "quotactl_fd", "syslog", "vhangup", "nfsservctl",
)  # fmt: skip
"""Answered with EPERM."""

MISSING: Final = ("clone3", "memfd_create")
"""Answered with ENOSYS, so that libraries take their older way: clone3 hides its flags from a filter, and a memfd is
memory that no process shows as its own."""

SIGNALS: Final = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal")
"""Denied too where neither a pid namespace nor Landlock keeps a signal from reaching the server's own processes."""

ATTRIBUTES: Final = (
    "chmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchownat", "utime", "utimes", "utimensat", "futimesat",
    "setxattr", "lsetxattr", "setxattrat", "removexattr", "lremovexattr", "removexattrat", "file_setattr",
)  # fmt: skip
"""Denied too where the run sees the host's files and may own some: Landlock keeps it from their contents, not from
their modes, owners and times."""


@dataclass(frozen=True)
class Check:
    """Lets a call through only where the low half of an argument, under a mask, is one of these values; or, with
    `forbids`, is none of them. Otherwise EPERM."""

    argument: int
    """From 0 on."""
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    forbids: bool = False


_NEW_NAMESPACES = 0x7E020000 | 0x80
_AF_UNIX, _STREAM, _SEQPACKET, _SOCKET_TYPE = 1, 1, 5, 0xF
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_RLIMIT_CORE = 4
_MAP_HUGETLB, _MAP_SHARED, _MAP_ANONYMOUS = 0x40000, 0x01, 0x20

ARGUMENTS: Final = {
    "clone": (Check(0, (0,), mask=_NEW_NAMESPACES),),
    # they type into the terminal that started the server
    "ioctl": (Check(1, (_TIOCSTI, _TIOCLINUX), forbids=True),),
    # huge pages are a pool of the whole host's
    "mmap": (Check(3, (_MAP_HUGETLB,), mask=_MAP_HUGETLB, forbids=True),),
    # process 0 is oneself: the zygote has the run's user, and must not be slowed down or given a limit. The limit of
    # core dumps stays what `isolation` has made it
    "prlimit64": (Check(0, (0,)), Check(1, (_RLIMIT_CORE,), forbids=True)),
    "setrlimit": (Check(0, (_RLIMIT_CORE,), forbids=True),),
    "sched_setaffinity": (Check(0, (0,)),),
    "setpriority": (Check(0, (0,)), Check(1, (0,))),
    # other families' code has no business here; a datagram socket could be pointed at any other one by its path
    "socketpair": (Check(0, (_AF_UNIX,)), Check(1, (_STREAM, _SEQPACKET), mask=_SOCKET_TYPE)),
}
"""Allowed where every check lets it through."""

SHARED_MEMORY: Final = {
    "mmap": (Check(3, (_MAP_SHARED | _MAP_ANONYMOUS,), mask=_MAP_SHARED | _MAP_ANONYMOUS, forbids=True),),
}
"""Checked too where no cgroup counts memory: such memory can be let go of by every process and still be there. A file
in a folder of the run, whose size is bounded, can be shared instead; multiprocessing does."""
UNCOUNTED_DEVICES: Final = ("zero",)
"""Not there either then: mapped as shared they are the same memory."""
