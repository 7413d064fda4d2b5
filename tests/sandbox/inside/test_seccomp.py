"""The filter, decided call by call by a small interpreter of its instructions, for both architectures."""

import ctypes
import ctypes.util
import errno
import functools
import struct

import pytest

from sandbox.inside import seccomp
from sandbox.inside.policy import ALLOWED, ANSWERS, ARGUMENTS, ATTRIBUTES, FIRST_OPTIONAL, MESSAGES, SIGNALS
from sandbox.inside.syscalls import ABSENT, ARCHITECTURES, NUMBERS, number_of

PASSED, KILLED = "allowed", "killed"
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


assemble = functools.cache(seccomp.assemble)


def decide(
    machine: str,
    number: int,
    arguments: tuple[int, ...] = (),
    arch: int | None = None,
    *,
    signals: bool = True,
    attributes: bool = True,
    messages: bool = True,
    shared_memory: bool = True,
) -> str:
    """What the kernel would do with this call: "allowed", "killed", or the name of the error it returns."""
    options = {"signals": signals, "attributes": attributes, "messages": messages, "shared_memory": shared_memory}
    padded = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, ARCH[machine] if arch is None else arch, 0, *padded)
    program = list(struct.iter_unpack("<HBBI", assemble(machine, **options)))
    accumulator, position = 0, 0
    while True:
        code, if_true, if_false, value = program[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x54:
            accumulator &= value
        elif code == 0x05:
            position += value
        elif code == 0x06:
            if value == 0x7FFF0000:
                return PASSED
            return KILLED if value == 0x80000000 else errno.errorcode[value & 0xFFFF]
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value}[code]
            position += if_true if holds else if_false


both = pytest.mark.parametrize("machine", ARCHITECTURES)

REFUSED = {
    "chown": (92, ABSENT), "fchown": (93, 55), "lchown": (94, ABSENT),
    "fchownat": (260, 54), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197),
    "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186),
    "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "mq_notify": (244, 184),
    "seccomp": (317, 277), "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446), "inotify_init": (253, ABSENT), "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27), "fanotify_init": (300, 262), "fanotify_mark": (301, 263), "splice": (275, 76),
    "tee": (276, 77), "vmsplice": (278, 75), "mlock": (149, 228), "mlock2": (325, 284), "mlockall": (151, 230),
    "mincore": (27, 232), "mbind": (237, 235), "set_mempolicy": (238, 237), "remap_file_pages": (216, 234),
    "socket": (41, 198), "connect": (42, 203), "sendmmsg": (307, 269), "mount": (165, 40), "umount2": (166, 39),
    "open_tree": (428, 428), "fsopen": (430, 430), "mount_setattr": (442, 442), "unshare": (272, 97),
    "setns": (308, 268), "chroot": (161, 51), "pivot_root": (155, 41), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438), "kcmp": (312, 272), "io_setup": (206, 0), "io_uring_setup": (425, 425),
    "keyctl": (250, 219), "add_key": (248, 217), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "personality": (135, 92), "swapon": (167, 224), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "memfd_secret": (447, 447), "setuid": (105, 146), "rt_sigqueueinfo": (129, 138),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "sync": (162, 81), "syncfs": (306, 267),
    "finit_module": (313, 273), "ioprio_set": (251, 30), "sched_setattr": (314, 274), "readahead": (187, 213),
    "sync_file_range": (277, 84),
}  # fmt: skip
"""Calls with a record of harm, which nobody may let in by mistake."""


