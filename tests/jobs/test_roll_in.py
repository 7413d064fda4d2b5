"""Roll-in: a group that the policy and its teacher draw together, over a real policy server with a tiny model."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from sqlalchemy import select, update

from services.contracts.answers import AnswerKind
from services.contracts.experts import ConsultResult
from services.contracts.rollouts import Purpose, Sampling
from services.contracts.sources import ContextSource, ShownContext
from services.contracts.tasks import Message, Precedent, TaskCreate
from services.contracts.templates import Template, build_teacher_messages
from services.jobs.maintain import maintain
from services.jobs.runtime import runtime
from services.jobs.sample import sample
from services.policy.artifacts import ArtifactStore
from services.policy.contract import SamplePrompt, SampleRequest
from services.policy.model.tiny import make_tiny_policy
from services.policy.server.app import create_app
from services.store.core.transaction import Store
from services.store.corrections import corrections
from services.store.ledger import lesson_facts, lessons
from services.store.loop import consultations, groups, rollouts, settling, switches, tasks, withdrawals
from services.store.tables.ledger import LessonRow
from services.store.tables.loop import AnswerRow, ConsultationRow, ExpertRow, GroupRow, RolloutRow
from tests.policy.conftest import Limits, start_embedded
from tests.serving import serve
from tests.store.conftest import World

pytestmark = pytest.mark.integration

SAMPLING = Sampling(max_new_tokens=6, seed=7)
QUESTION = [Message(role="user", content="What is one?")]


@pytest.fixture(scope="module")
def policy_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A policy server with a tiny model that reads 256 tokens."""
    folder = make_tiny_policy(tmp_path_factory.mktemp("model") / "tiny")
    engine = start_embedded(folder, ArtifactStore(tmp_path_factory.mktemp("artifacts")), Limits())
    with serve(create_app(engine)) as url:
        yield url
    engine.close()


def show(solution: str, *, temperature: float | None = 0.5) -> ShownContext:
    """A correction, shown as a turn before the question."""
    messages = build_teacher_messages(Template.TURNS, QUESTION, solution)
    return ShownContext(
        source=ContextSource.CORRECTION, template=Template.TURNS, messages=messages, temperature=temperature
    )


def draw(
    store: Store, world: World, context: ShownContext | None, *, size: int, num_shown: int, purpose: Purpose
) -> tuple[GroupRow, list[RolloutRow]]:
    """One group as a worker draws it, with its rollouts by their places."""
    with store.transaction() as session:
        task = world.task(session, "one")
        planned = groups.add(
            session, task, purpose=purpose, size=size, sampling=SAMPLING, context=context, num_shown=num_shown
        )
    sample([str(planned.id)])
    with store.transaction() as session:
        drawn = session.scalars(
            select(RolloutRow).where(RolloutRow.group_id == planned.id).order_by(RolloutRow.index_in_group)
        ).all()
        return session.get_one(GroupRow, planned.id), list(drawn)


def ask(messages: list[Message], num: int, seed: int, temperature: float) -> tuple[list[int], list[list[int]]]:
    """The prompt's token ids, and those of so many answers, straight from the policy server."""
    prompt = SamplePrompt(id="p", messages=messages, n=num, seed=seed)
    request = SampleRequest(prompts=[prompt], max_new_tokens=6, temperature=temperature)
    [drawn] = runtime().policy.sample(request).prompts
    return drawn.prompt_token_ids, [one.token_ids for one in drawn.samples]


@pytest.mark.usefixtures("worker")
def test_the_teacher_draws_the_last_rollouts_after_its_context_and_they_are_kept_after_the_plain_prompt(
    store: Store, world: World
) -> None:
    context = show("It is 1.")
    group, drawn = draw(store, world, context, size=6, num_shown=2, purpose=Purpose.TRAIN)
    assert (group.status, group.num_shown, group.reason) == ("sampled", 2, None)
    assert [row.shown for row in drawn] == [False] * 4 + [True] * 2

    prompt_ids, own = ask(QUESTION, 4, seed=7, temperature=1.0)
    assert [row.prompt_token_ids for row in drawn] == [prompt_ids] * 6
    assert [row.token_ids for row in drawn[:4]] == own
    assert all(row.sampler_logprobs and row.sampling == SAMPLING.model_dump() for row in drawn[:4])

    sampling = drawn[4].sampling
    assert sampling is not None
    assert sampling == drawn[5].sampling == SAMPLING.model_dump() | {"temperature": 0.5, "seed": sampling["seed"]}
    seed = int(str(sampling["seed"]))
    assert seed != SAMPLING.seed
    _, shown = ask(context.messages, 2, seed=seed, temperature=0.5)
    assert [row.token_ids for row in drawn[4:]] == shown
    assert [row.sampler_logprobs for row in drawn[4:]] == [None, None]


