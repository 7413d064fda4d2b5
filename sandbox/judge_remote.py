"""A solution as its tests see it from another process: names, functions and objects that stand for the real ones.

Only inputs go over. Whatever would compare (`==`, `<`, `in`, arithmetic with a value of the tests') is done here, on
plain data, or not at all: an object that could see what it is compared with could agree with it. Only the standard
library.
"""

import builtins
import select
from collections import deque
from collections.abc import Iterator
from typing import Final, NoReturn, Protocol

from sandbox.judge_codec import (
    Broken,
    Json,
    LineReader,
    NotInTime,
    NotPlain,
    decode,
    encode,
    shorten,
    show,
    write_line,
)


class NeedsLiveObjects(Exception):
    """The tests do something that only works where the solution's own objects are."""


class RemoteError(Exception):
    """An exception that the solution raised; also of its builtin class, if it has one that tests may catch."""

    kind = ""
    trace = ""


class LoadError(Exception):
    """The solution could not be loaded; the text is its traceback."""


class Calls(Protocol):
    """Whoever wants to know what was asked."""

    def note(self, call: str) -> None: ...


class Solution:
    """The connection to the process of the solution."""

    def __init__(self, channel: int, seconds: float, calls: Calls) -> None:
        self._channel = channel
        self._seconds = seconds
        self._calls = calls
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._reader = LineReader(channel, self._wait)
        self._num_questions = 0
        self.names: dict[str, str] = {}

    def load(self) -> None:
        """Wait until the solution is loaded. Raises LoadError, ChannelClosed, NotInTime, Broken."""
        said = self._reader.read()
        if said.get("loaded") is not True:
            raise LoadError(_text(said.get("error"), "trace"))
        names = said.get("names")
        if not isinstance(names, dict):
            raise Broken("no names")
        self.names = {name: str(kind) for name, kind in names.items() if not hasattr(builtins, name)}

    def name(self, name: str) -> object:
        """What the solution calls so: a function or class to call, or a plain value. Raises AttributeError."""
        kind = self.names.get(name)
        if kind is None:
            raise AttributeError(f"the solution defines no {name}")
        target: Json = {"global": name}
        if kind == "callable":
            return Remote(self, target, name)
        return self.ask({"do": "give", "target": target})

    def _wait(self) -> None:
        if not self._poll.poll(self._seconds * 1000):
            raise NotInTime

    def ask(self, question: dict[str, Json]) -> object:
        """The value of the answer. Raises what the solution raised, StopIteration at the end of an iterator,
        ChannelClosed, NotInTime, Broken."""
        answer = self.exchange(question)
        if answer.get("stop") is True:
            raise StopIteration
        return self.decode(answer.get("value"))

    def exchange(self, question: dict[str, Json]) -> dict[str, Json]:
        """The answer, unless it is an exception: then raises it."""
        self._num_questions += 1
        write_line(self._channel, {"id": self._num_questions, **question})
        answer = self._reader.read()
        if answer.get("id") != self._num_questions:
            raise Broken("an answer to another question")
        if "error" in answer:
            _raise_remote(answer["error"])
        return answer

    def call(self, target: Json, name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Call a function there. Lists, dicts and sets it changed are changed here."""
        shown = ", ".join([*map(show, args), *(f"{key}={show(value)}" for key, value in kwargs.items())])
        self._calls.note(f"{name}({shown})")
        answer = self.exchange(
            {"do": "call", "target": target, "args": self.encode(list(args)), "kwargs": self.encode(kwargs)}
        )
        after = answer.get("args")
        if isinstance(after, list):
            for arg, content in zip(args, after, strict=False):
                if content is not None:
                    _change(arg, self.decode(content))
        return self.decode(answer.get("value"))

    def encode(self, value: object) -> Json:
        """Raises NeedsLiveObjects for what cannot go over."""
        try:
            return encode(value, _refer)
        except NotPlain as error:
            raise NeedsLiveObjects(str(error)) from None

    def decode(self, content: Json) -> object:
        """Raises Broken."""
        return decode(content, self._resolve)

    def _resolve(self, content: Json) -> object:
        match content:
            case {"object": [int(number), str(kind)]}:
                return Remote(self, {"object": [number, kind]}, kind)
        raise Broken("a value that is none")


def _refer(value: object) -> Json:
    if type(value) is Remote:
        return target_of(value)
    raise NotPlain(f"a {type(value).__name__} cannot be passed to a solution in another process")


def _change(old: object, new: object) -> None:
    if type(old) is not type(new) or old == new:
        return
    if isinstance(old, list | bytearray | deque) and isinstance(new, list | bytearray | deque):
        old.clear()
        old.extend(new)
    elif isinstance(old, dict | set) and isinstance(new, dict | set):
        old.clear()
        old.update(new)


def _text(content: Json, name: str) -> str:
    value = content.get(name) if isinstance(content, dict) else None
    return shorten(value) if isinstance(value, str) else ""


def _raise_remote(content: Json) -> NoReturn:
    """Raise what stands for an exception of the solution, so that tests which expect a builtin class catch it."""
    named = content.get("bases") if isinstance(content, dict) else None
    bases = (
        [getattr(builtins, name, None) for name in named if isinstance(name, str)] if isinstance(named, list) else []
    )
    base = next((b for b in bases if isinstance(b, type) and issubclass(b, Exception)), Exception)
    kind = _text(content, "type")
    kind = kind if kind.isidentifier() else "Exception"
    text = _text(content, "text")
    try:
        error = type(kind, (RemoteError, base), {})(text)
    except TypeError:  # an exception that wants more than a text, such as UnicodeDecodeError
        error = type(kind, (RemoteError,), {})(text)
    error.kind, error.trace = kind, _text(content, "trace")
    raise error


def target_of(remote: "Remote") -> Json:
    """Where the object is, in the solution's terms."""
    return object.__getattribute__(remote, "_target")  # type: ignore[no-any-return]


_NO_COMPARISON: Final = "compares an object of the solution's own class"


class Remote:
    """Stands for a function, class or object of the solution. Never equal to plain data, always true."""

    __slots__ = ("_name", "_solution", "_target")

    def __init__(self, solution: Solution, target: Json, name: str) -> None:
        object.__setattr__(self, "_solution", solution)
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_name", name)

    def _ask(self, do: str, **more: Json) -> object:
        solution: Solution = object.__getattribute__(self, "_solution")
        return solution.ask({"do": do, "target": target_of(self), **more})

    def _pass(self, value: object) -> Json:
        solution: Solution = object.__getattribute__(self, "_solution")
        return solution.encode(value)

    def __call__(self, *args: object, **kwargs: object) -> object:
        solution: Solution = object.__getattribute__(self, "_solution")
        return solution.call(target_of(self), object.__getattribute__(self, "_name"), args, kwargs)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        value = self._ask("get", name=name)
        if type(value) is Remote:
            object.__setattr__(value, "_name", f"{object.__getattribute__(self, '_name')}.{name}")
        return value

    def __setattr__(self, name: str, value: object) -> None:
        self._ask("set", name=name, value=self._pass(value))

    def __getitem__(self, key: object) -> object:
        return self._ask("item", key=self._pass(key))

    def __setitem__(self, key: object, value: object) -> None:
        self._ask("set item", key=self._pass(key), value=self._pass(value))

    def __iter__(self) -> "Iterator[object]":
        iterator = self._ask("iter")
        return iterator if type(iterator) is Remote else iter(iterator)  # type: ignore[call-overload]

    def __next__(self) -> object:
        return self._ask("next")

    def __len__(self) -> int:
        length = self._ask("len")
        if type(length) is not int or length < 0:
            raise Broken("a length that is none")
        return length

    def __str__(self) -> str:
        return str(self._ask("str"))

    def __repr__(self) -> str:
        return f"<{object.__getattribute__(self, '_name')} of the solution>"

    def __contains__(self, wanted: object) -> bool:
        return any(item is wanted or item == wanted for item in self)

    def __bool__(self) -> bool:
        return True

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        if type(other) is Remote:
            if target_of(self) == target_of(other):
                return True
            raise NeedsLiveObjects(_NO_COMPARISON)
        return False

    def _refuse(self, other: object) -> NoReturn:
        raise NeedsLiveObjects(_NO_COMPARISON)

    __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
