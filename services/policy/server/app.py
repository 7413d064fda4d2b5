"""The policy process: `python -m services.policy.server.app` serves contract.py's interface over an engine.

The embedded engine computes here; with --vllm-url (or PRECEPTOR_VLLM_URL) a vLLM server computes, and this process
keeps its versions, checks its logprobs and speaks the contract. Refuses to listen beyond loopback without a key
(PRECEPTOR_INTERNAL_KEY). When the embedded engine's worker dies the process ends with status 1, for a supervisor to
start it again; versions are then loaded again by whoever wants them. A vLLM server that goes away is waited for.
"""

import argparse
import asyncio
import hmac
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import structlog
from fastapi import Depends, FastAPI, Header, Request
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox.http import edge
from sandbox.http.access_log import LogRequests
from sandbox.http.body_limit import BodyLimit
from sandbox.http.loopback import names_loopback
from sandbox.http.rendering import DocumentedApp, document
from services.http import metrics, problems
from services.http.problems import render_error
from services.policy.contract import (
    MAX_BODY_BYTES,
    AnswersBatch,
    AnswersRead,
    DetokenizeRequest,
    Pieces,
    PolicyHealth,
    PolicyInfo,
    ProveRequest,
    SampleRequest,
    SampleResponse,
    ScoreRequest,
    ScoreResponse,
    Text,
    TokenIds,
    TokenIdsBatch,
    TokenizeBatch,
    TokenizeRequest,
    Version,
    VersionCreate,
)
from services.policy.engines.base import Engine
from services.policy.server.metrics import EngineCollector
from services.policy.text.pieces import split_into_pieces
from services.runtime import logs
from services.runtime.errors import PreceptorError, ServiceUnavailable
from services.runtime.settings import Settings

if TYPE_CHECKING:
    from services.policy.model.modeling import LoadedPolicy

GONE_POLL_SECONDS: Final = 2.0

MEANINGS: Final = {
    400: "The body cannot be read at all.",
    401: "The key is missing or wrong.",
    404: "No version or artifact of this name.",
    409: "The version's state does not allow this.",
    413: "The body is too large.",
    422: "The content is invalid; `errors` lists the places.",
    500: "A fault of ours; the server's log has the cause.",
    503: "The engine is busy or has ended. Send it again after Retry-After seconds.",
}

VLLM_START_SECONDS: Final = 900.0
"""How long a vLLM server may take to come up, its compiling and the loading of large weights included."""

R = TypeVar("R")

log = structlog.get_logger("services.policy")


class KeyRefused(PreceptorError):
    """The request carries no key, or a wrong one."""

    status_code = 401
    title = "Key refused"
    hint = "Send `Authorization: Bearer` with the value of PRECEPTOR_INTERNAL_KEY."


class ClientGone(PreceptorError):
    """The caller hung up; the work was dropped."""

    status_code = 499
    title = "Client gone"


class NotAlive(ServiceUnavailable):
    """The engine's worker has ended, or the server it asks is away."""

    title = "Engine not running"


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return document({status: MEANINGS[status] for status in statuses})


_OF_BODIES: Final = _problems(400, 401, 413, 422)
"""What every route with a body may answer."""


