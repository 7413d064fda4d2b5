"""Write the tables of docs/settings.md from the settings classes: `make docs`."""

import ast
import inspect
import json
import tempfile
import textwrap
from collections.abc import Iterator
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AliasChoices, BaseModel, SecretStr
from pydantic.fields import FieldInfo

from sandbox.settings import SandboxSettings
from services.runtime.settings import Settings
from tests.documents.pages import ROOT, put_between
from trainer.config import TrainerConfig

PAGE: Final = ROOT / "docs" / "settings.md"
TABLES: Final[dict[str, type[BaseModel]]] = {
    "services": Settings,
    "trainer": TrainerConfig,
    "sandbox": SandboxSettings,
}
BOUNDS: Final = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}
KINDS: Final = {
    bool: "`true`, `false`",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    list: "JSON list",
    dict: "JSON object",
}


def describe(settings: type[BaseModel]) -> dict[str, str]:
    """The text below each field in the class that declares it."""
    found = {}
    for part in reversed(settings.__mro__):
        if part.__module__.split(".")[0] not in ("services", "trainer", "sandbox"):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for field, text in pairwise(tree.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def name_variables(settings: type[BaseModel], name: str, field: FieldInfo) -> list[str]:
    """The variables a field is read from, the one to prefer first; of the sandbox its option."""
    if settings is SandboxSettings:
        return [f"SANDBOX_{name}".upper() if "key" in name else f"--{name.replace('_', '-')}"]
    if isinstance(field.validation_alias, AliasChoices):
        return [str(choice) for choice in field.validation_alias.choices]
    return [f"{settings.model_config.get('env_prefix', '')}{name}".upper()]


def show_default(field: FieldInfo) -> str:
    """The default as it is written in the environment."""
    if field.default_factory is not None:
        return field.default_factory.__name__.strip("_").replace("_", " ")
    value = field.default
    if value is None or value == "":
        return "none"
    if isinstance(value, Path):
        if value == Path(tempfile.gettempdir()):
            return "the machine's folder for temporary files"
        return f"`{'~' / value.relative_to(Path.home()) if value.is_relative_to(Path.home()) else value}`"
    plain = value.value if isinstance(value, Enum) else value
    return f"`{plain if isinstance(plain, str) else json.dumps(plain)}`"


def show_values(annotation: Any, bounds: list[Any]) -> str:
    """The values a field takes."""
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return show_values(arguments[0], [*bounds, *arguments[1:]])
    if kind is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if kind is Union or (len(arguments) > 1 and arguments[-1] is type(None)):
        return show_values(arguments[0], bounds)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{choice.value}`" for choice in annotation)
    limits = [
        f"{sign} {getattr(bound, name):g}"
        for bound in bounds
        for each, (name, sign) in BOUNDS.items()
        if isinstance(bound, each)
    ]
    named = "text" if annotation is SecretStr else KINDS[kind or annotation]
    return " ".join([named, *limits]) if len(limits) < 2 else f"{named} {limits[0]}, {limits[1]}"


def write_rows(settings: type[BaseModel]) -> Iterator[str]:
    """A table of all fields of a settings class, in the order of the class."""
    texts = describe(settings)
    yield "| setting | default | values | meaning |"
    yield "|---|---|---|---|"
    for name, field in settings.model_fields.items():
        names = ", ".join(f"`{variable}`" for variable in name_variables(settings, name, field))
        values = show_values(field.annotation, field.metadata)
        cells = (names, show_default(field), values, texts.get(name, ""))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def write(page: str) -> str:
    """The page with every table as the classes are now."""
    for name, settings in TABLES.items():
        page = put_between(page, name, write_rows(settings))
    return page


if __name__ == "__main__":
    PAGE.write_text(write(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
