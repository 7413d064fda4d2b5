"""One update: a batch of rows in, changed weights and an account of them out.

The loss of the update is the sum of its micro-batches' losses, each already divided by counts over the whole update;
so gradients add up over micro-batches and ranks alike. A row that means nothing (NaN, a distribution that does not
fit) is taken out as invalid, and the step starts again without it. Nothing here touches the store or the disk.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

import torch
from torch import Tensor

from services.contracts.base import JsonObject
from services.contracts.updates import TermKind
from services.policy.modeling import project, response_hidden
from services.settings import Settings
from services.store.updates import Contribution
from trainer.account import Account, account_for, contribute, measure, record_term
from trainer.batch import Batch, ImitationRow, Row, solution_target
from trainer.config import TrainerConfig
from trainer.credit import CostKind, Credit, LeaveOneOut, Reach, Scale, update_position_mean
from trainer.losses import distil_loss, forward_ce_loss, sft_loss
from trainer.ranks import Ranks
from trainer.state import TrainerState
from trainer.teacher import Teacher, follow, make_teacher, trainable
from trainer.tensors import Counts, build_terms, stack_rows

RUNNING_MEAN_RATE = 0.1  # share of the newest update in the running mean of returns per position


class Stopped(Exception):
    """The process was asked to end; the step is given up."""


class MeaninglessRows(Exception):
    """Rows that cannot be trained on, with the reasons; the weights are unchanged."""

    def __init__(self, reasons: dict[UUID, str]) -> None:
        super().__init__(f"{len(reasons)} rows mean nothing")
        self.reasons = reasons


@dataclass(frozen=True)
class StepResult:
    """The account of one update: what each lesson gave, and the metrics.

    untrained: why nothing was trained, and then the state is as it was; None when the weights changed.
    """

    contributions: tuple[Contribution, ...]
    metrics: JsonObject
    untrained: str | None


def make_update(
    state: TrainerState,
    batch: Batch,
    config: TrainerConfig,
    settings: Settings,
    ranks: Ranks,
    stopping: Callable[[], bool],
) -> StepResult:
    """Change the weights by one optimizer step on the batch, unless nothing in it teaches anything. Of the settings:
    the sampler's limit and the teacher's temperature.

    Raises Stopped, with the weights unchanged, when `stopping` turns true between two micro-batches.
    """
    parameters = trainable(state.model)
    learning_rate = state.learning_rate(config)
    teacher = make_teacher(state.average, state.base_sha256)
    while True:
        state.optimizer.zero_grad(set_to_none=True)
        try:
            account = _sum_losses(state, teacher, batch, config, settings, ranks, stopping)
            break
        except MeaninglessRows as error:
            batch = batch.without(error.reasons)
    ranks.sum_gradients(parameters.values())
    grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters.values(), config.grad_clip))
    if not math.isfinite(grad_norm):
        batch = batch.without({row.lesson_id: "the gradient of its update was NaN or infinite" for row in batch.rows})
    untrained = _why_untrained(batch, account, grad_norm)
    if untrained is None:
        _take_step(state, account, learning_rate, config)
        state.number += 1
    state.optimizer.zero_grad(set_to_none=True)
    return StepResult(
        contributions=tuple(contribute(batch, account)),
        metrics=measure(batch, account, grad_norm if untrained is None else 0.0, learning_rate),
        untrained=untrained,
    )


def _why_untrained(batch: Batch, account: Account, grad_norm: float) -> str | None:
    if not batch.rows:
        return "none of its rows means anything"
    if not any(account.terms.values()):
        return "none of its rows has usable feedback"
    return None if grad_norm > 0 else "its gradient was zero"


def _take_step(state: TrainerState, account: Account, learning_rate: float, config: TrainerConfig) -> None:
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.optimizer.step()
    state.average = follow(state.average, state.model, config.teacher_ema)
    if account.returns:
        length = len(state.position_mean)
        returns = torch.zeros(len(account.returns), length)
        for row, values in zip(returns, account.returns, strict=True):
            row[: len(values)] = values[:length]
        everyone = torch.ones(len(returns), dtype=torch.bool)
        state.position_mean = update_position_mean(state.position_mean, returns, everyone, RUNNING_MEAN_RATE)


# --- micro-batches ---


def split_rows(rows: Sequence[Row], max_rows: int) -> list[list[Row]]:
    """Rows that share a prompt, put through the model together: a group, or, where that is too many, its halves.

    Rows that share a baseline are never parted.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.siblings, row.prompt_ids), []).append(row)
    split = []
    for group in groups.values():
        halves = [[row for row in group if row.half == half] for half in sorted({row.half for row in group})]
        split += halves if len(group) > max_rows else [group]
    return split


