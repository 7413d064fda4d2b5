"""One run of the shoot-out: an objective with its settings and a seed, from the base policy to its curve.

Everything but the sampling loop is the product's: the sampler, how a batch is made of lessons, the update. Each update
draws answers with the weights of the moment, so every rollout is on-policy; two experts speak about each, one that
holds the solution and one that scores; only the latter in a world that shows right answers of siblings alone. What an
objective makes of them is the objective's business.
"""

import copy
import hashlib
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal, TypeAlias, TypeVar, cast
from uuid import NAMESPACE_OID, UUID, uuid5

import torch
from peft import PeftModel
from pydantic import BaseModel, ConfigDict
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from benchmarks.shootout.memory import REFERENCE, VERIFIER, Memory, expert_id
from benchmarks.shootout.questions import Question, World
from services.contracts.answers import Continuation, SamplesDistribution, passes
from services.contracts.base import JsonObject
from services.contracts.ids import new_id
from services.contracts.rollouts import Sampling
from services.contracts.sources import ContextSettings, ContextSource
from services.contracts.tasks import Message, Precedent, Split
from services.contracts.templates import Template, build_teacher_messages, strip_thinking
from services.policy.contract import FinishReason, Sample, SamplePrompt, SampleRequest
from services.policy.engines.base import TokenCounts
from services.policy.engines.decode import ATTENTION, check_decoding
from services.policy.engines.packed import PackedModel
from services.policy.engines.sampler import PromptCache, Sampler
from services.policy.engines.work import SampleJob, SampleUnit
from services.policy.model.adapters import take_deltas
from services.policy.model.modeling import (
    LoadedPolicy,
    PolicyModel,
    decode_ids,
    encode_text,
    load_policy,
    project,
    render_prompt,
)
from services.policy.text.ends import StopFinder
from services.runtime.settings import Settings
from services.store.ledger.lesson_facts import LessonAnswer, LessonFacts
from services.store.loop.standing import Standing, Verdict
from services.store.stats.estimates import pass_at_k
from services.store.teaching.roll_in import count_shown, find_first
from trainer.batch.build import build_batch
from trainer.batch.contexts import Showable
from trainer.config import TrainerConfig
from trainer.objectives.registry import ObjectiveName
from trainer.step.padding import read_responses
from trainer.step.ranks import Ranks
from trainer.step.state import begin
from trainer.step.update import make_update

MAX_ROWS = 256  # answers drawn at once
PROBED = 8  # questions whose answers are read again for entropy and KL
GAP_QUESTIONS = 32
PASS_AT = 8
BLACK_BOX = "black box"
TEMPERATURES = (0.0, 0.25, 0.5, 1.0)
"""Every policy is measured at each, 0 being the likeliest token each time: what only makes a policy surer of what it
says gains nothing over drawing it colder."""
GAP_TEMPERATURES = (0.5, 1.0)


Shown: TypeAlias = str | tuple[Precedent, ...]
"""What a teacher sees: a solution, or questions with answers."""
_Item = TypeVar("_Item")