@pytest.mark.usefixtures("worker")
def test_a_context_that_the_policy_cannot_read_leaves_the_whole_group_to_the_policy(store: Store, world: World) -> None:
    group, drawn = draw(store, world, show("1" * 2000), size=6, num_shown=2, purpose=Purpose.TRAIN)
    assert (group.status, group.num_shown, group.failures) == ("sampled", 0, 0)
    assert group.reason is not None
    assert "exceed the context of 256" in group.reason
    _, own = ask(QUESTION, 6, seed=7, temperature=1.0)
    assert [row.token_ids for row in drawn] == own
    assert not any(row.shown for row in drawn)


@pytest.mark.usefixtures("worker")
def test_a_probe_keeps_the_prompt_that_its_teacher_read(store: Store, world: World) -> None:
    context = show("It is 1.", temperature=None)
    _, drawn = draw(store, world, context, size=2, num_shown=2, purpose=Purpose.PROBE)
    prompt_ids, shown = ask(context.messages, 2, seed=7, temperature=1.0)
    assert [row.prompt_token_ids for row in drawn] == [prompt_ids] * 2
    assert [row.token_ids for row in drawn] == shown
    assert [row.sampling for row in drawn] == [SAMPLING.model_dump()] * 2
    assert all(row.shown and row.sampler_logprobs is None for row in drawn)


@pytest.mark.usefixtures("worker")
def test_a_probe_whose_context_cannot_be_read_is_dead_with_the_reason(store: Store, world: World) -> None:
    group, drawn = draw(store, world, show("1" * 2000), size=2, num_shown=2, purpose=Purpose.PROBE)
    assert (group.status, drawn) == ("dead", [])
    assert group.reason is not None
    assert "exceed the context of 256" in group.reason


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("num_shown", "purpose", "status"), [(1, Purpose.TRAIN, "sampled"), (2, Purpose.PROBE, "dead")]
)
def test_what_was_withdrawn_before_the_draw_is_drawn_by_the_policy_alone_and_never_as_a_probe(
    store: Store, world: World, num_shown: int, purpose: Purpose, status: str
) -> None:
    context = show("It is 1.").model_copy(update={"messages": []})
    group, drawn = draw(store, world, context, size=2, num_shown=num_shown, purpose=purpose)
    assert (group.status, [row.shown for row in drawn]) == (status, [False] * 2 if drawn else [])
    assert bool(drawn) is (purpose is Purpose.TRAIN)
    assert "what its teacher was shown was withdrawn" in (group.reason or "")


@pytest.mark.usefixtures("worker")
def test_an_answer_withdrawn_while_a_group_is_planned_is_shown_to_no_teacher(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "solver", kinds=(AnswerKind.SOLUTION,), verifier=False)
        [row] = world.drawn(session, world.task(session, "one"), size=1)
        [asked] = consultations.claim(session, consultations.pending_of(session, [row.id]), lease_seconds=60)
    with store.transaction() as session:
        settling.settle(session, asked, ConsultResult(solution="It is 1."))
        [answer] = session.scalars(select(AnswerRow)).all()
    with store.transaction() as session:
        withdrawals.withdraw(session, answer.id)
    context = show("It is 1.").model_copy(update={"answers": [answer.id]})
    group, drawn = draw(store, world, context, size=2, num_shown=1, purpose=Purpose.TRAIN)
    assert (group.context or {})["messages"] == []
    assert not any(row.shown for row in drawn)


def solve(store: Store, world: World) -> AnswerRow:
    """An answer of the expert `solver`, on another rollout."""
    with store.transaction() as session:
        world.expert(session, "solver", kinds=(AnswerKind.SOLUTION,), verifier=False)
        [row] = world.drawn(session, world.task(session, "one"), size=1)
        [asked] = consultations.claim(session, consultations.pending_of(session, [row.id]), lease_seconds=60)
        settling.settle(session, asked, ConsultResult(solution="It is 1."))
        return session.scalars(select(AnswerRow)).one()


NO_LONGER_COUNTS = [{"status": "paused"}, {"status": "probation"}, {"weight": 0.0}]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("change", [{}, *NO_LONGER_COUNTS])
def test_while_an_answer_behind_it_does_not_count_the_policy_draws_a_planned_roll_in_alone(
    store: Store, world: World, change: dict[str, object]
) -> None:
    answer = solve(store, world)
    with store.transaction() as session:
        session.execute(update(ExpertRow).where(ExpertRow.id == answer.expert_id).values(change or {"weight": 1.0}))
    context = show("It is 1.").model_copy(update={"answers": [answer.id]})
    group, drawn = draw(store, world, context, size=2, num_shown=1, purpose=Purpose.TRAIN)
    assert [row.shown for row in drawn] == [False, not change]
    assert group.num_shown == (0 if change else 1)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("change", NO_LONGER_COUNTS)
