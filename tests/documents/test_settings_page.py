"""docs/settings.md holds every setting, and the documents name no other."""

import re
from pathlib import Path
from typing import Final

import pytest
from pydantic import BaseModel

from tests.documents.pages import PAGES, ROOT
from tests.documents.settings_page import PAGE, TABLES, describe, write

VARIABLE: Final = re.compile(r"\b(?:PRECEPTOR|SANDBOX)_[A-Z0-9_]*[A-Z0-9]\b(?![_…])")
FILES: Final = ("docker-compose.yml", "containers/publish.yaml", "containers/vllm.yaml", "Dockerfile", "Makefile")


def test_the_settings_page_is_as_make_docs_writes_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == write(page), "run `make docs`"


@pytest.mark.parametrize("settings", TABLES.values(), ids=list(TABLES))
def test_every_setting_has_a_sentence(settings: type[BaseModel]) -> None:
    assert [name for name in settings.model_fields if not describe(settings).get(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_in_the_documentation_is_on_the_settings_page(page: Path) -> None:
    known = set(VARIABLE.findall(PAGE.read_text(encoding="utf-8")))
    assert set(VARIABLE.findall(page.read_text(encoding="utf-8"))) - known == set()


def test_every_variable_that_compose_or_an_image_reads_is_on_the_settings_page() -> None:
    known = set(VARIABLE.findall(PAGE.read_text(encoding="utf-8")))
    named = {name for file in FILES for name in VARIABLE.findall((ROOT / file).read_text(encoding="utf-8"))}
    assert named - known == set()