class Arm(BaseModel):
    """What is compared: an objective, and what is changed about it.

    shown: what the teacher sees: the task's solution (or siblings, in a world that shows these alone), what the product
    has without an answer key (`benchmarks.shootout.memory`), or nothing. expert: what is heard: the teacher and a
    verifier, single tokens that the teacher draws at each place, or both being wrong about some tasks. other_feedback:
    the control, whose teacher is shown what another task's would be. teacher_temperature: where it is not tuned.
    sampling_temperature: of the rollouts, at which the student is read too. roll_in: share of a group that the teacher
    draws. teacher_ema: 0 for a frozen teacher. publish_average: of the weights that draw and are measured.
    student_top_k: read by `sdpo` and `paper`. mixed: objectives added, and their weights.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    objective: ObjectiveName
    lam: float = 1.0
    mixed: tuple[tuple[ObjectiveName, float], ...] = ()
    shown: Literal["solution", "product", "nothing"] = "solution"
    expert: Literal["exact", "samples", "mistaken"] = "exact"
    teacher_temperature: float | None = None
    sampling_temperature: float = 1.0
    roll_in: float = 0.0
    clip: float = 5.0
    other_feedback: bool = False
    has_teacher: bool = True
    teacher_ema: float = 0.0
    publish_average: float = 1.0
    student_top_k: int = 100


class Setting(BaseModel):
    """What is tuned for every arm by the same grid."""

    model_config = ConfigDict(frozen=True)

    learning_rate: float
    teacher_temperature: float

    def __str__(self) -> str:
        return f"lr {self.learning_rate:g}, τ {self.teacher_temperature:g}"


class Budget(BaseModel):
    """How much a run may do; the same for every arm. tasks, samples: measured on so many tasks, evenly spaced over
    those of the split, with so many answers to each."""

    model_config = ConfigDict(frozen=True)

    updates: int
    groups: int
    group_size: int
    measure_every: int
    samples: int
    tasks: int = 32


class Plan(BaseModel):
    """A run to make. data_sha256: of the files its world reads; empty where it reads none."""

    model_config = ConfigDict(frozen=True)

    world: str
    arm: Arm
    setting: Setting
    seed: int
    split: Split
    budget: Budget
    policy: str
    device: str = "cpu"
    dtype: str = "float32"
    data_sha256: str = ""

    @property
    def start(self) -> str:
        """Plans of the same start are measured alike before the first update: they differ in arm and setting alone."""
        return self.model_dump_json(exclude={"arm", "setting", "policy"})


class Measured(BaseModel):
    """The policy's answers at one temperature. families, families_8: pass@1 and pass@8 by family; there is no pass@8 of
    greedy answers, which are one a task. tokens: of an answer, on average; stopped: the share that ended by itself."""

    model_config = ConfigDict(frozen=True)

    temperature: float
    families: dict[str, float]
    families_8: dict[str, float]
    pass_1: float
    pass_8: float | None
    tokens: float
    stopped: float


class Point(BaseModel):
    """The policy after some updates, measured on answers of its own to the tasks of the plan's split.

    seconds: of the processor (on a GPU of the clock), spent on drawing, judging and updating so far, not on measuring.
    measured: at each of `TEMPERATURES`. entropy, kl_base: nats a token, the policy's own and KL(policy || base), on
    answers to a few of the tasks at temperature 1. right_logprob: nats, of the right answer to its end, a mean over
    tasks; None in a world whose tasks have more than one.
    """

    model_config = ConfigDict(frozen=True)

    update: int
    seconds: float
    measured: tuple[Measured, ...]
    entropy: float
    kl_base: float
    right_logprob: float | None = None

    def at(self, temperature: float) -> Measured:
        """What was measured at one of `TEMPERATURES`."""
        return next(one for one in self.measured if one.temperature == temperature)


class Gap(BaseModel):
    """How often the untrained policy is right by itself, with something shown, and with the same of another task shown,
    all drawn at one temperature."""

    model_config = ConfigDict(frozen=True)

    shown: str
    temperature: float
    student: float
    teacher: float
    control: float


@dataclass(frozen=True)
class Drawn:
    """A question's answers."""

    question: Question
    prompt_ids: tuple[int, ...]
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a run. num_untrained: updates that changed nothing; num_invalid: rollouts nothing was made of.
    num_charged, num_clipped: tokens that were charged with later costs, and those of them whose charge was cut."""

    curve: tuple[Point, ...]
    num_untrained: int
    num_invalid: int
    num_charged: int
    num_clipped: int


def train(plan: Plan, world: World, start: Point | None = None) -> Outcome:
    """A run: measured before the first update, now and then, and after the last.

    start: the measurement before the first update, where it was made already.
    """
    policy, config = _load(plan), configure(plan, world)
    settings = Settings(
        max_new_tokens=world.max_new_tokens, teacher_temperature=plan.setting.teacher_temperature, seed=plan.seed
    )
    state = begin(policy, config)
    answerer = Answerer(state.model, policy, world)
    questions = world.questions(Split.TRAIN)
    asked, memory = ask_in_turn(questions, plan.budget.groups, plan.seed), Memory(questions)
    measured = _spread(world.questions(plan.split), plan.budget.tasks)
    seconds, num_untrained, num_invalid, num_charged, num_clipped = 0.0, 0, 0, 0, 0
    curve = [start or measure(answerer, measured, plan, 0, seconds)]
    for update in range(1, plan.budget.updates + 1):
        began = _now(plan.device)
        lessons, showable = draw_lessons(answerer, memory, next(asked), update, plan)
        batch = build_batch(
            lessons, showable, state.tokenizer, state.vocabulary, config, settings, newest_version=update
        )
        result = make_update(state, batch, config, settings, Ranks(0, 1), lambda: False)
        with state.as_published():
            answerer.follow()
        num_untrained += result.untrained is not None
        num_invalid += sum(one.invalid is not None for one in result.contributions)
        num_charged += _count(result.metrics, "num_charged_tokens")
        num_clipped += _count(result.metrics, "num_clipped_tokens")
        seconds += _now(plan.device) - began
        if update % plan.budget.measure_every == 0 or update == plan.budget.updates:
            with state.as_published():
                curve.append(measure(answerer, measured, plan, update, seconds))
    return Outcome(tuple(curve), num_untrained, num_invalid, num_charged, num_clipped)


def _count(metrics: JsonObject, name: str) -> int:
    value = metrics.get(name)
    return int(value) if isinstance(value, int | float) else 0


def measure_start(plan: Plan, world: World) -> Point:
    """What `train` measures before the first update: the same for every arm and setting, as the adapter adds nothing
    yet."""
    policy = _load(plan)
    answerer = Answerer(begin(policy, configure(plan, world)).model, policy, world)
    return measure(answerer, _spread(world.questions(plan.split), plan.budget.tasks), plan, 0, 0.0)


def _load(plan: Plan) -> LoadedPolicy:
    torch.use_deterministic_algorithms(plan.device == "cpu")
    return load_policy(Path(plan.policy), plan.device, getattr(torch, plan.dtype))


def configure(plan: Plan, world: World) -> TrainerConfig:
    """The product's settings. The control is handed what its teacher is shown, also where others look to siblings."""
    return TrainerConfig(
        sources=find_sources(plan.arm, world),
        objective=plan.arm.objective,
        lam=plan.arm.lam,
        clip=plan.arm.clip,
        mix=dict(plan.arm.mixed),
        teacher_ema=plan.arm.teacher_ema,
        publish_average=plan.arm.publish_average,
        student_top_k=plan.arm.student_top_k,
        learning_rate=plan.setting.learning_rate,
        micro_batch_rows=plan.budget.group_size,
        seed=plan.seed,
        device=plan.device,
    )