def create_app(engine: Engine, key: str = "", metrics_key: str = "") -> FastAPI:
    """The application over a running engine, which is closed with it. An empty key asks for none; an empty
    metrics_key shows /metrics to this machine only."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.close)

    def require_key(authorization: Annotated[str, Header()] = "") -> None:
        if not _is_key(authorization, key):
            raise KeyRefused("the key is missing or wrong")

    app = DocumentedApp(
        title="Preceptor policy", lifespan=lifespan, docs_url=None, redoc_url=None, responses=_problems(500)
    )
    problems.install(app, "the policy")
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(RequireKey, key=key)
    app.add_middleware(logs.BindRequestId)
    app.add_middleware(LogRequests)
    guarded = [Depends(require_key)]

    @app.get("/healthz", responses=_problems(503))
    async def health() -> PolicyHealth:
        """Whether the engine would answer now. Errors: NotAlive (503)."""
        if not engine.is_alive:
            raise NotAlive("the engine's worker has ended, or its vLLM server is away")
        return PolicyHealth()

    @app.get("/v1/policy", dependencies=guarded, responses=_problems(401, 422))
    async def show_policy() -> PolicyInfo:
        """What is served, its versions and counters."""
        return engine.info()

    @app.post("/v1/sample", dependencies=guarded, responses=_OF_BODIES | _problems(404, 409, 503))
    async def sample(body: SampleRequest, request: Request) -> SampleResponse:
        """Draw answers; work whose client hangs up is dropped.

        Errors: VersionNotFound (404), VersionNotProved (409), PromptRefused (422), PolicyBusy (503). With a vLLM
        server also VllmRefused (422), VllmUnavailable (503).
        """
        began = time.monotonic()
        reply = await _wait(await run_in_threadpool(engine.sample, body), request)
        seconds = round(time.monotonic() - began, 3)
        for prompt in body.prompts:  # the worker names each prompt by its group
            log.info("sampled", prompt_id=prompt.id, version=reply.version, num_samples=prompt.n, seconds=seconds)
        return reply

    @app.post("/v1/score", dependencies=guarded, responses=_OF_BODIES | _problems(404, 409, 503))
    async def score(body: ScoreRequest, request: Request) -> ScoreResponse:
        """Logprobs of given responses. Errors: as /v1/sample."""
        began = time.monotonic()
        reply = await _wait(await run_in_threadpool(engine.score, body), request)
        seconds = round(time.monotonic() - began, 3)
        log.info("scored", version=reply.version, num_items=len(body.items), seconds=seconds)
        return reply

    @app.post("/v1/tokenize", dependencies=guarded, responses=_OF_BODIES)
    async def tokenize(body: TokenizeRequest) -> TokenIds:
        """Token ids of messages or text. Errors: InvalidInput (422) if the chat template refuses the messages."""
        token_ids = await run_in_threadpool(engine.tokenize, body.messages, body.text)
        return TokenIds(token_ids=token_ids, tokenizer_hash=engine.info().tokenizer_hash)

    @app.post("/v1/detokenize", dependencies=guarded, responses=_OF_BODIES)
    async def detokenize(body: DetokenizeRequest) -> Text:
        """Text of token ids. Errors: PromptRefused (422) for ids outside the vocabulary."""
        return Text(text=await run_in_threadpool(engine.detokenize, body.token_ids))

    @app.post("/v1/pieces", dependencies=guarded, responses=_OF_BODIES)
    async def split(body: DetokenizeRequest) -> Pieces:
        """The characters each token adds. Errors: PromptRefused (422) for ids outside the vocabulary."""
        return Pieces(pieces=await run_in_threadpool(split_into_pieces, body.token_ids, engine.detokenize))

    @app.post("/v1/tokenize/batch", dependencies=guarded, responses=_OF_BODIES)
    def tokenize_batch(body: TokenizeBatch) -> TokenIdsBatch:
        """Token ids of several messages or texts. Errors: as /v1/tokenize, for all if for one."""
        token_ids = [engine.tokenize(item.messages, item.text) for item in body.items]
        return TokenIdsBatch(token_ids=token_ids, tokenizer_hash=engine.info().tokenizer_hash)

    @app.post("/v1/answers/batch", dependencies=guarded, responses=_OF_BODIES)
    def read_answers(body: AnswersBatch) -> AnswersRead:
        """The answers in several rollouts. Errors: PromptRefused (422) for ids outside the vocabulary, for all if for
        one."""
        return AnswersRead(answers=[engine.read_answer(item) for item in body.items])

    @app.post("/v1/versions", dependencies=guarded, responses=_OF_BODIES | _problems(404, 409, 503))
    def load_version(body: VersionCreate) -> Version:
        """Load an adapter from the artifacts folder.

        Errors: ArtifactNotFound (404), ArtifactDamaged or VersionConflict (409), AdapterRefused (422).
        """
        loaded = engine.load_version(body)
        log.info("version loaded", version=loaded.name)
        return loaded

    @app.post("/v1/versions/{name:path}/prove", dependencies=guarded, responses=_OF_BODIES | _problems(404, 409, 503))
    def prove_version(name: str, body: ProveRequest) -> Version:
        """Compare the version's logprobs with the trainer's; `status` and `probe` tell the outcome.

        Errors: VersionNotFound (404), PromptRefused (422), EngineStopped (503).
        """
        proved = engine.prove_version(name, body)
        log.info("version proved", version=name, status=proved.status.value)
        return proved

    @app.post("/v1/versions/{name:path}/serve", dependencies=guarded, responses=_problems(401, 404, 409, 422, 503))
    def serve_version(name: str) -> Version:
        """Make a proved version the serving one. Errors: VersionNotFound (404), VersionNotProved (409)."""
        serving = engine.serve_version(name)
        log.info("version serves", version=name)
        return serving

    @app.delete(
        "/v1/versions/{name:path}", dependencies=guarded, status_code=204, responses=_problems(401, 404, 409, 422, 503)
    )
    def delete_version(name: str) -> None:
        """Forget a version that is not in use. Errors: VersionNotFound (404), VersionConflict (409)."""
        engine.delete_version(name)

    registry = metrics.make_registry()
    registry.register(EngineCollector(lambda: engine.info()))
    metrics.install(app, registry, metrics_key)
    return app


async def _wait(future: "Future[R]", request: Request) -> R:
    """The future's result; cancels it when the client has hung up."""
    wrapped = asyncio.wrap_future(future)
    try:
        while True:
            done, _ = await asyncio.wait({wrapped}, timeout=GONE_POLL_SECONDS)
            if done:
                return wrapped.result()
            if await request.is_disconnected():
                raise ClientGone("the client hung up")
    finally:
        wrapped.cancel()


