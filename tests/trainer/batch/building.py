"""Short ways to build a batch, and to say what a teacher is shown in it."""

from collections.abc import Sequence
from uuid import UUID

from services.contracts.ids import new_id
from services.contracts.sources import ContextSource
from services.contracts.tasks import Message, Precedent
from services.policy.model.modeling import LoadedPolicy, decode_ids
from services.runtime.settings import Settings
from services.store.ledger.lesson_facts import LessonFacts
from services.store.teaching.material import Material
from tests.trainer.world import ANSWERS, TAUGHT_BY_ALL, AllTeach, answer, facts
from trainer.batch.build import build_batch
from trainer.batch.contexts import Showable
from trainer.batch.rows import Batch, Row, Vocabulary
from trainer.config import TrainerConfig

CONFIG = TrainerConfig()
SETTINGS = Settings()
TASK = UUID(int=1)


def build(
    policy: LoadedPolicy,
    lessons: Sequence[LessonFacts],
    showable: Showable = TAUGHT_BY_ALL,
    config: TrainerConfig = CONFIG,
    settings: Settings = SETTINGS,
) -> Batch:
    vocabulary = Vocabulary(policy.vocab_size, policy.eos_token_ids, 512)
    return build_batch(lessons, showable, policy.tokenizer, vocabulary, config, settings, newest_version=3)


def only(
    policy: LoadedPolicy,
    lesson: LessonFacts,
    config: TrainerConfig = CONFIG,
    showable: Showable = TAUGHT_BY_ALL,
    settings: Settings = SETTINGS,
) -> Row:
    [row] = build(policy, [lesson], showable, config, settings).rows
    return row


def shown_to(policy: LoadedPolicy, row: Row) -> str:
    """The teacher's prompt, as text."""
    [context] = row.contexts
    return decode_ids(policy.tokenizer, context.prompt_ids)


def siblings(policy: LoadedPolicy, solved: set[int], size: int = 8) -> list[LessonFacts]:
    """A group in which some answers passed, judged by one verifier."""
    judge, group = UUID(int=99), []
    for index in range(size):
        passed = 1.0 if index in solved else 0.0
        verdict = answer(expert_id=judge, score=passed)
        lesson = facts(
            policy,
            ANSWERS[index],
            index=index,
            group_size=size,
            score=passed,
            answers=(verdict,),
            judges=(verdict,),
        )
        group.append(lesson)
    return group


def material(source: ContextSource, solution: str | None = None, **changes: object) -> Material:
    """Something an expert of its own said about the task."""
    answer_id = new_id()
    base: dict[str, object] = {
        "source": source,
        "expert_id": new_id(),
        "weight": 1.0,
        "answers": (answer_id,),
        "names": (f"{source.value}@1",),
        "speakers": (),
        "solution": solution,
    }
    return Material(**(base | changes))  # type: ignore[arg-type]


def precedent(question: str, words: str) -> Precedent:
    return Precedent(messages=[Message(role="user", content=question)], answer=words)


def known(*found: Material) -> Showable:
    """What may be shown about the task, all of which teaches."""
    return Showable({TASK: found}, AllTeach())
