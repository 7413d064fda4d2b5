"""Secrets from the environment, or from files below `PRECEPTOR_SECRETS_DIR` that are named like the variables."""

import os
from collections.abc import Mapping
from pathlib import Path


def secret_folders(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """The folders of secrets: the one that PRECEPTOR_SECRETS_DIR names, and those in it; none without it."""
    named = environ.get("PRECEPTOR_SECRETS_DIR")
    if not named:
        return []
    root = Path(named)
    return [root, *sorted(path for path in root.iterdir() if path.is_dir())]


def find_secret(variable: str, environ: Mapping[str, str] = os.environ) -> str:
    """The value of an environment variable, else of the file of its name; empty without either."""
    if given := environ.get(variable):
        return given
    files = (folder / variable.lower() for folder in secret_folders(environ))
    return next((file.read_text().strip() for file in files if file.is_file()), "")
