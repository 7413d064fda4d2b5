"""Questions and verifiers of the package reasoning-gym, in a process of their own.

A task carries only a recipe (which family, which seed, which place): plain data from which the question is made anew.
So no metadata of a task is ever evaluated, and no solution travels. The process has none of our secrets and bounded
memory, and is killed when it does not answer in time: verifiers are given what a model wrote.

Some verifiers evaluate the answer as Python. Their answers pass only when they are made of characters that cannot name
anything (`ANSWER_ALPHABETS`); families whose right answers need names are refused (`REFUSED`).
"""

import importlib.util
import json
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, TypeAdapter, ValidationError

from services.contracts.base import Bool, Contract, Float, Int
from services.runtime.errors import InvalidInput, ServiceUnavailable

DOMAIN: Final = "reasoning-gym"
METADATA_KEY: Final = "reasoning_gym"
PACKAGE: Final = "reasoning_gym"
ROOT: Final = Path(__file__).resolve().parents[3]
MAX_ANSWER_CHARS: Final = 4_000
START_SECONDS: Final = 60.0
"""Importing the package and sympy on a busy machine."""
MAX_REPLY_BYTES: Final = 4 << 20

_ARITHMETIC: Final = re.compile(r"(?![\s\S]*\*\s*\*)[\d\s+\-*/().]*")  # no powers: they outgrow any machine
_LISTS: Final = re.compile(r"[\d\s,\[\]\-]*")
ANSWER_ALPHABETS: Final[Mapping[str, re.Pattern[str]]] = {
    "binary_matrix": _LISTS,
    "countdown": _ARITHMETIC,
    "n_queens": re.compile(r"[Q_\s]*"),
    "puzzle24": _ARITHMETIC,
    "spiral_matrix": _LISTS,
    "string_insertion": re.compile(r"[A-E]*"),
}
"""Families whose verifier evaluates the answer: what an answer may be made of. Anything else scores 0 unseen."""
REFUSED: Final[Mapping[str, str]] = {
    "composite": "it is made of other families: import those",
    "intermediate_integration": "its verifier would execute what the model wrote",
    "polynomial_multiplication": "its verifier would execute what the model wrote",
    "simple_integration": "its verifier would execute what the model wrote",
}


class Recipe(Contract):
    """Metadata `reasoning_gym`: what a question is made from. config: the family's own settings; numbers, switches."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,100}$")]
    seed: Annotated[Int, Field(ge=0, lt=2**32)]
    index: Annotated[Int, Field(ge=0, lt=10_000_000)]
    size: Annotated[Int, Field(ge=1, le=10_000_000)]
    config: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]{1,100}$")], Bool | Int | Float] = {}


class Made(Contract):
    """A question. answer: a right one, where the verifier gives the family's own answer the score 1."""

    question: str
    answer: str | None


class Scored(Contract):
    """What a verifier said. question: as it was made anew, for comparison with the task's prompt."""

    question: str
    score: float


class Failed(Contract):
    """Why the process could not do what was asked."""

    error: str


class Families(Contract):
    """What the installed package has."""

    version: str
    names: list[str]


class PackageMissing(InvalidInput):
    """reasoning-gym is not installed."""

    title = "reasoning-gym is not installed"
    hint = "Install it: `pip install 'preceptor[reasoning]'`."


class FamilyRefused(InvalidInput):
    """There is no such family, it cannot be judged safely, or its settings do not fit."""

    title = "Not a family that can be imported"
    hint = "`preceptor tasks import reasoning-gym:` lists them."


class VerifierFailed(ServiceUnavailable):
    """The process was killed because it took too long, or ended by itself."""

    title = "The verifier failed"


_REPLY: Final[TypeAdapter[Scored | Made | Families | Failed]] = TypeAdapter(Scored | Made | Families | Failed)


def is_installed() -> bool:
    """Whether the package can be imported here."""
    return importlib.util.find_spec(PACKAGE) is not None


def require(name: str) -> None:
    """Pass for a family that may be judged. Errors: FamilyRefused (422)."""
    if name in REFUSED:
        raise FamilyRefused(f"{name}: {REFUSED[name]}")


def may_be_judged(name: str, answer: str) -> bool:
    """Whether the verifier may see this answer."""
    alphabet = ANSWER_ALPHABETS.get(name)
    return len(answer) <= MAX_ANSWER_CHARS and (alphabet is None or alphabet.fullmatch(answer) is not None)


class Gym:
    """The process with the package, started when first asked. Takes one question at a time; safe between threads."""

    def __init__(self, seconds: float = 10.0) -> None:
        """seconds: the longest one answer may take, once the process runs."""
        self._seconds = seconds
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def families(self) -> Families:
        """The names that can be imported. Errors: PackageMissing (422), VerifierFailed (503)."""
        found = self._ask({"do": "list"})
        assert isinstance(found, Families)
        return found.model_copy(update={"names": [name for name in found.names if name not in REFUSED]})

    def make(self, recipe: Recipe) -> Made:
        """The question of a recipe. Errors: FamilyRefused (422), PackageMissing (422), VerifierFailed (503)."""
        require(recipe.name)
        made = self._ask({"do": "make", "recipe": recipe.model_dump(mode="json")})
        assert isinstance(made, Made)
        return made

    def score(self, recipe: Recipe, answer: str) -> Scored:
        """The family's own verdict on an answer, 0..1. Errors: as for `make`."""
        require(recipe.name)
        scored = self._ask(
            {"do": "score", "recipe": recipe.model_dump(mode="json"), "answer": answer},
        )
        assert isinstance(scored, Scored)
        return scored

    def close(self) -> None:
        """End the process."""
        with self._turn:
            self._end()

    def _ask(self, order: Mapping[str, object]) -> Scored | Made | Families:
        with self._turn:
            if self._process is None or self._process.poll() is not None:
                self._start()
            line = self._exchange(json.dumps(order).encode() + b"\n", self._seconds)
            try:
                reply = _REPLY.validate_json(line)
            except ValidationError:
                self._end()
                raise VerifierFailed("reasoning-gym's process answered something else") from None
        if isinstance(reply, Failed):
            raise FamilyRefused(reply.error)
        return reply

    def _start(self) -> None:
        if not is_installed():
            raise PackageMissing("the package reasoning-gym is not there")
        self._end()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.experts.own.reasoning_worker"],
            cwd=ROOT,
            env={"PATH": os.defpath, "PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._exchange(b'{"do": "list"}\n', START_SECONDS)

    def _exchange(self, order: bytes, seconds: float) -> bytes:
        """Send a line, read a line. Errors: VerifierFailed; the process is gone then."""
        assert self._process is not None
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        received = bytearray()
        until = time.monotonic() + seconds
        try:
            stdin.write(order)
            stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(stdout, selectors.EVENT_READ)
                while not received.endswith(b"\n"):
                    if not selector.select(max(0.0, until - time.monotonic())):
                        raise VerifierFailed(f"no answer within {seconds:g} s")
                    piece = os.read(stdout.fileno(), 1 << 16)
                    received += piece
                    if not piece or len(received) > MAX_REPLY_BYTES:
                        raise VerifierFailed("reasoning-gym's process ended")
        except (OSError, VerifierFailed) as error:
            self._end()
            raise error if isinstance(error, VerifierFailed) else VerifierFailed(str(error)) from None
        return bytes(received)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
