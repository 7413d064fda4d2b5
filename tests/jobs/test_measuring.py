"""What teaches, measured from outside: real experts over HTTP, and a policy that believes what it is shown.

Asked "What is 7 times n?" the policy alone is right three times in eight. Shown that "the answer is" some number it
says that number seven times in eight, whatever the question.
"""

import hashlib
import re
from collections.abc import Callable, Iterator

import pytest
from fastapi import FastAPI
from sqlalchemy import func, select, update

from services.contracts.answers import AnswerKind, Feedback
from services.contracts.base import JsonObject
from services.contracts.experts import ConsultAbstain, ConsultRequest, ConsultResult, Descriptor
from services.contracts.measurements import Measurement, MeasurementCreate
from services.contracts.sources import Arm, ContextSource, ShownContext
from services.contracts.tasks import Message, TaskCreate
from services.contracts.templates import Template
from services.experts.protocol.app import create_expert_app
from services.jobs.app import app
from services.jobs.consult import consult
from services.jobs.maintain import maintain, measuring_rules
from services.jobs.runtime import runtime
from services.jobs.sample import sample
from services.policy.contract import FinishReason, Sample, SampledPrompt, SampleRequest, SampleResponse
from services.store.core.transaction import Store
from services.store.loop import answers, switches, tasks
from services.store.tables.loop import AnswerRow, ConsultationRow, ExpertRow, GroupRow, RolloutRow
from services.store.tables.people import AuditRow
from services.store.tables.teaching import MeasuredTaskRow, MeasurementRow
from services.store.teaching import measurements, standing
from tests.api import policy_stand_in
from tests.serving import serve
from tests.store.conftest import TOKENIZER, World

pytestmark = pytest.mark.integration

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


def measure(store: Store, world: World, source: ContextSource = FEEDBACK) -> list[Measurement]:
    """Ask for it, and let the worker work until every measurement has ended; all of them, oldest first."""
    with store.transaction() as session:
        rules = measuring_rules(runtime().settings)
        measurements.ask(session, world.lineage_id, rules, MeasurementCreate(source=source))
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


@pytest.mark.usefixtures("worker")
def test_an_expert_that_says_what_is_right_gets_in(store: Store, world: World) -> None:
    assert not is_shown(store, world, "tutor")

    [found] = measure(store, world)

    assert found.status == "teaches"
    assert found.num_tasks == 8
    assert found.temperature == 0.5
    # alone 3 of 8, shown the answer 7 of 8, shown another's answer 0
    assert found.gap == pytest.approx(0.5, abs=0.2)
    assert found.net == pytest.approx(7 / 8, abs=0.15)
    assert is_shown(store, world, "tutor")
    assert expert(store, "tutor").status == "active"


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("says", [confuse, echo])
def test_an_expert_that_returns_other_tasks_feedback_or_the_failed_attempt_is_out(
    store: Store, world: World, tutor: Tutor, says: Says
) -> None:
    tutor.says = says

    [found] = measure(store, world)

    assert found.status == "does_not_teach"
    assert not is_shown(store, world, "tutor")
    row = expert(store, "tutor")
    assert row.status == "probation"
    assert re.fullmatch(r"feedback in math, measured, not taught: -0\.\d\d ± 0\.\d\d", row.reason or "")
    with store.transaction() as session:
        [rollout, *_] = session.scalars(select(RolloutRow).join(AnswerRow, AnswerRow.expert_id == row.id))
        assert row.id not in {answer.expert_id for answer in answers.counting(session, rollout.id)}
        [entry] = session.scalars(select(AuditRow).where(AuditRow.action == "experts.demoted"))
    assert (entry.person_id, entry.noun_id, entry.detail) == (None, str(row.id), {"measured": row.reason})


@pytest.mark.usefixtures("worker")
def test_a_right_expert_that_turns_bad_is_out_within_a_set_number_of_answers(
    store: Store, world: World, tutor: Tutor
) -> None:
    measure(store, world)
    assert is_shown(store, world, "tutor")
    tutor.says, asked_before = confuse, tutor.num_asked
    with store.transaction() as session:
        switches.switch(session, world.lineage_id, sampling=True)

    for _ in range(MOST_TURNS):
        turn(store)
        if not is_shown(store, world, "tutor"):
            break

    assert not is_shown(store, world, "tutor")
    assert expert(store, "tutor").status == "probation"
    # due after 20 answers, which come with groups of 8; then 4 to each of a look's 8 tasks, and a group of 8 in each of
    # the three sweeps that begin the measurement, draw the student and draw the teacher
    assert tutor.num_asked - asked_before <= 24 + 8 * 4 + 3 * 8


