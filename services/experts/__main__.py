"""`python -m services.experts`: our own experts, one process, each under its name."""

import argparse
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI

from sandbox.http import edge
from sandbox.http.access_log import LogRequests
from services.experts.own import reasoning
from services.experts.own.execution import ExecutionExpert
from services.experts.own.human import HumanExpert
from services.experts.own.precedents import PrecedentsExpert
from services.experts.own.reasoning_gym import ReasoningGymExpert
from services.experts.own.reference import ReferenceExpert
from services.experts.own.sandbox_client import SandboxClient
from services.experts.own.scorers import ExactMatchExpert, ToolCallExpert
from services.experts.own.self_evaluation import SelfEvaluationExpert
from services.experts.own.teacher import TeacherExpert
from services.experts.protocol.app import create_expert_app
from services.http import metrics
from services.policy.client import PolicyClient
from services.runtime import logs
from services.runtime.collector import open_tracing
from services.runtime.settings import Settings
from services.store.core.connecting import REQUEST
from services.store.core.transaction import Store


def build_app(settings: Settings) -> FastAPI:
    """The service of all our own experts."""
    app = create_expert_app(
        [
            ExecutionExpert(SandboxClient(settings.sandbox_url, settings.sandbox_key)),
            ExactMatchExpert(),
            ToolCallExpert(SandboxClient(settings.sandbox_url, settings.sandbox_key)),
            ReferenceExpert(),
            PrecedentsExpert(),
            SelfEvaluationExpert(
                PolicyClient(settings.policy_url, settings.internal_key),
                critique_temperature=settings.sampling_temperature if settings.self_critique else None,
            ),
            TeacherExpert(PolicyClient(settings.policy_url, settings.internal_key)),
            HumanExpert(Store(settings.database_url, patience=REQUEST)),
            *([ReasoningGymExpert()] if reasoning.is_installed() else []),
        ],
        settings.expert_secret or None,
    )
    app.add_middleware(LogRequests)
    metrics.install(app, metrics.make_registry(), settings.metrics_key)
    open_tracing(settings.otlp_endpoint, "experts").watch_app(app)
    return app


def main() -> None:
    """Serve at `experts_url`, or where the command line says, until told to stop."""
    logs.configure()
    settings = Settings()
    address = urlsplit(settings.experts_url)
    parser = argparse.ArgumentParser(prog="python -m services.experts", description=__doc__)
    parser.add_argument("--host", default=address.hostname or "127.0.0.1")
    parser.add_argument("--port", type=int, default=address.port or 80)
    arguments = parser.parse_args()
    uvicorn.run(
        build_app(settings),
        host=arguments.host,
        port=arguments.port,
        log_config=None,
        access_log=False,
        **edge.bounds(),
    )


if __name__ == "__main__":
    main()
