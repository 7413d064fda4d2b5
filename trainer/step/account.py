"""The account of an update: what each lesson gave to it, term by term, and its metrics."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import torch
from torch import Tensor

from services.contracts.base import JsonObject
from services.contracts.updates import TermKind, TermRecord
from services.store.ledger.distributions import TopK
from services.store.ledger.updates import Contribution
from trainer.batch.rows import Batch, Row, Source
from trainer.config import ObjectiveName
from trainer.losses.distil import NEGLIGIBLE, DistilLoss, TermPart
from trainer.losses.imitation import SftLoss
from trainer.losses.reward import RewardLoss
from trainer.losses.student import Choices, Student
from trainer.step.plan import FROM_ALL_EXPERTS, FROM_SCORES, Plan
from trainer.step.teacher import Teacher
from trainer.step.tensors import TermSource


@dataclass
class Account:
    """What became of the rows of a micro-batch; sums that add up over micro-batches and ranks.

    sums: parts of the loss and diagnostics by name; returns: cost-to-go of usable rows, [T] each. choices: the tokens
    our teacher finds likeliest, [T, K], 0 where it says nothing.
    """

    sums: dict[str, float] = field(default_factory=dict)
    terms: dict[UUID, list[TermRecord]] = field(default_factory=dict)
    token_costs: dict[UUID, tuple[float, ...]] = field(default_factory=dict)
    choices: dict[UUID, Choices] = field(default_factory=dict)
    future: set[UUID] = field(default_factory=set)
    returns: list[Tensor] = field(default_factory=list)

    def add(self, name: str, value: float) -> None:
        """Add to a sum."""
        self.sums[name] = self.sums.get(name, 0.0) + value

    def merge(self, other: "Account") -> None:
        """Take over another account."""
        for name, value in other.sums.items():
            self.add(name, value)
        for lesson_id, terms in other.terms.items():
            self.terms.setdefault(lesson_id, []).extend(terms)
        self.token_costs.update(other.token_costs)
        self.choices.update(other.choices)
        self.future |= other.future
        self.returns.extend(other.returns)


def _record(
    account: Account,
    row: Row,
    kind: TermKind,
    source: Source,
    weight: float,
    share: float,
    cost: float | None,
    num_tokens: int,
    context_sha256: str | None = None,
    teacher_sha256: str | None = None,
) -> None:
    record = TermRecord(
        kind=kind,
        answers=list(source.answers),
        sources=list(source.names),
        speakers=list(source.speakers),
        weight=weight,
        share=share,
        cost=cost,
        num_tokens=num_tokens,
        context_sha256=context_sha256,
        teacher_sha256=teacher_sha256,
    )
    account.terms.setdefault(row.lesson_id, []).append(record)


def account_for_reading(account: Account, student: Student) -> None:
    """Sums over action tokens: the student's entropy."""
    account.add("entropy_sum", float(student.entropy().sum()))
    account.add("num_actions", float(len(student.ids)))


def account_for_experts(
    account: Account,
    name: ObjectiveName,
    weight: float,
    micro: list[Row],
    sources: Sequence[TermSource],
    loss: DistilLoss,
    teacher: Teacher,
    per_token: float,
    credits_later_costs: bool,
) -> None:
    """Write down what an objective that learns from experts made of a micro-batch.

    weight: the objective's own in the update's loss. per_token: turns its means into means over the tokens it covers.
    credits_later_costs: it has a future term, whose returns the running mean of later updates is made of.
    """
    account.add(f"loss_{name}", weight * float(loss.loss.detach()))
    account.add("local", weight * float(loss.local))
    account.add("partial", weight * float(loss.partial))
    account.add("future", weight * float(loss.future))
    if name in FROM_ALL_EXPERTS:
        account.add(f"kl_{name}", float(loss.kl) * per_token)
        account.add(f"cross_entropy_{name}", float(loss.cost_mean) * per_token)
    else:
        account.add(f"divergence_{name}", float(loss.cost_mean) * per_token)
    account.add("num_future_tokens", float(loss.num_future_tokens))
    account.add("gap_sum", sum(float(part.gap) for part in loss.parts))
    account.add("num_shown", sum(float(part.num_compared) for part in loss.parts))
    for part, source in zip(loss.parts, sources, strict=True):
        for index, row in enumerate(micro):
            about = source.rows[index]
            if about is None:
                continue
            local, tokens = float(part.row_local[index]), float(part.row_weight[index])
            _record(
                account,
                row,
                source.kind,
                about[0],
                weight * about[1],
                weight * (abs(local) + abs(float(part.row_future[index]))),
                local / tokens if tokens > 0 else None,
                about[2],
                source.context_sha256[index],
                teacher.sha256 if source.kind is TermKind.CONDITIONED else None,
            )
            _keep_choices(account, row, part, index)
    felt = (loss.excess.abs() > NEGLIGIBLE).any(1)
    for index, row in enumerate(micro):
        length = len(row.token_ids)
        account.token_costs.setdefault(row.lesson_id, tuple(loss.cost[index, :length].tolist()))
        if bool(felt[index]):
            account.future.add(row.lesson_id)
        if credits_later_costs and bool(loss.covered[index]):
            account.returns.append(loss.cost_to_go[index].cpu())


def _keep_choices(account: Account, row: Row, part: TermPart, index: int) -> None:
    """What the first context about a token makes the teacher choose there; contexts on whole rollouts come first."""
    if part.choices is None:
        return
    length = len(row.token_ids)
    new = Choices(part.choices.ids[index, :length].cpu(), part.choices.probs[index, :length].cpu())
    known = account.choices.get(row.lesson_id)
    if known is not None:
        silent = known.probs[:, :1] == 0
        new = Choices(torch.where(silent, new.ids, known.ids), torch.where(silent, new.probs, known.probs))
    account.choices[row.lesson_id] = new


