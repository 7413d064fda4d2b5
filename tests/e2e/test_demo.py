"""`preceptor demo` from its first line to its table, with a tiny random policy and little of everything."""

import json
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from services.policy.model.tiny import make_tiny_policy
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
    # measured before and after; the headline has each side's best temperature, the table below it both at the same
    assert re.search(r"pass@1 before, at the best temperature: code/python \d\.\d+ at 0", said)
    for source in (r"reference \(turns\) in tool-call", "precedents in command"):
        assert re.search(rf"{source}, (measuring|teaches|measured, not taught): ", said), said
    for domain in ("code/python", "command", "tool-call"):
        for k in (1, 2):
            rise = r"[+-]0\.\d+ .*\(\d famil(y|ies)\)"
            assert re.search(rf"{domain} +pass@{k} +0\.\d+ at 0(\.5)? +0\.\d+ at 0(\.5)? +{rise}", said), said
            assert re.search(rf"{domain} +pass@{k} +0\.5 +0\.\d+ +0\.\d+ +{rise}", said), said
    # what trained, and the correction's way
    assert re.search(r"updates with a non-zero future term: [1-8] of 8", said), said
    assert "updates that used conditioned: " in said
    assert re.search(r"^.*precedents: \d+% of \|loss\|", said, re.M), said
    used = re.search(r"the correction (\S+) was used by update (\d)", said)
    assert used is not None, said
    assert f"update {used[2]}: loss" in said
    assert f"everything is kept in {home}" in said
    # the same in a file, and nothing left
    reports = list((home / "reports").iterdir())
    assert reports
    documents = [json.loads(path.read_text()) for path in reports if path.suffix == ".json"]
    assert [document["num_updates"] for document in documents] == [8]
    assert int(used[2]) in [one["update"] for one in documents[0]["corrections"] if one["id"] == used[1]]
    assert [p.pid for p in psutil.process_iter(["cmdline"]) if str(home) in " ".join(p.info["cmdline"] or [])] == []
