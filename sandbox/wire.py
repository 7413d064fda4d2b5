"""What the server and a run's supervisor say to each other: one job, then one outcome, each a length and a JSON text
over a socket.

Beside `contract`, not part of it: the supervisor runs on the bare standard library (`python -I -S`) and could not load
pydantic.
"""

import base64
import json
import socket
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")

HEADER = struct.Struct(">I")
MAX_FRAME_BYTES = 256 << 20
"""Above the largest job there can be: code and stdin whose every character JSON escapes, and files as base64."""


class Ending(StrEnum):
    EXITED = "exited"
    SIGNALLED = "signalled"
    WALL = "wall"
    CPU = "cpu"
    MEMORY = "memory"
    OUTPUT = "output"
    FAULT = "fault"
    """The sandbox failed before, beside or after the code; `fault` says how."""


@dataclass(frozen=True)
class Job:
    slot: int
    code: str
    stdin: str
    files: dict[str, bytes]
    collect: tuple[str, ...]
    wall_seconds: float
    cpu_seconds: float
    memory_bytes: int
    output_bytes: int
    processes: int


@dataclass(frozen=True)
class Outcome:
    ending: Ending
    exit_code: int | None = None
    signal: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0
    files: dict[str, bytes] | None = None
    files_missing: dict[str, str] | None = None
    fault: str = ""


@dataclass(frozen=True)
class Hello:
    """The spawner's first words: how it isolates, or why it will not."""

    level: str | None
    problem: str


def _to_json(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    raise TypeError(f"cannot send a {type(value).__name__}")


def pack(message: Job | Outcome | Hello) -> bytes:
    """The message as one frame: four bytes of length, big-endian, and JSON."""
    body = json.dumps(asdict(message), default=_to_json).encode("ascii")
    return HEADER.pack(len(body)) + body


def _unpack_files(files: dict[str, str] | None) -> dict[str, bytes]:
    return {path: base64.b64decode(data) for path, data in (files or {}).items()}


def unpack_job(body: bytes) -> Job:
    fields = json.loads(body)
    return Job(**{**fields, "files": _unpack_files(fields["files"]), "collect": tuple(fields["collect"])})


def unpack_outcome(body: bytes) -> Outcome:
    fields = json.loads(body)
    fields |= {
        "ending": Ending(fields["ending"]),
        "stdout": base64.b64decode(fields["stdout"]),
        "stderr": base64.b64decode(fields["stderr"]),
        "files": _unpack_files(fields["files"]),
        "files_missing": dict(fields["files_missing"] or {}),
    }
    return Outcome(**fields)


def unpack_hello(body: bytes) -> Hello:
    return Hello(**json.loads(body))


def _receive_exactly(connection: socket.socket, num_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < num_bytes:
        piece = connection.recv(min(num_bytes - len(data), 1 << 20))
        if not piece:
            raise EOFError("the other end closed the connection")
        data += piece
    return bytes(data)


def receive(connection: socket.socket, unpack: Callable[[bytes], T]) -> T:
    """Wait for one frame. Raises EOFError when the other end is gone, ValueError for a frame too large to be one."""
    (length,) = HEADER.unpack(_receive_exactly(connection, HEADER.size))
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    return unpack(_receive_exactly(connection, length))
