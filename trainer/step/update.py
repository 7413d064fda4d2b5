"""One update: a batch of rows in, changed weights and an account of them out.

The loss of the update is the sum of its micro-batches' losses, each already divided by counts over the whole update;
so gradients add up over micro-batches and ranks alike. An invalid row (NaN, a distribution that does not fit) is taken
out, and the step starts again without it. This module touches neither the store nor the disk.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import torch

from services.contracts.base import JsonObject
from services.runtime.settings import Settings
from services.store.ledger.updates import Contribution
from trainer.batch.rows import Batch, Row
from trainer.config import TrainerConfig
from trainer.losses.credit import update_position_mean
from trainer.objectives.account import Account
from trainer.step.compose import Composer
from trainer.step.measure import contribute, measure
from trainer.step.plan import make_plan
from trainer.step.ranks import Ranks
from trainer.step.state import TrainerState
from trainer.step.teacher import follow, make_teacher, trainable

GRAD_NORM = 1.0  # a larger gradient is scaled down to it: one odd batch must not throw the adapter far off
RUNNING_MEAN_RATE = 0.1  # share of the newest update in the running mean of returns per position


class Stopped(Exception):
    """The process was asked to end; the step is given up."""


class InvalidRows(Exception):
    """Rows that cannot be trained on, with the reasons. The weights are unchanged."""

    def __init__(self, reasons: dict[UUID, str]) -> None:
        super().__init__(f"{len(reasons)} rows are invalid")
        self.reasons = reasons


@dataclass(frozen=True)
class StepResult:
    """The record of one update: each lesson's contribution, and the metrics.

    untrained: why the weights did not change, and then the state did not either; None when they changed.
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
    """Change the weights by one optimizer step on the batch, unless no row of it teaches anything. Of the settings: the
    teacher's temperature.

    Raises Stopped, with the weights unchanged, when `stopping` turns true between two micro-batches.
    """
    parameters = trainable(state.model)
    learning_rate = state.learning_rate(config)
    teacher = make_teacher(state.average, state.base_sha256)
    while True:
        state.optimizer.zero_grad(set_to_none=True)
        plan = make_plan(batch.rows, config)
        try:
            composer = Composer(state, teacher, plan, config, settings.teacher_temperature)
            account = _sum_losses(composer, batch, ranks, stopping)
            break
        except InvalidRows as error:
            batch = batch.without(error.reasons)
    ranks.sum_gradients(parameters.values())
    grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters.values(), GRAD_NORM))
    if not math.isfinite(grad_norm):
        batch = batch.without({row.lesson_id: "the gradient of its update was NaN or infinite" for row in batch.rows})
    untrained = _why_untrained(batch, account, grad_norm)
    if untrained is None:
        _take_step(state, account, learning_rate, config)
        state.number += 1
    state.optimizer.zero_grad(set_to_none=True)
    return StepResult(
        contributions=tuple(contribute(batch, account)),
        metrics=measure(batch, plan, account, grad_norm if untrained is None else 0.0, learning_rate),
        untrained=untrained,
    )


def _why_untrained(batch: Batch, account: Account, grad_norm: float) -> str | None:
    if not batch.rows:
        return "none of its rows is valid"
    if not any(account.terms.values()):
        return "none of its rows has usable feedback"
    return None if grad_norm > 0 else "its gradient was zero"


def _take_step(state: TrainerState, account: Account, learning_rate: float, config: TrainerConfig) -> None:
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.optimizer.step()
    state.average = follow(state.average, state.model, config.teacher_ema)
    state.published = follow(state.published, state.model, config.publish_average)
    if account.returns:
        length = len(state.position_mean)
        returns = torch.zeros(len(account.returns), length)
        for row, values in zip(returns, account.returns, strict=True):
            row[: len(values)] = values[:length]
        everyone = torch.ones(len(returns), dtype=torch.bool)
        state.position_mean = update_position_mean(state.position_mean, returns, everyone, RUNNING_MEAN_RATE)


# --- micro-batches ---


def split_rows(rows: Sequence[Row], max_rows: int, share_baseline: bool) -> list[list[Row]]:
    """Rows that share a prompt, put through the model together: a group, or, where that is too many, parts of it.

    Rows that share a baseline are never parted: where they do, a part is a half of the group, however large.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.siblings, row.prompt_ids), []).append(row)
    split = []
    for group in groups.values():
        if len(group) <= max_rows:
            split.append(group)
        elif share_baseline:
            split += [[row for row in group if row.half == half] for half in sorted({row.half for row in group})]
        else:
            split += [group[start : start + max_rows] for start in range(0, len(group), max_rows)]
    return split


def _sum_losses(composer: Composer, batch: Batch, ranks: Ranks, stopping: Callable[[], bool]) -> Account:
    """Backward through this rank's micro-batches; the account of all ranks. Raises InvalidRows on every rank."""
    rows = [row for row in batch.rows if composer.plan.uses(row)]
    account, bad, stopped = Account(), dict[UUID, str](), False
    micros = split_rows(rows, composer.config.micro_batch_rows, composer.plan.shares_baseline)
    for micro in micros[ranks.rank :: ranks.size]:
        if stopped := stopping():
            break
        try:
            account.merge(_go_back(composer, micro))
        except ValueError as error:
            bad |= _find_invalid(composer, micro, str(error))
    everywhere = ranks.collect((account, bad, stopped))
    if any(stopped for _, _, stopped in everywhere):
        raise Stopped
    if any(bad for _, bad, _ in everywhere):
        raise InvalidRows({lesson: reason for _, bad, _ in everywhere for lesson, reason in bad.items()})
    total = Account()
    for one, _, _ in everywhere:
        total.merge(one)
    return total


def _go_back(composer: Composer, micro: list[Row]) -> Account:
    """Add the micro-batch's gradient to the parameters'. Raises ValueError if a row is invalid, perhaps half-way."""
    account = Account()
    for loss in composer.losses(micro, account):
        if not loss.isfinite():
            raise ValueError("the loss is NaN or infinite")
        account.add("loss", float(loss.detach()))
        torch.autograd.backward(loss)
    return account


def _find_invalid(composer: Composer, micro: list[Row], problem: str) -> dict[UUID, str]:
    """The invalid rows of a micro-batch that failed: those that fail alone, or all of them where none does."""
    bad = {}
    for row in micro:
        try:
            with torch.no_grad():
                for loss in composer.losses([row], Account()):
                    if not loss.isfinite():
                        raise ValueError("the loss is NaN or infinite")
        except ValueError as error:
            bad[row.lesson_id] = str(error)
    return bad or {row.lesson_id: problem for row in micro}
