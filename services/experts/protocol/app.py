"""The one HTTP shape of every expert, ours and anyone's: protocol 1 of the expert contract over a small Python object.

An author writes a class with a `descriptor` and a `consult` method; `create_expert_app` adds the routes, signatures,
idempotency, limits and typed refusals. It never turns a fault into an answer. A consult method that
raises is a 500 or 503 problem document, and an answer that does not fit the consultation is never sent.

Idempotency and the concurrency limit hold within one process: serve an expert from one worker process, or put its
memory somewhere shared.
"""

import asyncio
import contextvars
import hashlib
import inspect
import math
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol, TypeAlias, runtime_checkable
from uuid import UUID, uuid4

import structlog
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from sandbox.http.body_limit import BodyLimit
from sandbox.http.rendering import DocumentedApp, body_of, document
from services.contracts.answers import AnswerKind, check_against_rollout
from services.contracts.base import Contract
from services.contracts.experts import ConsultAbstain, ConsultLater, ConsultRequest, ConsultResult, Descriptor
from services.contracts.strict_json import NotStrictJson, parse_json
from services.experts.protocol import signatures
from services.http import problems
from services.http.json_bodies import BodyNotJson, check_media_type
from services.runtime.errors import Conflict, PreceptorError, ServiceUnavailable

log = structlog.get_logger(__name__)

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
MAX_REMEMBERED_ANSWERS: Final = 4096
MAX_REMEMBERED_BYTES: Final = 64 * 1024 * 1024

MEANINGS: Final = {
    401: "The signature is missing or does not hold.",
    409: "The consultation id was used for another request.",
    413: "The consultation is too large.",
    415: "The consultation is not declared as application/json.",
    422: "The consultation does not follow protocol 1.",
    429: "The expert is busy with as many consultations as it answers at once.",
    500: "The expert's own fault.",
    503: "A service the expert needs is unavailable. Ask again after Retry-After seconds.",
    504: "The deadline passed.",
}
_FAULT: Final = document({500: MEANINGS[500]})

ExpertAnswer: TypeAlias = ConsultResult | ConsultAbstain | ConsultLater


class ExpertService(Protocol):
    """An expert as its author writes it.

    `consult` may be a plain function (it runs in a thread) or a coroutine function (it is cancelled at the deadline).
    It raises `ServiceUnavailable` when something it needs is unavailable; it never guesses.
    """

    @property
    def descriptor(self) -> Descriptor:
        """The expert's own description; the same for as long as the process runs."""
        ...

    def consult(self, request: ConsultRequest, /) -> ExpertAnswer | Awaitable[ExpertAnswer]:
        """The answer to one consultation. Its domain matches and the metadata it needs is there."""
        ...


@runtime_checkable
class Closable(Protocol):
    """An expert that holds connections; closed when the app stops."""

    async def close(self) -> None:
        """Give them back."""
        ...


class SignatureRefused(PreceptorError):
    """The consultation is not signed with this expert's secret."""

    status_code = 401
    title = "Signature refused"
    hint = "Sign the exact bytes of the body as the Standard Webhooks specification says, with the secret registered."


class RequestChanged(Conflict):
    """This consultation id came before with another request."""

    title = "Another request with the same consultation id"


class Busy(PreceptorError):
    """The expert is busy with as many consultations as it takes at a time."""

    status_code = 429
    title = "Busy"
    hint = "Ask again after the time in Retry-After."


class DeadlinePassed(PreceptorError):
    """The answer did not come before the consultation's deadline."""

    status_code = 504
    title = "Deadline passed"


class AnswerUnfit(PreceptorError):
    """The expert's own answer does not fit the consultation, so it is not sent. A fault in the expert."""

    title = "The expert's answer does not fit the consultation"


class ExpertHealth(Contract):
    """The expert is up. running: consultations under way."""

    status: str = "ok"
    name: str
    version: str
    running: int


class AllHealth(Contract):
    """The process of several experts is up."""

    status: str = "ok"
    experts: list[str]


