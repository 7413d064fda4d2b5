"""Values between the two processes of a judged solution: plain data by value, anything else by a number.

Both ends read strictly. `decode` builds only builtin types, whatever the other end sent, so no method of a solution's
class ever runs in the process of the tests. Only the standard library.
"""

import datetime
import json
import os
import time
import types
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Final, TypeAlias

from sandbox.inside.json_bounds import JsonBounds, TooMuchJson

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MAX_LINE_BYTES: Final = 16 << 20
MAX_DEPTH: Final = 100
MAX_EXPONENT: Final = 4300
"""Of a Decimal, either way; as many digits as Python reads and writes of an integer. Numbers beyond it can be sent in a
few bytes and take all time and memory once something is done with them."""
MAX_TEXT: Final = 2000
_PIECE_BYTES = 1 << 16
_TIMES = (datetime.datetime, datetime.date, datetime.time)


class NotPlain(Exception):
    """The value is no plain data, and this end has no way to pass it on."""


class Broken(Exception):
    """The other end sent an unreadable message."""


class ChannelClosed(Exception):
    """The other end has ended."""


class NotInTime(Exception):
    """The other end did not answer in time."""


class Deadline:
    """The deadline of one exchange: request, answer and decoding."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def seconds_left(self) -> float:
        """Raises NotInTime when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise NotInTime
        return left


def encode(value: object, refer: Callable[[object], Json], depth: int = 0) -> Json:
    """The value as JSON. Anything but plain data goes to `refer`, which names it or raises NotPlain. An instance of a
    subclass is sent as its builtin base, without the subclass's behaviour."""
    if value is None or value is True or value is False:
        return value
    if depth > MAX_DEPTH:
        raise NotPlain("the value is nested too deeply")
    kind = type(value)
    if kind is str:
        return value  # type: ignore[return-value]
    if isinstance(value, int):
        number = int.__index__(value)
        return number if number.bit_length() < 64 else {"int": hex(number)}
    if isinstance(value, float):
        return value if kind is float else float.fromhex(float.hex(value))
    if isinstance(value, str):
        return str.__str__(value)
    below = depth + 1
    if isinstance(value, list):
        return [encode(item, refer, below) for item in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"tuple": [encode(item, refer, below) for item in tuple.__iter__(value)]}
    if isinstance(value, dict):
        return {"dict": [encode(part, refer, below) for pair in dict.items(value) for part in pair]}
    if isinstance(value, set):
        return {"set": [encode(item, refer, below) for item in set.__iter__(value)]}
    if isinstance(value, frozenset):
        return {"frozenset": [encode(item, refer, below) for item in frozenset.__iter__(value)]}
    if isinstance(value, bytes):
        return {"bytes": bytes.hex(value)}
    if kind is bytearray:
        return {"bytearray": bytearray.hex(value)}  # type: ignore[arg-type]
    if kind is complex:
        return {"complex": [float.hex(value.real), float.hex(value.imag)]}  # type: ignore[attr-defined]
    if kind is deque:
        return {"deque": [encode(item, refer, below) for item in value]}  # type: ignore[attr-defined]
    if kind is range:
        return {"range": [hex(value.start), hex(value.stop), hex(value.step)]}  # type: ignore[attr-defined]
    if kind in (Decimal, Fraction):
        return {kind.__name__: str(value)}
    if kind in _TIMES:
        return {kind.__name__: value.isoformat()}  # type: ignore[attr-defined]
    if kind is datetime.timedelta:
        return {"timedelta": [value.days, value.seconds, value.microseconds]}  # type: ignore[attr-defined]
    return refer(value)


def decode(content: Json, resolve: Callable[[Json], object], deadline: Deadline | None = None) -> object:
    """The value of such JSON; `resolve` finds the objects that `refer` named. Raises Broken, NotInTime."""
    try:
        return _decode(content, resolve, deadline, 0)
    except (RecursionError, MemoryError) as error:
        raise Broken(f"a value that is too large: {error}") from None


