"""The sandbox as the server sees it: slots, a bounded queue, and `run`, from a request to its result.

Hands runs to the keepers of a backend. It does no isolation itself and reads only the output that a keeper sends.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, TypeVar

from sandbox.contract import (
    MAX_BATCH_COLLECTED_BYTES,
    MAX_FILE_BYTES,
    MAX_STDIO_SECONDS,
    Compilation,
    JudgeRequest,
    JudgeResult,
    Language,
    Level,
    Limits,
    RunRequest,
    RunResult,
    Status,
    StdioTests,
    TestVerdict,
)
from sandbox.errors import IsolationRefused, LanguageUnavailable, SandboxStopping
from sandbox.inside.wire import Ending, Flavour, Job, KeeperSpec, Outcome
from sandbox.server import judging
from sandbox.server.admission import Admission, Ticket
from sandbox.server.languages import PROGRAM_FILE, Toolchain, Toolchains, make_compile_job, make_job, make_program_job
from sandbox.server.processes import Backend, Keeper, KeeperLost, Namespaces, check_level
from sandbox.server.results import make_compilation, make_result, not_compiled
from sandbox.settings import BackendName, SandboxSettings

T = TypeVar("T")

_CHECK_NETWORK = """
import os, socket, sys
try:
    socket.socket()
except PermissionError:
    print(sys.version.split()[0])
else:
    raise AssertionError("a socket could be made")
"""
_CHECK_NAMESPACES = """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
assert int(status["CapEff"], 16) == 0, "capabilities are left"
assert int(status["NoNewPrivs"]) == 1, "privileges could be gained"
assert int(status["Seccomp"]) == 2, "no system call filter"
assert os.getppid() == 1 and os.getuid() == 65534, "not in namespaces of its own"
assert not os.access("/", os.W_OK) and os.listdir("/box") == ["main.py"], "not in a root of its own"
"""
_CHECK_LANDLOCK = """
for path in ("/etc/passwd", "/proc/self/status"):
    try:
        open(path)
    except PermissionError:
        continue
    raise AssertionError(f"{path} could be read")