def find_sources(arm: Arm, world: World) -> dict[str, tuple[ContextSource, ...]]:
    """Where the teacher's contexts come from; the product's own order by default."""
    if arm.shown == "product":
        return {}
    if arm.shown == "nothing":
        return {"*": (ContextSource.NOTHING,)}
    looks_to_siblings = world.only_siblings and not arm.other_feedback
    return {"*": (ContextSource.OWN_SUCCESS if looks_to_siblings else ContextSource.REFERENCE,)}


def measure(answerer: "Answerer", questions: Sequence[Question], plan: Plan, update: int, seconds: float) -> Point:
    """The policy as it is now."""
    seed = f"{plan.seed} {plan.split} {update}"
    drawn = {
        temperature: answerer.draw(questions, plan.budget.samples if temperature else 1, seed, temperature)
        for temperature in TEMPERATURES
    }
    entropy, kl_base = answerer.read_again(_spread(drawn[1.0], PROBED))
    return Point(
        update=update,
        seconds=seconds,
        measured=tuple(_score(own, temperature, answerer.world) for temperature, own in drawn.items()),
        entropy=entropy,
        kl_base=kl_base,
        right_logprob=answerer.read_right(questions),
    )


def _score(drawn: Sequence[Drawn], temperature: float, world: World) -> Measured:
    of_family: dict[str, list[tuple[int, int]]] = {}
    for one, scores in zip(drawn, _judge(drawn, world), strict=True):
        passed = sum(map(passes, scores))
        of_family.setdefault(one.question.family, []).append((len(scores), passed))
    answers = [sample for one in drawn for sample in one.samples]
    several = min(len(one.samples) for one in drawn) >= PASS_AT

    def passing(counts: Sequence[tuple[int, int]], k: int) -> float:
        return fmean(pass_at_k(count, passed, k) for count, passed in counts)

    everything = [counts for own in of_family.values() for counts in own]
    return Measured(
        temperature=temperature,
        families={family: passing(own, 1) for family, own in of_family.items()},
        families_8={family: passing(own, PASS_AT) for family, own in of_family.items()} if several else {},
        pass_1=passing(everything, 1),
        pass_8=passing(everything, PASS_AT) if several else None,
        tokens=fmean(len(sample.token_ids) for sample in answers),
        stopped=fmean(sample.finish_reason is FinishReason.STOP for sample in answers),
    )


