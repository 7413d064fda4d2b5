"""The sandbox over HTTP: POST /v1/run, /v1/run_batch, /v1/judge and /run_code, GET /healthz and /metrics.

Thin: contract in, runner, contract out.
"""

import asyncio
import hmac
import ipaddress
from base64 import b64encode
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar, cast

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import SecretStr, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandbox.contract import (
    BatchRequest,
    BatchResult,
    JudgeRequest,
    JudgeResult,
    Problem,
    RunRequest,
    RunResult,
    SandboxHealth,
)
from sandbox.errors import IsolationRefused, SandboxError, SandboxStopping
from sandbox.http.logs import LogRequests
from sandbox.inside.json_bounds import JsonBounds, TooMuchJson
from sandbox.server.fusion import RunCodeRequest, RunCodeResponse, translate_request, translate_result
from sandbox.server.levels import LEAVES_OPEN, PROTECTS
from sandbox.server.metrics import PATH as METRICS_PATH
from sandbox.server.metrics import RequestMeter, SandboxMeter
from sandbox.server.runner import Runner
from sandbox.settings import SandboxSettings

MAX_BODY_BYTES = 32 << 20
"""Of one request, and of one batch as well."""
_TOO_LARGE = f"A request has at most {MAX_BODY_BYTES} bytes"
_NO_KEY = "send the sandbox's key as `Authorization: Bearer KEY`"
_HANG_UP = {"Connection": "close"}
_OPEN_PATHS = ("/healthz", "/v1/ping")
"""Routes open without the key."""
_CLIENT_GONE = 499

_MEANINGS = {
    400: "The body cannot be read at all.",
    401: "No key, or a wrong one.",
    408: "The body arrives too slowly.",
    413: "The body is too large.",
    422: "The request does not fit the contract.",
    429: "Too much waits; come back after Retry-After seconds.",
    500: "A fault of the sandbox's own; its log has the cause.",
    503: "The sandbox stops, or has too many connections.",
}
_PROBLEM_CONTENT = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": meaning, "content": _PROBLEM_CONTENT} for status, meaning in _MEANINGS.items()
}
_OF_ALL: dict[int | str, dict[str, Any]] = {status: _PROBLEMS[status] for status in (500, 503)}
"""What a route may answer that reads no body."""

T = TypeVar("T")
router = APIRouter()


class _DocumentedApp(FastAPI):
    """An app whose OpenAPI document has the problem document among its components."""

    def openapi(self) -> dict[str, Any]:
        made = super().openapi()
        made["components"]["schemas"].setdefault(Problem.__name__, Problem.model_json_schema())
        return made


def _runner(request: Request) -> Runner:
    runner = cast(Runner | None, getattr(request.app.state, "runner", None))
    if runner is None:
        raise SandboxStopping("the sandbox is not started")
    return runner


RunnerDep = Annotated[Runner, Depends(_runner)]


def _meter(request: Request) -> SandboxMeter:
    return cast(SandboxMeter, request.app.state.meter)


MeterDep = Annotated[SandboxMeter, Depends(_meter)]


def _caller(request: Request) -> str:
    """For whom runs are queued: who the caller says it is, or its address."""
    return request.headers.get("sandbox-caller", "")[:100] or (request.client.host if request.client else "")


@router.post("/v1/run", responses=_PROBLEMS)
async def run(body: RunRequest, request: Request, runner: RunnerDep, meter: MeterDep) -> RunResult:
    """Run one program. A result is always 200, whatever the program did; a client that hangs up ends the run.

    Errors: no key where one is set (401), a body too slow (408) or too large (413), a request outside the contract
    (422), SandboxBusy (429, with Retry-After), SandboxStopping or too many connections (503).
    """
    result = await _unless_gone(request, runner.run(body, _caller(request)))
    meter.ran(result)
    return result


