"""Routes and pages only translate: what changes state, is recorded or sends a message is an act."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import services

HERE = Path(services.__path__[0])
TRANSLATORS = [*sorted(HERE.glob("api/routes/*.py")), *sorted(HERE.glob("web/pages/*.py"))]
ACTS_ONLY = {"transaction", "begin", "record", "record_all"}


def calls_of(tree: ast.AST) -> Iterator[str]:
    """The names of the methods and functions of modules that are called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.func.attr


def imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("file", TRANSLATORS, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_routes_and_pages_write_record_and_send_nothing_themselves(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert not ACTS_ONLY & set(calls_of(tree))
    assert "services.jobs.dispatch" not in set(imports_of(tree))
