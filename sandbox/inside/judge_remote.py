"""A solution as its tests see it from another process: names, functions and objects that stand for the real ones.

Only inputs are sent. Comparisons (`==`, `<`, `in`, arithmetic with a value of the tests) happen here, on plain data,
or not at all: an object that sees the expected value could agree with it. Only the standard
library.
"""

import builtins
import os
import select
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NoReturn, Protocol

from sandbox.inside.judge_codec import (
    Broken,
    ChannelClosed,
    Deadline,
    Json,
    LineReader,
    NotInTime,
    NotPlain,
    decode,
    encode,
    is_too_large,
    pack_line,
    shorten,
    show,
    write_line,
)


class NeedsLiveObjects(Exception):
    """The tests do something that only works where the solution's own objects are."""


class RemoteError(Exception):
    """An exception that the solution raised; also of its builtin class, and of the solution's own ones, so that tests
    can catch it."""

    kind = ""
    trace = ""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NeedsLiveObjects(f"reads {name} of an exception")


class LoadError(Exception):
    """The solution could not be loaded; the text is its traceback."""


class Lacking(AttributeError):
    """The solution does not define the requested name."""


class Calls(Protocol):
    """Listeners that record the calls made."""

    def begin(self) -> None:
        """The first question is about to be asked."""

    def note(self, call: str) -> None:
        """A function is about to be called."""