def _decode(content: Json, resolve: Callable[[Json], object], deadline: Deadline | None, depth: int) -> object:
    if not isinstance(content, list | dict):
        return content
    if depth > MAX_DEPTH:
        raise Broken("a value that is nested too deeply")

    def below(item: Json) -> object:
        return _decode(item, resolve, deadline, depth + 1)

    if isinstance(content, list):
        return [below(item) for item in content]
    if len(content) != 1:
        raise Broken("a value with more than one tag")
    ((tag, inner),) = content.items()
    try:
        if tag in _SEQUENCES and isinstance(inner, list):
            return _SEQUENCES[tag]([below(item) for item in inner])
        if tag in ("set", "frozenset") and isinstance(inner, list):
            items: set[object] = set()
            for item in inner:
                _check(deadline)
                items.add(below(item))
            return items if tag == "set" else frozenset(items)
        if tag == "dict" and isinstance(inner, list):
            pairs: dict[object, object] = {}
            for key, value in zip(inner[::2], inner[1::2], strict=True):
                _check(deadline)
                pairs[below(key)] = below(value)
            return pairs
        if tag in _TEXTS and isinstance(inner, str):
            return _TEXTS[tag](inner)
        if tag == "complex" and isinstance(inner, list):
            real, imaginary = (float.fromhex(str(part)) for part in inner)
            return complex(real, imaginary)
        if tag == "timedelta" and isinstance(inner, list):
            days, seconds, microseconds = (int(str(part)) for part in inner)
            return datetime.timedelta(days, seconds, microseconds)
        if tag == "range" and isinstance(inner, list):
            return range(*(int(str(part), 16) for part in inner))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise Broken(f"a {shorten(tag)} that is none: {error}") from error
    return resolve(content)


def _check(deadline: Deadline | None) -> None:
    """At each key, for keys can be chosen so that each is compared with all before it. Raises NotInTime."""
    if deadline is not None:
        deadline.seconds_left()


def _decimal(text: str) -> Decimal:
    number = Decimal(text)
    if number.is_finite() and abs(number.adjusted()) > MAX_EXPONENT:
        raise ValueError("its exponent is too large")
    return number


def _fraction(text: str) -> Fraction:
    numerator, _, denominator = text.partition("/")
    return Fraction(int(numerator), int(denominator or "1"))


_SEQUENCES: Final[dict[str, Callable[[list[object]], object]]] = {"tuple": tuple, "deque": deque}
_TEXTS: Final[dict[str, Callable[[str], object]]] = {
    "int": lambda text: int(text, 16),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "Decimal": _decimal,
    "Fraction": _fraction,
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
}


def pack_line(message: Json) -> bytes:
    """One message as it travels."""
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass") + b"\n"


def is_too_large(line: bytes) -> bool:
    """Whether the other end would refuse the message: its values must fit in the memory of the tests' process."""
    if len(line) > MAX_LINE_BYTES:
        return True
    try:
        JsonBounds(max_values=MAX_LINE_BYTES).take(line)
    except TooMuchJson:
        return True
    return False


def write_line(descriptor: int, line: bytes, wait: Callable[[], None] | None = None) -> None:
    """Send one message over a non-blocking descriptor; `wait` is called before each write. Raises ChannelClosed and
    the errors of `wait`."""
    view = memoryview(line)
    try:
        while view:
            if wait is not None:
                wait()
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                if wait is None:
                    raise
    except (BrokenPipeError, ConnectionResetError):
        raise ChannelClosed from None


class LineReader:
    """Messages from a descriptor, one at a time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = bytearray()

    def read(self, wait: Callable[[], None] | None = None) -> dict[str, Json]:
        """The next message; `wait` is called before each read. Raises ChannelClosed, Broken, the errors of `wait`."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_LINE_BYTES:
                raise Broken("a message that is too large")
            if wait is not None:
                wait()
            try:
                piece = os.read(self._descriptor, _PIECE_BYTES)
            except BlockingIOError:  # woken by a byte out of band, which is no part of the stream
                continue
            except OSError:
                piece = b""
            if not piece:
                raise ChannelClosed
            self._buffer += piece
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        if is_too_large(line):
            raise Broken("a message that is too large")
        try:
            message = json.loads(line.decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError, MemoryError) as error:
            raise Broken(f"a message that is no JSON: {error}") from error
        if not isinstance(message, dict):
            raise Broken("a message that is no object")
        return message


def trace_from(error: BaseException, path: str) -> types.TracebackType | None:
    """The traceback from the first line of a file on."""
    trace = error.__traceback__
    while trace is not None and not trace.tb_frame.f_code.co_filename.endswith(path):
        trace = trace.tb_next
    return trace


def show(value: object) -> str:
    """A short form of a value for people."""
    try:
        return shorten(repr(value))
    except ValueError:  # an integer of more digits than Python will write
        return f"<{type(value).__name__} too long to be shown>"


def shorten(text: str, length: int = MAX_TEXT) -> str:
    """At most about so many characters of it: the beginning and the end."""
    if len(text) <= length:
        return text
    half = length // 2
    return f"{text[:half]} … {text[len(text) - half :]}"
