"""The api process as it runs, with the route it is compared with beside its own.

    python -m benchmarks.api.server --port 8700

`POST /alone/rollouts` stores every rollout in transactions of its own: a synchronous route in the threadpool, without
group commit. Keys, checks, reading and storing are the same.
"""

import argparse

import uvicorn
from fastapi import APIRouter, FastAPI, Request

from services.api.auth import BearerDep
from services.api.calls import KeyHeader
from services.api.ingest import IngestDep, Row, Sender
from services.contracts.rollouts import Rollout, RolloutCreate
from services.runtime.errors import PreceptorError
from services.runtime.settings import Settings
from services.web.__main__ import freeze_heap
from services.web.app import create_app

router = APIRouter(prefix="/alone", tags=["rollouts"])


@router.post("/rollouts", status_code=201)
def add_rollout(
    body: RolloutCreate, request: Request, ingest: IngestDep, bearer: BearerDep, key: KeyHeader = None
) -> Rollout:
    """Add a rollout that was sampled elsewhere, in transactions of its own."""
    address = request.client.host if request.client else None
    [outcome] = ingest.store([Row(Sender(None if bearer is None else bearer.credentials, address), body, key)])
    if isinstance(outcome, PreceptorError):
        raise outcome
    return outcome if isinstance(outcome, Rollout) else outcome.rollout


def build(settings: Settings) -> FastAPI:
    """The app of the api process, and the other route."""
    app = create_app(settings)
    app.include_router(router)
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    built = build(Settings())
    freeze_heap()
    uvicorn.run(built, host="127.0.0.1", port=parser.parse_args().port, log_level="warning")