@both
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("read", (), PASSED),
        ("socketpair", (1, 1, 0), PASSED),
        ("socketpair", (1, 0x80805, 0), PASSED),  # SOCK_SEQPACKET, with its flags
        ("socketpair", (1, 0x80002, 0), "EPERM"),  # SOCK_DGRAM
        ("socketpair", (1, 3, 0), "EPERM"),  # SOCK_RAW, which becomes SOCK_DGRAM
        ("socketpair", (30, 1, 0), "EPERM"),  # AF_TIPC
        ("setsockopt", (3, 1, 2), PASSED),  # SO_REUSEADDR
        ("setsockopt", (3, 1, 7), "EPERM"),  # SO_SNDBUF
        ("setsockopt", (3, 1, 26), "EPERM"),  # SO_ATTACH_FILTER
        ("setsockopt", (3, 0, 2), "EPERM"),  # another level
        ("getsockopt", (3, 1, 4), PASSED),  # SO_ERROR
        ("getsockopt", (3, 1, 77), "EPERM"),  # SO_PEERPIDFD
        ("clone3", (), "ENOSYS"),
        ("memfd_create", (), "ENOSYS"),
        ("getxattr", (), "ENOTSUP"),
        ("flistxattr", (), "ENOTSUP"),
        ("setxattr", (), "ENOTSUP"),
        ("lsetxattr", (), "ENOTSUP"),
        ("fsetxattr", (), "ENOTSUP"),
        ("setxattrat", (), "ENOTSUP"),
        ("removexattr", (), "ENOTSUP"),
        ("lremovexattr", (), "ENOTSUP"),
        ("fremovexattr", (), "ENOTSUP"),
        ("removexattrat", (), "ENOTSUP"),
        ("clone", (0x11,), PASSED),
        ("clone", (0x3D0F00,), PASSED),  # a thread
        ("clone", (0x4111,), PASSED),  # posix_spawn
        ("clone", (0x10000011,), "EPERM"),
        ("clone", (0x00020000,), "EPERM"),
        ("clone", (0x00000080,), PASSED),  # a part of the signal's number: new namespaces are clone3's at this bit
        ("clone", (0x8011,), "EPERM"),  # CLONE_PARENT
        ("fcntl", (3, 1030, 10), PASSED),  # F_DUPFD_CLOEXEC
        ("fcntl", (3, 6, 0), PASSED),  # F_SETLK
        ("fcntl", (3, 8, 1), "EPERM"),  # F_SETOWN
        ("fcntl", (3, 10, 9), "EPERM"),  # F_SETSIG
        ("fcntl", (3, 15, 0), "EPERM"),  # F_SETOWN_EX
        ("fcntl", (3, 37, 0), "EPERM"),  # F_OFD_SETLK
        ("fcntl", (3, 1024, 1), "EPERM"),  # F_SETLEASE
        ("fcntl", (3, 0xFFFFFFFF00000400, 1), "EPERM"),
        ("fcntl", (3, 1026, 1), "EPERM"),  # F_NOTIFY
        ("fcntl", (3, 1031, 1 << 20), "EPERM"),  # F_SETPIPE_SZ
        ("fcntl", (3, 1033, 1), "EPERM"),  # F_ADD_SEALS
        ("fcntl", (3, 1036, 1), "EPERM"),  # F_SET_RW_HINT
        ("ioctl", (0, 0x5413), PASSED),
        ("ioctl", (0, 0x5412), "EPERM"),  # TIOCSTI
        ("ioctl", (0, 0xFFFFFFFF00005412), "EPERM"),
        ("ioctl", (0, 0x541C), "EPERM"),  # TIOCLINUX
        ("ioctl", (0, 0x8901), "EPERM"),  # FIOSETOWN
        ("ioctl", (0, 0x40086602), "EPERM"),  # FS_IOC_SETFLAGS
        ("prctl", (15,), PASSED),  # PR_SET_NAME
        ("prctl", (1, 9), "EPERM"),  # PR_SET_PDEATHSIG: a run dies with its zygote
        ("prctl", (4, 0), "EPERM"),  # PR_SET_DUMPABLE: it would hide what it holds
        ("prctl", (22, 2), "EPERM"),  # PR_SET_SECCOMP
        ("prctl", (35, 1), "EPERM"),  # PR_SET_MM
        ("prctl", (0x53564D41, 0), "EPERM"),  # PR_SET_VMA
        ("madvise", (0, 4096, 4), PASSED),  # MADV_DONTNEED
        ("madvise", (0, 4096, 12), "EPERM"),  # MADV_MERGEABLE
        ("madvise", (0, 4096, 21), "EPERM"),  # MADV_PAGEOUT
        ("madvise", (0, 4096, 100), "EPERM"),  # MADV_HWPOISON
        ("fadvise64", (3, 0, 0, 4), "EPERM"),  # POSIX_FADV_DONTNEED
        ("fadvise64", (3, 0, 0, 2), PASSED),
        ("fallocate", (3, 0), PASSED),
        ("fallocate", (3, 1), "EPERM"),  # FALLOC_FL_KEEP_SIZE
        ("mknodat", (0, 0, 0o10600), PASSED),  # a named pipe
        ("mknodat", (0, 0, 0o60600), "EPERM"),  # a disk
        ("mknodat", (0, 0, 0o140600), "EPERM"),  # a socket
        ("prlimit64", (0, 7), PASSED),
        ("prlimit64", (1, 7), "EPERM"),
        ("prlimit64", (0, 4), "EPERM"),  # RLIMIT_CORE
        ("prlimit64", (0, 0xFFFFFFFF00000004), "EPERM"),
        ("setrlimit", (4,), "EPERM"),
        ("setrlimit", (7,), PASSED),
        ("sched_setaffinity", (0, 8), PASSED),
        ("sched_setaffinity", (1, 8), "EPERM"),
        ("setpriority", (0, 0, 5), PASSED),
        ("setpriority", (0, 1, 5), "EPERM"),
        ("setpriority", (2, 0, 5), "EPERM"),
        ("mmap", (0, 4096, 3, 0x22), PASSED),
        ("mmap", (0, 2 << 20, 3, 0x40022), "EPERM"),  # MAP_HUGETLB
        ("mmap", (0, 2 << 20, 3, 0x78040022), "EPERM"),  # of 1 GiB
        ("mmap", (0, 4096, 3, 0x2022), "EPERM"),  # MAP_LOCKED
    ],
)
def test_each_call_is_decided_by_its_number_and_arguments(
    machine: str, name: str, arguments: tuple[int, ...], expected: str
) -> None:
    assert decide(machine, number_of(name, machine), arguments) == expected


