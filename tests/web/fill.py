"""A store as a loop leaves it that has run for a while: for pages, their tests and their pictures.

    python -m tests.web.fill DATABASE_URL      fills a migrated, empty database

Everything is drawn from one seed, so two fills differ in ids and times only.
"""

import math
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import numpy as np
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerKind, TopKDistribution
from services.contracts.base import JsonObject
from services.contracts.evaluations import TEMPERATURES, EvaluationCreate
from services.contracts.experts import Descriptor
from services.contracts.ids import new_id
from services.contracts.rollouts import Sampling
from services.contracts.tasks import Message, Split, TaskCreate
from services.store.core import row_counts
from services.store.core.transaction import Store
from services.store.ledger import distributions
from services.store.ledger.distributions import TopK
from services.store.loop import lineages, processes, switches, tasks, vocabularies
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import (
    LessonAnswerRow,
    LessonRow,
    PolicyVersionRow,
    TeacherChoicesRow,
    UpdateLessonRow,
    UpdateRow,
)
from services.store.tables.loop import (
    AnswerRow,
    AttemptRow,
    ConsultationRow,
    EvaluationRow,
    ExpertRow,
    GroupRow,
    RolloutRow,
    TaskRow,
)
from services.store.tables.teaching import MeasurementRow

TOKENIZER = "a" * 64
NUM_UPDATES = 24
GROUP_SIZE = 4
GROUPS_PER_UPDATE = 2
UPDATES_PER_VERSION = 4

FUNCTIONS = {
    "add_up": ("adds the numbers of a list", "    return sum(numbers)"),
    "largest": ("gives the largest number of a list", "    return max(numbers)"),
    "count_even": ("counts the even numbers of a list", "    return sum(n % 2 == 0 for n in numbers)"),
    "reverse_words": ("reverses the order of a sentence's words", "    return ' '.join(text.split()[::-1])"),
    "is_palindrome": ("tells whether a text reads the same backwards", "    return text == text[::-1]"),
    "clamp": ("keeps a number between two bounds", "    return max(low, min(high, number))"),
}
ARGUMENTS = {"reverse_words": "text", "is_palindrome": "text", "clamp": "number, low, high"}
WRONG = {
    "    return sum(numbers)": "    total = 0\n    for n in numbers:\n        total = n\n    return total",
    "    return max(numbers)": "    return sorted(numbers)[0]",
    "    return sum(n % 2 == 0 for n in numbers)": "    return len([n for n in numbers if n % 2])",
}
FAILED = "Ran 3 tests: 1 passed, 2 failed.\n\nadd([1, 2, 3]) gave 3, but 6 was expected.\nadd([]) raised IndexError."


def write_answer(name: str, is_right: bool) -> str:
    """An answer as a small model gives it."""
    body = FUNCTIONS[name][1]
    lines = body if is_right else WRONG.get(body, "    pass  # not known")
    return f"```python\ndef {name}({ARGUMENTS.get(name, 'numbers')}):\n{lines}\n```"


def cut(text: str) -> list[str]:
    """The text in the pieces a tokenizer might make of it."""
    return re.findall(r" ?[A-Za-z_]+| ?\d|\n+|[ ]{2,}| ?[^\sA-Za-z_\d]+|\s", text)


def read_vocabulary() -> list[str]:
    """The pieces of every answer, and some that are never said."""
    said = {piece for name in FUNCTIONS for right in (True, False) for piece in cut(write_answer(name, right))}
    return ["<|end|>", *sorted(said | {" return", " the", " value", " result", " None", " 0", " 1", " total", " sum"})]


