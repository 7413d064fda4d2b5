"""Messages between the processes of the sandbox, besides the open files they pass.

Server to spawner: a `KeeperSpec`, one packet, with the connection for the new keeper. Server to keeper: a `Job`, back a
`Hello` and an `Outcome` per job, each a length and a JSON text. Keeper to zygote: a `ForkOrder`, one packet, with the
files of the run; back a `Report`. A ForkOrder holds no text written by the code or its caller.

Server to a container: its program, a `Terms` and a `Job`, each a length and a JSON text. Back an `Outcome`. Between a
solution and its tests, through the server and each with a letter before it: what one of them says, in pieces, an empty
one when it says no more; how much of that the other one has taken; and that it has ended.

Beside `contract`, not part of it: keepers and zygotes run on the bare standard library and could not load pydantic.
"""

import base64
import json
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any, TypeVar

T = TypeVar("T")

HEADER = struct.Struct(">I")
MAX_FRAME_BYTES = 256 << 20
"""Above the largest job there can be: code and stdin as base64, and files too."""
MAX_PACKET_BYTES = 16 << 10
CANCEL = HEADER.pack(0)
"""Instead of a job: end the run that is going on. Its outcome is still sent."""
PIECE_BYTES = 1 << 16
"""The largest piece passed on from one container to another."""
WINDOW_BYTES = 1 << 18
"""Bytes in transit between two containers and not yet taken; no more are passed on, so that no relay blocks."""
LETTER = struct.Struct(">cI")
CHANNEL_LETTER = b"c"
TAKEN_LETTER = b"t"
ENDED_LETTER = b"e"
OUTCOME_LETTER = b"o"
_FILE_HEADER = struct.Struct(">HI")


class Ending(StrEnum):
    EXITED = "exited"
    SIGNALLED = "signalled"
    WALL = "wall"
    CPU = "cpu"
    MEMORY = "memory"
    OUTPUT = "output"
    CANCELLED = "cancelled"
    FAULT = "fault"
    """The sandbox failed before, beside or after the code; `fault` says how."""


class Flavour(StrEnum):
    """The modules a zygote has loaded when it forks."""

    LEAN = "lean"
    NUMPY = "numpy"


class Role(StrEnum):
    """How a fork of a zygote treats its main file."""

    CODE = "code"
    """Runs it."""
    SOLUTION = "solution"
    """Loads it, and answers the questions of tests that come over a channel."""
    TESTS = "tests"
    """Judges the solution at the other end of the channel by these tests."""
    LIVE_TESTS = "live tests"
    """Judges the solution that lies beside it, in one process with it."""


@dataclass(frozen=True)
class KeeperSpec:
    """The server wants a keeper for this slot."""

    slot: int
    flavour: Flavour


@dataclass(frozen=True)
class Job:
    """One run. The code is written to `main_file` and run by the zygote itself, or by `argv` where there is one."""

    code: bytes
    stdin: bytes
    files: dict[str, bytes]
    collect: tuple[str, ...]
    wall_seconds: float
    cpu_seconds: float
    memory_bytes: int
    output_bytes: int
    processes: int
    main_file: str = "main.py"
    argv: tuple[str, ...] = ()
    address_slack_bytes: int = 256 << 20
    """Address space that each process may have beyond the memory limit, where no cgroup counts memory: libraries, and
    what is reserved but not used."""
    data_slack_bytes: int = 0
    """As much of it may be private and writable."""
    collect_bytes: int = 8 << 20
    """Of all files of `collect` together."""
    role: Role = Role.CODE
    partner: "Job | None" = None
    """Runs at the same time, at the other end of a channel; is ended when this job ends."""


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
    partner: "Outcome | None" = None
    """Of the job's partner."""


@dataclass(frozen=True)
class Hello:
    """The spawner's first words, and a keeper's: how it isolates, or why it will not."""

    level: str | None
    problem: str


@dataclass(frozen=True)
class Terms:
    """A zygote's settings for its lifetime."""

    flavour: Flavour
    has_cgroup: bool
    """The kernel counts and bounds the memory of each run."""
    has_processor_counter: bool
    """The kernel counts its processor time too, and the keeper looks at that."""
    owns_user: bool
    """Whether this slot's runs have a user of their own."""
    readable: tuple[str, ...]
    """Paths that Landlock lets runs read at the level `weak`; empty at the others."""
    in_container: bool
    """Whether the folders of the single run exist already, with no other run's processes around (a container)."""


@dataclass(frozen=True)
class ForkOrder:
    """A zygote's instructions for one run."""

    role: Role
    argv: tuple[str, ...]
    main_file: str
    cpu_seconds: float
    memory_bytes: int
    processes: int
    address_slack_bytes: int
    data_slack_bytes: int
    wants_box: bool
    """Send the open folder of the run before the code starts."""
    weak_box: str
    """The run's folder at the level `weak`, empty at the others."""


@dataclass(frozen=True)
class Report:
    """How a run ended, told after its last process is dead."""

    ending: Ending
    exit_code: int | None
    signal: int | None
    cpu_seconds: float
    peak_memory_bytes: int