"""


class Runner:
    """Runs code in `settings.slots` slots. Create with `start`; closing it ends all runs."""

    def __init__(self, settings: SandboxSettings, backend: Backend) -> None:
        self._backend = backend
        self._admission = Admission(settings.slots, settings.queue_limit)
        self._slots = [_Slot(number) for number in range(settings.slots)]
        self._closed = False
        self.python_version = ""
        self.num_replaced = 0
        self.num_retried = 0

    @classmethod
    async def start(cls, settings: SandboxSettings) -> Self:
        """Start the backend and the zygotes, and prove with one run that they isolate. Raises IsolationRefused."""
        runner = cls(settings, await _start_backend(settings))
        try:
            check_level(runner.level, settings.minimum_level)
            code = _CHECK_NETWORK + (_CHECK_LANDLOCK if runner.level == Level.WEAK else _CHECK_NAMESPACES)
            result = await runner.run(RunRequest(code=code, limits=Limits(wall_seconds=30, cpu_seconds=10)))
            if result.status != Status.OK:
                raise IsolationRefused(
                    f"the first run failed its checks: {result.reason}\n{result.stderr.strip()}".rstrip()
                )
            await asyncio.gather(*(runner._find_keeper(slot, Flavour.LEAN) for slot in runner._slots))
        except KeeperLost as error:
            await runner.close()
            raise IsolationRefused(str(error)) from error
        except BaseException:
            await runner.close()
            raise
        runner.python_version = result.stdout.strip()
        return runner

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def level(self) -> Level:
        """How well runs are isolated."""
        return self._backend.level

    @property
    def is_ready(self) -> bool:
        """Whether a run that needs a new keeper gets one at once."""
        return self._backend.is_ready

    @property
    def toolchains(self) -> Toolchains:
        """The languages that can be run."""
        return self._backend.toolchains

    @property
    def num_running(self) -> int:
        return self._admission.num_running

    @property
    def num_waiting(self) -> int:
        return self._admission.num_waiting

    async def run(self, request: RunRequest, caller: str = "") -> RunResult:
        """Run one program and say how it ended. Cancelling ends the run, with every process it started.

        Raises SandboxBusy when the queue is full, LanguageUnavailable, SandboxStopping after `close`.
        """
        (result,) = await self.run_batch((request,), caller)
        return result

    async def run_batch(self, requests: tuple[RunRequest, ...], caller: str = "") -> tuple[RunResult, ...]:
        """Run several side by side, results in their order. All are admitted or none. Raises the errors of
        `run`, and BatchTooLarge."""
        chosen = [self._choose(request.language) for request in requests]
        num_collecting = sum(bool(request.collect) for request in requests)
        collect_bytes = min(MAX_FILE_BYTES, MAX_BATCH_COLLECTED_BYTES // max(1, num_collecting))
        with self._admitted(caller, len(requests)) as tickets:
            works = zip(requests, chosen, tickets, strict=True)
            return await _gather([self._run_one(*each, collect_bytes) for each in works])

    async def judge(self, request: JudgeRequest, caller: str = "") -> JudgeResult:
        """Judge a solution by its tests. Takes one slot. Raises the errors of `run`."""
        tools = self._choose(request.language)
        with self._admitted(caller, 1) as (ticket,):
            async with self._slot(ticket) as slot:
                if isinstance(request.tests, StdioTests):
                    return await self._judge_stdio(slot, request, request.tests, tools)
                sessions = judging.JudgeSession(request, tools, self.level)
                while (job := sessions.next_job()) is not None:
                    sessions.take(await self._occupy(slot, tools.flavour, job))
                return sessions.result()

    async def _judge_stdio(
        self, slot: "_Slot", request: JudgeRequest, tests: StdioTests, tools: Toolchain
    ) -> JudgeResult:
        verdicts: list[TestVerdict] = []
        runs: list[RunResult] = []
        program = await self._compile(
            slot, RunRequest(code=request.solution, language=request.language, limits=request.limits), tools
        )
        if isinstance(program, RunResult):
            return judging.join_stdio([], [program], self.level, program.compilation)
        end = time.monotonic() + MAX_STDIO_SECONDS
        for number, case in enumerate(tests.cases):
            if time.monotonic() >= end:
                verdicts.append(judging.judge_too_late(number))
                continue
            limits = judging.stdio_limits(request.limits, case.stdout)
            one = RunRequest(code=request.solution, language=request.language, stdin=case.stdin, limits=limits)
            run = await self._run_program(slot, one, tools, program)
            verdicts.append(await asyncio.to_thread(judging.judge_stdio, number, case, run))
            runs.append(run.model_copy(update={"stdout": "", "stderr": ""}))
        compilation = program.compilation if program is not None else None
        return judging.join_stdio(verdicts, runs, self.level, compilation)

    def _choose(self, language: Language) -> Toolchain:
        toolchain = self.toolchains.available.get(language)
        if toolchain is None:
            raise LanguageUnavailable(f"{language}: {self.toolchains.missing[language]}")
        return toolchain

    @contextlib.contextmanager
    def _admitted(self, caller: str, num_runs: int) -> Iterator[list[Ticket]]:
        """Tickets for so many runs, to be used until the end of the block. Raises SandboxBusy, SandboxStopping."""
        if self._closed:
            raise SandboxStopping("the sandbox is stopping")
        tickets = self._admission.admit(caller, num_runs)
        try:
            yield tickets
        finally:
            for ticket in tickets:
                self._admission.give_back(ticket)

    async def _run_one(self, request: RunRequest, tools: Toolchain, ticket: Ticket, collect_bytes: int) -> RunResult:
        async with self._slot(ticket) as slot:
            program = await self._compile(slot, request, tools)
            if isinstance(program, RunResult):
                return program
            return await self._run_program(slot, request, tools, program, collect_bytes)

    async def _compile(self, slot: "_Slot", request: RunRequest, tools: Toolchain) -> "_Program | RunResult | None":
        """The compiler's output, or its result if it failed; None for a language without a compiler."""
        if not tools.compile_argv:
            return None
        compiled = await self._occupy(slot, tools.flavour, make_compile_job(request, tools))
        compilation = make_compilation(compiled, request.limits.compile_seconds)
        program = (compiled.files or {}).get(PROGRAM_FILE)
        if compilation.status == Status.OK and program is None:
            reason = f"made no program, or one above {MAX_FILE_BYTES >> 20} MiB"
            compilation = compilation.model_copy(update={"status": Status.NOT_COMPILED, "reason": reason})
        if program is None or compilation.status != Status.OK:
            return not_compiled(compilation, self.level)
        return _Program(program, compilation)

    async def _run_program(
        self,
        slot: "_Slot",
        request: RunRequest,
        tools: Toolchain,
        program: "_Program | None",
        collect_bytes: int = MAX_FILE_BYTES,
    ) -> RunResult:
        job = make_job(request, tools) if program is None else make_program_job(request, tools, program.content)
        outcome = await self._occupy(slot, tools.flavour, replace(job, collect_bytes=collect_bytes))
        compilation = program.compilation if program is not None else None
        return make_result(outcome, request.limits, self.level, compilation)

    @contextlib.asynccontextmanager
    async def _slot(self, ticket: Ticket) -> "AsyncIterator[_Slot]":
        """A slot that is this caller's until the end of the block, and of the run that may still be dying in it."""
        slot = self._slots[await self._admission.acquire(ticket)]
        try:
            yield slot
        finally:
            if slot.work is None or slot.work.done():
                self._admission.release(slot.number)
            else:
                slot.work.add_done_callback(lambda _: self._admission.release(slot.number))

    async def _occupy(self, slot: "_Slot", flavour: Flavour, job: Job) -> Outcome:
        """Have a job run in the slot. Cancelling ends the run; the slot is free again when it is dead."""
        slot.is_cancelled = False
        slot.work = asyncio.create_task(self._run_and_retry(slot, flavour, job))
        try:
            return await asyncio.shield(slot.work)
        except asyncio.CancelledError:
            slot.cancel()
            raise

    async def _run_and_retry(self, slot: "_Slot", flavour: Flavour, job: Job) -> Outcome:
        """Run a job; when the sandbox fails, once more in a new zygote."""
        outcome = await self._try(slot, flavour, job)
        if outcome.ending == Ending.FAULT and not (slot.is_cancelled or self._closed):
            self.num_retried += 1
            outcome = await self._try(slot, flavour, job)
        return outcome

    async def _try(self, slot: "_Slot", flavour: Flavour, job: Job) -> Outcome:
        try:
            keeper = await self._find_keeper(slot, flavour)
            outcome = Outcome(Ending.CANCELLED)
            if not slot.is_cancelled:
                outcome = await keeper.ask(job)
        except (KeeperLost, IsolationRefused, OSError) as error:
            outcome = Outcome(Ending.FAULT, fault=str(error))
        if outcome.ending == Ending.FAULT:
            slot.drop(flavour)
        return outcome

    async def _find_keeper(self, slot: "_Slot", flavour: Flavour) -> Keeper:
        """The slot's keeper with this flavour; a new one where there is none or it has ended. Raises KeeperLost,
        OSError, IsolationRefused."""
        keeper = slot.keepers.get(flavour)
        if keeper is not None and not keeper.has_ended:
            return keeper
        slot.drop(flavour)
        slot.keepers[flavour] = await self._backend.open(KeeperSpec(slot.number, flavour))
        if flavour in slot.had:
            self.num_replaced += 1
        slot.had.add(flavour)
        return slot.keepers[flavour]

    async def close(self) -> None:
        """End every run, then the backend, which cleans up after them."""
        self._closed = True
        for slot in self._slots:
            slot.close()
        await self._backend.close()