@dataclass
class Filler:
    """Builds the rows of one lineage in one session, in the order a loop would."""

    session: Session
    lineage_id: UUID
    numbers: random.Random
    began: datetime
    vocabulary: Sequence[str]

    def experts(self) -> dict[str, ExpertRow]:
        """The experts of a usual installation, one of them in trouble."""
        kinds = {
            "execution": ([AnswerKind.SCORE, AnswerKind.FEEDBACK, AnswerKind.EVIDENCE], True, "active", None),
            "reference": ([AnswerKind.SOLUTION], False, "active", None),
            "larger-model": ([AnswerKind.TOPK], False, "active", None),
            "style-judge": ([AnswerKind.SCORE, AnswerKind.FEEDBACK], False, "probation", None),
            "human": ([AnswerKind.SCORE, AnswerKind.FEEDBACK, AnswerKind.SOLUTION], False, "active", None),
            "old-linter": ([AnswerKind.FEEDBACK], False, "quarantined", "8 failures in a row: connection refused"),
        }
        made = {}
        for name, (given, is_verifier, status, reason) in kinds.items():
            descriptor = Descriptor(
                name=name,
                version="1.2.0",
                kinds=given,
                domains=["code/python"],
                metadata_keys=["tests"] if is_verifier else [],
                deterministic=is_verifier,
                verifier=is_verifier,
            ).model_dump(mode="json")
            checks = [
                ("answers its descriptor", True, "protocol 1"),
                ("answers the same question alike", True, "two answers are equal"),
                ("refuses unknown fields", name != "old-linter", "422" if name != "old-linter" else "200"),
                ("keeps its deadline", True, "0.31 s of 5 s"),
            ]
            made[name] = ExpertRow(
                lineage_id=self.lineage_id,
                name=name,
                endpoint=f"http://127.0.0.1:7100/{name}",
                version="1.2.0",
                descriptor=descriptor,
                status=status,
                reason=reason,
                retry_at=self.began + timedelta(days=1) if status == "quarantined" else None,
                granted=["tests"] if is_verifier else [],
                trusted=status == "active",
                weight=0.5 if name == "larger-model" else 1.0,
                group_fraction=0.1 if name == "human" else 1.0,
                report={
                    "endpoint": f"http://127.0.0.1:7100/{name}",
                    "descriptor": descriptor,
                    "checks": [{"name": n, "passed": p, "detail": d, "required": True} for n, p, d in checks],
                },
                created_at=self.began,
                own=name if name == "human" else None,
            )
        self.session.add_all(made.values())
        self.session.flush()
        return made

    def tasks(self) -> dict[Split, list[tuple[str, TaskRow]]]:
        """Tasks of every split, a family a function; validation tasks are of the held-out families."""
        made: dict[Split, list[tuple[str, TaskRow]]] = {split: [] for split in Split}
        for number, (name, (does, _)) in enumerate(FUNCTIONS.items()):
            splits = (Split.HELDOUT, Split.HELDOUT, Split.VALIDATION) if number % 2 == 1 else (Split.TRAIN, Split.TRAIN)
            for variant, split in enumerate(splits):
                wanted = TaskCreate(
                    key=f"{name}-{variant}",
                    domain="code/python",
                    family=name,
                    split=split,
                    messages=[
                        Message(role="system", content="Answer with one fenced block of Python."),
                        Message(
                            role="user",
                            content=f"Write a function `{name}({ARGUMENTS.get(name, 'numbers')})` that {does}."
                            + ("", " Do not import anything.", " Keep it short.")[variant],
                        ),
                    ],
                    metadata={"source": "made for the pages"}
                    | ({"reference": write_answer(name, True)} if split is Split.TRAIN else {}),
                )
                made[split].append((name, tasks.add(self.session, self.lineage_id, wanted)[0]))
        return made

    def group(
        self, name: str, task: TaskRow, version: str, at: datetime, pass_rate: float, **changes: object
    ) -> list[RolloutRow]:
        """A drawn group of settled rollouts."""
        purpose = str(changes.get("purpose", "train"))
        sampling = Sampling.model_validate({"temperature": changes.get("temperature", 1.0)}).model_dump(mode="json")
        size = GROUP_SIZE if sampling["temperature"] else 1
        group = GroupRow(
            lineage_id=self.lineage_id,
            task_id=task.id,
            split=task.split,
            purpose=purpose,
            evaluation_id=changes.get("evaluation_id"),
            policy_version=version,
            size=size,
            sampling=sampling,
            status="sampled",
            created_at=at,
        )
        self.session.add(group)
        self.session.flush()
        rows = []
        for index in range(size):
            is_right = self.numbers.random() < pass_rate
            text = write_answer(name, is_right)
            ids = [self.vocabulary.index(piece) for piece in cut(text)] + [0]
            rows.append(
                RolloutRow(
                    id=new_id(),
                    lineage_id=self.lineage_id,
                    task_id=task.id,
                    split=task.split,
                    purpose=purpose,
                    group_id=group.id,
                    index_in_group=index,
                    status="ready",
                    policy_version=version,
                    prompt_token_ids=[1, 2, 3],
                    token_ids=ids,
                    sampler_logprobs=[-self.numbers.expovariate(3.0) for _ in ids],
                    action_mask=[True] * len(ids),
                    tokenizer_hash=TOKENIZER,
                    sampling=sampling,
                    text=text,
                    finish_reason="stop",
                    score=float(is_right),
                    created_at=at,
                    settled_at=at + timedelta(seconds=4),
                )
            )
        self.session.add_all(rows)
        self.session.flush()
        return rows

    def ask(
        self, rollout: RolloutRow, expert: ExpertRow, at: datetime, status: str = "answered", **said: object
    ) -> AnswerRow | None:
        """A consultation with one try, and its answer if it was answered."""
        seconds = self.numbers.lognormvariate(-1.0, 0.5)
        failed = status == "dead"
        question = ConsultationRow(
            lineage_id=self.lineage_id,
            rollout_id=rollout.id,
            expert_id=expert.id,
            expert_version=expert.version,
            stage=1,
            ask={"kinds": expert.descriptor["kinds"]},
            status=status,
            reason="ExpertUnavailable: connection refused" if failed else None,
            attempts=1,
            failures=5 if failed else 0,
            deadline=at + timedelta(minutes=30),
            created_at=at,
            settled_at=None if status == "waiting" else at + timedelta(seconds=seconds),
        )
        self.session.add(question)
        self.session.flush()
        self.session.add(
            AttemptRow(
                consultation_id=question.id,
                number=1,
                outcome="failed" if failed else "ok",
                reason="connection refused" if failed else None,
                started_at=at,
                ended_at=at + timedelta(seconds=seconds),
            )
        )
        if status != "answered":
            return None
        answer = AnswerRow(
            id=new_id(),
            lineage_id=self.lineage_id,
            consultation_id=question.id,
            rollout_id=rollout.id,
            split=rollout.split,
            expert_id=expert.id,
            expert_version=expert.version,
            created_at=at + timedelta(seconds=seconds),
            **said,
        )
        self.session.add(answer)
        self.session.flush()
        return answer

    def distribution(self, rollout: RolloutRow, answer: AnswerRow) -> None:
        """A remote expert's word on every token."""
        ids, probs, tail = zip(*(self.choose(token) for token in rollout.token_ids), strict=True)
        told = TopKDistribution(
            tokenizer_hash=TOKENIZER,
            token_ids=[list(row) for row in ids],
            logprobs=[[math.log(p) for p in row] for row in probs],
            tail_mass=list(tail),
        )
        distributions.add(self.session, answer, told)

    def choose(self, token: int) -> tuple[list[int], list[float], float]:
        """Five tokens an expert finds likely in place of this one, mostly this one itself."""
        others = self.numbers.sample([i for i in range(len(self.vocabulary)) if i != token], 4)
        agrees = self.numbers.random() < 0.85
        own = self.numbers.uniform(0.7, 0.99) if agrees else self.numbers.uniform(0.002, 0.2)
        rest = (1 - own) * 0.95
        shares = [rest * share for share in (0.6, 0.2, 0.15, 0.05)]
        pairs = sorted(zip([own, *shares], [token, *others], strict=True), reverse=True)
        return [i for _, i in pairs], [p for p, _ in pairs], 1 - own - rest

    def use(self, update: UpdateRow, lesson: LessonRow, rollout: RolloutRow, said: Sequence[AnswerRow]) -> None:
        """What a lesson gave to an update."""
        ids, probs, tail = zip(*(self.choose(token) for token in rollout.token_ids), strict=True)
        own = [dict(zip(i, p, strict=True))[t] for i, p, t in zip(ids, probs, rollout.token_ids, strict=True)]
        costs = [max(0.0, -math.log(p) + 0.05 * self.numbers.random() - 0.1) for p in own]
        self.session.add(
            UpdateLessonRow(
                update_id=update.id,
                lesson_id=lesson.id,
                status="applied",
                baseline_group=f"{rollout.group_id}/0",
                terms=[
                    {
                        "kind": "conditioned",
                        "answers": [str(one.id) for one in said],
                        "sources": ["reference"],
                        "weight": 1.0,
                        "share": 1 / (GROUP_SIZE * GROUPS_PER_UPDATE),
                        "cost": sum(costs) / len(costs),
                        "num_tokens": len(costs),
                        "context_sha256": "c" * 64,
                        "teacher_sha256": "d" * 64,
                    }
                ],
                future_nonzero=True,
                staleness=self.numbers.randrange(2),
                token_costs=costs,
            )
        )
        self.session.flush()
        top = TopK(np.array(ids), np.log(np.array(probs)), np.array(tail))
        self.session.add(
            TeacherChoicesRow(
                update_id=update.id,
                lesson_id=lesson.id,
                num_rows=len(ids),
                width=5,
                packed=distributions.pack_top_k(top),
            )
        )

    def metrics(self, number: int) -> JsonObject:
        """An update's metrics, as they go when all goes well."""
        far = 1 - math.exp(-number / 10)

        def near(value: float, noise: float = 0.06) -> float:
            return round(value * (1 + self.numbers.gauss(0, noise)), 5)

        kl = near(0.42 - 0.27 * far)
        return {
            "loss": near(0.55 - 0.3 * far),
            "local": near(0.5 - 0.26 * far),
            "partial": 0.0,
            "future": near(-0.06 + 0.03 * far),
            "imitation": near(0.1 - 0.05 * far),
            "kl": kl,
            "cross_entropy": kl + 0.4,
            "entropy": near(0.55 - 0.12 * far),
            "gap": near(0.3 - 0.18 * far),
            "grad_norm": near(0.9 - 0.4 * far),
            "learning_rate": 0.0005,
            "pass_rate": min(1.0, near(0.42 + 0.33 * far)),
            "response_tokens": near(34 - 6 * far),
            "stop_rate": min(1.0, near(0.9 + 0.09 * far, 0.01)),
            "future_share": 0.8,
            "staleness": 1,
            "num_rows": GROUP_SIZE * GROUPS_PER_UPDATE,
            "num_judged": GROUP_SIZE * GROUPS_PER_UPDATE,
            "seconds": near(21.0),
        }


