"""Short ways to put lessons into a store, and lesson facts without one."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import torch
from sqlalchemy import func
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerContent, AnswerKind
from services.contracts.experts import Descriptor
from services.contracts.ids import new_id
from services.contracts.persons import Role
from services.contracts.rollouts import Sampling
from services.contracts.sources import ContextSource
from services.contracts.tasks import Message, TaskCreate
from services.contracts.templates import Template
from services.policy.model.modeling import (
    LoadedPolicy,
    decode_ids,
    encode_text,
    prefill_prompt,
    render_prompt,
    score_responses,
)
from services.store.core.transaction import Store
from services.store.ledger.lesson_facts import LessonAnswer, LessonFacts
from services.store.loop import answers, lineages, rollouts, switches, tasks
from services.store.loop.standing import Standing
from services.store.people import persons
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import LessonRow, PolicyVersionRow
from services.store.tables.loop import AnswerRow, ExpertRow, GroupRow, RolloutRow, TaskRow
from tests.rows import say
from trainer.batch.contexts import Showable

ANSWERS = ("four", "it is 4", "five?", "2+2", "héllo", "no", "4", "IV")


@dataclass(frozen=True)
class World:
    """A lineage of the tiny policy with its base serving."""

    store: Store
    policy: LoadedPolicy
    folder: str
    lineage_id: UUID

    @classmethod
    def begin(cls, store: Store, policy: LoadedPolicy, folder: str) -> "World":
        with store.transaction() as session:
            row = lineages.ensure(session, "main", folder, policy.base_sha256, policy.tokenizer_hash, policy.vocab_size)
        return cls(store, policy, folder, row.id)

    def stop_after(self, number: int | None) -> None:
        with self.store.transaction() as session:
            switches.stop_after(session, self.lineage_id, number)

    def expert(
        self,
        session: Session,
        name: str,
        kinds: Sequence[AnswerKind],
        *,
        status: str = "active",
        reference: bool = False,
    ) -> ExpertRow:
        """A registered expert that nobody runs."""
        keys = ["reference"] if reference else []
        descriptor = Descriptor(
            name=name, version="1", kinds=list(kinds), domains=["*"], metadata_keys=keys, deterministic=True
        )
        row = ExpertRow(
            lineage_id=self.lineage_id,
            name=name,
            endpoint=f"http://127.0.0.1:1/{name}",
            version="1",
            descriptor=descriptor.model_dump(mode="json"),
            status=status,
            granted=keys,
            trusted=True,
            weight=1.0,
            report={"endpoint": "", "descriptor": None, "checks": []},
        )
        session.add(row)
        session.flush()
        return row

    def task(self, session: Session, key: str, domain: str = "math") -> TaskRow:
        prompt = TaskCreate(key=key, domain=domain, messages=[Message(role="user", content=f"What is {key}?")])
        return tasks.add(session, self.lineage_id, prompt)[0]

    def group(
        self,
        session: Session,
        task: TaskRow,
        texts: Sequence[str] = ANSWERS,
        policy_version: str = "base",
        *,
        external: bool = False,
        status: str = "ready",
    ) -> list[RolloutRow]:
        """A group of settled rollouts without answers or lessons."""
        group = GroupRow(
            lineage_id=self.lineage_id,
            task_id=task.id,
            split=task.split,
            purpose="train",
            policy_version=policy_version,
            size=len(texts),
            sampling=Sampling().model_dump(mode="json"),
            external=external,
            status="sampled",
        )
        session.add(group)
        session.flush()
        tokenizer = self.policy.tokenizer
        messages = [Message.model_validate(message) for message in task.messages]
        prompt_ids = render_prompt(tokenizer, messages)
        rows = []
        for index, text in enumerate(texts):
            ids = encode_text(tokenizer, text)
            row = RolloutRow(
                id=new_id(),
                lineage_id=self.lineage_id,
                task_id=task.id,
                split=task.split,
                purpose="train",
                group_id=group.id,
                index_in_group=index,
                status=status,
                policy_version=policy_version,
                prompt_token_ids=prompt_ids,
                token_ids=ids,
                sampler_logprobs=score(self.policy, prompt_ids, ids),
                action_mask=[True] * len(ids),
                tokenizer_hash=self.policy.tokenizer_hash,
                sampling=Sampling().model_dump(mode="json"),
                text=text,
                finish_reason="stop",
            )
            rows.append(row)
        session.add_all(rows)
        session.flush()
        return rows

    def answer(self, session: Session, rollout: RolloutRow, expert: ExpertRow, content: AnswerContent) -> UUID:
        """An expert's settled answer about a rollout."""
        return say(session, rollout, expert, content).id

    def correction(self, session: Session, rollout: RolloutRow, expert: ExpertRow, text: str) -> UUID:
        """A person's submitted correction of a rollout."""
        answer_id = self.answer(session, rollout, expert, AnswerContent(score=0.0, solution=text))
        answer = session.get_one(AnswerRow, answer_id)
        person, _ = persons.create(session, f"ann-{answer_id}", Role.ANNOTATOR)
        session.add(
            CorrectionRow(
                lineage_id=self.lineage_id,
                consultation_id=answer.consultation_id,
                rollout_id=rollout.id,
                split=rollout.split,
                status="submitted",
                person_id=person.id,
                verdict="corrected",
                text=text,
            )
        )
        session.flush()
        return answer_id

    def lesson(
        self, session: Session, rollout: RolloutRow, *, late: bool = False, said: Sequence[UUID] = ()
    ) -> LessonRow:
        """The rollout's lesson with these answers, or with all it has."""
        current = [row for row in answers.current(session, rollout.id) if not said or row.id in said]
        return rollouts.open_lesson(session, rollout, current, late=late)

    def lessons(self, num_groups: int, first: int = 0) -> list[UUID]:
        """Whole groups of eight that an active reference has answered, ready to be claimed; their group ids."""
        made = []
        with self.store.transaction() as session:
            found = session.query(ExpertRow).filter_by(name="reference").one_or_none()
            reference = found or self.expert(session, "reference", [AnswerKind.SOLUTION], reference=True)
            for number in range(first, first + num_groups):
                rows = self.group(session, self.task(session, f"{number}+2"))
                for row in rows:
                    self.answer(session, row, reference, AnswerContent(solution=f"It is {number + 2}."))
                    self.lesson(session, row)
                made.append(rows[0].group_id)
        return made

    def version(self, session: Session, number: int, status: str = "superseded") -> PolicyVersionRow:
        """A policy version that only exists as a row."""
        row = PolicyVersionRow(
            lineage_id=self.lineage_id,
            number=number,
            name=f"main-v{number}",
            status=status,
            artifact_sha256="a" * 64,
            served_at=func.clock_timestamp() if status in ("serving", "superseded") else None,
        )
        session.add(row)
        session.flush()
        return row


