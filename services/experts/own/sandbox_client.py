"""Asks the sandbox to run code. Its faults are ours to report as unavailable; they say nothing about the code."""

from typing import Final

import aiohttp
from pydantic import ValidationError

from sandbox.contract import RunRequest, RunResult, Status
from services.runtime import logs
from services.runtime.errors import PreceptorError, ServiceUnavailable

RUN_SECONDS: Final = 120.0
"""For one run with its wait for a slot."""


class SandboxUnavailable(ServiceUnavailable):
    """The sandbox is unavailable or failed."""

    title = "The sandbox is unavailable"


class SandboxBusy(PreceptorError):
    """The sandbox has as many runs waiting as it takes."""

    status_code = 429
    title = "The sandbox is busy"
    retry_after_seconds = 2


class SandboxClient:
    """Connections to one sandbox; lives on one event loop."""

    def __init__(self, url: str, key: str = "") -> None:
        self._url = url.rstrip("/") + "/v1/run"
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def run(self, request: RunRequest) -> RunResult:
        """How the run ended. Errors: SandboxBusy (429), SandboxUnavailable (503), also for a fault of the sandbox."""
        if self._session is None:
            # a fresh connection each: one costs far less than a run, and a stale one would cost an attempt
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=RUN_SECONDS),
            )
        body = request.model_dump_json().encode()
        try:
            headers = self._headers | logs.request_headers()
            async with self._session.post(self._url, data=body, headers=headers) as response:
                received = await response.read()
                status = response.status
        except TimeoutError:
            raise SandboxUnavailable(f"the sandbox did not answer within {RUN_SECONDS:.0f} s") from None
        except aiohttp.ClientError as error:
            raise SandboxUnavailable(f"the sandbox cannot be reached: {type(error).__name__}") from error
        if status == 429:
            raise SandboxBusy("the sandbox is busy")
        if status != 200:
            raise SandboxUnavailable(f"the sandbox answers {status}: {received[:300].decode(errors='replace')}")
        try:
            result = RunResult.model_validate_json(received)
        except ValidationError as error:
            raise SandboxUnavailable("the sandbox's answer is not a run's result") from error
        if result.status is Status.SANDBOX_ERROR:
            raise SandboxUnavailable(f"the sandbox failed: {result.reason}")
        return result
