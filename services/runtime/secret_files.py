"""Secrets from the environment, or from files below `PRECEPTOR_SECRETS_DIR` that are named like the variables."""

import os
from collections.abc import Mapping
from pathlib import Path


def secret_folders(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Where secrets lie in files: the folder that PRECEPTOR_SECRETS_DIR names, and those in it; empty without it."""
    named = environ.get("PRECEPTOR_SECRETS_DIR")
    if not named:
        return []
    root = Path(named)
    return [root, *sorted(path for path in root.iterdir() if path.is_dir())]


def find_secret(variable: str, environ: Mapping[str, str] = os.environ) -> str:
    """The value of a variable of the environment, else of the file called like it; empty where there is neither."""
    if given := environ.get(variable):
        return given
    files = (folder / variable.lower() for folder in secret_folders(environ))
    return next((file.read_text().strip() for file in files if file.is_file()), "")
