"""Our own experts answer what their schema says, whatever they are asked."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from schemathesis import Case

from services.experts.__main__ import build_app
from services.policy.artifacts import ArtifactStore
from services.policy.engines.embedded import EmbeddedEngine, EngineSettings
from services.policy.model.modeling import load_policy
from services.policy.server.app import create_app
from services.runtime.settings import Settings
from tests.contracts.checks import bounded, call, read_schema
from tests.policy.conftest import model_folder
from tests.serving import serve

pytestmark = pytest.mark.integration

__all__ = ["model_folder"]

schema = read_schema(build_app(Settings()))


@pytest.fixture(scope="module")
def policy_app(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """A tiny policy, for the experts that ask it."""
    artifacts = ArtifactStore(tmp_path_factory.mktemp("artifacts"))
    engine = EmbeddedEngine(load_policy(model_folder), artifacts, EngineSettings(max_rows=8, max_context=256))
    return create_app(engine)


@pytest.fixture(scope="module")
def url(fresh_database: Callable[[], str], policy_app: FastAPI) -> Iterator[str]:
    """All our experts; their sandbox is away, which is a 503."""
    with serve(policy_app) as policy_url:
        given = {"database_url": fresh_database(), "policy_url": policy_url, "sandbox_url": "http://127.0.0.1:9"}
        with serve(build_app(Settings.model_validate(given))) as served:
            yield served


@schema.parametrize()
@bounded
def test_our_experts_answer_as_their_schema_says(case: "Case[Any]", url: str) -> None:
    call(case, url)