async def _start_backend(settings: SandboxSettings) -> Backend:
    """Raises IsolationRefused, OSError."""
    if settings.backend == BackendName.NAMESPACES:
        return await Namespaces.start(settings)
    try:
        from sandbox.docker.backend import DockerEngine  # the library is an extra
    except ImportError as error:
        raise IsolationRefused(f"the backend docker needs Docker's library, the extra `docker`: {error}") from error
    return await DockerEngine.start(settings.docker_image)


async def _gather(works: list[Coroutine[None, None, T]]) -> tuple[T, ...]:
    """Await all of them; when one raises, or this is cancelled, the others are cancelled."""
    if len(works) == 1:
        return (await works[0],)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
    return tuple(task.result() for task in tasks)


@dataclass(frozen=True)
class _Program:
    """A compiled program, and the compiler's messages."""

    content: bytes
    compilation: Compilation


class _Slot:
    """Where one run at a time takes place: a keeper for each flavour it was asked for."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.keepers: dict[Flavour, Keeper] = {}
        self.had: set[Flavour] = set()
        self.work: asyncio.Task[Outcome] | None = None
        self.is_cancelled = False

    def cancel(self) -> None:
        """End the current run with its processes."""
        self.is_cancelled = True
        for keeper in self.keepers.values():
            keeper.cancel()

    def drop(self, flavour: Flavour) -> None:
        """Let go of a keeper, which then ends, if it has not."""
        keeper = self.keepers.pop(flavour, None)
        if keeper is not None:
            keeper.close()

    def close(self) -> None:
        for flavour in tuple(self.keepers):
            self.drop(flavour)