def _is_key(authorization: str, key: str) -> bool:
    return not key or hmac.compare_digest(authorization.encode(), f"Bearer {key}".encode())


class RequireKey:
    """ASGI middleware: refuses a body that comes without the key before any of it is read, and hangs up."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        has_body = "content-length" in headers or "transfer-encoding" in headers
        if not has_body or _is_key(headers.get("authorization", ""), self._key):
            await self._app(scope, receive, send)
            return
        response = render_error(KeyRefused("the key is missing or wrong"), scope["path"])
        response.headers["Connection"] = "close"
        await response(scope, receive, send)


def _parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m services.policy.server.app", description="Serve a policy over HTTP."
    )
    parser.add_argument("--model", default=os.environ.get("PRECEPTOR_MODEL"), help="folder or Hugging Face id")
    parser.add_argument("--artifacts", type=Path, required=True, help="folder of adapters by content address")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8710)
    parser.add_argument("--device", default="cpu", help="a torch device: cpu, cuda, ...")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads the model may use")
    parser.add_argument("--max-rows", type=int, default=64, help="samples drawn at the same time")
    parser.add_argument("--max-context", type=int, default=4096, help="most tokens of a prompt and its answer")
    vllm = parser.add_argument_group("a vLLM server", "computes instead of this process (docs/vllm.md)")
    vllm.add_argument("--vllm-url", default=Settings().vllm_url, help="where it listens [PRECEPTOR_VLLM_URL]")
    vllm.add_argument("--vllm-artifacts", type=Path, help="the artifacts folder as the server sees it, if elsewhere")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Serve until told to stop; 1 if the engine died, 2 if the address needs a key and there is none."""
    options = _parse_arguments(arguments)
    logs.configure()
    services = Settings()
    key = services.internal_key
    if not key and not names_loopback(options.host):
        print(f"set PRECEPTOR_INTERNAL_KEY to listen on {options.host}", file=sys.stderr)
        return 2
    # Read when torch is first imported: waiting threads must sleep, or two torch processes starve each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch
    import uvicorn

    from services.policy.model.convert import resolve_model
    from services.policy.model.modeling import load_policy

    torch.set_num_threads(options.threads)
    folder = resolve_model(options.model)
    policy = load_policy(folder, device=options.device, dtype=getattr(torch, options.dtype))
    name = options.model or folder.name
    try:
        engine = _connect_engine(policy, name, options) if options.vllm_url else _embed_engine(policy, name, options)
    except PreceptorError as error:
        print(f"{error.detail}\n{error.hint}", file=sys.stderr)
        return 1
    config = uvicorn.Config(
        create_app(engine, key, services.metrics_key),
        host=options.host,
        port=options.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,  # a sample may take minutes; its caller asks again
        **edge.bounds(),
    )
    server = uvicorn.Server(config)

    def stop_with_engine() -> None:
        engine.wait()
        server.should_exit = True

    threading.Thread(target=stop_with_engine, daemon=True).start()
    server.run()
    return 1 if engine.failure is not None else 0


def _embed_engine(policy: "LoadedPolicy", name: str, options: argparse.Namespace) -> Engine:
    from services.policy.artifacts import ArtifactStore
    from services.policy.engines.embedded import EmbeddedEngine, EngineSettings

    settings = EngineSettings(max_rows=options.max_rows, max_context=options.max_context)
    return EmbeddedEngine(policy, ArtifactStore(options.artifacts), settings, name=name)


def _connect_engine(policy: "LoadedPolicy", name: str, options: argparse.Namespace) -> Engine:
    """The engine over a vLLM server, which may take its time to start. Raises VllmUnavailable, VllmRefused."""
    from services.policy.artifacts import ArtifactStore
    from services.policy.engines.base_probe import forget_weights, measure_base
    from services.policy.engines.vllm import VllmEngine, VllmSettings
    from services.policy.engines.vllm_client import VllmClient, VllmUnavailable

    probe = measure_base(policy)
    forget_weights(policy)
    settings = VllmSettings(
        max_rows=options.max_rows, max_context=options.max_context, server_artifacts=options.vllm_artifacts
    )
    artifacts, key = ArtifactStore(options.artifacts), Settings().vllm_key
    deadline = time.monotonic() + VLLM_START_SECONDS
    print(f"waiting for the vLLM server at {options.vllm_url}", flush=True)
    while True:
        try:
            return VllmEngine(policy, probe, artifacts, VllmClient(options.vllm_url, key), settings, name=name)
        except VllmUnavailable:
            if time.monotonic() > deadline:
                raise
        time.sleep(GONE_POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
