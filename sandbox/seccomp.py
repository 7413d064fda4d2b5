"""The seccomp filter of a run, assembled by hand from `policy` and `syscalls`, so that no compiler and no libseccomp is
needed. Only the standard library; loads under `python -S`.
"""

import errno
import struct
from itertools import zip_longest

from sandbox.policy import ARGUMENTS, ATTRIBUTES, DENIED, MISSING, SHARED_MEMORY, SIGNALS, Check
from sandbox.syscalls import ABSENT, number_of

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
"""From here on x86-64's second table of calls."""

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
# offsets in struct seccomp_data; of arguments the low halves, little-endian
_NUMBER, _ARCH, _ARGUMENTS, _ARGUMENT_BYTES = 0, 4, 16, 8


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


_BLOCK = 10
"""Numbers tested one after another. Blocks are passed over whole: the kernel goes through a new filter once for every
call there is, which is most of what it costs a run."""
_DENY = _op(_RETURN, _ERROR | errno.EPERM)


def assemble(machine: str, *, signals: bool = True, attributes: bool = True, shared_memory: bool = True) -> bytes:
    """The filter for one architecture as packed `struct sock_filter`s. Without `signals` it denies sending any, without
    `attributes` changing a file's mode, owner or times by its path, without `shared_memory` sharing memory that is no
    file's.

    Raises OSError for an architecture that has no table.
    """
    denied = (*DENIED, *(() if signals else SIGNALS), *(() if attributes else ATTRIBUTES))
    answers = {number_of(name, machine): [_DENY] for name in denied}
    answers |= {number_of(name, machine): [_op(_RETURN, _ERROR | errno.ENOSYS)] for name in MISSING}
    more = {} if shared_memory else SHARED_MEMORY
    for name in {**ARGUMENTS, **more}:
        answers[number_of(name, machine)] = _assemble_checks((*ARGUMENTS.get(name, ()), *more.get(name, ())))
    answers.pop(ABSENT, None)
    program = [_op(_LOAD, _ARCH), _op(_EQUAL, _AUDIT_ARCH[machine], 1, 0), _op(_RETURN, _KILL), _op(_LOAD, _NUMBER)]
    if machine == "x86_64":
        program += [_op(_AT_LEAST, _X32, 0, 1), _DENY]
    calls = sorted(answers.items())
    blocks = [calls[start : start + _BLOCK] for start in range(0, len(calls), _BLOCK)]
    for block, next_block in zip_longest(blocks, blocks[1:]):
        tests = [op for number, answer in block for op in (_op(_EQUAL, number, 0, len(answer)), *answer)]
        tests.append(_op(_RETURN, _ALLOW))
        if next_block is not None:
            program.append(_op(_AT_LEAST, next_block[0][0], len(tests), 0))
        program += tests
    return b"".join(program)


def _assemble_checks(checks: tuple[Check, ...]) -> list[bytes]:
    """Denies unless every check lets the call through. Each check goes on to the next where it does."""
    program = []
    for check in checks:
        program += [_op(_LOAD, _ARGUMENTS + _ARGUMENT_BYTES * check.argument), _op(_AND, check.mask)]
        num_left = len(check.values)
        for value in check.values:
            num_left -= 1
            if check.forbids:  # one that is equal goes to the denial, the last one that is not passes over it
                program.append(_op(_EQUAL, value, num_left, 0 if num_left else 1))
            else:
                program.append(_op(_EQUAL, value, num_left + 1, 0))
        program.append(_DENY)
    return [*program, _op(_RETURN, _ALLOW)]
