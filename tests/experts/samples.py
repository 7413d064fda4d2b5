"""Questions and experts for these tests."""

import base64
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from services.contracts.answers import AnswerKind, Feedback
from services.contracts.base import JsonObject
from services.contracts.experts import (
    Ask,
    AskedRollout,
    AskedTask,
    ConsultRequest,
    ConsultResult,
    ContextAnswer,
    Descriptor,
)
from services.contracts.ids import new_id
from services.contracts.tasks import Message
from services.experts.protocol.app import ExpertAnswer
from tests.waiting import wait_until

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes....").decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"not that secret but another one.").decode()
TOKENIZER = "a" * 64


def make_question(
    text: str = "The answer is 5",
    *,
    domain: str = "math",
    metadata: JsonObject | None = None,
    kinds: tuple[AnswerKind, ...] = (AnswerKind.SCORE, AnswerKind.FEEDBACK, AnswerKind.EVIDENCE),
    context: tuple[ContextAnswer, ...] = (),
    seconds: float = 30,
    consultation_id: UUID | None = None,
    token_ids: tuple[int, ...] = (1, 2, 3),
    prompt: str = "What is 2 + 3?",
    top_k: int = 2,
    tokenizer_hash: str = TOKENIZER,
    prefixes: tuple[int, ...] = (),
) -> ConsultRequest:
    """A question with everything a test does not care about filled in."""
    return ConsultRequest(
        consultation_id=consultation_id or new_id(),
        deadline=datetime.now(UTC) + timedelta(seconds=seconds),
        ask=Ask(kinds=list(kinds), context=list(context), top_k=top_k, prefixes=list(prefixes)),
        task=AskedTask(
            id=new_id(), domain=domain, messages=[Message(role="user", content=prompt)], metadata=metadata or {}
        ),
        rollout=AskedRollout(id=new_id(), text=text, token_ids=list(token_ids), tokenizer_hash=tokenizer_hash),
    )


def make_descriptor(
    name: str = "sample",
    *,
    kinds: tuple[AnswerKind, ...] = (AnswerKind.SCORE, AnswerKind.FEEDBACK),
    domains: tuple[str, ...] = ("math",),
    metadata_keys: tuple[str, ...] = (),
    deterministic: bool = True,
    max_concurrency: int = 8,
    answers_later: bool = False,
) -> Descriptor:
    """A descriptor with everything a test does not care about filled in."""
    return Descriptor(
        name=name,
        version="1",
        kinds=list(kinds),
        domains=list(domains),
        metadata_keys=list(metadata_keys),
        deterministic=deterministic,
        max_concurrency=max_concurrency,
        answers_later=answers_later,
        usual_latency_seconds=0.01,
    )


class SampleExpert:
    """An expert in a plain function; counts its questions and may be held up until `gate` opens."""

    def __init__(
        self, answer: Callable[[ConsultRequest], ExpertAnswer] | None = None, descriptor: Descriptor | None = None
    ) -> None:
        self._descriptor = descriptor or make_descriptor()
        said = Feedback(text="good") if AnswerKind.FEEDBACK in self._descriptor.kinds else None
        self._answer = answer or (lambda _: ConsultResult(score=1.0, feedback=said))
        self.num_calls = 0
        self.gate = threading.Event()
        self.gate.set()

    @property
    def descriptor(self) -> Descriptor:
        return self._descriptor

    def consult(self, request: ConsultRequest) -> ExpertAnswer:
        self.num_calls += 1
        self.gate.wait(60)
        return self._answer(request)

    def wait_for_calls(self, num_calls: int) -> None:
        wait_until(lambda: self.num_calls >= num_calls)
