"""The sandbox over HTTP: POST /v1/run, /v1/run_batch, /v1/judge and /run_code, GET /healthz and /metrics.

Thin: contract in, runner, contract out.
"""

import asyncio
import hmac
from base64 import b64encode
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final, TypeVar, cast

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import SecretStr, ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandbox.contract import (
    BatchRequest,
    BatchResult,
    JudgeRequest,
    JudgeResult,
    RunRequest,
    RunResult,
    SandboxHealth,
)
from sandbox.errors import IsolationRefused, SandboxError, SandboxStopping
from sandbox.http import meter as requests
from sandbox.http import rendering
from sandbox.http.access_log import LogRequests
from sandbox.http.body_limit import BodyLimit
from sandbox.http.meter import RequestMeter, may_scrape
from sandbox.http.problems import Problem
from sandbox.http.rendering import DocumentedApp, document, render
from sandbox.server.fusion import RunCodeRequest, RunCodeResponse, translate_request, translate_result
from sandbox.server.levels import LEAVES_OPEN, PROTECTS
from sandbox.server.metrics import SandboxMeter
from sandbox.server.runner import Runner
from sandbox.settings import SandboxSettings

MAX_BODY_BYTES: Final = 32 << 20
"""Of one request, a batch included."""
_NO_KEY: Final = "send the sandbox's key as `Authorization: Bearer KEY`"
_OPEN_PATHS: Final = ("/healthz", "/v1/ping")
"""Answered without the key."""
_CLIENT_GONE: Final = 499

_PROBLEMS: Final = document(
    {
        400: "The body cannot be read at all.",
        401: "No key, or a wrong one.",
        408: "The body arrives too slowly.",
        413: "The body is too large.",
        422: "The request does not fit the contract.",
        429: "Too many runs wait; come back after Retry-After seconds.",
        500: "A fault of the sandbox's own; its log has the cause.",
        503: "The sandbox stops, or has too many connections.",
    }
)
_OF_ALL: Final[dict[int | str, dict[str, Any]]] = {status: _PROBLEMS[status] for status in (500, 503)}
"""What a route may answer that reads no body."""

T = TypeVar("T")
router = APIRouter()


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


@router.get(requests.PATH, include_in_schema=False)
async def get_metrics(meter: MeterDep) -> Response:
    """Its figures for Prometheus, for callers on this machine and those with a key."""
    return requests.show(meter.registry)


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


def _answer_sandbox_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SandboxError)
    headers = {} if error.retry_after_seconds is None else {"Retry-After": str(error.retry_after_seconds)}
    problem = Problem(
        type="about:blank",
        title=error.title,
        status=error.status_code,
        detail=str(error),
        instance=request.url.path,
    )
    return render(problem, headers)


async def _answer_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


class _Gate:
    """ASGI middleware: refuses a caller without the key before anything of the body is received, and hangs up.

    /metrics alone is open to this machine without the key, and has a key of its own, which opens nothing else."""

    def __init__(self, app: ASGIApp, key: SecretStr | None, metrics_key: SecretStr | None) -> None:
        self._app = app
        self._expected = None if key is None else _write_key(key.get_secret_value())
        self._metrics = () if metrics_key is None else _write_key(metrics_key.get_secret_value())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._lets_in(scope):
            await self._app(scope, receive, send)
            return
        problem = Problem(type="about:blank", title="A valid key is needed", status=401, detail=_NO_KEY)
        await render(problem, {"WWW-Authenticate": "Bearer", "Connection": "close"})(scope, receive, send)

    def _lets_in(self, scope: Scope) -> bool:
        if self._expected is None or scope["path"] in _OPEN_PATHS:
            return True
        if scope["path"] == requests.PATH:
            return may_scrape(scope, self._expected + self._metrics)
        authorization = dict(scope["headers"]).get(b"authorization", b"")
        return any(hmac.compare_digest(authorization, each) for each in self._expected)


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


def _write_key(key: str) -> tuple[bytes, ...]:
    """The header of a caller who has the key: as a bearer, or as the password of the user `sandbox`, which clients
    send that can be given only a URL (`http://sandbox:KEY@host:8130`)."""
    return f"Bearer {key}".encode(), b"Basic " + b64encode(f"sandbox:{key}".encode())


def create_app(settings: SandboxSettings) -> FastAPI:
    """The application; its lifespan starts the runner (or raises IsolationRefused) and ends every run when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with await Runner.start(settings) as runner:
            app.state.runner = runner
            app.state.meter.watch(runner, settings.slots, settings.queue_limit)
            yield
            app.state.runner = None

    app = DocumentedApp(title="Preceptor sandbox", lifespan=lifespan)
    app.state.settings = settings
    app.state.meter = SandboxMeter()
    app.include_router(router)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(_Gate, key=settings.api_key, metrics_key=settings.metrics_key)
    app.add_middleware(LogRequests)
    app.add_middleware(RequestMeter, registry=app.state.meter.registry)
    app.add_middleware(_TellRefusal)
    rendering.install(app, "the sandbox")
    app.add_exception_handler(SandboxError, _answer_sandbox_error)
    app.add_exception_handler(_ClientGone, _answer_gone)
    return app