def _sum_losses(
    state: TrainerState,
    teacher: Teacher,
    batch: Batch,
    config: TrainerConfig,
    settings: Settings,
    ranks: Ranks,
    stopping: Callable[[], bool],
) -> Account:
    """Backward through this rank's micro-batches; the account of all ranks. Raises MeaninglessRows on every rank."""
    rows = [row for row in batch.rows if row.usable]
    counts = Counts.of(rows) if config.objective == "distil" else _count_targets(rows, state)
    account, bad, stopped = Account(), dict[UUID, str](), False
    for micro in split_rows(rows, config.micro_batch_rows)[ranks.rank :: ranks.size]:
        if stopped := stopping():
            break
        try:
            account.merge(_go_back(state, teacher, micro, counts, config, settings))
        except ValueError as error:
            bad |= _find_meaningless(state, teacher, micro, counts, config, settings, str(error))
    everywhere = ranks.collect((account, bad, stopped))
    if any(stopped for _, _, stopped in everywhere):
        raise Stopped
    if any(bad for _, bad, _ in everywhere):
        raise MeaninglessRows({lesson: reason for _, bad, _ in everywhere for lesson, reason in bad.items()})
    total = Account()
    for one, _, _ in everywhere:
        total.merge(one)
    return total


def _count_targets(rows: Sequence[Row], state: TrainerState) -> Counts:
    targets = [solution_target(row, state.tokenizer, state.vocabulary) for row in rows]
    return Counts(covered=0, partial={}, imitated=sum(t.weight * len(t.token_ids) for t in targets if t))


def _go_back(
    state: TrainerState, teacher: Teacher, micro: list[Row], counts: Counts, config: TrainerConfig, settings: Settings
) -> Account:
    """Add the micro-batch's gradient to the parameters'. Raises ValueError if it means nothing, perhaps half-way."""
    account = Account()
    for loss in _losses(state, teacher, micro, counts, config, settings, account):
        if not loss.isfinite():
            raise ValueError("the loss is NaN or infinite")
        account.add("loss", float(loss.detach()))
        torch.autograd.backward(loss)
    return account


def _losses(
    state: TrainerState,
    teacher: Teacher,
    micro: list[Row],
    counts: Counts,
    config: TrainerConfig,
    settings: Settings,
    account: Account,
) -> Iterator[Tensor]:
    """The parts of a micro-batch's loss, one after the other, so that only one graph is held at a time."""
    if config.objective == "sft":
        targets = [(row, solution_target(row, state.tokenizer, state.vocabulary)) for row in micro]
        pairs = [(row, target) for row, target in targets if target is not None]
        if pairs:
            yield _imitate(state, pairs, counts, 1.0, account)
        return
    if any(row.covered or row.samples or row.labels for row in micro):
        yield _distil(state, teacher, micro, counts, config, settings, account)
    pairs = [(row, imitation) for row in micro for imitation in row.imitations]
    if pairs:
        yield _imitate(state, pairs, counts, config.imitation_share, account)


def _find_meaningless(
    state: TrainerState,
    teacher: Teacher,
    micro: list[Row],
    counts: Counts,
    config: TrainerConfig,
    settings: Settings,
    problem: str,
) -> dict[UUID, str]:
    """Which rows of a micro-batch that failed mean nothing: those that fail alone, or all of them where none does."""
    bad = {}
    for row in micro:
        try:
            with torch.no_grad():
                for loss in _losses(state, teacher, [row], counts, config, settings, Account()):
                    if not loss.isfinite():
                        raise ValueError("the loss is NaN or infinite")
        except ValueError as error:
            bad[row.lesson_id] = str(error)
    return bad or {row.lesson_id: problem for row in micro}


