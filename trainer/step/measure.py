"""The record of an update: each lesson's contribution, and the metrics."""

from collections.abc import Iterator

from services.contracts.base import JsonObject
from services.contracts.updates import TermKind
from services.store.ledger.distributions import TopK
from services.store.ledger.updates import Contribution
from trainer.batch.rows import Batch
from trainer.losses.student import Choices
from trainer.objectives.account import Account
from trainer.step.plan import Plan


def contribute(batch: Batch, account: Account) -> Iterator[Contribution]:
    """Each lesson's contribution. A share is a term's part of the sum of all terms' parts of the loss, each without its
    sign: its local cost, and the charge on earlier tokens for it."""
    total = sum(abs(term.share) for terms in account.terms.values() for term in terms) or 1.0
    for row in batch.rows:
        terms = [t.model_copy(update={"share": abs(t.share) / total}) for t in account.terms.get(row.lesson_id, [])]
        yield Contribution(
            lesson_id=row.lesson_id,
            baseline_group=None if row.rolled_in else f"{row.siblings}/{row.half}",
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
    """The update's metrics: costs in nats, counts with `num_`. loss_NAME is an objective's part of the loss, its
    weight in the mix included; kl and cross_entropy are those of the first objective that has them. clipped_share: of
    the tokens that are charged for later costs or scores, those whose charge was cut. What the teacher drew counts in
    no rate of the policy's."""
    rows, sums = batch.rows, account.sums
    own = [row for row in rows if not row.rolled_in]
    names = ["loss", "local", "partial", "future", "imitation", "num_future_tokens"]
    names += ["num_charged_tokens", "num_clipped_tokens"]
    for objective in plan.objectives:
        names += [f"loss_{objective.name}", *objective.figures]
    metrics: dict[str, float] = {name: sums.get(name, 0.0) for name in names}
    for name in ("kl", "cross_entropy"):
        keys = (f"{name}_{objective.name}" for objective in plan.objectives)
        metrics[name] = next((sums[key] for key in keys if key in sums), 0.0)
    num_judged = sum(row.score is not None for row in own)
    metrics |= {
        "grad_norm": grad_norm,
        "learning_rate": learning_rate,
        "entropy": sums.get("entropy_sum", 0.0) / max(sums.get("num_actions", 0.0), 1),
        "gap": sums.get("gap_sum", 0.0) / max(sums.get("num_shown", 0.0), 1),
        "num_rows": len(rows),
        "num_rows_unused": sum(not plan.uses(row) for row in rows),
        "num_rows_unscored": len(own) - num_judged,
        "num_rows_rolled_in": len(rows) - len(own),
        "num_rows_invalid": len(batch.invalid),
        "num_rows_heuristic": sum(any(context.from_rollout for context in row.contexts) for row in rows),
        "future_share": len(account.future) / max(len(rows), 1),
        "response_tokens": sum(len(row.token_ids) for row in own) / max(len(own), 1),
        "stop_rate": sum(row.stopped for row in own) / max(len(own), 1),
        "pass_rate": sum(row.solved for row in own) / max(num_judged, 1),
        "clipped_share": sums.get("num_clipped_tokens", 0.0) / max(sums.get("num_charged_tokens", 0.0), 1),
        "num_judged": num_judged,
        "staleness": max((row.staleness or 0 for row in rows), default=0),
    }
    for kind in TermKind:
        metrics[f"num_{kind.value}"] = sum(t.kind is kind for terms in account.terms.values() for t in terms)
    return dict(sorted(metrics.items()))
