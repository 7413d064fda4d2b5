"""The system calls a run may not make: a seccomp filter assembled by hand, so that no compiler and no libseccomp is
needed.

A deny list: what is not named is allowed, because a Python program may use hundreds of calls. Denied are the calls
that reach outside (sockets, tracing, other processes' memory), make namespaces or mounts, touch the machine, or have a
long record of kernel bugs. It does not protect against a bug in an allowed call. Only the standard library; loads
under `python -S`.
"""

import errno
import struct

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# name: (x86-64, aarch64); -1 where the architecture lacks the call
_DENIED = {
    # other processes: pid namespaces hide the host's, but PID 1 of the run has the run's own user
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "move_pages": (279, 239), "migrate_pages": (256, 238),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    # the network: an empty network namespace stops neither AF_VSOCK nor netlink. socketpair stays, for asyncio
    "socket": (41, 198),
    # kernel surface that programs do not need
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "fanotify_init": (300, 262), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264), "lookup_dcookie": (212, 18), "modify_ldt": (154, -1),
    "uselib": (134, -1), "ustat": (136, -1),
    "sysfs": (139, -1), "personality": (135, 92), "mbind": (237, 235),
    "set_mempolicy": (238, 237), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
    "sched_setparam": (142, 118), "ioprio_set": (251, 30),
    # memory that no process shows as its own
    "memfd_secret": (447, 447), "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    # the machine itself
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, -1), "ioperm": (173, -1),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "syslog": (103, 116),
    "vhangup": (153, 58), "nfsservctl": (180, 42),
}  # fmt: skip
_MISSING = {"clone3": (435, 435), "memfd_create": (319, 279)}
"""Answered with "no such call", so that libraries take their older way: clone3 hides its flags from a filter, and a
memfd is memory that no process shows as its own."""
_SIGNALS = {
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
}  # fmt: skip
"""Denied where neither a pid namespace nor Landlock keeps a signal from reaching the server's own processes."""
_CLONE, _IOCTL = (56, 220), (16, 29)
_OF_ONESELF = {"prlimit": (302, 261), "sched_setaffinity": (203, 122)}
"""Allowed for process 0, oneself: the zygote has the run's user, and must not be slowed down or given a limit."""
_SETPRIORITY = (141, 140)
_NEW_NAMESPACE_FLAGS = 0x7E020000 | 0x80
_TERMINAL_INJECTIONS = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: type into the terminal that started the server

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _FIRST_ARGUMENT, _SECOND_ARGUMENT = (
    0,
    4,
    16,
    24,
)  # offsets in struct seccomp_data; low halves, little-endian
_X32 = 0x40000000


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def assemble(machine: str, *, signals: bool = True) -> bytes:
    """The filter for one architecture as packed `struct sock_filter`s; without `signals` it denies sending any.

    Raises OSError for an architecture that has no table.
    """
    if machine not in _AUDIT_ARCH:
        raise OSError(f"no table of system calls for {machine}: the sandbox runs on {', '.join(_AUDIT_ARCH)}")
    column = list(_AUDIT_ARCH).index(machine)
    deny = _op(_RETURN, _ERROR | errno.EPERM)
    program = [_op(_LOAD, _ARCH), _op(_EQUAL, _AUDIT_ARCH[machine], 1, 0), _op(_RETURN, _KILL), _op(_LOAD, _NUMBER)]
    if machine == "x86_64":
        program += [_op(_AT_LEAST, _X32, 0, 1), deny]
    for numbers in (*_DENIED.values(), *(() if signals else _SIGNALS.values())):
        if numbers[column] >= 0:
            program += [_op(_EQUAL, numbers[column], 0, 1), deny]
    for numbers in _MISSING.values():
        program += [_op(_EQUAL, numbers[column], 0, 1), _op(_RETURN, _ERROR | errno.ENOSYS)]
    program += [_op(_EQUAL, _CLONE[column], 0, 4), _op(_LOAD, _FIRST_ARGUMENT)]
    program += [_op(_ANY_BIT, _NEW_NAMESPACE_FLAGS, 0, 1), deny, _op(_RETURN, _ALLOW)]
    program += [_op(_EQUAL, _IOCTL[column], 0, 5), _op(_LOAD, _SECOND_ARGUMENT)]
    program += [_op(_EQUAL, _TERMINAL_INJECTIONS[0], 1, 0), _op(_EQUAL, _TERMINAL_INJECTIONS[1], 0, 1), deny]
    program += [_op(_RETURN, _ALLOW)]
    for numbers in _OF_ONESELF.values():
        program += [_op(_EQUAL, numbers[column], 0, 4), _op(_LOAD, _FIRST_ARGUMENT), _op(_EQUAL, 0, 1, 0), deny]
        program += [_op(_RETURN, _ALLOW)]
    # the first says a process, the second oneself
    program += [_op(_EQUAL, _SETPRIORITY[column], 0, 6), _op(_LOAD, _FIRST_ARGUMENT), _op(_EQUAL, 0, 1, 0), deny]
    program += [_op(_LOAD, _SECOND_ARGUMENT), _op(_EQUAL, 0, 1, 0), deny]
    return b"".join([*program, _op(_RETURN, _ALLOW)])