def fill(store: Store, *, num_updates: int = NUM_UPDATES, seed: int = 0) -> UUID:
    """Fill an empty, migrated database; the lineage's id."""
    with store.transaction() as session:
        vocabulary = read_vocabulary()
        lineage = lineages.ensure(session, "main", "SmolLM2-135M-Instruct", "b" * 64, TOKENIZER, len(vocabulary))
        vocabularies.add(session, TOKENIZER, vocabulary)
        switches.switch(session, lineage.id, sampling=True, training=True)
        began = datetime.now(UTC) - timedelta(minutes=2 * num_updates + 10)
        filler = Filler(session, lineage.id, random.Random(seed), began, vocabulary)
        _run(filler, lineage.id, num_updates)
        beat: JsonObject = {"sampling_seconds": 812.0, "waiting_seconds": 40.0, "num_rollouts": 192}
        processes.beat(session, "worker", 4242, "drawing add_up-0", beat)
        processes.beat(session, "trainer", 4243, f"update {num_updates + 1}", {"model_seconds": 640.0})
        row_counts.fold(session)
        return lineage.id


def _run(filler: Filler, lineage_id: UUID, num_updates: int) -> None:
    session = filler.session
    experts, made = filler.experts(), filler.tasks()
    parent = session.query(PolicyVersionRow).filter_by(lineage_id=lineage_id, number=0).one()
    _evaluate(filler, experts["execution"], made, parent, filler.began, 0.35)
    serving = parent
    for number in range(1, num_updates + 1):
        at = filler.began + timedelta(minutes=2 * number)
        pass_rate = 0.4 + 0.4 * (1 - math.exp(-number / 10))
        update = UpdateRow(
            lineage_id=lineage_id,
            number=number,
            owner=new_id(),
            objective="distil",
            settings={"objective": "distil", "lam": 1.0, "learning_rate": 0.0005, "groups_per_update": 2},
            metrics=filler.metrics(number),
            parent_sha256="e" * 64,
            checkpoint_sha256=f"{number:064x}",
            batch_sha256="f" * 64,
            status="applied",
            started_at=at,
            applied_at=at + timedelta(seconds=21),
        )
        session.add(update)
        session.flush()
        for name, task in (filler.numbers.choice(made[Split.TRAIN]) for _ in range(GROUPS_PER_UPDATE)):
            task.num_groups += 1
            for rollout in filler.group(name, task, serving.name, at - timedelta(minutes=2), pass_rate):
                said = list(_answers(filler, experts, rollout, name, at))
                lesson = _lesson(filler, rollout, said, at)
                filler.use(update, lesson, rollout, said)
        if number % UPDATES_PER_VERSION == 0:
            serving = _publish(filler, serving, number, at)
            if number in (UPDATES_PER_VERSION, num_updates):
                _evaluate(filler, experts["execution"], made, serving, at, pass_rate)
    _measure(filler, experts, serving)
    _leave_open(filler, experts, made[Split.TRAIN], serving)


