"""A human queue with answers that read like real ones, and people with sessions, for tests of the correction page."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.orm import Session

from services.contracts.answers import AnswerKind, Feedback, FeedbackSpan
from services.contracts.experts import ConsultResult
from services.contracts.persons import Role
from services.contracts.rollouts import Purpose, Sampling
from services.contracts.tasks import Message, TaskCreate
from services.store.core.transaction import Store
from services.store.corrections import corrections
from services.store.loop import consultations, groups, rollouts, settling, tasks
from services.store.loop.rollouts import Sample
from services.store.people import logins, persons
from services.store.tables.corrections import CorrectionRow
from services.store.tables.loop import ExpertRow, RolloutRow
from tests.api.policy_stand_in import TOKENIZER
from tests.store.conftest import World

HUMAN = (AnswerKind.SCORE, AnswerKind.FEEDBACK, AnswerKind.SOLUTION)


@dataclass(frozen=True)
class Said:
    """What one expert says about an answer."""

    score: float | None = None
    feedback: str = ""
    spans: Sequence[FeedbackSpan] = ()
    solution: str | None = None

    def result(self) -> ConsultResult:
        """As the expert sends it."""
        words = Feedback(text=self.feedback, spans=list(self.spans)) if self.feedback or self.spans else None
        return ConsultResult(score=self.score, feedback=words, solution=self.solution)


@dataclass(frozen=True)
class Queue:
    """Puts answers into the human queue of one lineage."""

    store: Store
    world: World

    def experts(self, *names: str) -> None:
        """The human expert, asked only on demand, and experts of these names that everybody's answers are shown to."""
        with self.store.transaction() as session:
            self.world.expert(session, "human", kinds=HUMAN, verifier=False).group_fraction = 0
            for name in names:
                self.world.expert(session, name, kinds=HUMAN)

    def draw(
        self,
        key: str,
        prompt: str,
        answer: str,
        said: dict[str, Said],
        *,
        domain: str = "math",
        logprobs: Sequence[float] | None = None,
    ) -> UUID:
        """A settled rollout of a train task: one token a character; the id of the rollout."""
        with self.store.transaction() as session:
            task, _ = tasks.add(
                session,
                self.world.lineage_id,
                TaskCreate(key=key, domain=domain, messages=[Message(role="user", content=prompt)]),
            )
            rollout = self._store_rollout(session, task.id, answer, logprobs)
            ids = consultations.pending_of(session, [rollout.id])
            questions = consultations.claim(session, ids, lease_seconds=60)
        for question in questions:
            with self.store.transaction() as session:
                settling.settle(session, question, said.get(question.expert_name, Said(score=0.0)).result())
        return rollout.id

    def _store_rollout(
        self, session: Session, task_id: UUID, answer: str, logprobs: Sequence[float] | None
    ) -> RolloutRow:
        group = groups.add(session, tasks.get(session, task_id), purpose=Purpose.TRAIN, size=1, sampling=Sampling())
        [draw] = groups.claim(session, [group.id], lease_seconds=60)
        finished = groups.finish(session, draw, "base")
        assert finished is not None
        ids = [min(ord(character), 255) for character in answer]
        sample = Sample(ids, list(logprobs or [-0.5] * len(ids)), answer, "stop")
        stored = rollouts.add_drawn(
            session, finished, tokenizer_hash=TOKENIZER, prompt_token_ids=[7], samples=[sample], sampling={}
        )
        return session.get_one(RolloutRow, stored.rollouts[0].id)

    def ask(self, rollout_id: UUID, *, asked_for: bool = True) -> UUID:
        """Put the rollout into the queue; the item's id. Not asked for: as if the human expert had been asked."""
        with self.store.transaction() as session:
            row = corrections.ask_for(session, rollout_id)
            if not asked_for:
                row.priority = 0
            return row.id

    def person(self, name: str, role: Role = Role.ANNOTATOR) -> tuple[UUID, str]:
        """A person's id and the token of a session of theirs."""
        with self.store.transaction() as session:
            row, _ = persons.create(session, name, role)
            return row.id, logins.start(session, row.id, None, None, None)[1]

    def read(self, correction_id: UUID) -> CorrectionRow:
        """The item as it is now."""
        with self.store.transaction() as session:
            return corrections.get(session, correction_id)

    def human(self) -> ExpertRow:
        """The human expert."""
        with self.store.transaction() as session:
            row = session.query(ExpertRow).filter_by(name="human").one()
            return row