@dataclass(frozen=True, slots=True)
class Sent:
    """An answer as it was sent: the digest of its request, the status and the bytes."""

    digest: bytes
    status: int
    body: bytes


class AnswerMemory:
    """The answers given lately, by consultation id; the oldest go first when there are too many or too many bytes."""

    def __init__(self, max_answers: int, max_bytes: int) -> None:
        self._max_answers, self._max_bytes = max_answers, max_bytes
        self._sent: OrderedDict[UUID, Sent] = OrderedDict()
        self._num_bytes = 0

    def get(self, consultation_id: UUID) -> Sent | None:
        """The answer given to this consultation, if it is still remembered."""
        sent = self._sent.get(consultation_id)
        if sent is not None:
            self._sent.move_to_end(consultation_id)
        return sent

    def put(self, consultation_id: UUID, sent: Sent) -> None:
        """Remember an answer, forgetting the oldest ones beyond the limits."""
        self._sent[consultation_id] = sent
        self._num_bytes += len(sent.body)
        while len(self._sent) > self._max_answers or (self._num_bytes > self._max_bytes and len(self._sent) > 1):
            _, forgotten = self._sent.popitem(last=False)
            self._num_bytes -= len(forgotten.body)


class ExpertSession:
    """Consults one expert: one answer per id, a bounded number at a time, none after its deadline."""

    def __init__(self, expert: ExpertService, memory: AnswerMemory) -> None:
        self.descriptor = expert.descriptor
        self._expert = expert
        self._is_async = inspect.iscoroutinefunction(expert.consult)
        self._threads = ThreadPoolExecutor(self.descriptor.max_concurrency, f"expert-{self.descriptor.name}")
        self._memory = memory
        self._running: dict[UUID, tuple[bytes, asyncio.Task[Sent]]] = {}

    @property
    def num_running(self) -> int:
        """Consultations under way."""
        return len(self._running)

    async def ask(self, request: ConsultRequest) -> Sent:
        """The answer to a request, worked out once for each consultation id.

        Errors: RequestChanged (409), Busy (429), DeadlinePassed (504), and what the expert itself raises.
        """
        key, digest = request.consultation_id, _digest(request)
        if (sent := self._memory.get(key)) is not None:
            _check_same(sent.digest, digest)
            return sent
        _seconds_left(request)  # an expert is not consulted after the deadline
        if key in self._running:
            asked, task = self._running[key]
            _check_same(asked, digest)
        else:
            if len(self._running) >= self.descriptor.max_concurrency:
                busy = Busy(f"{self.descriptor.name} answers {self.descriptor.max_concurrency} consultations at a time")
                busy.retry_after_seconds = max(1, math.ceil(min(self.descriptor.usual_latency_seconds, 60)))
                raise busy
            task = asyncio.create_task(self._answer(request, digest))
            self._running[key] = (digest, task)
            task.add_done_callback(lambda done: self._finish(key, done))
        await asyncio.wait({task}, timeout=_seconds_left(request))
        if not task.done():
            raise DeadlinePassed(f"{self.descriptor.name} had no answer by {request.deadline.isoformat()}")
        return task.result()

    async def close(self) -> None:
        """Stop: consultations under way are dropped, and come again."""
        for _, task in list(self._running.values()):
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if isinstance(self._expert, Closable):
            await self._expert.close()

    def _finish(self, key: UUID, task: "asyncio.Task[Sent]") -> None:
        del self._running[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("not answered", consultation_id=str(key), expert=self.descriptor.name, reason=repr(error))

    async def _answer(self, request: ConsultRequest, digest: bytes) -> Sent:
        began = time.monotonic()
        ids = {"consultation_id": str(request.consultation_id), "rollout_id": str(request.rollout.id)}
        with structlog.contextvars.bound_contextvars(**ids):
            answer = self._decline(request) or self._fit(request, await self._consult(request))
            seconds = round(time.monotonic() - began, 3)
            log.info("answered", expert=self.descriptor.name, outcome=answer.outcome, seconds=seconds)
        status = 202 if isinstance(answer, ConsultLater) else 200
        sent = Sent(digest, status, answer.model_dump_json(exclude_none=True).encode())
        self._memory.put(request.consultation_id, sent)
        return sent

    async def _consult(self, request: ConsultRequest) -> ExpertAnswer:
        if self._is_async:
            answer = self._expert.consult(request)
        else:
            loop = asyncio.get_running_loop()
            here = contextvars.copy_context()  # the ids that are logged go along
            answer = await loop.run_in_executor(self._threads, here.run, self._expert.consult, request)
        if isinstance(answer, Awaitable):
            try:
                answer = await asyncio.wait_for(answer, _seconds_left(request))
            except TimeoutError:
                raise DeadlinePassed(f"{self.descriptor.name} had no answer at the deadline") from None
        if not isinstance(answer, ConsultResult | ConsultAbstain | ConsultLater):
            raise AnswerUnfit(f"consult returned a {type(answer).__name__}, not a result, an abstention or later")
        return answer

    def _decline(self, request: ConsultRequest) -> ConsultAbstain | None:
        """The abstention that needs no asking: another domain, or metadata that was not granted."""
        if not self.descriptor.matches(request.task.domain):
            return ConsultAbstain(reason=f"tasks of the domain {request.task.domain!r} are not mine"[:2000])
        missing = [key for key in self.descriptor.metadata_keys if key not in request.task.metadata]
        if missing:
            return ConsultAbstain(reason=f"the task's metadata lacks {', '.join(missing)}"[:2000])
        return None

    def _fit(self, request: ConsultRequest, answer: ExpertAnswer) -> ExpertAnswer:
        """The answer cut to the kinds asked for. Raises AnswerUnfit when it is not what the descriptor promised."""
        if not isinstance(answer, ConsultResult):
            return answer
        if undeclared := sorted(answer.kinds() - set(self.descriptor.kinds)):
            raise AnswerUnfit(f"the descriptor does not declare {', '.join(undeclared)}")
        rollout = request.rollout
        try:
            check_against_rollout(
                answer, num_tokens=len(rollout.token_ids), tokenizer_hash=rollout.tokenizer_hash, vocab_size=None
            )
        except ValueError as error:
            raise AnswerUnfit(str(error)) from error
        asked = set(request.ask.kinds)
        distribution = answer.distribution
        keeps_distribution = distribution is not None and AnswerKind(distribution.kind) in asked
        parts = {
            "score": answer.score if AnswerKind.SCORE in asked else None,
            "feedback": answer.feedback if AnswerKind.FEEDBACK in asked else None,
            "solution": answer.solution if AnswerKind.SOLUTION in asked else None,
            "precedents": answer.precedents if AnswerKind.PRECEDENTS in asked else None,
            "distribution": distribution if keeps_distribution else None,
        }
        if all(part is None for part in parts.values()):
            return ConsultAbstain(reason="nothing to say of the kinds asked for")
        return answer.model_copy(update=parts)


def create_expert_app(
    experts: ExpertService | Sequence[ExpertService],
    signing_secret: str | None = None,
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> FastAPI:
    """The HTTP service of one expert at `/`, or of several, each at `/NAME`.

    With a secret (`whsec_` and base64), requests must be signed with it and answers are. Errors: SecretUnusable,
    ValueError when names cannot be paths or collide.
    """
    if signing_secret is not None:
        signatures.sign(signing_secret, "start", b"")  # an unusable secret is found now, not at the first request
    several = isinstance(experts, Sequence)
    sessions: dict[str, ExpertSession] = {}
    for expert in experts if isinstance(experts, Sequence) else [experts]:
        name = expert.descriptor.name
        if several and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(f"{name!r} cannot be part of a path; one of several experts needs such a name")
        prefix = f"/{name}" if several else ""
        if prefix in sessions:
            raise ValueError(f"two experts are called {name!r}")
        sessions[prefix] = ExpertSession(expert, AnswerMemory(MAX_REMEMBERED_ANSWERS, MAX_REMEMBERED_BYTES))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for session in sessions.values():
            await session.close()

    app = DocumentedApp(
        title="Experts",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=_FAULT,
        read_by_routes=[ConsultRequest],
    )
    for prefix, session in sessions.items():
        app.include_router(_build_router(session, signing_secret), prefix=prefix)
    if several:
        app.add_api_route("/healthz", _build_health_route(sessions), methods=["GET"])
    problems.install(app, "the expert")
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    return app


def _build_router(session: ExpertSession, secret: str | None) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/expert", response_model=Descriptor)
    async def describe(request: Request) -> Response:
        """The expert's own description, a Descriptor."""
        asked = request.headers.get(signatures.ID_HEADER, "")
        # anyone may ask this: an id with dots would let them choose more of what is signed than its id
        message_id = asked if re.fullmatch(r"[A-Za-z0-9_-]{1,100}", asked) else f"msg_{uuid4().hex}"
        return _reply(200, session.descriptor.model_dump_json().encode(), secret, message_id)

    @router.post(
        "/v1/consult",
        response_model=ConsultResult | ConsultAbstain,
        responses={202: {"model": ConsultLater, "description": "The answer comes later."}, **document(MEANINGS)},
        openapi_extra=body_of(ConsultRequest),
    )
    async def consult(request: Request) -> Response:
        """Answer a ConsultRequest: 200 with a ConsultResult or ConsultAbstain, 202 with a ConsultLater.

        Errors: SignatureRefused (401), RequestChanged (409), a body beyond the limits (413), WrongMediaType (415),
        BodyNotJson or fields that are not as protocol 1 says (422), Busy (429), the expert's own fault (500),
        ServiceUnavailable (503), DeadlinePassed (504).
        """
        body = await request.body()
        message_id = ""
        if secret is not None:
            try:
                message_id = signatures.verify(secret, request.headers, body)
            except signatures.SignatureInvalid as error:
                raise SignatureRefused(str(error)) from None
        check_media_type(request.headers)
        sent = await session.ask(_parse_request(body))
        return _reply(sent.status, sent.body, secret, message_id)

    @router.get("/healthz")
    async def check_health() -> ExpertHealth:
        """That the expert is up."""
        descriptor = session.descriptor
        return ExpertHealth(name=descriptor.name, version=descriptor.version, running=session.num_running)

    return router


def _build_health_route(sessions: dict[str, ExpertSession]) -> Callable[[], Awaitable[AllHealth]]:
    async def check_health() -> AllHealth:
        """That the process is up, and which experts it holds."""
        return AllHealth(experts=[session.descriptor.name for session in sessions.values()])

    return check_health


def _parse_request(body: bytes) -> ConsultRequest:
    try:
        parse_json(body)
        return ConsultRequest.model_validate_json(body, strict=True)
    except NotStrictJson as error:
        raise BodyNotJson(f"invalid request body: {error}") from None
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from None


def _reply(status: int, body: bytes, secret: str | None, message_id: str) -> Response:
    headers = signatures.sign(secret, message_id, body) if secret is not None else {}
    return Response(body, status, headers, media_type="application/json")


def _digest(request: ConsultRequest) -> bytes:
    """The digest of a request; a new deadline does not make it another one."""
    return hashlib.sha256(request.model_dump_json(exclude={"deadline"}).encode()).digest()


def _check_same(asked: bytes, digest: bytes) -> None:
    if asked != digest:
        raise RequestChanged("this consultation id was used for another request")


def _seconds_left(request: ConsultRequest) -> float:
    left = (request.deadline - datetime.now(UTC)).total_seconds()
    if left <= 0:
        raise DeadlinePassed(f"the deadline {request.deadline.isoformat()} has passed")
    return left


__all__ = ["ExpertAnswer", "ExpertService", "ServiceUnavailable", "create_expert_app"]
