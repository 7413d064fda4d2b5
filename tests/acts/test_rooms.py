"""Routes, pages and commands only translate: what changes state, is recorded or sends a message is an act."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import services

HERE: Final = Path(services.__path__[0])
TRANSLATORS: Final = sorted(
    str(file.relative_to(HERE))
    for file in (*HERE.glob("api/**/*.py"), *HERE.glob("web/**/*.py"), *HERE.glob("cli/**/*.py"), HERE / "prepare.py")
)
WRITERS: Final = frozenset({"transaction", "begin", "record", "record_all"})
DISPATCH: Final = "services.jobs.dispatch"
AUDIT: Final = "services.store.core.audit"

ALLOWED: Final = {
    "api/auth.py": {"transaction"},  # a key's last use is noted where the key is read
    "api/ingest.py": {"transaction", "record_all", DISPATCH},  # the act of storing rollouts, many calls in one
    "web/visitors.py": {"transaction"},  # a session's last use is noted where the session is read
    "prepare.py": {"transaction"},  # makes the owner and the lineage, without which no act can run
}
"""What the files do themselves, and why."""


def found_in(tree: ast.AST) -> Iterator[str]:
    """The writing calls, by a method's or a function's name, and the imports of the messages, in any spelling."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name)) if name in WRITERS:
                yield name
            case ast.ImportFrom(module=module, names=names):
                for one in names:
                    if DISPATCH in (module, f"{module}.{one.name}"):
                        yield DISPATCH
                    elif module == AUDIT and one.name in WRITERS:
                        yield one.name
            case ast.Import(names=names):
                yield from (DISPATCH for one in names if one.name == DISPATCH)


@pytest.mark.parametrize("file", TRANSLATORS)
def test_routes_pages_and_commands_write_record_and_send_nothing_themselves(file: str) -> None:
    found = set(found_in(ast.parse((HERE / file).read_text(encoding="utf-8"))))
    assert found == ALLOWED.get(file, set())


def test_every_allowed_file_is_looked_at() -> None:
    assert ALLOWED.keys() <= set(TRANSLATORS)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("with store.transaction() as session: ...", "transaction"),
        ("with call.begin() as act: ...", "begin"),
        ("audit.record(session, actor, 'a', 'b')", "record"),
        ("from services.store.core.audit import record as note", "record"),
        ("from services.store.core.audit import record_all", "record_all"),
        ("from services.jobs import dispatch as messages", DISPATCH),
        ("from services.jobs.dispatch import lessons", DISPATCH),
        ("def f():\n    import services.jobs.dispatch", DISPATCH),
    ],
)
def test_each_spelling_of_a_write_is_found(code: str, name: str) -> None:
    assert set(found_in(ast.parse(code))) == {name}
