"""The images hold every module of ours that their processes import: the Dockerfile's COPY lines, without an engine."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

REPOSITORY: Final = Path(__file__).parents[2]
STAGE: Final = re.compile(r"^FROM \S+ AS (\S+)$", re.MULTILINE)
COPY: Final = re.compile(r"^COPY --chmod=755 (.+)$", re.MULTILINE)
PROCESSES: Final = {
    "sandbox": ["sandbox.__main__", "sandbox.host.spawner"],
    "services": ["services.web.__main__", "services.experts.__main__", "services.jobs.app", "services.cli.program"],
    "starter": ["services.policy.model.convert"],
    "model": ["services.policy.server.app", "trainer.__main__"],
}


def copied(stage: str, folder: Path) -> None:
    """Lay what a stage of the Dockerfile copies from the checkout into the folder."""
    text = (REPOSITORY / "Dockerfile").read_text()
    parts = STAGE.split(text)
    lines = dict(zip(parts[1::2], parts[2::2], strict=True))[stage]
    for line in COPY.findall(lines):
        *sources, target = line.split()
        for source in map(REPOSITORY.__truediv__, sources):
            if source.is_dir():
                shutil.copytree(source, folder / target)
            else:
                (folder / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(source, folder / target)


@pytest.mark.parametrize("stage", PROCESSES)
def test_an_image_holds_all_modules_of_its_processes(stage: str, tmp_path: Path) -> None:
    copied(stage, tmp_path)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + "".join(
        f"import {module}\n" for module in PROCESSES[stage]
    )
    program += f"assert {PROCESSES[stage][0].partition('.')[0]}.__file__.startswith({str(tmp_path)!r})\n"
    # without the checkout: an editable install would find what the image lacks
    program = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n" + program
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
