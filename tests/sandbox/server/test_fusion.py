"""SandboxFusion's own client, unmodified, against this sandbox."""

import asyncio
import base64

import pytest
import sandbox_fusion
from sandbox_fusion import CommandRunStatus, RunCodeRequest, RunCodeResponse, RunStatus

from tests.sandbox.conftest import SandboxServer

pytestmark = pytest.mark.integration


def ask(sandbox: SandboxServer, **fields: object) -> RunCodeResponse:
    request = RunCodeRequest(**{"run_timeout": 30, "language": "python", **fields})
    return sandbox_fusion.run_code(request, endpoint=sandbox.url, max_attempts=1)


def test_success_has_output_return_code_and_times(sandbox: SandboxServer) -> None:
    answer = ask(sandbox, code="print(input() * 2)", stdin="ab\n")
    assert (answer.status, answer.message, answer.compile_result) == (RunStatus.Success, "", None)
    run = answer.run_result
    assert run is not None
    assert (run.status, run.return_code, run.stdout, run.stderr) == (CommandRunStatus.Finished, 0, "abab\n", "")
    assert run.execution_time is not None
    assert run.execution_time > 0


def test_failure_has_its_return_code_and_stderr(sandbox: SandboxServer) -> None:
    answer = ask(sandbox, code="import sys; sys.exit(3)")
    assert answer.status == RunStatus.Failed
    assert answer.run_result is not None
    assert (answer.run_result.status, answer.run_result.return_code) == (CommandRunStatus.Finished, 3)
    killed = ask(sandbox, code="import os; os.kill(os.getpid(), 11)").run_result
    assert killed is not None
    assert killed.return_code == -11


def test_a_timeout_is_called_so(sandbox: SandboxServer) -> None:
    answer = ask(sandbox, code="while True: pass", run_timeout=1)
    assert answer.status == RunStatus.Failed
    assert answer.run_result is not None
    assert answer.run_result.status == CommandRunStatus.TimeLimitExceeded
    mapping = sandbox_fusion.SummaryMapping(RunTimeout="slow")
    assert sandbox_fusion.summary_run_code_result(answer, mapping) == "slow"


def test_files_go_in_and_out(sandbox: SandboxServer) -> None:
    content = base64.b64encode(b"in").decode()
    code = "open('out', 'wb').write(open('a/in', 'rb').read() * 2)"
    answer = ask(sandbox, code=code, files={"./a/in": content, "none": None}, fetch_files=["out", "missing"])
    assert answer.files == {"out": base64.b64encode(b"inin").decode()}
    assert answer.message == "missing: not_found"


def test_compiled_languages_have_two_results(sandbox: SandboxServer) -> None:
    if sandbox.health().languages["cpp"] != "available":  # type: ignore[index]
        pytest.skip("no C++ compiler here")
    good = ask(sandbox, code="int main() { return 0; }", language="cpp", compile_timeout=60)
    assert good.status == RunStatus.Success
    assert good.compile_result is not None
    assert good.compile_result.return_code == 0
    bad = ask(sandbox, code="int main( {", language="cpp", compile_timeout=60)
    assert (bad.status, bad.run_result) == (RunStatus.Failed, None)
    assert sandbox_fusion.summary_run_code_result(bad, sandbox_fusion.SummaryMapping(CompileFailed="no")) == "no"


def test_output_that_is_cut_off_is_said_to_be(sandbox: SandboxServer) -> None:
    assert "stdout was cut off" in ask(sandbox, code="print('x' * (2 << 20))").message


def test_what_cannot_be_run_is_refused_not_failed(sandbox: SandboxServer) -> None:
    with pytest.raises(Exception, match="422"):
        ask(sandbox, code="", language="lua")
    with pytest.raises(Exception, match="422"):
        ask(sandbox, code="", files={"../up": ""})


def test_many_at_once_get_each_its_own_answer(sandbox: SandboxServer) -> None:
    asks = [{"sandbox": sandbox, "code": f"print({number})"} for number in range(24)]
    answers = sandbox_fusion.run_concurrent(ask, kwargs=asks, concurrency=12)
    assert [answer.run_result.stdout for answer in answers] == [f"{number}\n" for number in range(24)]


def test_the_client_s_other_half_works_too(sandbox: SandboxServer) -> None:
    request = RunCodeRequest(code="print('async')", language="python", run_timeout=30)
    answer = asyncio.run(sandbox_fusion.run_code_async(request, endpoint=sandbox.url, max_attempts=1))
    assert answer.run_result.stdout == "async\n"
    assert sandbox.client.get("/v1/ping").json() == "pong"
