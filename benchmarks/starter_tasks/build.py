"""Writes the starter's task files; `python -m benchmarks.starter_tasks.build` rewrites them byte for byte.

Whole families are dealt to the splits by a hash of their name, so nobody picked what is held out. Every reference is
executed before it is used: a function's expected values and a call's expected result are what our own reference
gives. Every train task is built with its reference, which the shoot-out compares with; the files that ship keep few of
them (`ship`). The format is documented in docs/bring-data.md.

It refuses to run anything but the sources written in this folder: model-written code belongs in the sandbox.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from benchmarks.starter_tasks.function_families import FUNCTION_FAMILIES, FunctionFamily
from benchmarks.starter_tasks.house_families import HOUSE_NUMBERS, HOUSE_SYSTEM, HOUSE_WORDINGS
from benchmarks.starter_tasks.tool_families import POOLS, TOOL_FAMILIES, Tool, ToolFamily
from services.cli.commands.demo_person import HANDBOOK

Split = Literal["train", "validation", "heldout"]

FOLDER = Path(str(files("services.starter")))
SYSTEM = "You answer every request with one fenced code block and nothing else."
NUM_HELDOUT_FAMILIES = 15
NUM_VALIDATION_FAMILIES = 7
TASKS_PER_FAMILY = 5


class Message(BaseModel):
    """One chat message of a prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Literal["system", "user", "assistant"]
    content: str


class StarterTask(BaseModel):
    """One line of a task file; `metadata` keys are those of docs/bring-data.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    key: str
    domain: Literal["code/python", "tool-call", "command"]
    family: str
    split: Split
    messages: tuple[Message, ...]
    metadata: dict[str, JsonValue]


def deal_splits(kind: str, families: list[str]) -> dict[str, Split]:
    """The split of each family: 15 held out, 7 for validation, the others train; fixed by a hash of the name."""
    order = sorted(families, key=lambda name: hashlib.sha256(f"{kind}/{name}".encode()).digest())
    splits: dict[str, Split] = {}
    for position, name in enumerate(order):
        if position < NUM_HELDOUT_FAMILIES:
            splits[name] = "heldout"
        elif position < NUM_HELDOUT_FAMILIES + NUM_VALIDATION_FAMILIES:
            splits[name] = "validation"
        else:
            splits[name] = "train"
    return splits


def run_reference(source: str, entry_point: str, arguments: list[JsonValue] | dict[str, JsonValue]) -> JsonValue:
    """What our own `source` returns for these arguments, checked to survive a trip through JSON unchanged."""
    namespace: dict[str, Callable[..., JsonValue]] = {}
    exec(source, {}, namespace)  # noqa: S102  only ever the text of this folder's tables
    function = namespace[entry_point]
    function.__globals__[entry_point] = function
    result = function(**arguments) if isinstance(arguments, dict) else function(*arguments)
    if json.loads(json.dumps(result)) != result:
        raise ValueError(f"{entry_point}: {result!r} is not a plain JSON value")
    return result


def fence(language: str, text: str) -> str:
    """The text as the one fenced block that is a whole answer."""
    return f"```{language}\n{text}\n```"


def write_messages(prompt: str) -> tuple[Message, ...]:
    """The prompt of a task, after the one system message that all of them share."""
    return (Message(role="system", content=SYSTEM), Message(role="user", content=prompt))


def write_function_tasks(family: FunctionFamily, split: Split) -> Iterator[StarterTask]:
    """The tasks of one family of functions, in the order of its table."""
    for name, description, body in family.members:
        source = f"def {name}({family.parameters}):\n    {body}"
        cases: list[JsonValue] = [
            {"args": arguments, "expected": run_reference(source, name, arguments)} for arguments in family.inputs
        ]
        prompt = (
            f"Write a Python function `{name}({family.parameters})` that returns {description}. "
            "Answer with one fenced python block that holds only the function."
        )
        metadata: dict[str, JsonValue] = {"tests": {"entry_point": name, "cases": cases}}
        if split == "train":
            metadata["reference"] = fence("python", source)
        yield StarterTask(
            key=f"functions/{family.name}/{name}",
            domain="code/python",
            family=f"functions/{family.name}",
            split=split,
            messages=write_messages(prompt),
            metadata=metadata,
        )


def write_tool_source(tool: Tool) -> str:
    """The tool as Python source."""
    return f"def {tool.name}({', '.join(name for name, _ in tool.parameters)}):\n    return {tool.expression}\n"


def write_signature(tool: Tool) -> str:
    """The tool as the prompt lists it: a call with its values left open."""
    return json.dumps({"tool": tool.name, "arguments": {name: "..." for name, _ in tool.parameters}})


def choose_arguments(tool: Tool, step: int) -> dict[str, JsonValue]:
    """Values for the tool's parameters; `step` walks through the pools, two parameters of one pool never agree."""
    return {
        name: POOLS[pool][(step + 3 * place) % len(POOLS[pool])] for place, (name, pool) in enumerate(tool.parameters)
    }