@router.post("/v1/run_batch", responses=_PROBLEMS)
async def run_batch(body: BatchRequest, request: Request, runner: RunnerDep, meter: MeterDep) -> BatchResult:
    """Run several independent programs; results in their order. All or none is admitted.

    Errors: as for `run`; BatchTooLarge (422).
    """
    results = await _unless_gone(request, runner.run_batch(body.runs, _caller(request)))
    for result in results:
        meter.ran(result)
    return BatchResult(results=results)


@router.post("/v1/judge", responses=_PROBLEMS)
async def judge(body: JudgeRequest, request: Request, runner: RunnerDep, meter: MeterDep) -> JudgeResult:
    """Judge a solution by its tests, with a verdict for each. A result is always 200, even if every test failed.

    Errors: as for `run`.
    """
    result = await _unless_gone(request, runner.judge(body, _caller(request)))
    meter.judged(result)
    return result


@router.post("/run_code", responses=_PROBLEMS)
async def run_code(body: RunCodeRequest, request: Request, runner: RunnerDep, meter: MeterDep) -> RunCodeResponse:
    """Run one program for a client of SandboxFusion.

    Errors: as for `run`; LanguageUnavailable (422).
    """
    try:
        translated = translate_request(body, frozenset(runner.toolchains.available))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    result = await _unless_gone(request, runner.run(translated, _caller(request)))
    meter.ran(result)
    return translate_result(body, result)


@router.get("/v1/ping", responses=_OF_ALL)
async def ping() -> str:
    """The health check of SandboxFusion's clients."""
    return "pong"


@router.get("/healthz", responses=_OF_ALL)
async def get_health(request: Request, runner: RunnerDep) -> SandboxHealth:
    """The isolation level, slots and queue. Errors: SandboxStopping (503)."""
    settings = cast(SandboxSettings, request.app.state.settings)
    return SandboxHealth(
        status="ok" if runner.is_ready else "recovering",
        level=runner.level,
        protects=PROTECTS[runner.level],
        leaves_open=LEAVES_OPEN[runner.level],
        python_version=runner.python_version,
        slots=settings.slots,
        running=runner.num_running,
        queue=runner.num_waiting,
        queue_limit=settings.queue_limit,
        languages=dict.fromkeys(runner.toolchains.available, "available") | dict(runner.toolchains.missing),
        zygotes_replaced=runner.num_replaced,
        runs_retried=runner.num_retried,
    )


@router.get(METRICS_PATH, include_in_schema=False)
async def get_metrics(meter: MeterDep) -> Response:
    """Its figures for Prometheus: for callers on this machine, and for those with the key."""
    return Response(generate_latest(meter.registry), media_type=CONTENT_TYPE_LATEST)


class _ClientGone(Exception):
    """The client has hung up."""