def measure_gap(policy_folder: Path, world: World, samples: int, device: str, dtype: str) -> list[Gap]:
    """What showing something is worth before any training, on train tasks. Where there is nothing to show of a
    question, it is asked as it is. Teacher, control and student are drawn at the same temperature."""
    policy = load_policy(policy_folder, device, getattr(torch, dtype))
    answerer = Answerer(policy.model, policy, world)
    questions = _spread(world.questions(Split.TRAIN), GAP_QUESTIONS)
    return [gap for temperature in GAP_TEMPERATURES for gap in _gaps_at(temperature, answerer, questions, samples)]


def _gaps_at(temperature: float, answerer: "Answerer", questions: Sequence[Question], samples: int) -> Iterator[Gap]:
    alone = answerer.draw(questions, samples, "gap", temperature)
    scores = _judge(alone, answerer.world)

    def rate(shown: Sequence[Shown | None]) -> float:
        return _mean(_judge(answerer.draw(questions, samples, "gap", temperature, shown), answerer.world))

    for name, shown in find_showings(alone, scores, answerer.world).items():
        yield Gap(
            shown=name,
            temperature=temperature,
            student=_mean(scores),
            teacher=rate(shown),
            control=rate(swap_solutions(questions, shown)),
        )


def find_showings(
    drawn: Sequence[Drawn], scores: Sequence[Sequence[float]], world: World
) -> dict[str, Sequence[Shown | None]]:
    """What can be shown of each question, by what it is."""
    showings: dict[str, Sequence[Shown | None]] = {
        "a right answer of its own": [_find_right(one, own) for one, own in zip(drawn, scores, strict=True)]
    }
    if not world.only_siblings:
        showings = {"the solution": [one.question.solution for one in drawn], **showings}
    if any(one.question.precedents for one in drawn):
        showings["its precedent"] = [one.question.precedents[:1] or None for one in drawn]
    return showings


def _mean(scores: Sequence[Sequence[float]]) -> float:
    return fmean(score for own in scores for score in own)