def score(policy: LoadedPolicy, prompt_ids: Sequence[int], ids: Sequence[int]) -> list[float]:
    """The base's logprobs of a response."""
    response = torch.tensor([list(ids)])
    prefill = prefill_prompt(policy.model, torch.tensor(list(prompt_ids)))
    with torch.no_grad():
        return (
            score_responses(policy.model, prefill, response, torch.ones_like(response, dtype=torch.bool))
            .logprobs[0]
            .tolist()
        )


def facts(policy: LoadedPolicy, text: str = "four", *, index: int = 0, **changes: object) -> LessonFacts:
    """A lesson of one group about `What is 2+2?`, without answers; its verdict is that of the answers with a score."""
    messages = (Message(role="user", content="What is 2+2?"),)
    prompt_ids = render_prompt(policy.tokenizer, messages)
    ids = encode_text(policy.tokenizer, text)
    base = {
        "lesson_id": new_id(),
        "rollout_id": new_id(),
        "group_id": UUID(int=7),
        "group_size": 8,
        "index_in_group": index,
        "ordinal": 0,
        "late": False,
        "task_id": UUID(int=1),
        "domain": "math",
        "messages": messages,
        "prompt_token_ids": tuple(prompt_ids),
        "token_ids": tuple(ids),
        "text": decode_ids(policy.tokenizer, ids),
        "sampler_logprobs": tuple(score(policy, prompt_ids, ids)),
        "action_mask": (True,) * len(ids),
        "sampling": Sampling(),
        "tokenized_at_ingest": False,
        "finish_reason": "stop",
        "policy_number": 0,
        "score": None,
        "answers": (),
    }
    said: Sequence[LessonAnswer] = changes.get("answers", ())  # type: ignore[assignment]
    base["judges"] = tuple(answer for answer in said if answer.score is not None)
    return LessonFacts(**(base | changes))  # type: ignore[arg-type]


def answer(**changes: object) -> LessonAnswer:
    """An active expert's answer that says nothing yet."""
    base = {
        "id": new_id(),
        "expert_id": new_id(),
        "expert": "judge",
        "expert_version": "1",
        "weight": 1.0,
        "score": None,
        "feedback": None,
        "solution": None,
        "distribution": None,
        "from_reference": False,
        "corrected": False,
    }
    return LessonAnswer(**(base | changes))  # type: ignore[arg-type]


class AllTeach(Standing):
    """A standing in which every source teaches."""

    def template_for(self, expert_id: UUID, source: ContextSource, domain: str, default: Template) -> Template | None:
        return default


TAUGHT_BY_ALL = Showable(standing=AllTeach())
REFERENCE_ALONE: dict[str, object] = {"sources": {"*": ["reference", "feedback"]}}


def reference(text: str = "It is 4.") -> LessonAnswer:
    """What the reference expert says."""
    return answer(expert="reference", solution=text, from_reference=True)
