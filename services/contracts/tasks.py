"""A task: a prompt, its domain and split, and metadata that experts may need to judge an answer."""

import ast
import json
import keyword
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal, Self, TypeAlias
from uuid import UUID

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from services.contracts.base import Contract, Json, JsonObject, Name, View

MAX_PROMPT_CHARS = 100_000
MAX_METADATA_CHARS = 200_000
MAX_IMPORT_ROWS = 1_000
MAX_PRECEDENTS = 8
COMMAND_DOMAIN = "command"
"""The domain of tasks whose metadata `answer` is the whole right answer, letter by letter."""


class Split(StrEnum):
    """The use of a task. Only `train` becomes a lesson; the database enforces that too."""

    TRAIN = "train"
    VALIDATION = "validation"
    HELDOUT = "heldout"


class Message(Contract):
    """One chat message of a prompt."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]


class Precedent(Contract):
    """A question of another task with a right answer to it, shown to a teacher as turns before its own question."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=200)]
    answer: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]

    @model_validator(mode="after")
    def _ends_with_a_question(self) -> Self:
        if self.messages[-1].role not in ("user", "tool"):
            raise ValueError("a precedent's messages must end with the user or tool message that its answer follows")
        return self


class TestCase(Contract):
    """One call of the entry point and the plain-data value it must return."""

    __test__ = False  # not a pytest class

    args: list[Json]
    expected: Json


class FunctionTests(Contract):
    """Metadata `tests`: calls made in the sandbox, whose results are compared outside it."""

    entry_point: Annotated[str, Field(max_length=100)]
    cases: Annotated[list[TestCase], Field(min_length=1, max_length=200)]

    @model_validator(mode="after")
    def _entry_point_is_a_name(self) -> Self:
        if not self.entry_point.isidentifier() or keyword.iskeyword(self.entry_point):
            raise ValueError(f"entry_point {self.entry_point!r} is not a Python identifier")
        return self


class ToolSet(Contract):
    """Metadata `tools`: Python source that defines the named tools as functions; run in the sandbox only."""

    source: Annotated[str, Field(min_length=1, max_length=50_000)]
    names: Annotated[list[str], Field(min_length=1, max_length=50)]

    @model_validator(mode="after")
    def _source_parses_and_defines_the_names(self) -> Self:
        try:
            tree = ast.parse(self.source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested absurdly deep
            raise ValueError(f"source does not parse: {error}") from None
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        missing = [name for name in self.names if name not in defined]
        if missing:
            raise ValueError(f"source does not define {', '.join(missing)}")
        return self


Precedents: TypeAlias = Annotated[list[Precedent], Field(min_length=1, max_length=MAX_PRECEDENTS)]
"""Metadata `precedents`, and what an expert may answer: other tasks' questions with right answers to them."""

MAX_NEW_TOKENS: Final = "max_new_tokens"
"""Metadata: the most tokens an answer to this task may have, where that is less than the settings allow."""

METADATA_SHAPES: Mapping[str, TypeAdapter[object]] = {
    "tests": TypeAdapter(FunctionTests),
    "tools": TypeAdapter(ToolSet),
    "precedents": TypeAdapter(Precedents),
    MAX_NEW_TOKENS: TypeAdapter(Annotated[int, Field(ge=1, strict=True)]),
}
"""Metadata keys whose shape is checked when a task comes in. Other keys are for the experts that read them."""


TRAIN_ONLY: Final = frozenset({"reference", "precedents"})
"""Metadata that teachers are shown, so only train tasks carry it; the database refuses it for others."""


def _check_metadata(key: str, shape: TypeAdapter[object], value: Json) -> None:
    try:
        shape.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in ("metadata", key, *first["loc"]))
        raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None


class TaskCreate(Contract):
    """A task as its owner sends it. The same `key` with the same content is one task, so imports repeat."""

    key: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    domain: Name
    family: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    split: Split = Split.TRAIN
    messages: Annotated[list[Message], Field(min_length=1, max_length=200)]
    metadata: JsonObject = {}

    @model_validator(mode="after")
    def _prompt_and_metadata_make_sense(self) -> Self:
        if self.messages[-1].role not in ("user", "tool") or not self.messages[-1].content.strip():
            raise ValueError("messages must end with a non-empty user or tool message: that is the prompt to answer")
        if sum(len(m.content) for m in self.messages) > MAX_PROMPT_CHARS:
            raise ValueError(f"messages are longer than {MAX_PROMPT_CHARS} characters together")
        if len(json.dumps(self.metadata)) > MAX_METADATA_CHARS:
            raise ValueError(f"metadata is longer than {MAX_METADATA_CHARS} characters of JSON")
        for key, shape in METADATA_SHAPES.items():
            if key in self.metadata:
                _check_metadata(key, shape, self.metadata[key])
        for key in TRAIN_ONLY.intersection(self.metadata):
            if self.split is not Split.TRAIN:
                raise ValueError(f"only a task of the split `train` may carry {key}")
        if not isinstance(self.metadata.get("reference", ""), str):
            raise ValueError("reference must be the full answer as text")
        return self


class Task(View):
    """A stored task."""

    id: UUID
    lineage_id: UUID
    key: str
    domain: str
    family: str
    split: Split
    messages: list[Message]
    metadata: JsonObject
    content_sha256: str
    created_at: datetime


class TaskImport(Contract):
    """A batch of tasks, each as `POST /v1/tasks` takes it. All of them are stored, or none."""

    tasks: Annotated[list[JsonObject], Field(min_length=1, max_length=MAX_IMPORT_ROWS)]


class ImportedTask(View):
    """The verdict on one row of an import; `row` counts from 1. `created` is false where the task was there already."""

    row: int
    id: UUID
    key: str
    created: bool


class TaskImported(View):
    """The outcome of an import. notes: a sentence for each domain with tasks that no active verifier can judge."""

    num_created: int
    num_existing: int
    tasks: list[ImportedTask]
    notes: list[str] = []
