"""What asks the policy loads neither torch nor a database nor a queue."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "peft", "sqlalchemy", "celery"}


@pytest.mark.parametrize(
    "module",
    [
        "contract",
        "client",
        "artifacts",
        "model.convert",
        "server.app",
        "engines.base",
        "engines.versions",
        "text.ends",
    ],
)
def test_light_modules_load_without_heavy_ones(module: str) -> None:
    code = f"import sys, services.policy.{module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