class Answerer:
    """Draws answers with a model's weights as they were when it was last told to follow them, through the policy
    server's own sampler: from a copy whose layers are packed and that has the adapter merged."""

    def __init__(self, model: PolicyModel, policy: LoadedPolicy, world: World) -> None:
        self.world = world
        self._model, self._policy = model, policy
        self._inner = _copy_base(model)
        self._inner.set_attn_implementation(ATTENTION)
        self._packed = PackedModel(self._inner)
        check_decoding(self._inner)
        self._tally = TokenCounts()
        self._ends = StopFinder(policy.eos_token_ids, lambda ids: decode_ids(policy.tokenizer, ids))
        self.follow()

    @torch.no_grad()
    def follow(self) -> None:
        """Draw with the model's weights of this moment from now on: to be called when they have changed."""
        self._packed.merge(take_deltas(self._model) if isinstance(self._model, PeftModel) else {})

    @torch.no_grad()
    def draw(
        self,
        questions: Sequence[Question],
        count: int | Sequence[int],
        seed: str,
        temperature: float = 1.0,
        shown: Sequence[Shown | None] | None = None,
    ) -> list[Drawn]:
        """So many answers to each question; with `shown`, after seeing that, one thing a question, None for nothing."""
        counts = [count] * len(questions) if isinstance(count, int) else count
        prompts = [
            render_prompt(self._policy.tokenizer, show(question, told))
            for question, told in zip(questions, shown or [None] * len(questions), strict=True)
        ]
        request = SampleRequest(
            prompts=[
                SamplePrompt(id=question.key, token_ids=ids, n=number, seed=_number(f"{seed} {question.key}"))
                for question, ids, number in zip(questions, prompts, counts, strict=True)
            ],
            max_new_tokens=self.world.max_new_tokens,
            stop=self.world.stop,
            temperature=temperature,
        )
        job = SampleJob(request, "now", prompts, self._policy.tokenizer_hash)
        waiting = deque(SampleUnit(index, job, index) for index in range(len(prompts)))
        cache = PromptCache(self._inner, max_tokens=8192, tally=self._tally)
        sampler = Sampler(self._inner, MAX_ROWS, self._ends, self._tally)
        while waiting or len(sampler):
            while waiting and sampler.has_room:
                sampler.admit(waiting[0], cache.read(prompts[waiting[0].index]))
                if waiting[0].num_waiting == 0:
                    waiting.popleft()
            if len(sampler):
                sampler.step()
        answered = job.future.result().prompts
        return [
            Drawn(question, tuple(one.prompt_token_ids), tuple(one.samples))
            for question, one in zip(questions, answered, strict=True)
        ]

    @torch.no_grad()
    def draw_next(self, one: Drawn, solution: str, temperature: float, seed: str) -> list[SamplesDistribution]:
        """What the frozen base, shown the solution, draws at each place of each answer: one token."""
        if not isinstance(self._model, PeftModel):
            raise TypeError("only a policy in training has a base to draw with")
        shown = build_teacher_messages(Template.TURNS, one.question.messages, solution)
        prompt = torch.tensor(render_prompt(self._policy.tokenizer, shown), device=self._inner.device)
        ids, exists = self._stack(one.samples)
        with self._model.disable_adapter():
            hidden = read_responses(self._model, prompt, ids, exists)
            probs = (project(self._model, hidden[exists]) / temperature).softmax(-1)
        numbers = torch.Generator().manual_seed(_number(f"{seed} {one.question.key}"))
        tokens = iter(torch.multinomial(probs.cpu(), 1, generator=numbers).flatten().tolist())
        return [
            SamplesDistribution(
                tokenizer_hash=self._policy.tokenizer_hash,
                temperature=temperature,
                prefixes=list(range(len(sample.token_ids))),
                continuations=[[Continuation(token_ids=[next(tokens)])] for _ in sample.token_ids],
            )
            for sample in one.samples
        ]

    def _stack(self, samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        """The answers' tokens [B, T], padded on the right, and which of them exist."""
        answers = [torch.tensor(sample.token_ids) for sample in samples]
        ids = pad_sequence(answers, batch_first=True).to(self._inner.device)
        lengths = torch.tensor([len(answer) for answer in answers], device=ids.device)
        return ids, torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]

    @torch.no_grad()
    def read_right(self, questions: Sequence[Question]) -> float | None:
        """The mean logprob of the right answers, None where a question has more than one."""
        logprobs = []
        for question in questions:
            if question.right is None:
                return None
            prompt = torch.tensor(render_prompt(self._policy.tokenizer, question.messages), device=self._inner.device)
            end = self._policy.eos_token_ids[0]
            ids = torch.tensor([[*encode_text(self._policy.tokenizer, question.right), end]], device=prompt.device)
            hidden = read_responses(self._model, prompt, ids, torch.ones_like(ids, dtype=torch.bool))
            own = project(self._model, hidden[0]).log_softmax(-1)
            logprobs.append(float(own.gather(-1, ids[0, :, None]).sum()))
        return fmean(logprobs)

    @torch.no_grad()
    def read_again(self, drawn: Sequence[Drawn]) -> tuple[float, float]:
        """The policy's entropy and its KL to the base, both a mean over the answers' tokens."""
        if not isinstance(self._model, PeftModel):
            raise TypeError("only a policy in training has a base to be compared with")
        entropy = kl = 0.0
        tokens = 0
        for one in drawn:
            ids, exists = self._stack(one.samples[:PASS_AT])
            prompt = torch.tensor(one.prompt_ids, device=self._inner.device)
            hidden = read_responses(self._model, prompt, ids, exists)
            with self._model.disable_adapter():
                base_hidden = read_responses(self._model, prompt, ids, exists)
            own = project(self._model, hidden[exists]).log_softmax(-1)
            base = project(self._model, base_hidden[exists]).log_softmax(-1)
            entropy -= float((own.exp() * own).sum())
            kl += float((own.exp() * (own - base)).sum())
            tokens += len(own)
        return entropy / tokens, kl / tokens


