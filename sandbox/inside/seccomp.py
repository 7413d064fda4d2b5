"""The seccomp filter of a run, assembled by hand from `policy` and `syscalls`, so that no compiler and no libseccomp is
needed. Only the standard library; loads under `python -S`.
"""

import errno
import struct

from sandbox.inside.policy import (
    ALLOWED,
    ANSWERS,
    ARGUMENTS,
    ATTRIBUTES,
    FIRST_OPTIONAL,
    MESSAGES,
    SHARED_MEMORY,
    SIGNALS,
    Check,
)
from sandbox.inside.syscalls import ABSENT, number_of

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
"""From here on x86-64's second table of calls."""

_LOAD, _AND, _JUMP, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
_FARTHEST = 255
"""Instructions that a comparison can pass over."""
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
# offsets in struct seccomp_data; of arguments the low halves, little-endian
_NUMBER, _ARCH, _ARGUMENTS, _ARGUMENT_BYTES = 0, 4, 16, 8

Answer = list[bytes]
"""Instructions that end with a decision."""


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _refuse(error: int) -> Answer:
    return [_op(_RETURN, _ERROR | error)]


_PASS: Answer = [_op(_RETURN, _ALLOW)]


def assemble(
    machine: str, *, signals: bool = True, attributes: bool = True, messages: bool = True, shared_memory: bool = True
) -> bytes:
    """The filter for one architecture as packed `struct sock_filter`s. Without `signals` it refuses to send any,
    without `attributes` to change a file's mode or times, without `messages` to send open files through sockets,
    without `shared_memory` to share memory that is no file's.

    Raises OSError for an architecture that has no table.
    """
    answers = _answers(machine, signals=signals, attributes=attributes, messages=messages, shared_memory=shared_memory)
    program = [_op(_LOAD, _ARCH), _op(_EQUAL, _AUDIT_ARCH[machine], 1, 0), _op(_RETURN, _KILL), _op(_LOAD, _NUMBER)]
    if machine == "x86_64":
        program += [_op(_AT_LEAST, _X32, 0, 1), *_refuse(errno.EPERM)]
    return b"".join([*program, *_search(_ranges(answers))])


def _answers(
    machine: str, *, signals: bool, attributes: bool, messages: bool, shared_memory: bool
) -> dict[int, Answer]:
    """The answer to each call that has one of its own, by number."""
    optional = ((signals, SIGNALS), (attributes, ATTRIBUTES), (messages, MESSAGES))
    allowed = (*ALLOWED, *(name for is_given, names in optional if is_given for name in names))
    answers = {number_of(name, machine): _PASS for name in allowed}
    for error, names in ANSWERS.items():
        answers |= {number_of(name, machine): _refuse(error) for name in names}
    more = {} if shared_memory else SHARED_MEMORY
    for name, checks in ARGUMENTS.items():
        answers[number_of(name, machine)] = _assemble_checks((*checks, *more.get(name, ())))
    answers.pop(ABSENT, None)
    return answers


def _ranges(answers: dict[int, Answer]) -> list[tuple[int, Answer]]:
    """All numbers from 0 on as ranges that are answered alike, each with its first number."""
    ranges: list[tuple[int, Answer]] = []
    for number in range(max(*answers, FIRST_OPTIONAL) + 2):
        answer = answers.get(number) or _refuse(errno.EPERM if number < FIRST_OPTIONAL else errno.ENOSYS)
        if not ranges or ranges[-1][1] != answer:
            ranges.append((number, answer))
    return ranges


def _search(ranges: list[tuple[int, Answer]]) -> Answer:
    """Find the range of a number by halves, and answer. The kernel goes through a new filter once for every call there
    is, which is most of what it costs a run."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    low, high, start = _search(ranges[:middle]), _search(ranges[middle:]), ranges[middle][0]
    if len(low) <= _FARTHEST:
        return [_op(_AT_LEAST, start, len(low), 0), *low, *high]
    return [_op(_AT_LEAST, start, 0, 1), _op(_JUMP, len(low)), *low, *high]


def _assemble_checks(checks: tuple[Check, ...]) -> Answer:
    """Refuses unless every check lets the call through. Each check goes on to the next where it does."""
    program = []
    for check in checks:
        program += [_op(_LOAD, _ARGUMENTS + _ARGUMENT_BYTES * check.argument), _op(_AND, check.mask)]
        num_left = len(check.values)
        for value in check.values:
            num_left -= 1
            if check.forbids:  # one that is equal goes to the refusal, the last one that is not passes over it
                program.append(_op(_EQUAL, value, num_left, 0 if num_left else 1))
            else:
                program.append(_op(_EQUAL, value, num_left + 1, 0))
        program += _refuse(errno.EPERM)
    return [*program, *_PASS]
