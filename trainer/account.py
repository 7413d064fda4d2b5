"""The account of an update: what each lesson gave to it, term by term, and its metrics."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import torch
from torch import Tensor

from services.contracts.base import JsonObject
from services.contracts.updates import TermKind, TermRecord
from services.store.updates import Contribution
from trainer.batch import SUCCESS, Batch, Row, Source
from trainer.losses import NEGLIGIBLE, DistilLoss, Rollouts
from trainer.teacher import Teacher
from trainer.tensors import TermSource
from trainer.terms import FullVocabulary, Term


@dataclass
class Account:
    """What became of the rows of a micro-batch; sums that add up over micro-batches and ranks.

    sums: parts of the loss and diagnostics by name; returns: cost-to-go of usable rows, [T] each.
    """

    sums: dict[str, float] = field(default_factory=dict)
    terms: dict[UUID, list[TermRecord]] = field(default_factory=dict)
    token_costs: dict[UUID, tuple[float, ...]] = field(default_factory=dict)
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
        self.future |= other.future
        self.returns.extend(other.returns)


def record_term(
    kind: TermKind,
    source: Source,
    weight: float,
    share: float,
    cost: float,
    num_tokens: int,
    context_sha256: str | None = None,
    teacher_sha256: str | None = None,
) -> TermRecord:
    return TermRecord(
        kind=kind,
        answers=list(source.answers),
        sources=list(source.names),
        weight=weight,
        share=share,
        cost=cost,
        num_tokens=num_tokens,
        context_sha256=context_sha256,
        teacher_sha256=teacher_sha256,
    )


def account_for(
    account: Account,
    micro: list[Row],
    rollouts: Rollouts,
    logits: Tensor,
    terms: Sequence[Term],
    sources: Sequence[TermSource],
    loss: DistilLoss,
    teacher: Teacher,
) -> None:
    """Write down what a micro-batch's loss was made of."""
    for name in ("local", "partial", "future", "kl", "cross_entropy"):
        account.add(name, float(getattr(loss, name)))
    account.add("num_future_tokens", float(loss.num_future_tokens))
    for part, source in zip(loss.parts, sources, strict=True):
        account.add(f"{source.kind.value}_terms", float(sum(row is not None for row in source.rows)))
        for index, row in enumerate(micro):
            about = source.rows[index]
            if about is None:
                continue
            share, weight = float(part.row_local[index]), float(part.row_weight[index])
            account.terms.setdefault(row.lesson_id, []).append(
                record_term(
                    source.kind,
                    about[0],
                    about[1],
                    share,
                    share / weight if weight > 0 else 0.0,
                    about[2],
                    source.context_sha256[index],
                    teacher.sha256 if source.kind is TermKind.CONDITIONED else None,
                )
            )
    felt = (loss.excess.abs() > NEGLIGIBLE).any(1)
    for index, row in enumerate(micro):
        length = len(row.token_ids)
        account.token_costs[row.lesson_id] = tuple(loss.cost[index, :length].tolist())
        if bool(felt[index]):
            account.future.add(row.lesson_id)
        if bool(loss.covered[index]):
            account.returns.append(loss.cost_to_go[index].cpu())
    _account_for_gap(account, rollouts, logits, terms, loss)


def _account_for_gap(
    account: Account, rollouts: Rollouts, logits: Tensor, terms: Sequence[Term], loss: DistilLoss
) -> None:
    """Sums over action tokens: the student's entropy; how much likelier the teacher finds the sampled tokens."""
    mask = rollouts.action_mask
    logprobs = (logits[mask] / rollouts.temperature[:, None].expand_as(mask)[mask][:, None]).log_softmax(-1)
    account.add("entropy_sum", float(torch.special.entr(logprobs.exp()).sum()))
    account.add("num_actions", float(mask.sum()))
    for term in terms:
        if isinstance(term.expert, FullVocabulary):
            shown = mask & (term.weights > 0)[:, None] if term.weights.dim() == 1 else mask
            teacher = term.expert.logprobs.gather(-1, rollouts.token_ids[..., None])[..., 0]
            account.add("gap_sum", float((teacher - loss.action_logprobs)[shown].sum()))
            account.add("num_shown", float(shown.sum()))


def contribute(batch: Batch, account: Account) -> Iterator[Contribution]:
    """What each lesson gave; shares are parts of all terms' local costs."""
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
        )
    for lesson_id, reason in batch.invalid.items():
        yield Contribution(lesson_id=lesson_id, invalid=reason)


def measure(batch: Batch, account: Account, grad_norm: float, learning_rate: float) -> JsonObject:
    """The update's metrics: costs in nats, counts with `num_`."""
    rows, sums = batch.rows, account.sums
    judged = [row.score for row in rows if row.score is not None]
    metrics: dict[str, float] = {
        name: sums.get(name, 0.0) for name in ("loss", "local", "partial", "future", "imitation", "kl", "cross_entropy")
    }
    metrics |= {
        "grad_norm": grad_norm,
        "learning_rate": learning_rate,
        "entropy": sums.get("entropy_sum", 0.0) / max(sums.get("num_actions", 0.0), 1),
        "gap": sums.get("gap_sum", 0.0) / max(sums.get("num_shown", 0.0), 1),
        "num_rows": len(rows),
        "num_rows_unused": sum(not row.usable for row in rows),
        "num_rows_invalid": len(batch.invalid),
        "num_rows_heuristic": sum(row.context is not None and row.context.from_rollout for row in rows),
        "num_future_tokens": sums.get("num_future_tokens", 0.0),
        "future_share": len(account.future) / max(len(rows), 1),
        "response_tokens": sum(len(row.token_ids) for row in rows) / max(len(rows), 1),
        "stop_rate": sum(row.stopped for row in rows) / max(len(rows), 1),
        "pass_rate": sum(score >= SUCCESS for score in judged) / max(len(judged), 1),
        "num_judged": len(judged),
        "staleness": max((row.staleness or 0 for row in rows), default=0),
    }
    for kind in TermKind:
        metrics[f"num_{kind.value}"] = sum(t.kind is kind for terms in account.terms.values() for t in terms)
    return dict(sorted(metrics.items()))