def with_partner(outcome: Outcome, partner: Outcome) -> Outcome:
    """The outcome of a job together with its partner's."""
    return replace(outcome, partner=partner)


def _to_json(value: object) -> str | dict[str, object]:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Job | Outcome | Hello):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    raise TypeError(f"cannot send a {type(value).__name__}")


def pack_packet(message: KeeperSpec | Terms | ForkOrder | Report | Hello) -> bytes:
    """The message as one packet of JSON."""
    return json.dumps(asdict(message)).encode("ascii")


def pack(message: Job | Outcome | Hello) -> bytes:
    """The message as one frame: four bytes of length, big-endian, and JSON."""
    return pack_framed(pack_body(message))


def pack_body(message: Job | Outcome | Hello) -> bytes:
    """The message as JSON."""
    return json.dumps(message, default=_to_json).encode("ascii")


def pack_framed(body: bytes) -> bytes:
    """A frame of something packed already, or raw."""
    return HEADER.pack(len(body)) + body


def pack_lettered(letter: bytes, body: bytes) -> bytes:
    """A message to or from a container: a letter, the length and the body."""
    return LETTER.pack(letter, len(body)) + body


def take_lettered(received: bytearray) -> Iterator[tuple[bytes, bytes]]:
    """Complete messages, taken from the front of the received bytes."""
    while len(received) >= LETTER.size:
        letter, length = LETTER.unpack_from(received)
        end = LETTER.size + length
        if len(received) < end:
            return
        body = bytes(received[LETTER.size : end])
        del received[:end]
        yield letter, body


def _unpack_files(files: dict[str, str] | None) -> dict[str, bytes]:
    return {path: base64.b64decode(data) for path, data in (files or {}).items()}


def unpack_job(body: bytes) -> Job:
    return _make_job(json.loads(body))


def _make_job(content: "dict[str, Any]") -> Job:
    content |= {
        "code": base64.b64decode(content["code"]),
        "stdin": base64.b64decode(content["stdin"]),
        "files": _unpack_files(content["files"]),
        "collect": tuple(content["collect"]),
        "argv": tuple(content["argv"]),
        "role": Role(content["role"]),
        "partner": _make_job(content["partner"]) if content["partner"] else None,
    }
    return Job(**content)


def unpack_outcome(body: bytes) -> Outcome:
    return _make_outcome(json.loads(body))


def _make_outcome(content: "dict[str, Any]") -> Outcome:
    content |= {
        "ending": Ending(content["ending"]),
        "stdout": base64.b64decode(content["stdout"]),
        "stderr": base64.b64decode(content["stderr"]),
        "files": _unpack_files(content["files"]),
        "files_missing": dict(content["files_missing"] or {}),
        "partner": _make_outcome(content["partner"]) if content["partner"] else None,
    }
    return Outcome(**content)


def unpack_hello(body: bytes) -> Hello:
    return Hello(**json.loads(body))


def unpack_spec(body: bytes) -> KeeperSpec:
    content = json.loads(body)
    return KeeperSpec(content["slot"], Flavour(content["flavour"]))


def unpack_terms(body: bytes) -> Terms:
    content = json.loads(body)
    return Terms(**{**content, "flavour": Flavour(content["flavour"]), "readable": tuple(content["readable"])})


def unpack_order(body: bytes) -> ForkOrder:
    content = json.loads(body)
    return ForkOrder(**{**content, "argv": tuple(content["argv"]), "role": Role(content["role"])})


def unpack_report(body: bytes) -> Report:
    content = json.loads(body)
    return Report(**{**content, "ending": Ending(content["ending"])})


def pack_payload(files: dict[str, bytes]) -> bytes:
    """The files of a run in sequence, each with its path; read by the forked child and never by its zygote."""
    pieces = []
    for path, data in files.items():
        name = path.encode()
        pieces += [_FILE_HEADER.pack(len(name), len(data)), name, data]
    return b"".join(pieces)


def unpack_payload(payload: bytes) -> dict[str, bytes]:
    files, position = {}, 0
    while position < len(payload):
        name_length, data_length = _FILE_HEADER.unpack_from(payload, position)
        position += _FILE_HEADER.size
        name = payload[position : position + name_length].decode()
        position += name_length
        files[name] = payload[position : position + data_length]
        position += data_length
    return files


def _receive_exactly(connection: socket.socket, num_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < num_bytes:
        piece = connection.recv(min(num_bytes - len(data), 1 << 20))
        if not piece:
            raise EOFError("the other end closed the connection")
        data += piece
    return bytes(data)


def receive(connection: socket.socket, unpack: Callable[[bytes], T]) -> T | None:
    """Wait for one frame; None for a CANCEL. Raises EOFError when the other end is gone, ValueError for a frame too
    large to be one."""
    (length,) = HEADER.unpack(_receive_exactly(connection, HEADER.size))
    if length == 0:
        return None
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    return unpack(_receive_exactly(connection, length))