def write_tool_tasks(family: ToolFamily, split: Split, offset: int) -> Iterator[StarterTask]:
    """Five questions to the tools of one family, going round its tools and their wordings."""
    source = "\n".join(write_tool_source(tool) for tool in family.tools)
    listing = "\n".join(f"- {write_signature(tool)}: {tool.description}" for tool in family.tools)
    for number in range(TASKS_PER_FAMILY):
        tool = family.tools[number % len(family.tools)]
        question = tool.questions[number // len(family.tools) % len(tool.questions)]
        arguments = choose_arguments(tool, offset + number)
        prompt = (
            f"You can use these tools:\n{listing}\nRequest: {question.format(**arguments)}\n"
            "Answer with one fenced json block that calls the right tool."
        )
        call = json.dumps({"tool": tool.name, "arguments": arguments})
        metadata: dict[str, JsonValue] = {
            "tools": {"source": source, "names": [tool.name for tool in family.tools]},
            "expected_result": run_reference(source, tool.name, arguments),
        }
        if split == "train":
            metadata["reference"] = fence("json", call)
        yield StarterTask(
            key=f"tools/{family.name}/{number + 1}",
            domain="tool-call",
            family=f"tools/{family.name}",
            split=split,
            messages=write_messages(prompt),
            metadata=metadata,
        )


def build_functions() -> list[StarterTask]:
    """All function tasks, in the order of their table."""
    splits = deal_splits("functions", [family.name for family in FUNCTION_FAMILIES])
    return [task for family in FUNCTION_FAMILIES for task in write_function_tasks(family, splits[family.name])]


def build_tool_calls() -> list[StarterTask]:
    """All tool-call tasks, in the order of their table."""
    splits = deal_splits("tools", [family.name for family in TOOL_FAMILIES])
    return [
        task
        for number, family in enumerate(TOOL_FAMILIES)
        for task in write_tool_tasks(family, splits[family.name], number)
    ]


def choose_house_number(split: Split, wording: int, thing: int) -> int:
    """The number in a request, by the places of its wording and object in their tables: one object never has the same
    number in two wordings of a split."""
    numbers = HOUSE_NUMBERS[split]
    return numbers[(wording + 5 * thing) % len(numbers)]


COMMAND_TOKENS = 16
"""A command has at most a dozen tokens, of any tokenizer's; what is longer is none."""


def build_house() -> list[StarterTask]:
    """All requests to the desk, in the order of their table.

    A train task has a precedent, the worked example that the handbook gives for its object: another train request, with
    another number.
    """
    splits = deal_splits("house", list(HOUSE_WORDINGS))
    of_split: dict[Split, list[str]] = {split: [] for split in HOUSE_NUMBERS}
    for wording in HOUSE_WORDINGS:
        of_split[splits[wording]].append(wording)

    def write(wording: str, thing: str) -> tuple[str, str]:
        split = splits[wording]
        number = choose_house_number(split, of_split[split].index(wording), list(HANDBOOK).index(thing))
        request = HOUSE_WORDINGS[wording].format(object=thing, Object=thing.capitalize(), number=number)
        return request, f"/{HANDBOOK[thing]} {number}"

    tasks = []
    for wording in HOUSE_WORDINGS:
        split = splits[wording]
        for thing in HANDBOOK:
            request, command = write(wording, thing)
            metadata: dict[str, JsonValue] = {"answer": command, "max_new_tokens": COMMAND_TOKENS}
            if split == "train":
                place = of_split[split].index(wording)
                question, answer = write(of_split[split][(place + 1) % len(of_split[split])], thing)
                metadata["precedents"] = [{"messages": [{"role": "user", "content": question}], "answer": answer}]
                metadata["reference"] = command
            tasks.append(
                StarterTask(
                    key=f"house/{wording}/{thing}",
                    domain="command",
                    family=f"house/{wording}",
                    split=split,
                    messages=(Message(role="system", content=HOUSE_SYSTEM), Message(role="user", content=request)),
                    metadata=metadata,
                )
            )
    return tasks


def ship(tasks: list[StarterTask]) -> list[StarterTask]:
    """The tasks as they ship: a quarter of the tool families that train keep their references, no other task does."""
    kept = find_referenced(tasks)
    return [
        task
        if task.family in kept
        else task.model_copy(update={"metadata": {k: v for k, v in task.metadata.items() if k != "reference"}})
        for task in tasks
    ]


def find_referenced(tasks: list[StarterTask]) -> set[str]:
    """The families whose references ship: of tool calls alone, by a hash of the name, since nothing else teaches how a
    call is written before the first one is right."""
    families = {task.family for task in tasks if task.domain == "tool-call" and task.split == "train"}
    order = sorted(families, key=lambda family: hashlib.sha256(f"reference/{family}".encode()).digest())
    return set(order[: len(families) // 4])


def render(tasks: list[StarterTask]) -> str:
    """The tasks as JSON lines, one a line, with a newline at the end."""
    return "".join(json.dumps(task.model_dump(mode="json"), ensure_ascii=False) + "\n" for task in tasks)


def main() -> None:
    """Write functions.jsonl, tool_calls.jsonl and house.jsonl into the starter's folder."""
    for name, build in (("functions", build_functions), ("tool_calls", build_tool_calls), ("house", build_house)):
        (FOLDER / f"{name}.jsonl").write_text(render(ship(build())), encoding="utf-8")


if __name__ == "__main__":
    main()
