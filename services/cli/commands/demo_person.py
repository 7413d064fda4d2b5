"""The person of the demo: corrects at most one answer of each kind through the api, as somebody at the desk would.

Most train tasks carry no right answer, so what a person would know stands here: the desk's handbook, and how to write
some of the functions. Of a tool call the person knows the task's reference, where there is one. It sees answers, never
hidden tests.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from services.cli.client import ApiClient, ApiProblem
from services.cli.output.progress import Progress
from services.contracts.corrections import (
    Correction,
    CorrectionCreate,
    CorrectionItem,
    CorrectionOutcome,
    CorrectionSubmit,
)
from services.contracts.rollouts import Purpose, Rollout, RolloutStatus
from services.contracts.tasks import COMMAND_DOMAIN, Task, TaskCreate

MOST_CORRECTIONS: Final = 3
NUM_LOOKED_AT: Final = 20  # newest answers of a domain among which one is chosen

HANDBOOK: Final = {
    "lamp": "heron",
    "door": "velvet",
    "pump": "cobalt",
    "gate": "juniper",
    "oven": "walnut",
    "fan": "saffron",
    "lift": "pelican",
    "boiler": "amber",
}
"""The desk's private command word for each object; the starter's house tasks are made of them."""
REQUEST: Final = re.compile(rf"\b({'|'.join(HANDBOOK)})\b\D*(\d+)", re.IGNORECASE)

FUNCTIONS: Final = {
    "double": "n * 2",
    "next_number": "n + 1",
    "add": "a + b",
    "multiply": "a * b",
    "larger": "max(a, b)",
    "divisible_by_three": "n % 3 == 0",
    "is_positive": "n > 0",
    "count_digits": "len(str(n))",
    "steps_from_origin": "abs(x) + abs(y)",
    "minutes_to_seconds": "n * 60",
    "num_items": "len(items)",
    "sort_ascending": "sorted(numbers)",
    "above": "[x for x in numbers if x > limit]",
    "take": "items[:n]",
    "concatenate": "a + b",
    "num_unique": "len(set(items))",
    "text_length": "len(text)",
    "reverse_text": "text[::-1]",
    "trim": "text.strip()",
    "spaces_to_underscores": "text.replace(' ', '_')",
    "is_digits": "text.isdigit()",
    "is_question": "text.endswith('?')",
    "in_parentheses": "'(' + text + ')'",
    "repeat_text": "text * n",
    "join_with_space": "a + ' ' + b",
    "contains": "part in text",
    "upper_words": "[w.upper() for w in words]",
    "greet": "'Hello, ' + name",
    "sorted_keys": "sorted(d.keys())",
    "is_equal": "a == b",
    "both": "a and b",
    "at_least_zero": "max(n, 0)",
    "character_code": "ord(c)",
    "as_text": "str(n)",
    "num_rows": "len(rows)",
    "is_prime": "n > 1 and all(n % i for i in range(2, n))",
}
"""By name, what a function returns."""
FUNCTION: Final = re.compile(r"Python function `((\w+)\([^`]*\))`")


def write_answer(task: Task | TaskCreate) -> str | None:
    """The answer that the person would give; None where it knows none."""
    reference = task.metadata.get("reference")
    if isinstance(reference, str) and reference:
        return reference
    asked = str(task.messages[-1].content)
    if (function := FUNCTION.search(asked)) is not None and function[2] in FUNCTIONS:
        return f"```python\ndef {function[1]}:\n    return {FUNCTIONS[function[2]]}\n```"
    if task.domain == COMMAND_DOMAIN and (request := REQUEST.search(asked)) is not None:
        return f"/{HANDBOOK[request[1].lower()]} {request[2]}"
    return None


@dataclass
class Person:
    """What the person has corrected so far, of at most `most`. used_by: the first update that trained on each."""

    most: int = MOST_CORRECTIONS
    corrections: list[CorrectionOutcome] = field(default_factory=list)
    used_by: dict[UUID, int] = field(default_factory=dict)
    _domains: set[str] = field(default_factory=set)
    _tasks: dict[UUID, Task] = field(default_factory=dict)

    def look(self, api: ApiClient, domains: set[str], progress: Progress) -> None:
        """Correct a wrong answer of each domain that has no correction yet, and find the updates that used one."""
        for domain in sorted(domains - self._domains):
            if len(self.corrections) < self.most:
                self._correct_one(api, domain, progress)
        self.find_updates(api, progress)

    def find_updates(self, api: ApiClient, progress: Progress) -> None:
        """Look for the updates that used the corrections."""
        for correction in self.corrections:
            if correction.id not in self.used_by:
                self._find_update(api, correction.id, progress)

    def _correct_one(self, api: ApiClient, domain: str, progress: Progress) -> None:
        for rollout, task, answer in self._wrong_answers(api, domain):
            try:
                asked = api.post("/v1/corrections", CorrectionCreate(rollout_id=rollout.id), Correction)
                item = api.post(f"/v1/corrections/{asked.id}/claim", None, CorrectionItem)
            except ApiProblem as problem:  # somebody else holds it, or it is decided
                if problem.status_code != 409:
                    raise
                continue
            decision = CorrectionSubmit(verdict="corrected", text=answer, comment="This is how the answer should look.")
            submitted = api.post(f"/v1/corrections/{item.id}/submit", decision, CorrectionOutcome)
            self.corrections.append(submitted)
            self._domains.add(domain)
            where = "the task's reference" if "reference" in task.metadata else "the demo's own script"
            progress.say(
                f"correction {item.id} submitted for task {task.key}, by the demo in place of a person; "
                f"the answer is from {where}"
            )
            return

    def _wrong_answers(self, api: ApiClient, domain: str) -> Iterator[tuple[Rollout, Task, str]]:
        """The newest wrong answers of the policy's own that the person could correct."""
        query = {"purpose": Purpose.TRAIN.value, "status": RolloutStatus.READY.value, "domain": domain}
        for found in api.pages("/v1/rollouts", NUM_LOOKED_AT, query):
            rollout = Rollout.model_validate(found)
            if rollout.shown or rollout.score not in (0, None):
                continue
            if rollout.task_id not in self._tasks:
                self._tasks[rollout.task_id] = api.get(f"/v1/tasks/{rollout.task_id}", Task)
            task = self._tasks[rollout.task_id]
            if (answer := write_answer(task)) is not None and answer.strip() != rollout.text.strip():
                yield rollout, task, answer

    def _find_update(self, api: ApiClient, correction_id: UUID, progress: Progress) -> None:
        became = api.get(f"/v1/corrections/{correction_id}", CorrectionOutcome)
        if became.update_numbers:
            number = self.used_by[correction_id] = became.update_numbers[0]
            progress.say(f"correction {correction_id} was used by update {number}: `preceptor updates show {number}`")
