"""A store with one lineage, and short ways to put tasks, experts and rollouts into it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerKind
from services.contracts.experts import Descriptor, OwnKind
from services.contracts.measurements import MeasurementStatus
from services.contracts.rollouts import Purpose, Rollout, RolloutCreate, Sampling
from services.contracts.sources import ContextSource, ShownContext
from services.contracts.tasks import Message, Split, TaskCreate
from services.contracts.templates import Template
from services.store.core.transaction import Store
from services.store.loop import groups, ingest, lineages, rollouts, tasks
from services.store.loop.rollouts import Sample
from services.store.tables.base import LineageRow
from services.store.tables.loop import ExpertRow, GroupRow, RolloutRow, TaskRow
from services.store.tables.teaching import MeasurementRow

VOCAB = 1000
TOKENIZER = "a" * 64


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """The store on a database of the test's own."""
    made = Store(database_url, pool_size=4)
    yield made
    made.close()


@pytest.fixture
def num_statements() -> Iterator[Callable[[Callable[[], object]], int]]:
    """A function that counts the statements something sends to the database."""
    sent: list[str] = []

    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    def count(do: Callable[[], object]) -> int:
        sent.clear()
        do()
        return len(sent)

    event.listen(Engine, "before_cursor_execute", note)
    yield count
    event.remove(Engine, "before_cursor_execute", note)


def show(source: ContextSource, *answers: UUID, words: str = "It is 1.") -> ShownContext:
    """A context with these words before the question, made of these answers."""
    messages = [Message(role="assistant", content=words), Message(role="user", content="What is it?")]
    return ShownContext(source=source, template=Template.TURNS, messages=messages, answers=list(answers))


@dataclass(frozen=True)
class World:
    """The lineage and builders; each builder works in the session it is given."""

    lineage_id: UUID

    def task(self, session: Session, key: str = "t", split: Split = Split.TRAIN, domain: str = "math") -> TaskRow:
        """A task with an answer as metadata."""
        prompt = TaskCreate(
            key=key,
            domain=domain,
            split=split,
            messages=[Message(role="user", content=f"What is {key}?")],
            metadata={"answer": "1"},
        )
        return tasks.add(session, self.lineage_id, prompt)[0]

    def expert(
        self,
        session: Session,
        name: str = "judge",
        *,
        status: str = "active",
        kinds: tuple[AnswerKind, ...] = (AnswerKind.SCORE,),
        verifier: bool = True,
        needs_answers: bool = False,
        metadata_keys: tuple[str, ...] = (),
        granted: tuple[str, ...] = (),
        rollouts_per_group: int | None = None,
        teaches: ContextSource | None = None,
    ) -> ExpertRow:
        """A registered expert that nobody runs; our own if it is to be people's. teaches: what it was measured to
        teach in the domain `math`."""
        descriptor = Descriptor(
            name=name,
            version="1",
            kinds=list(kinds),
            domains=["*"],
            metadata_keys=list(metadata_keys),
            deterministic=True,
            verifier=verifier,
            needs_answers=needs_answers,
        )
        row = ExpertRow(
            lineage_id=self.lineage_id,
            name=name,
            endpoint=f"http://127.0.0.1:1/{name}",
            version="1",
            descriptor=descriptor.model_dump(mode="json"),
            status=status,
            granted=list(granted),
            trusted=True,
            weight=1.0,
            rollouts_per_group=rollouts_per_group,
            report={"endpoint": "", "descriptor": None, "checks": []},
            own=name if name == OwnKind.HUMAN.value else None,
        )
        session.add(row)
        session.flush()
        if teaches is not None:
            self.measured(session, row.id, MeasurementStatus.TEACHES, source=teaches)
        return row

    def measured(
        self,
        session: Session,
        expert_id: UUID,
        status: MeasurementStatus,
        *,
        source: ContextSource = ContextSource.FEEDBACK,
        template: Template = Template.REPROMPT,
        domain: str = "math",
        low: float | None = 0.1,
    ) -> MeasurementRow:
        """A measurement that ended, or is under way. low: the gap's lower bound."""
        row = MeasurementRow(
            lineage_id=self.lineage_id,
            expert_id=expert_id,
            source=source.value,
            template=template.value,
            domain=domain,
            policy_version="base",
            temperature=0.5,
            status=status.value,
            gap_low=low,
            decided_at=None if status is MeasurementStatus.MEASURING else datetime.now(UTC),
        )
        session.add(row)
        session.flush()
        return row

    def drawn(
        self,
        session: Session,
        task: TaskRow,
        size: int = 2,
        purpose: Purpose = Purpose.TRAIN,
        context: ShownContext | None = None,
        num_shown: int = 0,
    ) -> list[RolloutRow]:
        """A group of `size` rollouts as a worker stores them, the last `num_shown` drawn by a teacher."""
        group = groups.add(
            session, task, purpose=purpose, size=size, sampling=Sampling(), context=context, num_shown=num_shown
        )
        [draw] = groups.claim(session, [group.id], lease_seconds=60)
        finished = groups.finish(session, draw, "base")
        assert finished is not None
        return self.store_drawn(session, finished)

    def store_drawn(self, session: Session, finished: GroupRow) -> list[RolloutRow]:
        """The rollouts of a group that was drawn."""
        samples = [Sample([1, 2, 3], [-0.5, -0.5, -0.5], f"answer {i}", "stop") for i in range(finished.size)]
        stored = rollouts.add_drawn(
            session,
            finished,
            tokenizer_hash=TOKENIZER,
            prompt_token_ids=[7],
            samples=samples,
            sampling=finished.sampling,
        )
        return [session.get_one(RolloutRow, one.id) for one in stored.rollouts]

    def lineage(self, session: Session) -> LineageRow:
        """The lineage's row."""
        return session.get_one(LineageRow, self.lineage_id)

    def external(self, session: Session, task: TaskRow, purpose: Purpose = Purpose.TRAIN) -> RolloutRow:
        """A rollout sampled elsewhere."""
        body = RolloutCreate(task_id=task.id, text="elsewhere", purpose=purpose)
        stored = self.arrive(session, body)
        assert isinstance(stored, Rollout)
        return session.get_one(RolloutRow, stored.id)

    def arrive(self, session: Session, body: RolloutCreate) -> ingest.Outcome:
        """What becomes of a rollout sampled elsewhere."""
        task = tasks.find_known(session, self.lineage_id, [body.task_id])[body.task_id]
        ingest.check(self.lineage(session), task, body, ["base"])
        draft = ingest.Draft(body, task, [7], [1, 2], body.text or "", group_id=body.group_id)
        [outcome] = ingest.store(session, self.lineage(session), [draft]).outcomes
        return outcome


@pytest.fixture
def world(store: Store) -> World:
    """A lineage with its base serving."""
    with store.transaction() as session:
        row = lineages.ensure(session, "main", "tiny", "b" * 64, TOKENIZER, VOCAB)
    return World(row.id)