MEASURED = (
    ("execution", "own_success", "turns", "teaches", None, 8, 0.21, 0.14, 0.39, 0.18),
    ("execution", "own_success", "reprompt", "measuring", None, 8, 0.12, 0.16, 0.2, 0.21),
    ("execution", "feedback", "reprompt", "does_not_teach", None, 16, -0.12, 0.06, -0.02, 0.08),
    ("reference", "reference", "turns", "teaches", None, 8, 0.33, 0.15, 0.5, 0.17),
    ("style-judge", "feedback", "reprompt", "does_not_teach", None, 32, 0.19, 0.11, 0.02, 0.12),
    ("human", "precedents", "turns", "measuring", "none of 8 tasks had anything to show (precedents)", 0, 0, 0, 0, 0),
    ("larger-model", "distribution", "turns", "teaches", None, 16, 1.25, 0.8, None, 0),
)
"""Expert, source, template, status, reason, tasks; gap and net, each with half of its interval."""


def _measure(filler: Filler, experts: dict[str, ExpertRow], serving: PolicyVersionRow) -> None:
    """What each of its sources was measured to teach."""
    for name, source, template, status, reason, num_tasks, gap, wide, net, net_wide in MEASURED:
        row = MeasurementRow(
            lineage_id=filler.lineage_id,
            expert_id=experts[name].id,
            source=source,
            template=template,
            domain="code/python",
            policy_version=serving.name,
            temperature=0.5,
            status=status,
            reason=reason,
            num_looks=min(num_tasks // 8, 3),
            num_tasks=num_tasks,
            num_tokens=0 if source == "distribution" else 620 * num_tasks,
            decided_at=None if status == "measuring" else datetime.now(UTC),
        )
        if num_tasks:
            row.gap, row.gap_low, row.gap_high = gap, gap - wide, gap + wide
        if num_tasks and net is not None:
            row.net, row.net_low, row.net_high = net, net - net_wide, net + net_wide
        filler.session.add(row)
    filler.session.flush()


def _answers(
    filler: Filler, experts: dict[str, ExpertRow], rollout: RolloutRow, name: str, at: datetime
) -> Iterator[AnswerRow]:
    passed = (rollout.score or 0.0) > 0.5
    report = "Ran 3 tests: 3 passed." if passed else FAILED
    feedback = {"text": report, "spans": [], "computed_from_rollout": True}
    told = [filler.ask(rollout, experts["execution"], at, score=rollout.score, feedback=feedback)]
    told.append(filler.ask(rollout, experts["reference"], at, solution=write_answer(name, True)))
    opinion = float(passed) if filler.numbers.random() < 0.8 else float(not passed)
    filler.ask(
        rollout, experts["style-judge"], at, score=opinion, feedback={"text": "Reads well.", "spans": []}
    )  # on probation: it trains nothing
    if rollout.index_in_group == 0:
        answer = filler.ask(rollout, experts["larger-model"], at, distribution_kind="topk")
        assert answer is not None
        filler.distribution(rollout, answer)
        told.append(answer)
    yield from (answer for answer in told if answer is not None)


def _lesson(
    filler: Filler, rollout: RolloutRow, said: Sequence[AnswerRow], at: datetime, status: str = "used"
) -> LessonRow:
    lesson = LessonRow(
        lineage_id=filler.lineage_id,
        rollout_id=rollout.id,
        split=rollout.split,
        purpose=rollout.purpose,
        group_id=rollout.group_id,
        ordinal=0,
        status=status,
        created_at=at,
    )
    filler.session.add(lesson)
    filler.session.flush()
    filler.session.add_all(LessonAnswerRow(lesson_id=lesson.id, answer_id=one.id) for one in said)
    filler.session.flush()
    return lesson


def _publish(filler: Filler, serving: PolicyVersionRow, number: int, at: datetime) -> PolicyVersionRow:
    version = PolicyVersionRow(
        lineage_id=filler.lineage_id,
        number=number // UPDATES_PER_VERSION,
        name=f"main-v{number // UPDATES_PER_VERSION}",
        parent_id=serving.id,
        artifact_sha256=f"{number:064x}",
        update_number=number,
        gate={
            "checks": [
                {"name": "logprobs agree", "passed": True, "value": 3.1e-6, "bound": 1e-3, "detail": "nats, 8 probes"},
                {"name": "kl from the parent", "passed": True, "value": 0.021, "bound": 0.5, "detail": "nats a token"},
                {"name": "answer length", "passed": True, "value": 0.97, "bound": 2.0, "detail": "of the parent's"},
            ]
        },
        created_at=at,
    )
    filler.session.add(version)
    filler.session.flush()
    serving.status = "superseded"
    filler.session.flush()
    version.status, version.served_at = "serving", at
    filler.session.flush()
    return version


def _evaluate(
    filler: Filler,
    expert: ExpertRow,
    made: Mapping[Split, Sequence[tuple[str, TaskRow]]],
    version: PolicyVersionRow,
    at: datetime,
    pass_rate: float,
) -> None:
    """At temperature 1 this share passes, and more at lower ones."""
    row = EvaluationRow(
        lineage_id=filler.lineage_id,
        policy_version=version.name,
        split="heldout",
        status="done",
        settings=EvaluationCreate(num_samples=GROUP_SIZE).model_dump(mode="json"),
        created_at=at,
        finished_at=at + timedelta(minutes=1),
    )
    filler.session.add(row)
    filler.session.flush()
    for name, task in (*made[Split.HELDOUT], *made[Split.VALIDATION]):
        for temperature in TEMPERATURES:
            changes = {"purpose": "evaluation", "evaluation_id": row.id, "temperature": temperature}
            share = pass_rate + 0.3 * (1 - temperature) * (1 - pass_rate)
            for rollout in filler.group(name, task, version.name, at, share, **changes):
                filler.ask(rollout, expert, at, score=rollout.score)


def _leave_open(
    filler: Filler, experts: dict[str, ExpertRow], train: Sequence[tuple[str, TaskRow]], serving: PolicyVersionRow
) -> None:
    """What a running loop has under way: lessons that wait, an item for people, dead letters."""
    session, now = filler.session, datetime.now(UTC)
    for name, task in train[:3]:
        for rollout in filler.group(name, task, serving.name, now - timedelta(seconds=40), 0.6):
            _lesson(filler, rollout, list(_answers(filler, experts, rollout, name, now)), now, status="ready")
            if rollout.index_in_group == 1:
                filler.ask(rollout, experts["old-linter"], now, status="dead")
            if rollout.index_in_group == 2:
                filler.ask(rollout, experts["human"], now, status="waiting")
                question = (
                    session.query(ConsultationRow).filter_by(rollout_id=rollout.id, expert_id=experts["human"].id).one()
                )
                session.add(
                    CorrectionRow(
                        lineage_id=filler.lineage_id,
                        consultation_id=question.id,
                        rollout_id=rollout.id,
                        split=rollout.split,
                        status="open",
                    )
                )
    name, task = train[0]
    for status, reason in (("dead", "PolicyUnavailable: the policy did not answer for 120 s"), ("pending", None)):
        session.add(
            GroupRow(
                lineage_id=filler.lineage_id,
                task_id=task.id,
                split=task.split,
                purpose="train",
                size=GROUP_SIZE,
                sampling=Sampling().model_dump(mode="json"),
                status=status,
                reason=reason,
                failures=5 if reason else 0,
                created_at=now,
            )
        )
    session.flush()


if __name__ == "__main__":
    filled = Store(sys.argv[1])
    fill(filled)
    filled.close()