@pytest.mark.usefixtures("worker")
def test_an_expert_on_probation_that_teaches_is_ready_to_be_promoted(store: Store, world: World) -> None:
    with store.transaction() as session:
        session.execute(update(ExpertRow).where(ExpertRow.name == "tutor").values(status="probation"))

    measure(store, world)

    row = expert(store, "tutor")
    assert row.status == "probation"
    said = r"ready to be promoted: feedback in math, teaches: \+0\.\d\d ± 0\.\d\d\. "
    assert re.fullmatch(said + f"Confirm with `preceptor experts activate {str(row.id)[-8:]}`", row.reason or "")


class Contrary(Judge):
    """A verifier that calls wrong answers right, and right ones wrong."""

    def consult(self, request: ConsultRequest) -> ConsultResult:
        return ConsultResult(score=float(request.rollout.text != request.task.metadata["answer"]))


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(("verifier", "status"), [(Judge, "teaches"), (Contrary, "does_not_teach")])
def test_a_verifier_on_probation_is_ready_to_be_promoted_once_what_it_certifies_teaches(
    store: Store, world: World, verifier: type[Judge], status: str
) -> None:
    with serve(create_expert_app(verifier())) as url:
        with store.transaction() as session:
            row = world.expert(session, "newcomer", status="probation", metadata_keys=("answer",), granted=("answer",))
            row.endpoint, newcomer_id = url, row.id

        found = [one for one in measure(store, world, ContextSource.OWN_SUCCESS) if one.expert_id == newcomer_id]

    assert [(one.template, one.status) for one in found] == [(Template.TURNS, status), (Template.REPROMPT, status)]
    row = expert(store, "newcomer")
    assert row.status == "probation"
    ready = (
        r"ready to be promoted: own success \(reprompt\) in math, teaches: \+0\.\d\d ± 0\.\d\d; own success \(turns.*"
    )
    assert bool(re.match(ready, row.reason or "")) == (status == "teaches")


