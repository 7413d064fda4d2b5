"""How the answers of a service are held against its own schema.

Examples come from the schema itself: boundary values, values of wrong types, unknown, missing and superfluous fields,
and some at random from a fixed seed; PRECEPTOR_CONTRACT_EXAMPLES asks for more at random.
"""

import os
from typing import Any, Final

from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case, CheckContext, GenerationMode, Response, openapi
from schemathesis.config import GenerationConfig, PhasesConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

NUM_EXAMPLES: Final = int(os.environ.get("PRECEPTOR_CONTRACT_EXAMPLES", "4"))
TIMEOUT_SECONDS: Final = 60


def no_fault(ctx: CheckContext, response: Response, case: "Case[Any]") -> bool | None:
    """Nothing of ours broke: no 5xx but those that say what is away."""
    assert response.status_code in (503, 504) or response.status_code < 500, response.text
    return None


def wrong_is_refused(ctx: CheckContext, response: Response, case: "Case[Any]") -> bool | None:
    """What breaks the schema is refused; a body too large to be looked at is refused as that."""
    return None if response.status_code == 413 else negative_data_rejection(ctx, response, case)


CHECKS: Final = [
    no_fault,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    wrong_is_refused,
]

bounded = settings(
    max_examples=NUM_EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
"""The same few examples every time; one that fails is shown as it is."""


def read_schema(app: FastAPI) -> BaseSchema:
    """The app's schema, to make examples from."""
    generation = GenerationConfig(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE], deterministic=True)
    project = ProjectConfig(generation=generation, phases=PhasesConfig())
    return openapi.from_dict(app.openapi(), config=SchemathesisConfig(projects=ProjectsConfig(default=project)))


def call(case: "Case[Any]", url: str, headers: dict[str, str] | None = None) -> None:
    """Send the example and hold the answer against the schema."""
    case.call_and_validate(base_url=url, headers=headers, checks=CHECKS, timeout=TIMEOUT_SECONDS)
