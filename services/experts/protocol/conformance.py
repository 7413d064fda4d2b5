"""The conformance suite that an expert must pass to be registered, case by case against its endpoint.

Required cases decide; advisory ones are reported to the author. Every consultation is about a made-up sample task, so
an expert may abstain from all of them. It may not break the contract, fail, or answer the same consultation in two
ways. The suite sends about 12 consultations and never a real task.
"""

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
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
SAMPLE_TOKENIZER: Final = "0" * 64
SAMPLE_TOKENS: Final = list(range(1, 13))

_PYTHON: Final = "```python\ndef double(n):\n    return n * 2\n```"
_CALL: Final = '```json\n{"tool": "add", "arguments": {"a": 2, "b": 3}}\n```'
_TOOLS: Final = "def add(a, b):\n    return a + b\n"
_METADATA: Final[JsonObject] = {
    "tests": {"entry_point": "double", "cases": [{"args": [2], "expected": 4}, {"args": [-1], "expected": -2}]},
    "tools": {"source": _TOOLS, "names": ["add"]},
    "expected_result": 5,
    "answer": "5",
    "precedents": [{"messages": [{"role": "user", "content": "What is 4 + 4?"}], "answer": "4 + 4 = 8."}],
}


class Suite:
    """One run of the cases against one endpoint."""

    def __init__(self, endpoint: str, secret: str | None, client: ExpertClient) -> None:
        self._endpoint, self._secret, self._client = endpoint, secret, client
        self._checks: list[ConformanceCheck] = []
        self._seconds = MIN_SECONDS

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
        started = time.monotonic()
        outcome = await self._ask(build_sample(descriptor, [kind]))
        took = f"{time.monotonic() - started:.2f} s"
        match outcome:
            case ConsultResult():
                self._note(name, True, f"a result in {took}")
            case ConsultAbstain(reason=reason):
                self._note(name, True, f"abstained from the sample in {took}: {reason}")
            case ConsultLater():
                self._note(name, descriptor.answers_later, "says 202; declare answers_later if that is meant")
            case InvalidAnswer(reason=reason) | ExpertUnavailable(reason=reason):
                self._note(name, False, reason)
        return self._checks[-1].passed

    async def _check_repetition(self, descriptor: Descriptor) -> None:
        request = build_sample(descriptor, descriptor.kinds)
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
        sample = build_sample(descriptor, descriptor.kinds)
        task = sample.task.model_copy(update={"domain": "conformance/none"})
        outcome = await self._ask(sample.model_copy(update={"task": task}))
        passed = isinstance(outcome, ConsultAbstain) or (
            isinstance(outcome, InvalidAnswer) and outcome.reason.startswith("refuses the consultation")
        )
        self._note("abstains from a domain it does not declare", passed, f"saw {_show(outcome)}")

    async def _check_without_metadata(self, descriptor: Descriptor) -> None:
        if not descriptor.metadata_keys:
            return
        sample = build_sample(descriptor, descriptor.kinds)
        outcome = await self._ask(sample.model_copy(update={"task": sample.task.model_copy(update={"metadata": {}})}))
        self._note(
            "abstains when metadata it needs was not granted",
            isinstance(outcome, ConsultAbstain),
            f"saw {_show(outcome)}",
            required=False,
        )

    async def _check_refusals(self, descriptor: Descriptor) -> None:
        good = build_sample(descriptor, descriptor.kinds).model_dump_json().encode()
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
            fresh = build_sample(descriptor, descriptor.kinds).model_dump_json().encode()
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
                return await self._client.consult(self._endpoint, request, self._secret, self._seconds)
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


async def check(endpoint: str, secret: str | None, client: ExpertClient) -> ConformanceReport:
    """The report on one endpoint; never raises for what the endpoint does. Errors: SecretUnusable (422)."""
    return await Suite(endpoint, secret, client).run()


def build_sample(descriptor: Descriptor, kinds: list[AnswerKind]) -> ConsultRequest:
    """A consultation about a made-up rollout in the first domain the expert declares, with the metadata it needs."""
    domain = descriptor.domains[0]
    domain = "code/python" if domain in ("*", "code/*") else domain.replace("*", "sample")
    if domain.startswith("tool-call"):
        prompt, text = "You can use these tools:\n- add(a, b): add two numbers\nRequest: What is 2 + 3?", _CALL
    elif domain.startswith("code/"):
        prompt, text = "Write a Python function `double(n)` that returns twice the number n.", _PYTHON
    else:
        prompt, text = "What is 2 + 3?", "2 + 3 = 5. The answer is 5"
    known = _METADATA | {"reference": text}
    ask = Ask(
        kinds=kinds,
        top_k=5,
        num_samples=2,
        prefixes=[0, 3] if AnswerKind.SAMPLES in kinds else [],
        context=[ContextAnswer(expert="sample", score=0.0, feedback=Feedback(text="It is not right."), solution=text)]
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
        rollout=AskedRollout(id=new_id(), text=text, token_ids=SAMPLE_TOKENS, tokenizer_hash=SAMPLE_TOKENIZER),
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