def test_a_roll_in_that_was_drawn_has_the_weight_of_what_its_teacher_was_shown_as_it_is_claimed(
    store: Store, world: World, change: dict[str, object]
) -> None:
    answer = solve(store, world)
    with store.transaction() as session:
        world.expert(session)
    context = show("It is 1.").model_copy(update={"answers": [answer.id]})
    group, _ = draw(store, world, context, size=2, num_shown=1, purpose=Purpose.TRAIN)
    settle_all(store, 1.0)

    def read() -> dict[bool, list[float]]:
        with store.transaction() as session:
            rows = session.scalars(select(LessonRow).where(LessonRow.group_id == group.id)).all()
            return {one.shown: [said.weight for said in one.shown_after] for one in lesson_facts.load(session, rows)}

    assert read() == {False: [], True: [1.0]}
    with store.transaction() as session:
        session.execute(update(ExpertRow).where(ExpertRow.id == answer.expert_id).values(change))
    assert read() == {False: [], True: [0.0]}


def settle_all(store: Store, score: float) -> None:
    """Every consultation is answered with this score."""
    with store.transaction() as session:
        ids = session.scalars(select(ConsultationRow.id)).all()
        asked = consultations.claim(session, ids, lease_seconds=60)
    for one in asked:
        with store.transaction() as session:
            settling.settle(session, one, ConsultResult(score=score))


def asked_about(store: Store, rollout: RolloutRow) -> list[str]:
    with store.transaction() as session:
        named = select(ExpertRow.name).join(ConsultationRow, ConsultationRow.expert_id == ExpertRow.id)
        return list(session.scalars(named.where(ConsultationRow.rollout_id == rollout.id).order_by(ExpertRow.name)))


@pytest.mark.usefixtures("worker")
def test_only_verifiers_are_asked_about_what_a_teacher_drew_and_their_verdict_counts_in_no_lesson(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        world.expert(session)
        world.expert(session, "critic", kinds=(AnswerKind.SCORE,), verifier=False)
        world.expert(session, "human", kinds=(AnswerKind.SCORE,), verifier=False)
    _, [own, shown] = draw(store, world, show("It is 1."), size=2, num_shown=1, purpose=Purpose.TRAIN)
    assert asked_about(store, own) == ["critic", "human", "judge"]
    assert asked_about(store, shown) == ["judge"]
    settle_all(store, 1.0)
    with store.transaction() as session:
        assert rollouts.get(session, shown.id).score == 1.0
        claimed = lessons.claim(session, world.lineage_id, uuid4(), num_rollouts=8, max_late=0, lease_seconds=60)
        facts = {one.rollout_id: one for one in lesson_facts.load(session, claimed)}
    assert (facts[own.id].score, facts[own.id].shown) == (1.0, False)
    assert (facts[shown.id].score, facts[shown.id].shown) == (None, True)
    assert facts[shown.id].sampling == SAMPLING  # the policy is read as it would have drawn it


@pytest.mark.usefixtures("worker")
def test_what_a_teacher_drew_is_a_lesson_without_any_answer(store: Store, world: World) -> None:
    _, [own, shown] = draw(store, world, show("It is 1."), size=2, num_shown=1, purpose=Purpose.TRAIN)
    assert (own.status, own.reason) == ("set_aside", "no expert answered")
    assert shown.status == "open"
    with store.transaction() as session:
        assert rollouts.advance_unheld(session, 10) == [shown.id]
        assert rollouts.get(session, shown.id).status == "ready"
        [lesson] = session.scalars(select(LessonRow)).all()
        assert (lesson.rollout_id, lesson.status) == (shown.id, "ready")


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("granted", "own", "asked"), [((), None, False), (("reference",), None, True), ((), "execution", True)]
)
def test_an_expert_from_outside_judges_what_may_quote_metadata_only_if_it_was_granted_it(
    store: Store, world: World, granted: tuple[str, ...], own: str | None, asked: bool
) -> None:
    with store.transaction() as session:
        world.expert(session, granted=granted).own = own
    context = show("It is 1.").model_copy(update={"source": ContextSource.REFERENCE})
    group, [_, shown] = draw(store, world, context, size=2, num_shown=1, purpose=Purpose.TRAIN)
    assert (group.context or {})["quotes"] == ["reference"]
    assert bool(asked_about(store, shown)) is asked


