"""Languages besides plain Python, where this machine has them."""

import pytest

from sandbox.contract import Language, Limits, RunRequest, RunResult, Status
from tests.sandbox.conftest import SandboxServer

pytestmark = pytest.mark.integration

LIMITS = Limits(wall_seconds=60, cpu_seconds=20)


def run(sandbox: SandboxServer, language: Language, code: str, stdin: str = "", **more: Limits) -> RunResult:
    can_run = sandbox.health().languages[language]
    if can_run != "available":
        pytest.skip(f"{language}: {can_run}")
    return sandbox.post(RunRequest(code=code, language=language, stdin=stdin, limits=more.get("limits", LIMITS)))


def test_health_names_every_language_and_what_is_missing(sandbox: SandboxServer) -> None:
    languages = sandbox.health().languages
    assert set(languages) == set(Language)
    assert languages[Language.PYTHON] == "available"


def test_numpy_is_there_before_the_run_begins(sandbox: SandboxServer) -> None:
    code = "import sys; print('numpy' in sys.modules)\nimport numpy as np\nprint((np.eye(3) @ np.ones(3)).sum())"
    result = run(sandbox, Language.PYTHON_NUMPY, code)
    assert (result.status, result.stdout) == (Status.OK, "True\n3.0\n"), result
    assert result.cpu_seconds < 0.2


def test_numpy_s_random_numbers_differ_from_run_to_run(sandbox: SandboxServer) -> None:
    code = "import numpy as np; print(np.random.random())"
    assert len({run(sandbox, Language.PYTHON_NUMPY, code).stdout for _ in range(3)}) == 3


NAMES = [
    *("numpy.random.py", "numpy.py", "numpy/random.py", "os.path.py", "os.py", "sys.py", "builtins.py"),
    *("encodings.py", "__main__.py", "__init__.py", ".py", "random.py", "json.py", "threading.py", "sandbox.py"),
]


@pytest.mark.parametrize("language", [Language.PYTHON, Language.PYTHON_NUMPY])
def test_a_file_may_be_called_like_any_module(sandbox: SandboxServer, language: Language) -> None:
    if sandbox.health().languages[language] != "available":
        pytest.skip(sandbox.health().languages[language])
    names = [
        "numpy.random.py",
        "numpy.py",
        "numpy/random.py",
        "os.path.py",
        "os.py",
        "sys.py",
        "builtins.py",
        "encodings.py",
    ]
    names += [
        "__main__.py",
        "__init__.py",
        ".py",
        "random.py",
        "json.py",
        "threading.py",
        "sandbox.py",
        "sandbox/inside/child.py",
    ]
    for name in names:
        code = f"import os, sys, math\nprint(os.getpid() > 0, sys.maxsize > 0, math.pi > 3, open({name!r}).read())"
        result = sandbox.post(RunRequest(code=code, language=language, files={name: b"1"}, limits=LIMITS))
        assert (result.status, result.stdout) == (Status.OK, "True True True 1\n"), (name, result)


def test_plain_python_has_no_numpy(sandbox: SandboxServer) -> None:
    assert "ModuleNotFoundError" in sandbox.run("import numpy").stderr


def test_bash_runs_with_input_and_exit_code(sandbox: SandboxServer) -> None:
    result = run(sandbox, Language.BASH, "read line; echo got $line; exit 4", stdin="word\n")
    assert (result.status, result.exit_code, result.stdout) == (Status.FAILED, 4, "got word\n")


def test_javascript_runs_with_input(sandbox: SandboxServer) -> None:
    code = "console.log([3,1,2].sort().join() + require('fs').readFileSync(0))"
    result = run(sandbox, Language.JAVASCRIPT, code, stdin="!")
    assert (result.status, result.stdout) == (Status.OK, "1,2,3!\n"), result


def test_cpp_is_compiled_and_run(sandbox: SandboxServer) -> None:
    code = "#include <iostream>\nint main() { int n; std::cin >> n; std::cout << n * 2; return 3; }"
    result = run(sandbox, Language.CPP, code, stdin="21")
    assert (result.status, result.exit_code, result.stdout) == (Status.FAILED, 3, "42"), result
    assert result.compilation is not None
    assert result.compilation.status == Status.OK


def test_what_does_not_compile_is_not_run_and_the_compiler_says_why(sandbox: SandboxServer) -> None:
    result = run(sandbox, Language.CPP, "int main() { return missing; }")
    assert (result.status, result.exit_code) == (Status.NOT_COMPILED, None)
    assert "missing" in result.stderr


@pytest.mark.parametrize(
    ("language", "code"),
    [
        (Language.BASH, "while :; do :; done"),
        (Language.JAVASCRIPT, "for (;;) {}"),
        (Language.CPP, "int main() { volatile int i = 0; for (;;) i = i + 1; }"),
    ],
)
def test_limits_hold_in_every_language(sandbox: SandboxServer, language: Language, code: str) -> None:
    result = run(sandbox, language, code, limits=Limits(wall_seconds=2, cpu_seconds=20))
    assert result.status == Status.TIMEOUT


def test_other_languages_are_as_closed_in(sandbox: SandboxServer) -> None:
    nowhere = "/work" if sandbox.in_containers else "/home /etc/shadow"  # an image has files of its own
    code = f"id -u; ls {nowhere}; grep -E 'Seccomp:|CapEff' /proc/self/status; echo $BAIT"
    result = run(sandbox, Language.BASH, code)
    assert result.stdout.split() == ["65534", "CapEff:", "0" * 16, "Seccomp:", "2"], result
