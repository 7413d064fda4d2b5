"""One trace from a draw to the update it shaped, as a collector receives it over OTLP/HTTP."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from fastapi import FastAPI, Request, Response
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from sqlalchemy import select

from services.contracts.answers import AnswerKind
from services.contracts.experts import ConsultRequest, ConsultResult, Descriptor
from services.contracts.ids import new_id
from services.contracts.rollouts import Purpose, Sampling
from services.experts.protocol.app import create_expert_app
from services.jobs.app import app as celery
from services.jobs.consult import consult
from services.jobs.runtime import runtime
from services.jobs.sample import sample
from services.policy.contract import SampleRequest
from services.runtime.collector import open_tracing
from services.runtime.tracing import place_of
from services.runtime.tracing_sdk import CollectorTracing
from services.store.core.transaction import Store
from services.store.ledger import lesson_facts
from services.store.loop import groups
from services.store.tables.ledger import LessonRow
from services.store.tables.loop import ConsultationRow
from tests.serving import serve
from tests.store.conftest import TOKENIZER, World
from trainer.batch.contexts import Showable
from trainer.loop.ledger import Claim
from trainer.loop.spans import trace_update

pytestmark = pytest.mark.integration


@dataclass
class Collector:
    """A receiver of OTLP over HTTP."""

    spans: list[Span] = field(default_factory=list)
    services: set[str] = field(default_factory=set)

    def build_app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/traces")
        async def receive(request: Request) -> Response:
            sent = ExportTraceServiceRequest()
            sent.ParseFromString(await request.body())
            for resource in sent.resource_spans:
                names = {a.key: a.value.string_value for a in resource.resource.attributes}
                self.services.add(names["service.name"])
                for scope in resource.scope_spans:
                    self.spans.extend(scope.spans)
            return Response(b"", media_type="application/x-protobuf")

        return app

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def collector_url(collector: Collector) -> Iterator[str]:
    with serve(collector.build_app()) as url:
        yield url


class Judge:
    """Everything is right."""

    descriptor = Descriptor(
        name="judge", version="1", kinds=[AnswerKind.SCORE], domains=["*"], deterministic=True, verifier=True
    )

    def consult(self, request: ConsultRequest) -> ConsultResult:
        return ConsultResult(score=1.0)


def policy_app() -> FastAPI:
    """A policy that always draws the same."""
    app = FastAPI()

    @app.post("/v1/sample")
    def draw(body: SampleRequest) -> dict[str, object]:
        samples = [
            {"token_ids": [1, 2], "logprobs": [-0.1, -0.2], "text": "4", "finish_reason": "stop"}
            for _ in range(body.prompts[0].n)
        ]
        prompt = {"id": body.prompts[0].id, "prompt_token_ids": [7], "samples": samples}
        return {"version": "base", "tokenizer_hash": TOKENIZER, "prompts": [prompt]}

    return app


def test_a_trace_follows_a_rollout_from_its_draw_to_its_update(
    store: Store,
    world: World,
    collector: Collector,
    collector_url: str,
    database_url: str,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expert = create_expert_app(Judge())
    open_tracing(collector_url, "experts").watch_app(expert)
    with serve(policy_app()) as policy, serve(expert) as endpoint:
        for name, value in {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "POLICY_URL": policy,
            "OTLP_ENDPOINT": collector_url,
        }.items():
            monkeypatch.setenv(f"PRECEPTOR_{name}", value)
        monkeypatch.setattr(celery.conf, "broker_url", redis_url)
        runtime.cache_clear()
        with store.transaction() as session:
            world.expert(session).endpoint = endpoint
            group = groups.add(session, world.task(session), purpose=Purpose.TRAIN, size=2, sampling=Sampling())
        sample([str(group.id)])
        with store.transaction() as session:
            ids = [str(i) for i in session.scalars(select(ConsultationRow.id))]
        consult(ids)
        runtime().close()
    with store.transaction() as session:
        facts = lesson_facts.load(session, session.scalars(select(LessonRow)).all())
    claim = Claim(update_id=new_id(), number=1, lessons=tuple(facts), showable=Showable(), newest_version=0)
    trainer = open_tracing(collector_url, "trainer")
    trace_update(trainer, claim, 1, 2)
    trainer.flush()
    open_tracing(collector_url, "experts").flush()

    [root] = collector.named("group")
    assert root.trace_id == group.id.bytes
    assert root.parent_span_id == b""
    rollouts = {span.span_id: span for span in collector.named("rollout")}
    assert {span.parent_span_id for span in rollouts.values()} == {root.span_id}
    asked = {span.span_id: span for span in collector.named("consultation")}
    assert {span.parent_span_id for span in asked.values()} == rollouts.keys()
    sent = {span.span_id: span for span in collector.named("POST")}
    assert {span.parent_span_id for span in sent.values()} == asked.keys()
    heard = collector.named("POST /v1/consult")
    assert {span.parent_span_id for span in heard} == sent.keys()
    learned = {span.span_id: span for span in collector.named("lesson")}
    assert {span.parent_span_id for span in learned.values()} == rollouts.keys()
    [update] = collector.named("update")
    assert update.trace_id == claim.update_id.bytes
    assert {(link.trace_id, link.span_id) for link in update.links} == {
        (span.trace_id, span.span_id) for span in learned.values()
    }
    assert {(link.trace_id, link.span_id) for span in learned.values() for link in span.links} == {
        (update.trace_id, update.span_id)
    }
    one_trace = [root, *rollouts.values(), *asked.values(), *sent.values(), *heard, *learned.values()]
    assert {span.trace_id for span in one_trace} == {group.id.bytes}
    assert collector.services == {"preceptor-worker", "preceptor-experts", "preceptor-trainer"}


def test_an_expert_that_is_away_is_a_failed_span(
    store: Store,
    world: World,
    collector: Collector,
    collector_url: str,
    database_url: str,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PRECEPTOR_DATABASE_URL", database_url)
    monkeypatch.setenv("PRECEPTOR_REDIS_URL", redis_url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector_url)  # the standard variable will do
    monkeypatch.setattr(celery.conf, "broker_url", redis_url)
    runtime.cache_clear()
    with store.transaction() as session:
        world.expert(session)  # nobody runs it
        world.drawn(session, world.task(session), size=1)
        ids = [str(i) for i in session.scalars(select(ConsultationRow.id))]
    consult(ids)
    runtime().close()
    [span] = collector.named("consultation")
    assert span.status.code == 2
    outcome = {a.key: a.value.string_value for a in span.attributes}["preceptor.outcome"]
    assert outcome == "unavailable"


def test_a_collector_that_is_away_holds_nothing_up() -> None:
    claim = Claim(update_id=new_id(), number=1, lessons=(), showable=Showable(), newest_version=0)
    tracing = CollectorTracing("http://127.0.0.1:9", "preceptor-worker")
    assert tracing.tracer.start_span("rollout").is_recording()
    trace_update(tracing, claim, 1, 2)


def test_an_update_is_linked_with_every_lesson_however_many(collector: Collector, collector_url: str) -> None:
    tracing = CollectorTracing(collector_url, "preceptor-trainer")
    update = place_of(new_id(), new_id())
    lessons = [place_of(new_id(), new_id()) for _ in range(300)]
    tracing.record("update", update, began=1, ended=2, attributes={}, links=lessons)
    tracing.flush()
    [span] = collector.named("update")
    assert [int.from_bytes(link.span_id) for link in span.links] == [one.span_id for one in lessons]