async def _unless_gone(request: Request, work: Coroutine[None, None, T]) -> T:
    """Await the work, but cancel it when the client hangs up."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_await_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise _ClientGone
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.wait({task, gone})


async def _await_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _render(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    return Response(problem.model_dump_json(), problem.status, headers, media_type="application/problem+json")


async def _answer_sandbox_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, SandboxError)
    seconds = error.retry_after_seconds
    headers = {} if seconds is None else {"Retry-After": str(seconds)}
    return _render(Problem(title=error.title, status=error.status_code, detail=str(error)), headers)


async def _answer_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:10]]
    detail = "; ".join(details).encode(errors="backslashreplace").decode()
    return _render(Problem(title="The request does not fit the contract", status=422, detail=detail))


async def _answer_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _render(
        Problem(title=error.detail, status=error.status_code, detail=error.detail), dict(error.headers or {})
    )


async def _answer_fault(_: Request, error: Exception) -> Response:
    detail = f"the sandbox failed with {type(error).__name__}; its log has the cause"
    return _render(Problem(title="A fault of the sandbox", status=500, detail=detail))


async def _answer_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


class _Gate:
    """Stands before everything else: refuses a caller without the key before anything of the body is received, and a
    body above MAX_BODY_BYTES, by its announced length or when it has grown past it, or one of too many values. Whom it
    refuses it hangs up on.

    /metrics alone is open to this machine without the key, and has a key of its own, which opens nothing else."""

    def __init__(self, app: ASGIApp, key: SecretStr | None, metrics_key: SecretStr | None) -> None:
        self._app = app
        self._expected = None if key is None else _write_key(key.get_secret_value())
        self._metrics = () if metrics_key is None else _write_key(metrics_key.get_secret_value())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not self._lets_in(scope, headers.get(b"authorization", b"")):
            problem = Problem(title="A valid key is needed", status=401, detail=_NO_KEY)
            await _render(problem, {"WWW-Authenticate": "Bearer", **_HANG_UP})(scope, receive, send)
            return
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > MAX_BODY_BYTES:
            await _render(Problem(title=_TOO_LARGE, status=413, detail=_TOO_LARGE), _HANG_UP)(scope, receive, send)
            return
        await self._app(scope, _bounded(receive), send)

    def _lets_in(self, scope: Scope, authorization: bytes) -> bool:
        if self._expected is None or scope["path"] in _OPEN_PATHS:
            return True
        accepted = self._expected
        if scope["path"] == METRICS_PATH:
            if _is_local(scope):
                return True
            accepted += self._metrics
        return any(hmac.compare_digest(authorization, each) for each in accepted)


class _TellRefusal:
    """A start that the machine refuses is told in its one sentence, without the calls that led to it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def tell(message: Message) -> None:
            _, refused, reason = message.get("message", "").rpartition(f"{IsolationRefused.__name__}: ")
            await send({**message, "message": reason.strip()} if refused else message)

        await self._app(scope, receive, tell)


def _is_local(scope: Scope) -> bool:
    host = scope["client"][0] if scope.get("client") else ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _write_key(key: str) -> tuple[bytes, ...]:
    """The header of a caller who has the key: as a bearer, or as the password of the user `sandbox`, which is what
    clients send that can be given only a URL (`http://sandbox:KEY@host:8130`)."""
    return f"Bearer {key}".encode(), b"Basic " + b64encode(f"sandbox:{key}".encode())


def _bounded(receive: Receive) -> Receive:
    """Receives a request whose body is not too large, and holds no more values than are parsed. Of all exceptions
    FastAPI lets HTTPException through."""
    num_bytes, bounds = 0, JsonBounds()

    async def receive_bounded() -> Message:
        nonlocal num_bytes
        message = await receive()
        piece = message.get("body", b"")
        num_bytes += len(piece)
        if num_bytes > MAX_BODY_BYTES:
            raise HTTPException(413, _TOO_LARGE, _HANG_UP)
        try:
            bounds.take(piece)
        except TooMuchJson as error:
            raise HTTPException(413, str(error), _HANG_UP) from None
        return message

    return receive_bounded


def create_app(settings: SandboxSettings) -> FastAPI:
    """The application; its lifespan starts the runner (or raises IsolationRefused) and ends every run when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with await Runner.start(settings) as runner:
            app.state.runner = runner
            app.state.meter.watch(runner, settings.slots, settings.queue_limit)
            yield
            app.state.runner = None

    app = _DocumentedApp(title="Preceptor sandbox", lifespan=lifespan)
    app.state.settings = settings
    app.state.meter = SandboxMeter()
    app.include_router(router)
    app.add_middleware(_Gate, key=settings.api_key, metrics_key=settings.metrics_key)
    app.add_middleware(LogRequests)
    app.add_middleware(RequestMeter, meter=app.state.meter)
    app.add_middleware(_TellRefusal)
    app.add_exception_handler(SandboxError, _answer_sandbox_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(_ClientGone, _answer_gone)
    app.add_exception_handler(Exception, _answer_fault)
    return app