@both
def test_every_number_that_the_policy_does_not_name_is_refused(machine: str) -> None:
    answers = {errno.errorcode[error]: names for error, names in ANSWERS.items()}
    named = {number_of(name, machine) for names in answers.values() for name in names}
    named |= {number_of(name, machine) for name in (*ALLOWED, *SIGNALS, *ATTRIBUTES, *MESSAGES, *ARGUMENTS)}
    for number in sorted(set(range(1024)) - named):
        assert decide(machine, number) == ("EPERM" if number < FIRST_OPTIONAL else "ENOSYS"), number
    for number in (0x3FFFFFFF, 0x80000000, 0xFFFFFFFF):
        assert decide(machine, number) in ("EPERM", "ENOSYS")
    for name in ALLOWED:
        if number_of(name, machine) != ABSENT:
            assert decide(machine, number_of(name, machine)) == PASSED, name
    for word, names in answers.items():
        assert {decide(machine, number_of(name, machine)) for name in names} == {word}


@both
def test_calls_with_a_record_of_harm_are_refused(machine: str) -> None:
    for name, numbers in REFUSED.items():
        number = numbers[ARCHITECTURES.index(machine)]
        if number != ABSENT:
            assert decide(machine, number) == "EPERM", name


@both
def test_signals_attributes_and_messages_are_allowed_only_where_the_level_holds_them(machine: str) -> None:
    for name in (*SIGNALS, *ATTRIBUTES, *MESSAGES):
        if number_of(name, machine) != ABSENT:
            number = number_of(name, machine)
            refused = decide(machine, number, signals=False, attributes=False, messages=False)
            # a library that is told that its newest way is missing takes an older one, which is refused too
            assert refused == ("ENOSYS" if number >= FIRST_OPTIONAL else "EPERM"), name
            assert decide(machine, number) == PASSED, name


@both
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (0x01, PASSED),  # MAP_SHARED, of a file
        (0x22, PASSED),  # MAP_PRIVATE | MAP_ANONYMOUS
        (0x21, "EPERM"),  # MAP_SHARED | MAP_ANONYMOUS
        (0x8021, "EPERM"),  # with MAP_POPULATE
        (0x40022, "EPERM"),  # MAP_HUGETLB, as everywhere
    ],
)
def test_without_a_cgroup_shared_memory_needs_a_file(machine: str, flags: int, expected: str) -> None:
    number = number_of("mmap", machine)
    assert decide(machine, number, (0, 4096, 3, flags), shared_memory=False) == expected
    assert decide(machine, number, (0, 4096, 3, 0x21)) == PASSED


def test_the_policy_names_no_call_twice_and_every_number_has_a_use() -> None:
    answered = [name for names in ANSWERS.values() for name in names]
    named = [*ALLOWED, *SIGNALS, *ATTRIBUTES, *MESSAGES, *ARGUMENTS, *answered]
    assert len(named) == len(set(named))
    ours = {"capset", "mount_setattr", "pivot_root"}
    ours |= {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"}
    tests = {"unshare"}
    assert set(NUMBERS) == {*named, *ours, *tests}


def test_the_two_columns_of_numbers_agree_where_they_must() -> None:
    """Linux gives every call since 5.0 (number 424) one number on all architectures, and none to two calls."""
    for x86, arm in NUMBERS.values():
        assert x86 == arm or max(x86, arm) < 424
    for column in range(len(ARCHITECTURES)):
        numbers = [each[column] for each in NUMBERS.values() if each[column] != ABSENT]
        assert len(numbers) == len(set(numbers))
    assert all(x86 != ABSENT for x86, _ in NUMBERS.values())


@both
def test_the_numbers_are_those_that_libseccomp_knows(machine: str) -> None:
    path = ctypes.util.find_library("seccomp")
    if path is None:
        pytest.skip("libseccomp, to read the numbers against, is not installed")
    resolve = ctypes.CDLL(path).seccomp_syscall_resolve_name_arch
    known = {name: resolve(ctypes.c_uint32(ARCH[machine]), name.encode()) for name in NUMBERS}
    # -1 for a call newer than this libseccomp, lower for one that the architecture does not have
    unknown = {name for name, number in known.items() if number == -1}
    assert all(number_of(name, machine) > 445 for name in unknown)
    theirs = {name: max(number, ABSENT) for name, number in known.items() if name not in unknown}
    assert theirs == {name: number_of(name, machine) for name in theirs}


@both
def test_a_call_of_another_architecture_kills(machine: str) -> None:
    assert decide(machine, 0, arch=0x40000003) == KILLED


def test_the_second_table_of_x86_is_closed() -> None:
    assert decide("x86_64", 0x40000000) == "EPERM"


def test_a_machine_without_a_table_is_refused() -> None:
    with pytest.raises(OSError, match="riscv64"):
        seccomp.assemble("riscv64")