@pytest.mark.usefixtures("worker")
def test_with_the_setting_an_expert_that_teaches_is_promoted_by_itself(
    store: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRECEPTOR_PROMOTE_MEASURED", "true")
    runtime.cache_clear()
    passed: JsonObject = {"name": "descriptor", "passed": True, "required": True, "detail": ""}
    with store.transaction() as session:
        row = session.scalars(select(ExpertRow).where(ExpertRow.name == "tutor")).one()
        row.status = "probation"
        row.report = {"endpoint": row.endpoint, "descriptor": row.descriptor, "checks": [passed]}

    measure(store, world)

    assert (expert(store, "tutor").status, expert(store, "tutor").reason) == ("active", None)
    with store.transaction() as session:
        assert session.scalar(select(AuditRow.noun_id).where(AuditRow.action == "experts.promoted")) == str(row.id)


@pytest.mark.usefixtures("worker")
def test_own_successes_are_measured_by_both_templates_and_the_student_by_the_other_half(
    store: Store, world: World
) -> None:
    found = measure(store, world, ContextSource.OWN_SUCCESS)

    assert [(one.template, one.status) for one in found] == [
        (Template.TURNS, "teaches"),
        (Template.REPROMPT, "teaches"),
    ]
    with store.transaction() as session:
        place = session.scalars(select(MeasuredTaskRow).where(MeasuredTaskRow.measurement_id == found[0].id)).first()
        assert place is not None
        context, control = (
            ShownContext.model_validate(session.get_one(GroupRow, group_id).context)
            for group_id in (place.teacher_group_id, place.control_group_id)
        )
        [said] = session.scalars(select(AnswerRow).where(AnswerRow.id.in_(context.answers)))
        shown = session.get_one(RolloutRow, said.rollout_id)
        student = session.scalars(select(RolloutRow).where(RolloutRow.group_id == place.student_group_id)).all()
    assert (shown.group_id, shown.score, shown.index_in_group % 2) == (place.student_group_id, 1.0, 0)
    assert len(student) == 8
    assert (context.arm, control.arm) == (Arm.TEACHER, Arm.CONTROL)
    assert context.messages != control.messages
    assert context.messages[-1] == control.messages[-1]


@pytest.mark.usefixtures("worker")
def test_all_three_arms_of_a_task_are_drawn_at_the_teachers_temperature_by_one_version_and_train_nothing(
    store: Store, world: World
) -> None:
    [found] = measure(store, world)

    with store.transaction() as session:
        rows = session.scalars(select(GroupRow)).all()
        assert {row.purpose for row in rows} == {"probe"}
        assert {row.sampling["temperature"] for row in rows} == {0.5}
        assert {row.policy_version for row in rows} == {"base"}
        drawn = session.scalar(select(func.sum(func.cardinality(RolloutRow.token_ids))))
    assert len(rows) == 3 * found.num_tasks
    assert found.num_tokens == drawn


@pytest.mark.usefixtures("worker")
def test_a_measurement_ends_with_its_tokens(store: Store, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_MEASURING_TOKENS", "1")
    runtime.cache_clear()

    [found] = measure(store, world)

    assert (found.num_looks, found.num_tasks, found.status) == (1, 8, "teaches")


@pytest.mark.usefixtures("worker")
def test_without_being_asked_the_loop_measures_within_its_share_of_the_draws(
    store: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRECEPTOR_MEASURING_SHARE", "0.2")
    runtime.cache_clear()
    with store.transaction() as session:
        switches.switch(session, world.lineage_id, sampling=True)
    for _ in range(6):
        turn(store)

    with store.transaction() as session:
        drawn = dict(session.execute(select(GroupRow.purpose, func.count()).group_by(GroupRow.purpose)).all())
    assert drawn == {"train": 6, "probe": 8 + 2 * 2 * 8}  # a round that has begun is finished, and no other begins


@pytest.mark.usefixtures("worker")
def test_a_source_without_anything_to_show_waits_and_says_so(store: Store, world: World) -> None:
    with store.transaction() as session:
        rules = measuring_rules(runtime().settings)
        wanted = MeasurementCreate(source=ContextSource.PRECEDENTS)
        measurements.ask(session, world.lineage_id, rules, wanted)
    for _ in range(6):
        turn(store)

    [found] = read(store)
    assert (found.status, found.reason) == ("measuring", "none of 8 tasks had anything to show (precedents)")
    with store.transaction() as session:
        assert session.scalars(select(MeasuredTaskRow)).all() == []
        assert session.scalar(select(func.count()).select_from(GroupRow)) == 8


@pytest.mark.usefixtures("worker")
def test_tasks_that_lack_what_the_expert_needs_are_not_drawn_for_it(store: Store, world: World) -> None:
    with store.transaction() as session:
        tutor = session.scalars(select(ExpertRow).where(ExpertRow.name == "tutor")).one()
        tutor.descriptor = tutor.descriptor | {"metadata_keys": ["notes"]}
        tutor.granted = ["notes"]
        rules = measuring_rules(runtime().settings)
        measurements.ask(session, world.lineage_id, rules, MeasurementCreate(source=FEEDBACK))
    turn(store)

    [found] = read(store)
    assert (found.status, found.reason) == ("measuring", "only 0 of the 8 tasks it needs have something to show")
    with store.transaction() as session:
        assert session.scalars(select(GroupRow)).all() == []


@pytest.mark.usefixtures("worker")
def test_once_its_time_is_over_what_a_person_asked_for_waits_for_the_loop(store: Store, world: World) -> None:
    """The loop is paused: nothing is drawn after the time that was asked for, and again within a new one."""

    def ask_and_sweep(*, is_over: bool) -> int | None:
        with store.transaction() as session:
            rules = measuring_rules(runtime().settings)
            measurements.ask(session, world.lineage_id, rules, MeasurementCreate(source=FEEDBACK))
            if is_over:
                session.execute(update(MeasurementRow).values(asked_until=func.now()))
        maintain()
        with store.transaction() as session:
            return session.scalar(select(func.count()).select_from(GroupRow))

    assert ask_and_sweep(is_over=True) == 0
    assert ask_and_sweep(is_over=False) == 8
