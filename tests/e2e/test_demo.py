"""`preceptor demo` from its first line to its table, with a tiny random policy and little of everything."""

import json
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from services.policy.model.modeling import make_tiny_policy
from tests.e2e.environment import loop_environment

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(600)]


def test_the_demo_measures_trains_uses_a_correction_measures_again_and_leaves_nothing_running(
    server_folder: Path,
) -> None:
    home = server_folder / "demo"
    model = make_tiny_policy(server_folder / "tiny-demo")
    command = [str(Path(sys.executable).with_name("preceptor")), "demo", "--home", str(home), "--model", str(model)]
    command += ["--updates", "8", "--tasks", "2", "--samples", "2", "--minutes", "8", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=loop_environment())
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    # measured before, with what teaches, and after; the table has both kinds and both figures
    assert re.search(r"pass@1 before, at the best temperature: .*code/python", said), said
    assert re.search(r"reference \(turns\) in tool-call, (measuring|teaches|measured, not taught): ", said), said
    for domain in ("code/python", "tool-call"):
        for k in (1, 2):
            assert re.search(rf"{domain} +pass@{k} +0\.\d+ +0\.\d+ +[+-]0\.\d+ .*\(\d families\)", said), said
    # what trained, and the correction's way
    assert re.search(r"updates with a non-zero future term: [1-8] of 8", said), said
    assert "updates that used conditioned: " in said
    used = re.search(r"the human correction \S+ was used by update (\d)", said)
    assert used is not None, said
    assert f"update {used[1]}: loss" in said
    assert f"everything is kept in {home}" in said
    # the same in a file, and nothing left
    reports = list((home / "reports").iterdir())
    assert reports
    documents = [json.loads(path.read_text()) for path in reports if path.suffix == ".json"]
    assert [document["num_updates"] for document in documents] == [8]
    assert documents[0]["correction_update"] == int(used[1])
    assert [p.pid for p in psutil.process_iter(["cmdline"]) if str(home) in " ".join(p.info["cmdline"] or [])] == []
