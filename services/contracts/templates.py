"""The teacher's prompt: the task's messages with a solution, precedents or feedback worked in, as chat messages.

Pure text. The caller decides which answers may be shown. The rollout itself is never shown.
"""

import re
from collections.abc import Sequence
from enum import StrEnum

from services.contracts.answers import Feedback
from services.contracts.tasks import Message, Precedent

_THINKING = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


class Template(StrEnum):
    """`turns`: the solution as a demonstration turn, then the question again. `reprompt`: solution and feedback inside
    the last user turn (SDPO, arXiv 2601.20802)."""

    TURNS = "turns"
    REPROMPT = "reprompt"


def strip_thinking(solution: str) -> str:
    """The solution without its `<think>` blocks."""
    return _THINKING.sub("", solution).strip()


def render_feedback(feedback: Feedback) -> str:
    """Feedback as one text: the remark on the whole, then the remarks on spans in their order.

    A span's own tokens are not quoted: a teacher copies the wrong step it is shown.
    """
    remarks = [span.text for span in sorted(feedback.spans, key=lambda s: (s.start, s.end))]
    return "\n".join(part for part in (feedback.text.strip(), *remarks) if part)


def build_teacher_messages(
    template: Template,
    messages: Sequence[Message],
    solution: str | None = None,
    feedback: str | None = None,
    precedents: Sequence[Precedent] = (),
) -> list[Message]:
    """The messages after which the teacher scores the rollout's tokens.

    Precedents are turns before everything but the system's messages. `turns` needs a solution; with feedback alone
    every template is `reprompt`. Raises ValueError with nothing to show: such a rollout has no teacher.
    """
    if precedents:
        return _show_precedents(messages, precedents)
    shown = strip_thinking(solution) if solution else ""
    said = feedback.strip() if feedback else ""
    if not shown and not said:
        raise ValueError("a teacher needs a solution, precedents or feedback to show")
    if template is Template.TURNS and shown:
        question = [message for message in messages if message.role != "system"]
        return [*messages, Message(role="assistant", content=shown), *question]
    parts = [messages[-1].content]
    if shown:
        parts.append(f"Correct solution:\n\n{shown}")
    if said:
        parts.append(f"The following is feedback from your unsuccessful earlier attempt:\n\n{said}")
    parts.append("Correctly solve the original question.")
    return [*messages[:-1], messages[-1].model_copy(update={"content": "\n\n".join(parts)})]


def _show_precedents(messages: Sequence[Message], precedents: Sequence[Precedent]) -> list[Message]:
    system = [message for message in messages if message.role == "system"]
    shown: list[Message] = []
    for precedent in precedents:
        shown += [message for message in precedent.messages if message.role != "system"]
        shown.append(Message(role="assistant", content=strip_thinking(precedent.answer)))
    return [*system, *shown, *(message for message in messages if message.role != "system")]
