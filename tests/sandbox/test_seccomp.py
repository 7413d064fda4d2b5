"""The filter, decided call by call by a small interpreter of its instructions, for both architectures."""

import ctypes
import ctypes.util
import errno
import struct

import pytest

from sandbox import seccomp
from sandbox.policy import ARGUMENTS, ATTRIBUTES, DENIED, MISSING, SIGNALS
from sandbox.syscalls import ABSENT, ARCHITECTURES, NUMBERS, number_of

ALLOWED, KILLED = "allowed", "killed"
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def decide(
    machine: str,
    number: int,
    arguments: tuple[int, ...] = (),
    arch: int | None = None,
    *,
    signals: bool = True,
    attributes: bool = True,
    shared_memory: bool = True,
) -> str:
    """What the kernel would do with this call: "allowed", "killed", or the name of the error it returns."""
    padded = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, ARCH[machine] if arch is None else arch, 0, *padded)
    program = list(
        struct.iter_unpack(
            "<HBBI",
            seccomp.assemble(machine, signals=signals, attributes=attributes, shared_memory=shared_memory),
        )
    )
    accumulator, position = 0, 0
    while True:
        code, if_true, if_false, value = program[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x54:
            accumulator &= value
        elif code == 0x06:
            if value == 0x7FFF0000:
                return ALLOWED
            return KILLED if value == 0x80000000 else errno.errorcode[value & 0xFFFF]
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value}[code]
            position += if_true if holds else if_false


both = pytest.mark.parametrize("machine", ARCHITECTURES)


@both
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("read", (), ALLOWED),
        ("socketpair", (1, 1, 0), ALLOWED),
        ("socketpair", (1, 0x80805, 0), ALLOWED),  # SOCK_SEQPACKET, with its flags
        ("socketpair", (1, 0x80002, 0), "EPERM"),  # SOCK_DGRAM
        ("socketpair", (1, 3, 0), "EPERM"),  # SOCK_RAW, which becomes SOCK_DGRAM
        ("socketpair", (30, 1, 0), "EPERM"),  # AF_TIPC
        ("socket", (2, 1, 0), "EPERM"),
        ("mount", (), "EPERM"),
        ("clone3", (), "ENOSYS"),
        ("clone", (0x11,), ALLOWED),
        ("clone", (0x3D0F00,), ALLOWED),  # a thread
        ("clone", (0x10000011,), "EPERM"),
        ("clone", (0x00020000,), "EPERM"),
        ("ioctl", (0, 0x5413), ALLOWED),
        ("ioctl", (0, 0x5412), "EPERM"),
        ("ioctl", (0, 0xFFFFFFFF00005412), "EPERM"),
        ("ioctl", (0, 0x541C), "EPERM"),
        ("prlimit64", (0, 7), ALLOWED),
        ("prlimit64", (1, 7), "EPERM"),
        ("prlimit64", (0, 4), "EPERM"),  # RLIMIT_CORE
        ("prlimit64", (0, 0xFFFFFFFF00000004), "EPERM"),
        ("setrlimit", (4,), "EPERM"),
        ("setrlimit", (7,), ALLOWED),
        ("sched_setaffinity", (0, 8), ALLOWED),
        ("sched_setaffinity", (1, 8), "EPERM"),
        ("setpriority", (0, 0, 5), ALLOWED),
        ("setpriority", (0, 1, 5), "EPERM"),
        ("setpriority", (2, 0, 5), "EPERM"),
        ("ioprio_set", (1, 0), "EPERM"),
        ("io_setup", (128,), "EPERM"),
        ("inotify_init1", (0,), "EPERM"),
        ("sync", (), "EPERM"),
        ("mmap", (0, 4096, 3, 0x22), ALLOWED),
        ("mmap", (0, 2 << 20, 3, 0x40022), "EPERM"),  # MAP_HUGETLB
        ("mmap", (0, 2 << 20, 3, 0x78040022), "EPERM"),  # of 1 GiB
    ],
)
def test_each_call_is_decided_by_its_number_and_arguments(
    machine: str, name: str, arguments: tuple[int, ...], expected: str
) -> None:
    assert decide(machine, number_of(name, machine), arguments) == expected


@both
def test_every_name_of_the_policy_is_answered_as_it_says(machine: str) -> None:
    for name in (*DENIED, *SIGNALS, *ATTRIBUTES):
        if number_of(name, machine) != ABSENT:
            number = number_of(name, machine)
            assert decide(machine, number, signals=False, attributes=False) == "EPERM", name
            assert decide(machine, number) == ("EPERM" if name in DENIED else ALLOWED), name
    for name in MISSING:
        assert decide(machine, number_of(name, machine)) == "ENOSYS", name


@both
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (0x01, ALLOWED),  # MAP_SHARED, of a file
        (0x22, ALLOWED),  # MAP_PRIVATE | MAP_ANONYMOUS
        (0x21, "EPERM"),  # MAP_SHARED | MAP_ANONYMOUS
        (0x8021, "EPERM"),  # with MAP_POPULATE
        (0x40022, "EPERM"),  # MAP_HUGETLB, as everywhere
    ],
)
def test_without_a_cgroup_shared_memory_needs_a_file(machine: str, flags: int, expected: str) -> None:
    number = number_of("mmap", machine)
    assert decide(machine, number, (0, 4096, 3, flags), shared_memory=False) == expected
    assert decide(machine, number, (0, 4096, 3, 0x21)) == ALLOWED


def test_the_policy_names_no_call_twice_and_every_number_has_a_use() -> None:
    named = [*DENIED, *MISSING, *SIGNALS, *ATTRIBUTES, *ARGUMENTS]
    assert len(named) == len(set(named))
    ours = {
        "capset",
        "close_range",
        "openat2",
        "landlock_create_ruleset",
        "landlock_add_rule",
        "landlock_restrict_self",
    }
    tests = {"read", "pidfd_open"}
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
