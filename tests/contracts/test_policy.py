"""The policy answers what its schema says, whatever it is sent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from schemathesis import Case

from services.policy.artifacts import ArtifactStore
from services.policy.engines.embedded import EmbeddedEngine, EngineSettings
from services.policy.model.modeling import load_policy
from services.policy.server.app import create_app
from tests.contracts.checks import bounded, call, read_schema
from tests.policy.conftest import model_folder
from tests.serving import serve

pytestmark = pytest.mark.integration

__all__ = ["model_folder"]

KEY = "secret"
schema = read_schema(create_app(cast(EmbeddedEngine, None), KEY))  # a schema needs no engine


@pytest.fixture(scope="module")
def url(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tiny policy."""
    artifacts = ArtifactStore(tmp_path_factory.mktemp("artifacts"))
    engine = EmbeddedEngine(load_policy(model_folder), artifacts, EngineSettings(max_rows=8, max_context=128))
    with serve(create_app(engine, KEY)) as served:
        yield served


@schema.parametrize()
@bounded
def test_the_policy_answers_as_its_schema_says(case: "Case[Any]", url: str) -> None:
    call(case, url, {"Authorization": f"Bearer {KEY}"})
