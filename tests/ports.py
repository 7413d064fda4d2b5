"""Ports for what a test starts, and for addresses where nobody is to listen.

A port that the kernel chose goes to somebody else as soon as it is free again, and a process takes seconds to listen.
These lie below those that the kernel chooses from, and each process of the tests has a share of its own.
"""

import functools
import itertools
import os
import socket

FIRST = 12_000
NUM_SHARES = 200
SHARE = 100


def free_port() -> int:
    """The next port of this process's share on which nobody listens."""
    while True:
        port = next(_take_share()[1])
        if (probe := _bind(port)) is not None:
            probe.close()
            return port


@functools.cache
def _take_share() -> "tuple[socket.socket, itertools.cycle[int]]":
    """A socket on the share's first port, which keeps other processes out of it as long as this one lives, and the
    other ports in turn."""
    for number in range(NUM_SHARES):
        first = FIRST + SHARE * ((os.getpid() + number) % NUM_SHARES)
        if (held := _bind(first)) is not None:
            return held, itertools.cycle(range(first + 1, first + SHARE))
    raise RuntimeError("all ports are taken")


def _bind(port: int) -> socket.socket | None:
    made = socket.socket()
    try:
        made.bind(("127.0.0.1", port))
    except OSError:
        made.close()
        return None
    return made