def account_for_scores(
    account: Account,
    name: ObjectiveName,
    weight: float,
    micro: list[Row],
    loss: RewardLoss,
    advantages: Sequence[float | None],
) -> None:
    """Write down what an objective that learns from scores made of a micro-batch."""
    account.add(f"loss_{name}", weight * float(loss.loss.detach()))
    account.add("num_clipped_tokens", float(loss.num_clipped))
    for index, row in enumerate(micro):
        advantage = advantages[index]
        if advantage is None:
            continue
        account.add("num_rows_without_signal", float(advantage == 0))
        share, tokens = weight * float(loss.row_loss[index]), int(loss.row_tokens[index])
        _record(account, row, TermKind.SCORE, row.verdicts, weight * advantage, share, None, tokens)


def account_for_imitation(
    account: Account,
    name: ObjectiveName,
    weight: float,
    rows: Sequence[Row],
    told_by: Sequence[tuple[Source, float] | None],
    loss: SftLoss,
) -> None:
    """Write down what was imitated in a micro-batch: texts given by experts, or the policy's own successes."""
    value = weight * float(loss.loss.detach())
    account.add(f"loss_{name}", value)
    account.add("imitation", value)
    for index, (row, told) in enumerate(zip(rows, told_by, strict=True)):
        if told is None:
            continue
        tokens = float(loss.row_tokens[index])
        surprise = -float(loss.logprobs[index].sum()) / max(tokens, 1)
        share = weight * float(loss.row_loss[index])
        _record(account, row, TermKind.IMITATION, told[0], told[1], share, surprise, int(tokens))


def contribute(batch: Batch, account: Account) -> Iterator[Contribution]:
    """What each lesson gave. A share is a term's part of the sum of all terms' parts of the loss, each without its
    sign: what it costs now and what earlier tokens are charged for it."""
    total = sum(abs(term.share) for terms in account.terms.values() for term in terms) or 1.0
    for row in batch.rows:
        terms = [t.model_copy(update={"share": abs(t.share) / total}) for t in account.terms.get(row.lesson_id, [])]
        yield Contribution(
            lesson_id=row.lesson_id,
            baseline_group=f"{row.siblings}/{row.half}",
            terms=tuple(terms),
            future_nonzero=row.lesson_id in account.future,
            staleness=row.staleness,
            token_costs=account.token_costs.get(row.lesson_id),
            choices=_as_top_k(account.choices.get(row.lesson_id)),
        )
    for lesson_id, reason in batch.invalid.items():
        yield Contribution(lesson_id=lesson_id, invalid=reason)


def _as_top_k(choices: Choices | None) -> TopK | None:
    if choices is None:
        return None
    probs = choices.probs.double()
    tail_mass = (1 - probs.sum(-1)).clamp(0, 1)
    return TopK(choices.ids.numpy(), probs.log().numpy(), tail_mass.numpy())


def measure(batch: Batch, plan: Plan, account: Account, grad_norm: float, learning_rate: float) -> JsonObject:
    """The update's metrics: costs in nats, counts with `num_`. loss_NAME is what an objective gave to the loss, its
    weight in the mix included; kl and cross_entropy are those of the first objective that has them."""
    rows, sums = batch.rows, account.sums
    from_experts = next(iter(plan.chosen(FROM_ALL_EXPERTS)), "distil")
    metrics: dict[str, float] = {
        name: sums.get(name, 0.0)
        for name in ("loss", "local", "partial", "future", "imitation", "num_future_tokens", "num_clipped_tokens")
    }
    metrics |= {f"loss_{name}": sums.get(f"loss_{name}", 0.0) for name in plan.weights}
    metrics |= {name: value for name, value in sums.items() if name.startswith("divergence_")}
    metrics |= {name: sums.get(f"{name}_{from_experts}", 0.0) for name in ("kl", "cross_entropy")}
    num_judged = sum(row.score is not None for row in rows)
    metrics |= {
        "grad_norm": grad_norm,
        "learning_rate": learning_rate,
        "entropy": sums.get("entropy_sum", 0.0) / max(sums.get("num_actions", 0.0), 1),
        "gap": sums.get("gap_sum", 0.0) / max(sums.get("num_shown", 0.0), 1),
        "num_rows": len(rows),
        "num_rows_unused": sum(row.lesson_id not in plan.usable for row in rows),
        "num_rows_unscored": len(rows) - num_judged,
        "num_rows_invalid": len(batch.invalid),
        "num_rows_heuristic": sum(any(context.from_rollout for context in row.contexts) for row in rows),
        "future_share": len(account.future) / max(len(rows), 1),
        "response_tokens": sum(len(row.token_ids) for row in rows) / max(len(rows), 1),
        "stop_rate": sum(row.stopped for row in rows) / max(len(rows), 1),
        "pass_rate": sum(row.solved for row in rows) / max(num_judged, 1),
        "num_judged": num_judged,
        "staleness": max((row.staleness or 0 for row in rows), default=0),
    }
    if plan.chosen(FROM_SCORES):
        metrics["num_rows_without_signal"] = sums.get("num_rows_without_signal", 0.0)
    for kind in TermKind:
        metrics[f"num_{kind.value}"] = sum(t.kind is kind for terms in account.terms.values() for t in terms)
    return dict(sorted(metrics.items()))