# --- the two kinds of loss ---


def _distil(
    state: TrainerState,
    teacher: Teacher,
    micro: list[Row],
    counts: Counts,
    config: TrainerConfig,
    settings: Settings,
    account: Account,
) -> Tensor:
    rollouts, exists = stack_rows(micro, state.device)
    prompt = torch.tensor(micro[0].prompt_ids, device=state.device)
    terms, sources = build_terms(state, teacher, micro, rollouts, exists, counts, config, settings.teacher_temperature)
    logits = project(state.model, response_hidden(state.model, prompt, rollouts.token_ids, exists))
    if config.lam == 0:
        loss = forward_ce_loss(logits, rollouts, terms, counts.covered)
    else:
        baseline = _choose_baseline(state, micro, rollouts.token_ids.shape[1], config)
        loss = distil_loss(logits, rollouts, terms, baseline, _make_credit(config, settings), counts.covered)
    account_for(account, micro, rollouts, logits.detach(), terms, sources, loss, teacher)
    return loss.loss


def _imitate(
    state: TrainerState,
    pairs: Sequence[tuple[Row, ImitationRow]],
    counts: Counts,
    share: float,
    account: Account,
) -> Tensor:
    """`share` times the mean negative log-likelihood of given tokens, weighted by the trust in who gave them."""
    length = max(len(imitation.token_ids) for _, imitation in pairs)
    shape = (len(pairs), length)
    ids, exists = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    learn = torch.zeros(shape, dtype=torch.bool)
    for index, (_, imitation) in enumerate(pairs):
        ids[index, : len(imitation.token_ids)] = torch.tensor(imitation.token_ids)
        exists[index, : len(imitation.token_ids)] = True
        learn[index, imitation.start : len(imitation.token_ids)] = True
    ids, exists, learn = (tensor.to(state.device) for tensor in (ids, exists, learn))
    prompt = torch.tensor(pairs[0][0].prompt_ids, device=state.device)
    logits = project(state.model, response_hidden(state.model, prompt, ids, exists))
    total = logits.new_zeros(())
    for index, (row, imitation) in enumerate(pairs):
        at = slice(index, index + 1)
        temperature = torch.tensor([row.temperature], device=state.device)
        num_tokens = int(learn[at].sum())
        one = sft_loss(logits[at], ids[at], learn[at], temperature, num_tokens)
        part = share * imitation.weight * num_tokens / counts.imitated
        total = total + part * one.loss
        cost = float(one.loss.detach())
        account.add("imitation", part * cost)
        account.terms.setdefault(row.lesson_id, []).append(
            record_term(TermKind.IMITATION, imitation.source, imitation.weight, part * cost, cost, num_tokens)
        )
    return total


def _make_credit(config: TrainerConfig, settings: Settings) -> Credit:
    return Credit(
        weight=config.lam,
        clip=config.clip,
        cost=CostKind(config.cost),
        scale=Scale(config.scale),
        reach=Reach(config.reach),
        gamma=config.gamma,
        max_tokens=settings.max_new_tokens,
    )


def _choose_baseline(state: TrainerState, micro: list[Row], length: int, config: TrainerConfig) -> LeaveOneOut | Tensor:
    running = torch.zeros(length)
    known = min(length, len(state.position_mean))
    running[:known] = state.position_mean[:known]
    running = running.to(state.device)
    if config.baseline == "running_mean":
        return running
    if config.baseline == "none":
        return torch.zeros_like(running)
    names = sorted({row.siblings for row in micro})
    return LeaveOneOut(
        group=torch.tensor([names.index(row.siblings) for row in micro], device=state.device),
        half=torch.tensor([row.half for row in micro], device=state.device),
        fallback=running,
    )
