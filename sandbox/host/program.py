"""The program that runs are forked from, as files: whole folders of this package, with nothing else beside them."""

from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parents[1]
INSIDE: Final = "inside"


def read_modules(*folders: str) -> dict[str, bytes]:
    """The Python files of these folders of `sandbox`, by their path from its parent."""
    files = [PACKAGE / "__init__.py", *(file for folder in folders for file in sorted((PACKAGE / folder).glob("*.py")))]
    return {f"{PACKAGE.name}/{file.relative_to(PACKAGE)}": file.read_bytes() for file in files}
