"""The conformance suite that an expert must pass to be registered, case by case against its endpoint.

Required cases decide; advisory ones are reported to the author. Every consultation is about a made-up sample task with
a right, a wrong or a long wrong answer, in the policy's own tokens where they are known. An expert may abstain from
some of them, but gives each kind of answer that it declares at least once. Where the suite has no sample of its domain
or of the metadata it needs, or no tokens of the policy for a distribution, it may abstain from all. It may not break
the contract, fail, or answer the same consultation in two ways. The suite sends 12 to 30 consultations and never a
real task.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from services.contracts.answers import AnswerKind, Feedback
from services.contracts.base import JsonObject
from services.contracts.consultations import InvalidAnswer
from services.contracts.experts import (
    Ask,
    AskedRollout,
    AskedTask,
    ConformanceCheck,
    ConformanceReport,
    ConsultAbstain,
    ConsultLater,
    ConsultRequest,
    ConsultResult,
    ContextAnswer,
    Descriptor,
)
from services.contracts.ids import new_id
from services.contracts.tasks import Message
from services.experts.protocol import signatures
from services.experts.protocol.client import (
    BrokenReply,
    EndpointRefused,
    ExpertClient,
    ExpertUnavailable,
    Outcome,
    Reply,
)

MIN_SECONDS: Final = 20.0
MAX_SECONDS: Final = 60.0
MAX_TIMES_BUSY: Final = 5
OVERSIZE_BYTES: Final = 20 * 1024 * 1024
DISTRIBUTIONS: Final = (AnswerKind.TOPK, AnswerKind.SAMPLES)


class SampleAnswer(StrEnum):
    """What the policy answered in a sample."""

    RIGHT = "right"
    WRONG = "wrong"
    LONG = "long"


def _vary(right: str, wrong: str) -> Mapping[SampleAnswer, str]:
    long = "Let me think about this once more, slowly and from the start. " * 8 + wrong
    return {SampleAnswer.RIGHT: right, SampleAnswer.WRONG: wrong, SampleAnswer.LONG: long}


_PYTHON: Final = _vary(
    "```python\ndef double(n):\n    return n * 2\n```", "```python\ndef double(n):\n    return n + 3\n```"
)
_CALLS: Final = _vary(
    '```json\n{"tool": "add", "arguments": {"a": 2, "b": 3}}\n```',
    '```json\n{"tool": "add", "arguments": {"a": 2, "b": 4}}\n```',
)
_SUMS: Final = _vary("2 + 3 = 5. The answer is 5", "2 + 3 = 6. The answer is 6")
SAMPLE_TEXTS: Final = tuple(text for answers in (_PYTHON, _CALLS, _SUMS) for text in answers.values())
"""Every answer that a sample may be about."""
_TOOLS: Final = "def add(a, b):\n    return a + b\n"
_METADATA: Final[JsonObject] = {
    "tests": {"entry_point": "double", "cases": [{"args": [2], "expected": 4}, {"args": [-1], "expected": -2}]},
    "tools": {"source": _TOOLS, "names": ["add"]},
    "expected_result": 5,
    "answer": "5",
    "precedents": [{"messages": [{"role": "user", "content": "What is 4 + 4?"}], "answer": "4 + 4 = 8."}],
}


@dataclass(frozen=True)
class SampleTokens:
    """The tokens of a text, and the hash of their tokenizer."""

    token_ids: list[int]
    tokenizer_hash: str


Tokens = Mapping[str, SampleTokens]
MADE_UP: Final = SampleTokens(list(range(1, 13)), "0" * 64)
"""Tokens of no tokenizer there is, for a check without a policy."""


class Suite:
    """One run of the cases against one endpoint."""

    def __init__(self, endpoint: str, secret: str | None, client: ExpertClient, tokens: Tokens | None) -> None:
        self._endpoint, self._secret, self._client = endpoint, secret, client
        self._tokens = tokens
        self._checks: list[ConformanceCheck] = []
        self._seconds = MIN_SECONDS
        self._seen: set[AnswerKind] = set()

    async def run(self) -> ConformanceReport:
        """Every case, in an order where later ones need earlier ones."""
        try:
            descriptor = await self._client.describe(self._endpoint, self._secret)
        except (EndpointRefused, ExpertUnavailable) as error:
            self._note("describes itself", False, error.detail)
            return ConformanceReport(endpoint=self._endpoint, descriptor=None, checks=self._checks)
        self._note("describes itself", True, f"{descriptor.name} {descriptor.version}")
        self._seconds = min(MAX_SECONDS, max(MIN_SECONDS, 3 * descriptor.usual_latency_seconds))
        await self._check_health()
        answering = True
        for kind in descriptor.kinds:
            if kind is not AnswerKind.EVIDENCE:
                answering = answering and await self._check_kind(descriptor, kind)
        if answering and AnswerKind.EVIDENCE in descriptor.kinds:
            self._check_evidence(descriptor)
        if answering:  # what follows compares answers, or would only repeat the same failure
            await self._check_repetition(descriptor)
            await self._check_other_domain(descriptor)
            await self._check_without_metadata(descriptor)
            await self._check_refusals(descriptor)
        return ConformanceReport(endpoint=self._endpoint, descriptor=descriptor, checks=self._checks)

    async def _check_health(self) -> None:
        try:
            await self._client.check_health(self._endpoint)
        except (EndpointRefused, ExpertUnavailable) as error:
            self._note("is healthy", False, error.detail)
        else:
            self._note("is healthy", True)

    async def _check_kind(self, descriptor: Descriptor, kind: AnswerKind) -> bool:
        name = f"answers {kind.value}"
        declined = ""
        for answer in SampleAnswer:
            started = time.monotonic()
            outcome = await self._ask(self._sample(descriptor, [kind], answer))
            took = f"{time.monotonic() - started:.2f} s"
            match outcome:
                case ConsultResult():
                    self._note(name, True, f"a result in {took}")
                    return True
                case ConsultAbstain(reason=reason):
                    declined = declined or reason
                case ConsultLater():
                    self._note(name, descriptor.answers_later, "says 202; declare answers_later if that is meant")
                    return descriptor.answers_later
                case InvalidAnswer(reason=reason) | ExpertUnavailable(reason=reason):
                    self._note(name, False, reason)
                    return False
        excuse = self._excuse(descriptor, kind)
        if excuse:
            self._note(name, True, f"abstained from every sample ({declined}), which it may: {excuse}")
        else:
            self._note(
                name,
                False,
                f"it declares {kind.value} and abstained from every sample, whose answers are right, wrong and long: "
                f"{declined or 'it gave no reason'}",
            )
        return True  # it answers within the contract

    def _check_evidence(self, descriptor: Descriptor) -> None:
        excuse = self._excuse(descriptor, AnswerKind.EVIDENCE)
        given = AnswerKind.EVIDENCE in self._seen
        detail = excuse or "it declares evidence and no answer to a sample had any"
        self._note("answers evidence", given or bool(excuse), "" if given else detail)

    def _excuse(self, descriptor: Descriptor, kind: AnswerKind) -> str:
        """Why an expert may abstain from every sample; empty where it should give this kind of answer."""
        if descriptor.answers_later:
            return "it answers later, about rollouts that are kept here"
        if unknown := sorted(set(descriptor.metadata_keys) - _known_metadata("").keys()):
            return f"the suite has no sample of the metadata {', '.join(unknown)}"
        if not descriptor.domains[0].startswith(("*", "code/", "tool-call", "math")):
            return f"the suite has no sample of the domain {descriptor.domains[0]}"
        if kind in DISTRIBUTIONS and self._tokens is None:
            return "there is no policy whose tokens a sample could be in"
        return ""

    def _sample(
        self, descriptor: Descriptor, kinds: list[AnswerKind], answer: SampleAnswer = SampleAnswer.RIGHT
    ) -> ConsultRequest:
        return build_sample(descriptor, kinds, answer, self._tokens)

    async def _check_repetition(self, descriptor: Descriptor) -> None:
        request = self._sample(descriptor, descriptor.kinds)
        first, second = await self._ask(request), await self._ask(request)
        self._note(
            "gives the same answer to the same consultation id",
            _is_same(first, second),
            "" if _is_same(first, second) else f"first {_show(first)}, then {_show(second)}",
        )
        changed = request.rollout.model_copy(update={"text": request.rollout.text + "\n"})
        reply = await self._post(request.model_copy(update={"rollout": changed}).model_dump_json().encode())
        self._note(
            "refuses another request under the same id",
            isinstance(reply, Reply) and reply.status == 409,
            f"expected 409, saw {_show_reply(reply)}",
            required=False,
        )
        if descriptor.deterministic:
            third = await self._ask(request.model_copy(update={"consultation_id": new_id()}))
            same = _is_same(_without_evidence(first), _without_evidence(third))
            detail = "" if same else f"first {_show(first)}, then {_show(third)}"
            self._note("is deterministic, as it declares", same, detail)

    async def _check_other_domain(self, descriptor: Descriptor) -> None:
        if descriptor.matches("conformance/none"):
            return
        sample = self._sample(descriptor, descriptor.kinds)
        task = sample.task.model_copy(update={"domain": "conformance/none"})
        outcome = await self._ask(sample.model_copy(update={"task": task}))
        passed = isinstance(outcome, ConsultAbstain) or (
            isinstance(outcome, InvalidAnswer) and outcome.reason.startswith("refuses the consultation")
        )
        self._note("abstains from a domain it does not declare", passed, f"saw {_show(outcome)}")

    async def _check_without_metadata(self, descriptor: Descriptor) -> None:
        if not descriptor.metadata_keys:
            return
        sample = self._sample(descriptor, descriptor.kinds)
        outcome = await self._ask(sample.model_copy(update={"task": sample.task.model_copy(update={"metadata": {}})}))
        self._note(
            "abstains when metadata it needs was not granted",
            isinstance(outcome, ConsultAbstain),
            f"saw {_show(outcome)}",
            required=False,
        )

    async def _check_refusals(self, descriptor: Descriptor) -> None:
        good = self._sample(descriptor, descriptor.kinds).model_dump_json().encode()
        for name, body, required in (
            ("refuses a body that is not JSON", b'{"protocol": 1, ', True),
            ("refuses a consultation without its fields", b'{"protocol": 1}', True),
            ("refuses a field it does not know", good[:-1] + b', "surprise": 1}', False),
            ("refuses a number that is not one", b'{"protocol": NaN}', False),
        ):
            reply = await self._post(body)
            self._note(name, _is_refusal(reply), f"expected a 4xx, saw {_show_reply(reply)}", required=required)
        reply = await self._post(b" " * OVERSIZE_BYTES)
        # a server may also hang up on such a body, which reads as unavailable
        too_much = _is_refusal(reply) or isinstance(reply, ExpertUnavailable)
        self._note("refuses 20 MiB", too_much, f"expected 413, saw {_show_reply(reply)}", required=False)
        if self._secret is not None:
            fresh = self._sample(descriptor, descriptor.kinds).model_dump_json().encode()
            unsigned = await self._post(fresh, headers={})
            forged = await self._post(fresh, headers=signatures.sign(self._secret, str(new_id()), fresh + b" "))
            for name, reply in (
                ("refuses a consultation without signature", unsigned),
                ("refuses a forged one", forged),
            ):
                passed = isinstance(reply, Reply) and reply.status in (401, 403)
                self._note(name, passed, f"expected 401, saw {_show_reply(reply)}")

    async def _ask(self, request: ConsultRequest) -> Outcome | ExpertUnavailable:
        for _ in range(MAX_TIMES_BUSY):
            try:
                outcome = await self._client.consult(self._endpoint, request, self._secret, self._seconds)
                if isinstance(outcome, ConsultResult):
                    self._seen |= outcome.kinds()
                return outcome
            except ExpertUnavailable as error:
                if error.retry_after is None:
                    return error
                await asyncio.sleep(min(error.retry_after, 2.0))
        return ExpertUnavailable(f"says 429 each of {MAX_TIMES_BUSY} times")

    async def _post(
        self, body: bytes, headers: dict[str, str] | None = None
    ) -> Reply | BrokenReply | ExpertUnavailable:
        if headers is None:
            headers = signatures.sign(self._secret, str(new_id()), body) if self._secret is not None else {}
        headers = {"Content-Type": "application/json", **headers}
        try:
            reply = await self._client.send(
                "POST", self._endpoint, "/v1/consult", headers=headers, body=body, timeout=self._seconds
            )
        except (BrokenReply, ExpertUnavailable) as error:
            return error
        return replace(reply, body=b"")

    def _note(self, name: str, passed: bool, detail: str = "", *, required: bool = True) -> None:
        kept = "" if passed and detail.startswith(("expected", "saw", "says")) else detail[:2000]
        self._checks.append(ConformanceCheck(name=name, passed=passed, detail=kept, required=required))


async def check(
    endpoint: str, secret: str | None, client: ExpertClient, tokens: Tokens | None = None
) -> ConformanceReport:
    """The report on one endpoint; never raises for what the endpoint does.

    tokens: `SAMPLE_TEXTS` as the policy reads them; without these samples have made-up ones. Errors: SecretUnusable
    (422).
    """
    return await Suite(endpoint, secret, client, tokens).run()


def _known_metadata(right: str) -> JsonObject:
    """The metadata of which the suite has samples. right: the right answer, whole."""
    return _METADATA | {"reference": right}


def build_sample(
    descriptor: Descriptor,
    kinds: list[AnswerKind],
    answer: SampleAnswer = SampleAnswer.RIGHT,
    tokens: Tokens | None = None,
) -> ConsultRequest:
    """A consultation about a made-up rollout in the first domain the expert declares, with the metadata it needs."""
    domain = descriptor.domains[0]
    domain = "code/python" if domain in ("*", "code/*") else domain.replace("*", "sample")
    if domain.startswith("tool-call"):
        prompt = "You can use these tools:\n- add(a, b): add two numbers\nRequest: What is 2 + 3?"
        answers = _CALLS
    elif domain.startswith("code/"):
        prompt = "Write a Python function `double(n)` that returns twice the number n."
        answers = _PYTHON
    else:
        prompt, answers = "What is 2 + 3?", _SUMS
    text, right = answers[answer], answers[SampleAnswer.RIGHT]
    read = MADE_UP if tokens is None else tokens[text]
    known = _known_metadata(right)
    ask = Ask(
        kinds=kinds,
        top_k=5,
        num_samples=2,
        prefixes=[0, min(3, len(read.token_ids) - 1)] if AnswerKind.SAMPLES in kinds else [],
        context=[ContextAnswer(expert="sample", score=0.0, feedback=Feedback(text="It is not right."), solution=right)]
        if descriptor.needs_answers
        else [],
    )
    return ConsultRequest(
        consultation_id=new_id(),
        deadline=datetime.now(UTC) + timedelta(seconds=MAX_SECONDS),
        ask=ask,
        task=AskedTask(
            id=new_id(),
            domain=domain,
            messages=[Message(role="user", content=prompt)],
            metadata={key: known.get(key, "sample") for key in descriptor.metadata_keys},
        ),
        rollout=AskedRollout(id=new_id(), text=text, token_ids=read.token_ids, tokenizer_hash=read.tokenizer_hash),
    )


def _is_same(first: Outcome | ExpertUnavailable, second: Outcome | ExpertUnavailable) -> bool:
    if isinstance(first, ExpertUnavailable | InvalidAnswer):
        return False
    return first == second


def _without_evidence(outcome: Outcome | ExpertUnavailable) -> Outcome | ExpertUnavailable:
    return outcome.model_copy(update={"evidence": None}) if isinstance(outcome, ConsultResult) else outcome


def _is_refusal(reply: Reply | BrokenReply | ExpertUnavailable) -> bool:
    return isinstance(reply, Reply) and 400 <= reply.status < 500


def _show(outcome: Outcome | ExpertUnavailable) -> str:
    if isinstance(outcome, ExpertUnavailable):
        return f"unavailable ({outcome.reason})"
    return f"{outcome.outcome} {outcome.model_dump_json(exclude={'outcome'}, exclude_none=True)[:300]}"


def _show_reply(reply: Reply | BrokenReply | ExpertUnavailable) -> str:
    return f"status {reply.status}" if isinstance(reply, Reply) else str(reply)
