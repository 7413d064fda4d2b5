"""The process of a judged solution: loads it and carries out the calls of its tests, which run in another process.

The solution shares this interpreter, so the other side trusts no message from here and sends no secrets: only the
inputs of calls. Only the standard library.
"""

import builtins
import os
import sys
import traceback
import types
from collections import deque
from typing import Final, NoReturn

from sandbox.inside.judge_codec import (
    ChannelClosed,
    Json,
    LineReader,
    NotPlain,
    decode,
    encode,
    pack_line,
    shorten,
    trace_from,
    write_line,
)

MODULE: Final = "solution"
_MUTABLE: Final = (list, dict, set, bytearray, deque)


def serve(source: bytes, path: str, channel: int) -> NoReturn:
    """Load the solution and answer questions until the channel closes."""
    module = types.ModuleType(MODULE)
    module.__file__ = path
    sys.modules[MODULE] = module
    server = _Server(module, path)
    loaded: dict[str, Json] = {"loaded": True}
    try:
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 -- running the solution is the purpose
        loaded["names"] = {
            name: server.describe(value)
            for name, value in tuple(module.__dict__.items())
            if isinstance(name, str) and not name.startswith("__")
        }
    except BaseException as error:  # noqa: BLE001 -- told to the other side
        loaded = {"loaded": False, "error": server.explain(error)}
    try:
        _answer(channel, loaded)
        reader = LineReader(channel)
        while True:
            question = reader.read()
            _answer(channel, {"id": question["id"], **server.answer(question)})
    except ChannelClosed:
        pass
    finally:
        os._exit(0)


def _answer(channel: int, answer: dict[str, Json]) -> None:
    """Send the answer after all printed output: the last answer may end the tests and, with them, this process."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None and not stream.closed:
            stream.flush()
    write_line(channel, pack_line(answer))


class _Server:
    """Carries out requests and keeps the objects that cannot be sent."""

    def __init__(self, module: types.ModuleType, path: str) -> None:
        self._module = module
        self._path = path
        self._objects: list[object] = []
        self._numbers: dict[int, int] = {}

    def answer(self, question: dict[str, Json]) -> dict[str, Json]:
        """The value, or the exception that came instead."""
        try:
            return self._do(question)
        except BaseException as error:  # noqa: BLE001 -- told to the other side
            return {"error": self.explain(error)}

    def _do(self, question: dict[str, Json]) -> dict[str, Json]:
        target = decode(question["target"], self._resolve)
        match question["do"]:
            case "call":
                args = decode(question["args"], self._resolve)
                kwargs = decode(question["kwargs"], self._resolve)
                assert callable(target)
                assert isinstance(args, list)
                assert isinstance(kwargs, dict)
                given = (*args, *kwargs.values())
                before = [self._encode_mutable(value) for value in given]
                answer = {"value": self._encode(target(*args, **kwargs))}
                after = [self._encode_mutable(value) for value in given]
                if after == before:
                    return answer
                changed: list[Json] = [new if new != old else None for old, new in zip(before, after, strict=True)]
                return {**answer, "changed": changed}
            case "give":
                return {"value": self._encode(target)}
            case "get":
                return {"value": self._encode(getattr(target, str(question["name"])))}
            case "set":
                setattr(target, str(question["name"]), decode(question["value"], self._resolve))
            case "item":
                return {"value": self._encode(target[decode(question["key"], self._resolve)])}  # type: ignore[index]
            case "set item":
                key = decode(question["key"], self._resolve)
                target[key] = decode(question["value"], self._resolve)  # type: ignore[index]
            case "iter":
                return {"value": self._encode(iter(target))}  # type: ignore[call-overload]
            case "next":
                try:
                    return {"value": self._encode(next(target))}  # type: ignore[call-overload]
                except StopIteration:
                    return {"stop": True}
            case "len":
                return {"value": len(target)}  # type: ignore[arg-type]
            case "bool":
                return {"value": bool(target)}
            case "contains":
                return {"value": decode(question["key"], self._resolve) in target}  # type: ignore[operator]
            case "isinstance":
                return {"value": isinstance(decode(question["value"], self._resolve), target)}  # type: ignore[arg-type]
            case "str":
                return {"value": str(target)}
            case "repr":
                return {"value": repr(target)}
        return {"value": None}

    def describe(self, value: object) -> Json:
        """The kind of a module's name: "callable", "value" or, for an exception class, its builtin bases."""
        if isinstance(value, type) and issubclass(value, BaseException):
            return self._classes(value)
        return "callable" if callable(value) else "value"

    def _classes(self, error: type) -> Json:
        """The names that this exception class and those above it have in the module, and as builtins."""
        names: list[Json] = []
        for base in error.__mro__:
            names += [name for name, value in tuple(self._module.__dict__.items()) if value is base]
            names += [name for name, value in vars(builtins).items() if value is base]
        return names

    def _encode_mutable(self, value: object) -> Json:
        """The content of an argument that a function may change in place; None for other values."""
        return self._encode(value) if isinstance(value, _MUTABLE) else None

    def _encode(self, value: object) -> Json:
        return encode(value, self._refer)

    def _refer(self, value: object) -> Json:
        if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
            plain = value.item()  # type: ignore[attr-defined]
            if type(plain).__module__ != "numpy":
                return self._encode(plain)
        number = self._numbers.setdefault(id(value), len(self._objects))
        if number == len(self._objects):
            self._objects.append(value)  # kept, so that its id is not given to another
        return {"object": [number, type(value).__name__]}

    def _resolve(self, content: Json) -> object:
        match content:
            case {"object": [int(number), _]}:
                return self._objects[number]
            case {"global": str(name)}:
                return self._module.__dict__[name]
        raise NotPlain(str(content))

    def explain(self, error: BaseException) -> Json:
        """An exception as data: its builtin bases, text, and the traceback from the solution's first line on."""
        trace = trace_from(error, self._path)
        try:
            text = str(error)
        except Exception:  # noqa: BLE001 -- its class is the solution's own
            text = ""
        try:
            lines = "".join(traceback.format_exception(type(error), error, trace))
        except Exception:  # noqa: BLE001 -- likewise
            lines = type(error).__name__
        return {
            "type": type(error).__name__,
            "classes": self._classes(type(error)),
            "text": shorten(text),
            "trace": shorten(lines),
        }