class Solution:
    """The connection to the process of the solution.

    The error that ended it, or a request that failed, is kept, so that tests that catch every exception do not hide it.
    """

    def __init__(self, channel: int, seconds: float, calls: Calls) -> None:
        self._channel = channel
        self._seconds = seconds
        self._calls = calls
        self._reader = LineReader(channel)
        self._num_questions = 0
        self._was_asked = False
        self._handles: weakref.WeakValueDictionary[int, SolutionObject] = weakref.WeakValueDictionary()
        self._kinds: dict[str, Json] = {}
        self._errors: dict[str, type[RemoteError]] = {}
        self._is_noting = False
        self.failure: ChannelClosed | NotInTime | Broken | None = None
        self.needed: NeedsLiveObjects | None = None
        """Since it was last set to None."""
        self.uses_classes = False
        """Whether the tests use a class of the solution. Only then do its objects see the values they are tested with:
        arguments of methods that plain data has too, and the operand of `in`."""
        os.set_blocking(channel, False)

    def load(self) -> None:
        """Wait until the solution is loaded. Raises LoadError, ChannelClosed, NotInTime, Broken."""
        said = self._reader.read(self._waiter(select.POLLIN, Deadline(self._seconds)))
        if said.get("loaded") is not True:
            raise LoadError(_text(said.get("error"), "trace"))
        names = said.get("names")
        if not isinstance(names, dict):
            raise Broken("no names")
        self._kinds = {name: kind for name, kind in names.items() if name.isidentifier() and not name.startswith("__")}

    @property
    def names(self) -> set[str]:
        """The names it defines, except those with two underscores."""
        return set(self._kinds)

    @property
    def was_asked(self) -> bool:
        """Whether the tests' behaviour can depend on it."""
        return self._was_asked

    def _begin(self) -> None:
        if not self._was_asked:
            self._was_asked = True
            self._calls.begin()

    def name(self, name: str) -> object:
        """The solution's object of this name: a function or class to call, an exception to catch, or a plain value.
        Raises Lacking."""
        if name not in self._kinds:
            raise Lacking(f"the solution defines no {name}")
        if isinstance(self._kinds[name], list):
            self._begin()  # its kind, name and base were the solution's choice
            return self._error_class(name)
        target: Json = {"global": name}
        if self._kinds[name] == "callable":
            return SolutionObject(self, target, name)
        return self.ask({"do": "give", "target": target})

    def need(self, what: str) -> NoReturn:
        """Raise NeedsLiveObjects."""
        self.needed = NeedsLiveObjects(what)
        raise self.needed

    def ask(self, question: dict[str, Json], given: tuple[object, ...] = ()) -> object:
        """The value of the answer; arguments that the solution changed are updated here.

        Raises the solution's exception, StopIteration at the end of an iterator, NeedsLiveObjects, ChannelClosed,
        NotInTime, Broken.
        """
        if self.failure is not None:
            raise self.failure
        self._begin()
        self._num_questions += 1
        line = pack_line({"id": self._num_questions, **question})
        if is_too_large(line):
            self.need("passes more at once than can be sent to another process")
        deadline = Deadline(self._seconds)
        try:
            write_line(self._channel, line, self._waiter(select.POLLOUT, deadline))
            answer = self._reader.read(self._waiter(select.POLLIN, deadline))
            if answer.get("id") != self._num_questions:
                raise Broken("an answer to another question")
            if "error" in answer:
                self._raise_error(answer["error"])
            if answer.get("stop") is True and question["do"] == "next":
                raise StopIteration
            value = decode(answer.get("value"), self._resolve, deadline)
            changed = answer.get("changed")
            for old, content in zip(given, changed if isinstance(changed, list) else (), strict=False):
                if content is not None:
                    _change(old, decode(content, self._resolve, deadline))
        except (ChannelClosed, NotInTime, Broken) as failure:
            self.failure = failure
            raise
        return value

    def call(self, target: Json, name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Call a function there. Lists, dicts and sets it changed are changed here."""
        self._is_noting = True
        self._calls.note(show_call(name, args, kwargs))
        self._is_noting = False
        question = {"do": "call", "target": target, "args": self.encode(list(args)), "kwargs": self.encode(kwargs)}
        return self.ask(question, (*args, *kwargs.values()))

    def represent(self, target: Json, name: str) -> str:
        """The object's own `repr`; while a call is being recorded, a name for it instead, which needs no request."""
        if self._is_noting:
            return f"<{name} of the solution>"
        return self._as_text(self.ask({"do": "repr", "target": target}))

    def text(self, target: Json) -> str:
        """The object's own `str`."""
        return self._as_text(self.ask({"do": "str", "target": target}))

    def _as_text(self, answer: object) -> str:
        return answer if isinstance(answer, str) else self._refuse("a text that is none")

    def truth(self, question: dict[str, Json]) -> bool:
        """The answer to a question that has only two."""
        answer = self.ask(question)
        return answer if isinstance(answer, bool) else self._refuse("neither True nor False")

    def length(self, target: Json) -> int:
        answer = self.ask({"do": "len", "target": target})
        return answer if type(answer) is int and answer >= 0 else self._refuse("a length that is none")

    def _refuse(self, what: str) -> NoReturn:
        self.failure = Broken(what)
        raise self.failure

    def encode(self, value: object) -> Json:
        """Raises NeedsLiveObjects for a value that cannot be sent."""
        try:
            return encode(value, _refer)
        except NotPlain as error:
            self.need(str(error))

    def _waiter(self, event: int, deadline: Deadline) -> Callable[[], None]:
        poll = select.poll()
        poll.register(self._channel, event)

        def wait() -> None:
            if not poll.poll(deadline.seconds_left() * 1000):
                raise NotInTime

        return wait

    def _resolve(self, content: Json) -> object:
        match content:
            case {"object": [int(number), str(kind)]}:
                target: Json = {"object": [number, kind]}
                return self._handles.setdefault(number, SolutionObject(self, target, kind))
        raise Broken("a value that is none")

    def _raise_error(self, content: Json) -> NoReturn:
        """Raise the stand-in for an exception of the solution."""
        names = _read_names(content.get("classes") if isinstance(content, dict) else None)
        own = [self._error_class(name) for name in names if isinstance(self._kinds.get(name), list)]
        kind = _text(content, "type")
        kind = kind if kind.isidentifier() else "Exception"
        error = _make_error_class(kind, own, names)(_text(content, "text"))
        error.kind, error.trace = kind, _text(content, "trace")
        raise error

    def _error_class(self, name: str) -> type[RemoteError]:
        """The stand-in for an exception class of the solution, the same each time."""
        if name not in self._errors:
            self._errors[name] = _make_error_class(name, [], _read_names(self._kinds[name]))
        return self._errors[name]


def _read_names(content: Json) -> list[str]:
    names = content if isinstance(content, list) else []
    return [name for name in names[:_MAX_CLASSES] if isinstance(name, str)]


def _make_error_class(kind: str, own: list[type[RemoteError]], names: list[str]) -> type[RemoteError]:
    """An exception class below these, and below the first builtin one of the names."""
    builtin = [_ERRORS[name] for name in names if name in _ERRORS][:1]
    try:
        error = type(kind, tuple(dict.fromkeys((*own, RemoteError, *builtin))), {})
        error("")
    except TypeError:  # classes that do not go together, or want more than a text, as UnicodeDecodeError does
        return type(kind, (RemoteError,), {})
    return error


_MAX_CLASSES: Final = 32
_ERRORS: Final[dict[str, type[Exception]]] = {
    name: error
    for name, error in vars(builtins).items()
    if isinstance(error, type)
    and issubclass(error, Exception)
    # they would end loops and comprehensions of the tests
    and not issubclass(error, StopIteration | StopAsyncIteration)
}


def show_call(name: str, args: Iterable[object], kwargs: Mapping[str, object]) -> str:
    """A short form of a call for people."""
    return shorten(f"{name}({', '.join([*map(show, args), *(f'{key}={show(kwargs[key])}' for key in kwargs)])})")


def _refer(value: object) -> Json:
    if type(value) is SolutionObject:
        return target_of(value)
    raise NotPlain(f"passes a {type(value).__name__} to a solution in another process")


def _change(old: object, new: object) -> None:
    if type(old) is not type(new):
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


class SolutionModule(types.ModuleType):
    """The module `solution` with its stand-ins. `import *` gives only the names in `wanted`."""

    def __init__(self, solution: Solution, wanted: frozenset[str]) -> None:
        super().__init__("solution")
        self.__dict__.update(_solution=solution, __all__=sorted(wanted & solution.names), __file__="solution.py")

    def __getattr__(self, name: str) -> object:
        solution: Solution = self.__dict__["_solution"]
        return solution.name(name)


def target_of(remote: "SolutionObject") -> Json:
    """Where the object is, in the solution's terms."""
    return object.__getattribute__(remote, "_target")  # type: ignore[no-any-return]


def _solution_of(remote: "SolutionObject") -> Solution:
    return object.__getattribute__(remote, "_solution")  # type: ignore[no-any-return]


def _name_of(remote: "SolutionObject") -> str:
    return object.__getattribute__(remote, "_name")  # type: ignore[no-any-return]


_NO_COMPARISON: Final = "compares an object of the solution's own class"
_DATA_METHODS: Final = frozenset(
    name
    for kind in (str, bytes, bytearray, int, float, complex, list, tuple, dict, set, frozenset, deque, range)
    for name in dir(kind)
)


class SolutionObject:
    """Stands for a function, class or object of the solution. Never equal to plain data."""

    __slots__ = ("__weakref__", "_name", "_solution", "_target")

    def __init__(self, solution: Solution, target: Json, name: str) -> None:
        object.__setattr__(self, "_solution", solution)
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_name", name)

    def _ask(self, do: str, **more: Json) -> object:
        return _solution_of(self).ask({"do": do, "target": target_of(self), **more})

    def _pass(self, value: object) -> Json:
        return _solution_of(self).encode(value)

    def __call__(self, *args: object, **kwargs: object) -> object:
        return _solution_of(self).call(target_of(self), _name_of(self), args, kwargs)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        value = self._ask("get", name=name)
        if type(value) is not SolutionObject:
            return value
        object.__setattr__(value, "_name", f"{_name_of(self)}.{name}")
        solution = _solution_of(self)
        if name not in _DATA_METHODS or solution.uses_classes:
            return value

        def call_blindly(*args: object, **kwargs: object) -> object:
            """An object in the place of plain data may not see the value it would be tested with."""
            if args or kwargs:
                solution.need(f"shows an object of the solution's own class what {name}() is to find")
            return value()

        return call_blindly

    def __setattr__(self, name: str, value: object) -> None:
        self._ask("set", name=name, value=self._pass(value))

    def __getitem__(self, key: object) -> object:
        return self._ask("item", key=self._pass(key))

    def __setitem__(self, key: object, value: object) -> None:
        self._ask("set item", key=self._pass(key), value=self._pass(value))

    def __iter__(self) -> "Iterator[object]":
        iterator = self._ask("iter")
        return iterator if type(iterator) is SolutionObject else iter(iterator)  # type: ignore[call-overload]

    def __next__(self) -> object:
        return self._ask("next")

    def __len__(self) -> int:
        return _solution_of(self).length(target_of(self))

    def __str__(self) -> str:
        return _solution_of(self).text(target_of(self))

    def __repr__(self) -> str:
        return _solution_of(self).represent(target_of(self), _name_of(self))

    def __bool__(self) -> bool:
        return _solution_of(self).truth({"do": "bool", "target": target_of(self)})

    def __contains__(self, wanted: object) -> bool:
        solution = _solution_of(self)
        if solution.uses_classes:
            return solution.truth({"do": "contains", "target": target_of(self), "key": self._pass(wanted)})
        return any(item is wanted or item == wanted for item in self)

    def __instancecheck__(self, instance: object) -> bool:
        solution = _solution_of(self)
        if type(instance) is not SolutionObject:  # it may be of a class that went over as its base
            solution.need("asks whether plain data is of the solution's own class")
        return solution.truth({"do": "isinstance", "target": target_of(self), "value": self._pass(instance)})

    def __mro_entries__(self, bases: object) -> NoReturn:
        _solution_of(self).need("derives from a class of the solution")

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        if other is None:
            return False
        if type(other) is SolutionObject:
            if target_of(self) == target_of(other):
                return True
        elif not _solution_of(self).uses_classes:
            return False
        _solution_of(self).need(_NO_COMPARISON)

    def _refuse(self, other: object) -> NoReturn:
        _solution_of(self).need(_NO_COMPARISON)

    __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
