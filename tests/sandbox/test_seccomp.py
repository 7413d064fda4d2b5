"""The filter, decided call by call by a small interpreter of its instructions, for both architectures."""

import errno
import struct

import pytest

from sandbox import seccomp

ALLOWED, KILLED = "allowed", "killed"
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def decide(machine: str, number: int, arguments: tuple[int, ...] = (), arch: int | None = None) -> str:
    """What the kernel would do with this call: "allowed", "killed", or the name of the error it returns."""
    padded = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, ARCH[machine] if arch is None else arch, 0, *padded)
    program = list(struct.iter_unpack("<HBBI", seccomp.assemble(machine)))
    accumulator, position = 0, 0
    while True:
        code, if_true, if_false, value = program[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:
            if value == 0x7FFF0000:
                return ALLOWED
            return KILLED if value == 0x80000000 else errno.errorcode[value & 0xFFFF]
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            position += if_true if holds else if_false


X86 = {
    "read": 0,
    "socketpair": 53,
    "socket": 41,
    "clone": 56,
    "clone3": 435,
    "ioctl": 16,
    "prlimit": 302,
    "sched_setaffinity": 203,
    "setpriority": 141,
    "ioprio_set": 251,
}
ARM = {
    "read": 63,
    "socketpair": 199,
    "socket": 198,
    "clone": 220,
    "clone3": 435,
    "ioctl": 29,
    "prlimit": 261,
    "sched_setaffinity": 122,
    "setpriority": 140,
    "ioprio_set": 30,
    "mount": 40,
}
NUMBERS = {"x86_64": {**X86, "mount": 165}, "aarch64": {**ARM, "mount": 40}}
both = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])


@both
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("read", (), ALLOWED),
        ("socketpair", (1, 1, 0), ALLOWED),
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
        ("prlimit", (0, 7), ALLOWED),
        ("prlimit", (1, 7), "EPERM"),
        ("sched_setaffinity", (0, 8), ALLOWED),
        ("sched_setaffinity", (1, 8), "EPERM"),
        ("setpriority", (0, 0, 5), ALLOWED),
        ("setpriority", (0, 1, 5), "EPERM"),
        ("setpriority", (2, 0, 5), "EPERM"),
        ("ioprio_set", (1, 0), "EPERM"),
    ],
)
def test_each_call_is_decided_by_its_number_and_arguments(
    machine: str, name: str, arguments: tuple[int, ...], expected: str
) -> None:
    assert decide(machine, NUMBERS[machine][name], arguments) == expected


@both
def test_a_call_of_another_architecture_kills(machine: str) -> None:
    assert decide(machine, 0, arch=0x40000003) == KILLED


def test_the_second_table_of_x86_is_closed() -> None:
    assert decide("x86_64", 0x40000000) == "EPERM"


def test_a_machine_without_a_table_is_refused() -> None:
    with pytest.raises(OSError, match="riscv64"):
        seccomp.assemble("riscv64")