def _copy_base(model: PolicyModel) -> PreTrainedModel:
    """A copy of the model without its adapter."""
    alike = copy.deepcopy(model)
    return cast(PreTrainedModel, alike.unload()) if isinstance(alike, PeftModel) else alike


def show(question: Question, shown: Shown | None) -> Sequence[Message]:
    """The messages after which an answer is drawn."""
    if shown is None:
        return question.messages
    if isinstance(shown, str):
        return build_teacher_messages(Template.TURNS, question.messages, shown)
    return build_teacher_messages(Template.TURNS, question.messages, precedents=shown)


def ask_in_turn(questions: Sequence[Question], count: int, seed: int) -> Iterator[list[Question]]:
    """`count` questions at a time, each once before any comes again, in an order that only the seed decides."""
    numbers = random.Random(seed)
    waiting: list[Question] = []
    while True:
        while len(waiting) < count:
            waiting += numbers.sample(list(questions), len(questions))
        yield waiting[:count]
        del waiting[:count]


def _spread(some: Sequence[_Item], count: int) -> list[_Item]:
    """`count` of them, evenly spaced; all where there are no more."""
    number = min(count, len(some))
    return [some[index * len(some) // number] for index in range(number)]


def _judge(drawn: Sequence[Drawn], world: World) -> list[list[float]]:
    asked = [(one.question, sample.text) for one in drawn for sample in one.samples]
    scores = iter(world.judge(asked))
    return [[next(scores) for _ in one.samples] for one in drawn]


def find_shown(drawn: Sequence[Drawn], scores: Sequence[Sequence[float]], world: World) -> list[str | None]:
    """What is shown of each question: its solution; or, in a world that shows siblings alone, the first of its answers
    that is right, None where none is."""
    if not world.only_siblings:
        return [one.question.solution for one in drawn]
    return [_find_right(one, own) for one, own in zip(drawn, scores, strict=True)]


def _find_right(one: Drawn, scores: Sequence[float]) -> str | None:
    right = (sample.text for sample, score in zip(one.samples, scores, strict=True) if passes(score))
    return next((text for text in right if strip_thinking(text)), None)


def swap_solutions(questions: Sequence[Question], shown: Sequence[_Item | None]) -> list[_Item | None]:
    """To each question what can be shown of the next one with another solution and of another family; failing that, of
    the next with another solution; failing that, of the next. None where nothing can be shown of any other."""

    def follow(index: int) -> _Item | None:
        own = questions[index]
        others = [at for at in (*range(index + 1, len(questions)), *range(index)) if shown[at] is not None]
        nearest = min(
            others,
            key=lambda at: (questions[at].solution == own.solution, questions[at].family == own.family),
            default=None,
        )
        return None if nearest is None else shown[nearest]

    return [follow(index) for index in range(len(questions))]


def draw_lessons(
    answerer: "Answerer", memory: Memory, questions: Sequence[Question], update: int, plan: Plan
) -> tuple[list[LessonFacts], Showable]:
    """The lessons of an update, and what may be shown about their tasks beside what is said in them."""
    material = {_task_id(one): memory.find(one) for one in questions} if plan.arm.shown == "product" else {}
    standing = find_standing(memory, questions)
    rolled_in = roll_in(answerer, memory, questions, Showable(material, standing), update, plan)
    counts = [plan.budget.group_size - len(samples) for samples in rolled_in]
    drawn = answerer.draw(questions, counts, f"{plan.seed} train {update}", plan.arm.sampling_temperature)
    lessons = list(teach(drawn, answerer, update, plan, rolled_in))
    for question in questions:
        own = [lesson for lesson in lessons if lesson.task_id == _task_id(question) and not lesson.shown]
        solved = [(one.judges[0].id, one.text) for one in own if passes(one.score)]
        memory.note(question, [passes(one.score) for one in own], next(iter(solved), None))
    return lessons, Showable(material, standing)


def find_standing(memory: Memory, questions: Sequence[Question]) -> Standing:
    """What teaches: what the product presumes to, and the black box, which it would have to measure first."""
    domains = {question.domain for question in questions}
    black_box, teaches = expert_id(BLACK_BOX), {Template.TURNS: Verdict(teaches=True, gap_low=0.0)}
    return Standing(
        {(black_box, ContextSource.DISTRIBUTION, domain): teaches for domain in domains},
        poolers=frozenset({expert_id(VERIFIER), expert_id(REFERENCE)}),
        unsolved=frozenset(domains if memory.hardly_ever_passes() else ()),
    )


def roll_in(
    answerer: "Answerer",
    memory: Memory,
    questions: Sequence[Question],
    showable: Showable,
    update: int,
    plan: Plan,
) -> list[tuple[Sample, ...]]:
    """What the teacher draws of each group, as many as the product would plan, after the first that may be shown."""
    shown = [_find_first(question, showable) for question in questions]
    counts = [
        count_shown(plan.arm.roll_in, memory.pass_rate(question), plan.budget.group_size) if told else 0
        for question, told in zip(questions, shown, strict=True)
    ]
    asked = [place for place, count in enumerate(counts) if count]
    drawn = (
        answerer.draw(
            [questions[place] for place in asked],
            [counts[place] for place in asked],
            f"{plan.seed} shown {update}",
            plan.setting.teacher_temperature,
            [shown[place] for place in asked],
        )
        if asked
        else []
    )
    of_place = {place: one.samples for place, one in zip(asked, drawn, strict=True)}
    return [of_place.get(place, ()) for place in range(len(questions))]


def _find_first(question: Question, showable: Showable) -> Shown | None:
    """What the product would have the teacher draw after."""
    material = showable.material.get(_task_id(question), ())
    first = find_first(material, showable.standing, question.domain, ContextSettings())
    return None if first is None else first[0].solution or first[0].precedents


def teach(
    drawn: Sequence[Drawn],
    answerer: "Answerer",
    update: int,
    plan: Plan,
    rolled_in: Sequence[Sequence[Sample]] | None = None,
) -> Iterator[LessonFacts]:
    """The lessons of an update: what the expert with the solution says of each answer, and the one that scores; last in
    each group the answers that the teacher drew, of which nothing is said. Where solutions are not shown, and in a
    world that shows siblings alone, the former has nothing to say, but in the control, of another task."""
    world, arm = answerer.world, plan.arm
    if arm.expert == "mistaken":
        drawn = [replace(one, question=_believe(one.question)) for one in drawn]
    judged = _judge(drawn, world)
    shown = find_shown(drawn, judged, world)
    if arm.other_feedback:
        shown = swap_solutions([one.question for one in drawn], shown)
    elif world.only_siblings or arm.shown != "solution":
        shown = [None] * len(drawn)  # the trainer looks to the siblings itself
    for one, told, scores, more in zip(drawn, shown, judged, rolled_in or [()] * len(drawn), strict=True):
        said = _speak(one, told, answerer, update, plan)
        group = _Group(one, plan, world, update)
        for sample, score, answers in zip(one.samples, scores, said, strict=True):
            yield group.make(sample, score, answers)
        for sample in more:
            yield group.make(sample, None, ())


def _speak(
    one: Drawn, told: str | None, answerer: "Answerer", update: int, plan: Plan
) -> Sequence[tuple[LessonAnswer, ...]]:
    """What the expert with the solution says of each answer."""
    if told is None:
        return [()] * len(one.samples)
    if plan.arm.expert == "samples":
        found = answerer.draw_next(one, told, plan.setting.teacher_temperature, f"{plan.seed} {update}")
        return [(_answer(new_id(), BLACK_BOX, distribution=distribution),) for distribution in found]
    return [(_answer(new_id(), REFERENCE, solution=told),)] * len(one.samples)


class _Group:
    """The lessons of one group, one after the other."""

    def __init__(self, one: Drawn, plan: Plan, world: World, update: int) -> None:
        self._one, self._update = one, update
        self._sampling = Sampling(max_new_tokens=world.max_new_tokens, temperature=plan.arm.sampling_temperature)
        self._id, self._count = new_id(), 0

    def make(self, sample: Sample, score: float | None, answers: tuple[LessonAnswer, ...]) -> LessonFacts:
        """The lesson of the group's next answer; one without a score is the teacher's."""
        index, question = self._count, self._one.question
        self._count += 1
        verdicts = () if score is None else (_answer(new_id(), VERIFIER, score=score),)
        return LessonFacts(
            lesson_id=new_id(),
            rollout_id=new_id(),
            group_id=self._id,
            group_size=len(self._one.samples),
            index_in_group=index,
            ordinal=index,
            late=False,
            task_id=_task_id(question),
            domain=question.domain,
            messages=question.messages,
            prompt_token_ids=self._one.prompt_ids,
            token_ids=tuple(sample.token_ids),
            text=sample.text,
            sampler_logprobs=None if score is None else tuple(sample.logprobs),
            action_mask=(True,) * len(sample.token_ids),
            sampling=self._sampling,
            tokenized_at_ingest=False,
            finish_reason=sample.finish_reason.value,
            policy_number=self._update,
            score=score,
            answers=(*answers, *verdicts),
            judges=verdicts,
            shown=score is None,
        )


def _task_id(question: Question) -> UUID:
    return uuid5(NAMESPACE_OID, question.key)


def _believe(question: Question) -> Question:
    """The question as an expert that is wrong at times takes it. Raises ValueError in a world without such experts."""
    if question.believed is None:
        raise ValueError(f"{question.key}: nothing is known of what a mistaken expert would believe")
    return replace(question, solution=question.believed)


def _answer(
    answer_id: UUID,
    expert: str,
    *,
    score: float | None = None,
    solution: str | None = None,
    distribution: SamplesDistribution | None = None,
) -> LessonAnswer:
    return LessonAnswer(
        id=answer_id,
        expert_id=expert_id(expert),
        expert=expert,
        expert_version="1",
        weight=1.0,
        score=score,
        feedback=None,
        solution=solution,
        distribution=distribution,
        from_reference=solution is not None,
        corrected=False,
    )


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()
