"""A worker that measures what teaches: real experts over HTTP, and a policy that believes what it is shown.

Asked "What is 7 times n?" the policy alone is right three times in eight. Shown that "the answer is" some number it
says that number seven times in eight, whatever the question.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
from fastapi import FastAPI
from sqlalchemy import func, select, update

from services.contracts.answers import AnswerKind, Feedback
from services.contracts.experts import ConsultAbstain, ConsultRequest, ConsultResult, Descriptor
from services.contracts.measurements import Measurement, MeasurementCreate
from services.contracts.sources import ContextSource
from services.contracts.tasks import Message, TaskCreate
from services.experts.protocol.app import create_expert_app
from services.jobs.app import app
from services.jobs.consult import consult
from services.jobs.maintain import maintain, measuring_rules
from services.jobs.runtime import runtime
from services.jobs.sample import sample
from services.policy.contract import FinishReason, Sample, SampledPrompt, SampleRequest, SampleResponse
from services.store.core.transaction import Store
from services.store.loop import standing, tasks
from services.store.tables.loop import ConsultationRow, ExpertRow, GroupRow
from services.store.tables.teaching import MeasurementRow
from services.store.teaching import measurements
from tests.api import policy_stand_in
from tests.serving import serve
from tests.store.conftest import TOKENIZER, World

FEEDBACK = ContextSource.FEEDBACK
HINT = re.compile(r"(?:the answer is |Correct solution:\n\n)(\d+)")
QUESTION = re.compile(r"What is 7 times (\d+)\?")
NUM_TASKS = 40
MOST_TURNS = 60


def answer_to(question: str) -> int:
    return 7 * int(QUESTION.findall(question)[-1])


def create_believer() -> FastAPI:
    """The policy over the real protocol."""
    believer = policy_stand_in.create_app()
    believer.router.routes = [one for one in believer.router.routes if getattr(one, "path", "") != "/v1/sample"]

    @believer.post("/v1/sample", response_model=SampleResponse)
    def draw(body: SampleRequest) -> SampleResponse:
        prompts = [
            SampledPrompt(
                id=prompt.id,
                prompt_token_ids=[1],
                samples=[_say(prompt.messages or [], prompt.seed, place) for place in range(prompt.n)],
            )
            for prompt in body.prompts
        ]
        return SampleResponse(version="base", tokenizer_hash=TOKENIZER, prompts=prompts)

    return believer


def _say(messages: list[Message], seed: int, place: int) -> Sample:
    chance = hashlib.sha256(f"{seed}:{place}".encode()).digest()[0] % 8
    right = answer_to(messages[-1].content)
    hinted = [int(one) for message in messages for one in HINT.findall(message.content)]
    hinted += [int(message.content) for message in messages if message.role == "assistant"]
    said = (hinted[-1] if chance < 7 else 0) if hinted else right if chance < 3 else right + 1 + chance
    ids = [ord(c) for c in str(said)]
    return Sample(token_ids=ids, logprobs=[-0.1] * len(ids), text=str(said), finish_reason=FinishReason.STOP)


class Judge:
    """The verifier: it knows the answers."""

    descriptor = Descriptor(
        name="judge",
        version="1",
        kinds=[AnswerKind.SCORE],
        domains=["*"],
        metadata_keys=["answer"],
        deterministic=True,
        verifier=True,
    )

    def consult(self, request: ConsultRequest) -> ConsultResult:
        return ConsultResult(score=float(request.rollout.text == request.task.metadata["answer"]))


Says = Callable[[ConsultRequest], int]


class Tutor:
    """An expert that says what the answer is, by whatever it does now."""

    descriptor = Descriptor(
        name="tutor", version="1", kinds=[AnswerKind.FEEDBACK], domains=["*"], deterministic=True, verifier=False
    )

    def __init__(self) -> None:
        self.says: Says = know
        self.num_asked = 0

    def consult(self, request: ConsultRequest) -> ConsultResult | ConsultAbstain:
        self.num_asked += 1
        return ConsultResult(feedback=Feedback(text=f"No: the answer is {self.says(request)}."))


def know(request: ConsultRequest) -> int:
    return answer_to(request.task.messages[-1].content)


def confuse(request: ConsultRequest) -> int:
    """What was right for another task."""
    return know(request) + 7


def echo(request: ConsultRequest) -> int:
    """The failed attempt itself."""
    return int(request.rollout.text)


@pytest.fixture
def tutor() -> Tutor:
    return Tutor()


@pytest.fixture
def worker(
    database_url: str,
    redis_url: str,
    store: Store,
    world: World,
    tutor: Tutor,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """This process as a worker, with policy, verifier and tutor over HTTP, and train tasks of four families."""
    monkeypatch.setenv("PRECEPTOR_DATABASE_URL", database_url)
    monkeypatch.setenv("PRECEPTOR_REDIS_URL", redis_url)
    monkeypatch.setenv("PRECEPTOR_REMEASURE_ANSWERS", "20")
    monkeypatch.setenv("PRECEPTOR_MEASURING_SHARE", "0.9")  # nothing is trained here, so little is drawn beside it
    monkeypatch.setattr(app.conf, "broker_url", redis_url)
    judge = Judge()
    with (
        serve(create_believer()) as policy_url,
        serve(create_expert_app(judge)) as judge_url,
        serve(create_expert_app(tutor)) as tutor_url,
    ):
        monkeypatch.setenv("PRECEPTOR_POLICY_URL", policy_url)
        runtime.cache_clear()
        with store.transaction() as session:
            seer = world.expert(session, "judge", metadata_keys=("answer",), granted=("answer",))
            seer.endpoint, seer.descriptor = judge_url, judge.descriptor.model_dump(mode="json")
            row = world.expert(session, "tutor", kinds=(AnswerKind.FEEDBACK,), verifier=False)
            row.endpoint = tutor_url
            for n in range(NUM_TASKS):
                prompt = TaskCreate(
                    key=f"t{n:02}",
                    domain="math",
                    family=f"f{n % 4}",
                    messages=[Message(role="user", content=f"What is 7 times {n + 1}?")],
                    metadata={"answer": str(7 * (n + 1))},
                )
                tasks.add(session, world.lineage_id, prompt)
        yield
        runtime().close()
    runtime.cache_clear()


def measure(
    store: Store, world: World, source: ContextSource = FEEDBACK, expert_id: UUID | None = None
) -> list[Measurement]:
    """Ask for it, and let the worker work until every measurement has ended; all of them, oldest first."""
    with store.transaction() as session:
        rules = measuring_rules(runtime().settings)
        wanted = MeasurementCreate(source=source, expert_id=expert_id)
        measurements.ask(session, world.lineage_id, rules, wanted)
    for _ in range(MOST_TURNS):
        turn(store)
        found = read(store)
        if all(one.decided_at is not None for one in found):
            return found
    raise AssertionError(found)


def turn(store: Store) -> None:
    """One sweep, and everything that it gave to do."""
    maintain()
    with store.transaction() as session:
        session.execute(update(GroupRow).where(GroupRow.status == "pending").values(sent_at=func.now()))
        pending = session.scalars(select(GroupRow.id).where(GroupRow.status == "pending")).all()
    sample([str(group_id) for group_id in pending])
    with store.transaction() as session:
        asked = session.scalars(select(ConsultationRow.id).where(ConsultationRow.status == "pending")).all()
    consult([str(one) for one in asked])


def read(store: Store) -> list[Measurement]:
    with store.transaction() as session:
        rows = session.scalars(select(MeasurementRow).order_by(MeasurementRow.id))
        return [Measurement.model_validate(row) for row in rows]


def expert(store: Store, name: str) -> ExpertRow:
    with store.transaction() as session:
        return session.scalars(select(ExpertRow).where(ExpertRow.name == name)).one()


def is_shown(store: Store, world: World, name: str, source: ContextSource = FEEDBACK) -> bool:
    with store.transaction() as session:
        return standing.read(session, world.lineage_id).teaches(expert(store, name).id, source, "math")