@pytest.mark.usefixtures("worker")
def test_a_teachers_answer_is_never_put_into_the_queue_of_people(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "human", kinds=(AnswerKind.SOLUTION,), verifier=False)
    _, [own, shown] = draw(store, world, show("It is 1."), size=2, num_shown=1, purpose=Purpose.TRAIN)
    with store.transaction() as session:
        assert corrections.ask_for(session, own.id).rollout_id == own.id
        with pytest.raises(corrections.NotCorrectable, match="drawn by a teacher"):
            corrections.ask_for(session, shown.id)


def roll_in_half(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    """Let teachers draw half of groups of four, with these further settings, from the next job on."""
    common = {"roll_in": "0.5", "group_size": "4", "max_backlog_lessons": "8", "min_free_gb": "0"}
    for name, value in (common | settings).items():
        monkeypatch.setenv(f"PRECEPTOR_{name.upper()}", value)
    runtime().close()
    runtime.cache_clear()


@pytest.mark.usefixtures("worker")
def test_the_sweep_plans_roll_in_for_a_task_that_the_policy_fails_and_the_group_is_drawn_so(
    store: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    roll_in_half(monkeypatch, max_new_tokens="6")
    with store.transaction() as session:
        world.expert(session)
        keys = ("reference",)
        world.expert(session, "key", kinds=(AnswerKind.SOLUTION,), verifier=False, metadata_keys=keys, granted=keys)
        prompt = TaskCreate(key="one", domain="math", messages=QUESTION, metadata={"reference": "It is 1."})
        task, _ = tasks.add(session, world.lineage_id, prompt)
        world.drawn(session, task, size=2)
        ids = session.scalars(select(ConsultationRow.id)).all()
        asked = consultations.claim(session, ids, lease_seconds=60)
        switches.switch(session, world.lineage_id, sampling=True)
    for one in asked:
        said = ConsultResult(score=0.0) if one.expert_name == "judge" else ConsultResult(solution="It is 1.")
        with store.transaction() as session:
            settling.settle(session, one, said)
    maintain()
    with store.transaction() as session:
        [planned] = session.scalars(select(GroupRow).where(GroupRow.status == "pending")).all()
        assert (planned.size, planned.num_shown) == (2, 1)
    sample([str(planned.id)])
    with store.transaction() as session:
        of_group = select(RolloutRow).where(RolloutRow.group_id == planned.id).order_by(RolloutRow.index_in_group)
        drawn = session.scalars(of_group).all()
    assert [(row.shown, (row.sampling or {})["temperature"]) for row in drawn] == [(False, 1.0), (True, 0.5)]


@pytest.mark.usefixtures("worker")
def test_the_sweep_scouts_a_task_that_was_never_drawn_and_its_teacher_draws_after_its_own_precedents(
    store: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    roll_in_half(monkeypatch, max_groups_per_task="1", measuring_share="0")
    told = Precedent(messages=[Message(role="user", content="What is two?")], answer="It is 2.")
    metadata = {"precedents": [told.model_dump(mode="json")]}
    with store.transaction() as session:
        world.expert(session)
        keys, kinds = ("precedents",), (AnswerKind.PRECEDENTS,)
        world.expert(session, "librarian", kinds=kinds, verifier=False, metadata_keys=keys, granted=keys)
        world.drawn(session, world.task(session, "failed"), size=8)
        new = TaskCreate(key="one", domain="math", messages=QUESTION, metadata=metadata)
        task, _ = tasks.add(session, world.lineage_id, new)
        switches.switch(session, world.lineage_id, sampling=True)
    settle_all(store, 0.0)
    with store.transaction() as session:
        lessons.claim(session, world.lineage_id, uuid4(), num_rollouts=8, max_late=0, lease_seconds=60)
        session.execute(update(LessonRow).values(status="set_aside"))
    maintain()
    with store.transaction() as session:
        [scout] = session.scalars(select(GroupRow).where(GroupRow.status == "pending")).all()
        assert (scout.purpose, scout.task_id, scout.size) == ("scout", task.id, 1)
    maintain()  # the group waits
    sample([str(scout.id)])
    with store.transaction() as session:
        ids = session.scalars(select(ConsultationRow.id).where(ConsultationRow.status == "pending")).all()
        [asked] = consultations.claim(session, ids, lease_seconds=60)
    assert (asked.expert_name, asked.request.ask.kinds) == ("librarian", [AnswerKind.PRECEDENTS])
    with store.transaction() as session:
        settling.settle(session, asked, ConsultResult(precedents=[told]))
        assert rollouts.get(session, asked.rollout_id).status == "ready"
    maintain()
    with store.transaction() as session:
        [planned] = session.scalars(select(GroupRow).where(GroupRow.status == "pending")).all()
        assert (planned.purpose, planned.task_id, planned.num_shown) == ("train", task.id, 1)
        said = [message["content"] for message in (planned.context or {})["messages"]]  # type: ignore[union-attr, index, call-overload]
    assert said == ["What is two?", "It is 2.", "What is one?"]
