"""The execution and tool-call experts on a real sandbox: right is right, wrong says why, and cheating does not pay."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Protocol

import pytest

from benchmarks.starter_tasks import build
from services.contracts.answers import Feedback
from services.contracts.base import Json, JsonObject
from services.contracts.experts import ConsultAbstain, ConsultRequest, ConsultResult
from services.experts.own.execution import MAX_FEEDBACK, ExecutionExpert
from services.experts.own.sandbox_client import SandboxClient, SandboxUnavailable
from services.experts.own.scorers import ToolCallExpert
from tests.experts.samples import make_question
from tests.serving import reply_with, serve_raw

pytestmark = pytest.mark.integration
DOUBLE: list[tuple[list[Json], Json]] = [([7], 14), ([0], 0), ([-4], -8)]


class Expert(Protocol):
    def consult(self, request: ConsultRequest, /) -> Awaitable[ConsultResult | ConsultAbstain]: ...
    async def close(self) -> None: ...


def ask(make: Callable[[SandboxClient], Expert], url: str, question: ConsultRequest) -> ConsultResult | ConsultAbstain:
    async def go() -> ConsultResult | ConsultAbstain:
        expert = make(SandboxClient(url, "key"))
        try:
            return await expert.consult(question)
        finally:
            await expert.close()

    return asyncio.run(go())


def fence(source: str) -> str:
    return f"```python\n{source}\n```"


def execute(url: str, text: str, cases: list[tuple[list[Json], Json]] = DOUBLE, name: str = "double") -> ConsultResult:
    listed: list[Json] = [{"args": args, "expected": expected} for args, expected in cases]
    metadata: JsonObject = {"tests": {"entry_point": name, "cases": listed}}
    result = ask(ExecutionExpert, url, make_question(text, domain="code/python", metadata=metadata))
    assert isinstance(result, ConsultResult)
    return result


def said(result: ConsultResult) -> str:
    assert isinstance(result.feedback, Feedback)
    return result.feedback.text


def test_a_right_function_scores_one_and_needs_no_feedback(sandbox_url: str) -> None:
    result = execute(sandbox_url, "Here it is:\n" + fence("def double(n):\n    return n * 2") + "\nDone.")
    assert (result.score, result.feedback) == (1.0, None)
    assert result.evidence is not None
    assert result.evidence["passed"] == result.evidence["total"] == 3


def test_wrong_answers_show_the_two_shortest_cases(sandbox_url: str) -> None:
    cases: list[tuple[list[Json], Json]] = [([123456], 246912), ([3], 6), ([2], 4), ([10], 20)]
    result = execute(sandbox_url, fence("def double(n):\n    return n * n"), cases)
    assert result.score == 0.0
    assert said(result) == "Wrong answer: double(3) returned 9, expected 6.\ndouble(10) returned 100, expected 20."
    assert result.evidence is not None
    assert result.evidence["verdicts"] == ["wrong", "wrong", "passed", "wrong"]


def test_the_first_runtime_error_is_told_with_its_line(sandbox_url: str) -> None:
    result = execute(sandbox_url, fence("def double(n):\n    x = 1\n    return n + missing"))
    assert said(result) == (
        "Runtime error: double(7) raised NameError: name 'missing' is not defined (line 3: return n + missing)"
    )


def test_a_syntax_error_is_told_with_its_line(sandbox_url: str) -> None:
    assert "SyntaxError" in said(result := execute(sandbox_url, fence("def double(n)\n    return n")))
    assert "(line 1: def double(n))" in said(result)


def test_an_endless_loop_is_stopped_and_named(sandbox_url: str) -> None:
    source = "def double(n):\n    while n == 0:\n        pass\n    return n * 2"
    result = execute(sandbox_url, fence(source))
    assert said(result) == "Stopped during double(0): it did not finish: all calls together have 5 seconds."
    assert result.evidence is not None
    assert result.evidence["verdicts"] == ["passed", "stopped", "not run"]


def test_using_up_the_memory_is_no_pass(sandbox_url: str) -> None:
    result = execute(sandbox_url, fence("def double(n):\n    x = [0] * 10**9\n    return n * 2"))
    assert result.score == 0.0
    assert "memory" in said(result).lower()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def double(n): return n * 2", "no fenced python block"),
        ("```python\ndef double(n):\n    return n * 2", "not closed"),
        ("```python\n\n```", "empty"),
        (fence("def triple(n):\n    return n * 3"), "no function named double"),
        (fence("double = 3"), "no function named double"),
    ],
)
def test_a_format_error_says_what_is_missing(sandbox_url: str, text: str, says: str) -> None:
    result = execute(sandbox_url, text)
    assert result.score == 0.0
    assert says in said(result)


@pytest.mark.parametrize(
    ("source", "expected", "passes"),
    [
        ("return True", 1, False),
        ("return 1", True, False),
        ("return 1.0", 1, True),
        ("return 0.1 + 0.2", 0.3, True),
        ("return 0.3001", 0.3, False),
        ("return (1, 2)", [1, 2], True),
        ("return {'a': (1,)}", {"a": [1]}, True),
        ("return {1, 2}", [1, 2], False),
        ("return {1: 2}", {"1": 2}, False),
        ("return float('nan')", 0, False),
        ("return float('inf')", 1e308, False),
        ("return 10**400", 1.5, False),
        ("return 10**5000", 1, False),
        ("return None", None, True),
        ("return ''", None, False),
        ("return 'a\\x00b'", "ab", False),
        ("return '\\ud800'", "", False),
        ("return [[[[1]]]]", [[[[1]]]], True),
        ("x = []; x.append(x); return x", [], False),
        ("return 'x' * 10**6", "x", False),
        ("return lambda: 1", 1, False),
    ],
)
def test_values_are_compared_as_plain_data(sandbox_url: str, source: str, expected: Json, passes: bool) -> None:
    result = execute(sandbox_url, fence(f"def f():\n    {source}"), [([], expected)], "f")
    assert result.score == float(passes), said(result)


def test_what_a_solution_prints_is_kept_apart_from_its_answers(sandbox_url: str) -> None:
    noisy = (
        'import sys\ndef double(n):\n    print(\'{"call": 0, "value": 1}\')\n'
        "    sys.stderr.write('x')\n    return n * 2"
    )
    assert execute(sandbox_url, fence(noisy)).score == 1.0


def test_a_main_block_is_not_run_and_helpers_and_imports_work(sandbox_url: str) -> None:
    source = (
        "import math\nfrom dataclasses import dataclass\n@dataclass\nclass Box:\n    n: int\n"
        "def helper(n):\n    return Box(n).n\ndef double(n):\n    return int(math.fsum([helper(n)] * 2))\n"
        "if __name__ == '__main__':\n    raise SystemExit(3)"
    )
    assert execute(sandbox_url, fence(source)).score == 1.0


def test_feedback_is_at_most_two_thousand_characters(sandbox_url: str) -> None:
    result = execute(sandbox_url, fence("def double(n):\n    return n + 'y' * 60000"), [(["x" * 5000], "z" * 5000)] * 2)
    assert len(said(result)) <= MAX_FEEDBACK
    assert said(result).startswith("Wrong answer: double(")


CHEATS = {
    "sys.exit(0) at import": "import sys; sys.exit(0)",
    "os._exit(0) at import": "import os; os._exit(0)",
    "sys.exit(0) in the call": "import sys\ndef double(n): sys.exit(0)",
    "os._exit(0) in the call": "import os\ndef double(n): os._exit(0)",
    "atexit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef double(n): return 1",
    "always equal object": "class A:\n    def __eq__(s, o): return True\n    def __ne__(s, o): return False\n"
    "def double(n): return A()",
    "always equal int": "class A(int):\n    def __eq__(s, o): return True\n    __hash__ = int.__hash__\n"
    "def double(n): return A()",
    "lying float": "class A(float):\n    def __repr__(s): return '14'\ndef double(n): return A()",
    "patched json": "import json\njson.dumps = lambda *a, **k: '{\"passed\": true}'\ndef double(n): return 1",
    "patched encoder": "import json.encoder\njson.encoder.c_make_encoder = None\n"
    'json.encoder.JSONEncoder.encode = lambda s, o: \'{"call": 0, "value": 14}\'\ndef double(n): return 1',
    "patched builtins": "import builtins\nbuiltins.all = lambda *a: True\nbuiltins.type = lambda *a: int\n"
    "builtins.len = lambda *a: 0\ndef double(n): return 1",
    "forged reply on stdout": 'def double(n):\n    print(\'{"call": 0, "value": 14}\', flush=True)\n    return 1',
    "forged reply in the file": "open('reply.jsonl', 'a').write('{\"loaded\": true}\\n' + ''.join("
    '\'{"call": %d, "value": 1}\\n\' % i for i in range(9)))\ndef double(n): return 1',
    "garbage in the file": "open('reply.jsonl', 'wb').write("
    "b'\\xff[[[[' * 9999 + b'\\n[]\\n{}\\nnull\\n{\"call\": true}"
    '\\n{"call": 1e9}\\n{"call": [1]}\\n{"loaded": 1}\\n\')\ndef double(n): return 1',
    "deeply nested reply": "open('reply.jsonl', 'w').write('[' * 100000 + '\\n')\ndef double(n): return 1",
    "reply replaced by a folder": "import os\nos.remove('reply.jsonl'); os.mkdir('reply.jsonl')\n"
    "def double(n): return 1",
    "reply replaced by a link": "import os\nos.remove('reply.jsonl'); os.symlink('/etc/passwd', 'reply.jsonl')\n"
    "def double(n): return 1",
    "reply made huge": "open('reply.jsonl', 'a').truncate(64 << 20)\ndef double(n): return 1",
    "expected values looked for": "import gc, re, sys\ntext = open('calls.json').read() + open('main.py').read()\n"
    "found = [int(x) for x in re.findall(r'expected\\D*(-?\\d+)', text)]\n"
    "for o in gc.get_objects():\n    if isinstance(o, dict) and 'expected' in o: found.append(o['expected'])\n"
    "def double(n): return found.pop(0)",
    "frames": "import sys\ndef double(n):\n    f = sys._getframe(1)\n"
    "    f.f_locals['line']['value'] = 14\n    return 1",
    "fork": "import os\ndef double(n):\n    if os.fork() > 0: os._exit(0)\n    return 1",
    "kills itself": "import os, signal\ndef double(n): os.kill(os.getpid(), signal.SIGKILL)",
    "exception that lies": "class E(BaseException):\n    def __str__(s): raise s\ndef double(n): raise E()",
    "exit code of a thread": "import threading, os, time\n"
    "threading.Thread(target=lambda: (time.sleep(.05), os._exit(0)), daemon=True).start()\n"
    "def double(n):\n    time.sleep(.2)\n    return 1",
}


@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS.keys())
def test_a_cheating_solution_does_not_pass(sandbox_url: str, cheat: str) -> None:
    result = execute(sandbox_url, fence(cheat))
    assert result.score == 0.0
    assert said(result)


def test_an_unusable_test_is_abstained_from(sandbox_url: str) -> None:
    question = make_question(fence("x = 1"), domain="code/python", metadata={"tests": {"entry_point": "no good"}})
    assert isinstance(ask(ExecutionExpert, sandbox_url, question), ConsultAbstain)


def test_a_sandbox_that_is_away_refuses_us_or_fails_is_unavailable_and_no_score(sandbox_url: str) -> None:
    metadata: JsonObject = {"tests": {"entry_point": "double", "cases": [{"args": [1], "expected": 2}]}}
    question = make_question(fence("def double(n): return 2 * n"), domain="code/python", metadata=metadata)
    with pytest.raises(SandboxUnavailable, match="cannot be reached"):
        ask(ExecutionExpert, "http://127.0.0.1:9", question)
    with pytest.raises(SandboxUnavailable, match="401"):
        ask(lambda _: ExecutionExpert(SandboxClient(sandbox_url, "wrong")), sandbox_url, question)
    failed: JsonObject = {
        "status": "sandbox_error",
        "reason": "no slot started",
        "exit_code": None,
        "signal": None,
        "stdout": "",
        "stderr": "",
        "stdout_truncated": False,
        "stderr_truncated": False,
        "wall_seconds": 0,
        "cpu_seconds": 0,
        "peak_memory_bytes": 0,
        "files": {},
        "files_missing": {},
        "isolation": "full",
    }
    failing = serve_raw(reply_with(json.dumps(failed).encode()))
    with failing as url, pytest.raises(SandboxUnavailable, match="no slot started"):
        ask(ExecutionExpert, url, question)


TOOLS: JsonObject = {
    "source": "def renew(book):\n    return f'book {book} renewed'\n\ndef fail():\n    raise OSError('disk')\n",
    "names": ["renew", "fail"],
}


def call_tool(url: str, block: str, expected: Json = "book 17 renewed", fenced: bool = True) -> ConsultResult:
    text = f"```json\n{block}\n```" if fenced else block
    question = make_question(text, domain="tool-call", metadata={"tools": TOOLS, "expected_result": expected})
    result = ask(ToolCallExpert, url, question)
    assert isinstance(result, ConsultResult)
    return result


def test_a_right_tool_call_scores_one(sandbox_url: str) -> None:
    assert call_tool(sandbox_url, '{"tool": "renew", "arguments": {"book": 17}}').score == 1.0


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ('{"tool": "renew", "arguments": {"book": 18}}', "returned 'book 18 renewed', expected 'book 17 renewed'"),
        ('{"tool": "renew", "arguments": {"books": 17}}', "Wrong arguments: renew(books=17) raised TypeError"),
        ('{"tool": "renew", "arguments": {}}', "missing 1 required positional argument: 'book'"),
        ('{"tool": "fail", "arguments": {}}', "OSError: disk"),
        ('{"tool": "burn", "arguments": {}}', "there is no tool 'burn'; the tools are renew, fail"),
        ('{"tool": "renew", "arguments": [17]}', "must be one object"),
        ('{"tool": "renew"}', 'the keys "tool" and "arguments"'),
        ('{"tool": "renew", "arguments": {"book": NaN}}', "NaN is not JSON"),
        ("renew(17)", "not valid JSON"),
        ('{"tool": "__import__", "arguments": {"name": "os"}}', "there is no tool"),
    ],
)
def test_a_wrong_tool_call_says_what_was_wrong(sandbox_url: str, block: str, says: str) -> None:
    result = call_tool(sandbox_url, block)
    assert result.score == 0.0
    assert says in said(result)


def test_a_tool_call_without_its_fence_is_a_format_error(sandbox_url: str) -> None:
    call = '{"tool": "renew", "arguments": {"book": 17}}'
    assert "no fenced json block" in said(call_tool(sandbox_url, call, fenced=False))
    assert "not closed" in said(call_tool(sandbox_url, f"```json\n{call}", fenced=False))


def test_tools_that_do_not_load_say_nothing_about_the_call(sandbox_url: str) -> None:
    tools: JsonObject = {"source": "raise RuntimeError()\ndef renew(book):\n    return 1\n", "names": ["renew"]}
    text = '```json\n{"tool": "renew", "arguments": {"book": 17}}\n```'
    question = make_question(text, domain="tool-call", metadata={"tools": tools, "expected_result": 1})
    assert isinstance(ask(ToolCallExpert, sandbox_url, question), ConsultAbstain)


@pytest.mark.parametrize(
    ("tables", "make"), [(build.build_functions, ExecutionExpert), (build.build_tool_calls, ToolCallExpert)]
)
def test_the_references_of_the_starter_tasks_pass_and_those_of_other_tasks_do_not(
    sandbox_url: str,
    tables: Callable[[], list[build.StarterTask]],
    make: Callable[[SandboxClient], Expert],
) -> None:
    tasks = [task.model_dump(mode="json") for task in tables()]
    train = [task for task in tasks if "reference" in task["metadata"]][::12]

    async def score(client: SandboxClient, text: str, task: dict[str, Json]) -> float | None:
        metadata = task["metadata"]
        assert isinstance(metadata, dict)
        result = await make(client).consult(make_question(text, domain=str(task["domain"]), metadata=metadata))
        assert isinstance(result, ConsultResult)
        return result.score

    async def score_all() -> tuple[list[float | None], list[float | None]]:
        client = SandboxClient(sandbox_url, "key")
        try:
            own = [await score(client, t["metadata"]["reference"], t) for t in train]
            others = [await score(client, train[i - 1]["metadata"]["reference"], t) for i, t in enumerate(train)]
        finally:
            await client.close()
        return own, others

    own, others = asyncio.run(score_all())
    assert len(own) >= 10
    assert own == [1.0] * len(train)
    assert others == [0.0] * len(train)
