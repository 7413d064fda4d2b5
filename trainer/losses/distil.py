"""The objectives that learn from experts: DistIL, its tokenwise half, and those it is compared with.

`distil_loss` = local term + future term; `forward_ce_loss` = the local term alone; `paper_loss` = the loss that
DistIL's authors released; `sdpo_loss`, `reverse_kl_loss` = other divergences, token by token. All weigh the same terms.

Pure: tensors in, named tensors out. Every sum is divided by a count over the *whole update*, which the caller passes
in: the losses of its micro-batches add up to the loss of the update, and so do its parts.

Not covered: making the experts' distributions, choosing weights and shares, sampling, logging, devices.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.losses.costs import CostOf, StepCost, coarse_cost, cross_entropy_cost, reverse_kl_cost
from trainer.losses.credit import (
    CostKind,
    Credit,
    LeaveOneOut,
    LocalRatio,
    Reach,
    Scale,
    leave_one_out,
    scaled_return,
)
from trainer.losses.divergences import cross_entropy, jensen_shannon
from trainer.losses.student import Choices, Places, Rollouts, Student
from trainer.losses.terms import DrawnTerm, PartialTerm, Term, WholeTerm, require_shape

RATIO_CAP = 2.0  # the token ratio of off-policy rollouts is cut here: bounded variance for a little bias
NEGLIGIBLE = 1e-4  # nats; float32 leaves about 1e-5 of a KL that is zero, over a vocabulary of 50,000
PAPER_CREDIT = Credit(
    weight=1.0,
    clip=math.inf,
    cost=CostKind.CROSS_ENTROPY,
    scale=Scale.MEAN_TO_GO,
    reach=Reach.LATER,
    gamma=1.0,
    max_tokens=1,  # of no effect with this scale
)


@dataclass(frozen=True, eq=False)
class TermPart:
    """One term's part in a loss; each number is a detached sum, so those of micro-batches add up.

    num_tokens: action tokens it covers; weight: its normalised weights there, in tokens; local, future: its part of
    the loss. The future term is shared out in proportion to the later costs, after the clip.
    gap: how much likelier the expert finds the sampled tokens than the student does, in nats, over num_compared tokens:
    those where an expert with a full distribution speaks.
    Shapes: row_local, row_weight, row_future [B]: each rollout's part of `local`, of the weights it was averaged with
    (the quotient of the two is the term's cost on that rollout, in nats per token), and of `future`. choices: [B, T, K]
    of an expert over the whole vocabulary, 0 where it is absent; None for another.
    """

    name: str
    num_tokens: Tensor
    weight: Tensor
    local: Tensor
    future: Tensor
    gap: Tensor
    num_compared: Tensor
    row_local: Tensor
    row_weight: Tensor
    row_future: Tensor
    choices: Choices | None


@dataclass(frozen=True, eq=False)
class DistilLoss:
    """A loss and the figures that the ledger keeps. Only `loss` carries a gradient.

    loss = local + partial + future, scalars: whole-coverage terms, partial and drawn terms, credit for later costs.
    cost_mean, kl: nats per action token of the update's covered rollouts, over whole-coverage terms: their costs (the
    cross-entropy, or the objective's own divergence), and those less the experts' entropies (samples, and divergences
    that are no cross-entropy, give the cost in both). covered [B] bool: rollouts that have a cost-to-go.
    num_future_tokens, num_future_rows: those whose future term is not negligible. num_charged: tokens that a future
    term applies to; num_clipped: those of them whose excess was cut. Shapes [B, T], 0 where no token is charged: cost
    d_t; cost_to_go R_t (scaled); baseline; excess (R_t less its baseline, clipped, 0 where no future term applies);
    ratio (truncated); action_logprobs.
    """

    loss: Tensor
    local: Tensor
    partial: Tensor
    future: Tensor
    cost_mean: Tensor
    kl: Tensor
    covered: Tensor
    num_future_tokens: Tensor
    num_future_rows: Tensor
    num_charged: Tensor
    num_clipped: Tensor
    parts: tuple[TermPart, ...]
    cost: Tensor
    cost_to_go: Tensor
    baseline: Tensor
    excess: Tensor
    ratio: Tensor
    action_logprobs: Tensor


@dataclass(frozen=True, eq=False)
class _Weighed:
    """One term on N action tokens: its cost, and its weights in the local term and in the cost-to-go.

    Shapes: [N]. mix sums to 1 over the terms present at a token, covering over the whole-coverage and drawn terms of
    its rollout. per_token: share / count. charge: 1, or 1 / probability where a prefix was drawn and 0 where not.
    """

    term: Term
    cost: StepCost
    mix: Tensor
    covering: Tensor
    charge: Tensor
    per_token: float

    def future_cost(self, kind: CostKind) -> Tensor:
        """The term's part of d [N], detached."""
        cost = self.cost.cost.detach()
        return self.covering * self.charge * (cost - self.cost.entropy if kind is CostKind.KL else cost)


@dataclass(frozen=True, eq=False)
class _Charged:
    """The future term, detached: charge λρ·excess [N] and each term's fraction of it [N]; the rest as in DistilLoss."""

    charge: Tensor
    fractions: tuple[Tensor, ...]
    cost: Tensor
    cost_to_go: Tensor
    baseline: Tensor
    excess: Tensor
    ratio: Tensor
    num_charged: Tensor
    num_clipped: Tensor


def distil_loss(
    student: Student,
    rollouts: Rollouts,
    terms: Sequence[Term],
    baseline: LeaveOneOut | Tensor,
    credit: Credit,
    covered_tokens: int,
    local_ratio: LocalRatio = LocalRatio.NONE,
) -> DistilLoss:
    """Forward cross-entropy to the experts on the student's own states, with credit to earlier tokens.

    Descends E_{y ~ student}[sum_t c_t], c_t = sum_k w_k H(expert_k(.|s_t, f), student(.|s_t)) (DistIL,
    arXiv:2606.05152, Prop. 1): each step is pulled to the experts, and each sampled token is charged with the cost
    that came after it, less a baseline independent of that token. Exact for sums of CE without scale and clip, if f
    does not depend on the rollout itself (or credit.reach is the whole rollout); with KL and means a relative of it
    that does not reward stopping early.

    student: of one micro-batch, at the action tokens of `rollouts`. baseline: LeaveOneOut, whose groups
    must then be whole in this micro-batch, or given [B, T] or [T]: zeros, a running mean. covered_tokens: action
    tokens over the whole update of rollouts with a whole-coverage or drawn term; a larger divisor is allowed. A
    micro-batch without any usable term gives a loss of 0. Raises ValueError, naming the row, for input without a
    meaningful result.
    """
    weighed, covered = _weigh(student, rollouts.action_mask, terms, covered_tokens, cross_entropy_cost)
    charged = _charge(student, rollouts, weighed, covered, baseline, credit)
    return _assemble(student, rollouts, weighed, covered, charged, covered_tokens, local_ratio)


def forward_ce_loss(
    student: Student,
    rollouts: Rollouts,
    terms: Sequence[Term],
    covered_tokens: int,
    local_ratio: LocalRatio = LocalRatio.NONE,
) -> DistilLoss:
    """Forward cross-entropy to the experts on the student's own states, token by token: DistIL without its future term.

    Arguments and errors as in `distil_loss`. `cost` is the KL; cost-to-go, baseline, excess and ratio are 0.
    """
    return _tokenwise_loss(student, rollouts, terms, covered_tokens, cross_entropy_cost, local_ratio)


def paper_loss(
    student: Student, rollouts: Rollouts, terms: Sequence[Term], top_k: int, covered_tokens: int
) -> DistilLoss:
    """The loss that DistIL's authors released for their science runs, for comparison with their Proposition 1.

    It departs from the proposition: cross-entropy on the student's `top_k` tokens and a tail bucket, no baseline,
    mean-to-go, and the whole loss is multiplied by the truncated token ratio. Terms must be experts with a full
    distribution on whole rollouts. Arguments and errors otherwise as in `distil_loss`.
    """
    cost_of = coarse_cost(cross_entropy, top_k)
    weighed, covered = _weigh(student, rollouts.action_mask, terms, covered_tokens, cost_of)
    no_baseline = student.log_total.new_zeros(rollouts.action_mask.shape[1])
    charged = _charge(student, rollouts, weighed, covered, no_baseline, PAPER_CREDIT)
    return _assemble(student, rollouts, weighed, covered, charged, covered_tokens, LocalRatio.TOKEN)


def sdpo_loss(
    student: Student, rollouts: Rollouts, terms: Sequence[Term], alpha: float, top_k: int, covered_tokens: int
) -> DistilLoss:
    """SDPO (arXiv 2601.20802): generalised Jensen-Shannon divergence from the self-teacher, token by token.

    On the student's `top_k` tokens and a tail bucket, times the truncated token ratio. Terms must be experts with a
    full distribution on whole rollouts. Arguments and errors otherwise as in `distil_loss`; `cost` is the divergence.
    """
    cost_of = coarse_cost(jensen_shannon(alpha), top_k)
    return _tokenwise_loss(student, rollouts, terms, covered_tokens, cost_of, LocalRatio.TOKEN)


def reverse_kl_loss(student: Student, rollouts: Rollouts, terms: Sequence[Term], covered_tokens: int) -> DistilLoss:
    """KL(student || expert) over the whole vocabulary, token by token: seeks one mode of the expert's.

    Terms must be experts with a full distribution on whole rollouts. Arguments and errors otherwise as in
    `distil_loss`; `cost` is the divergence.
    """
    return _tokenwise_loss(student, rollouts, terms, covered_tokens, reverse_kl_cost, LocalRatio.NONE)


def _tokenwise_loss(
    student: Student,
    rollouts: Rollouts,
    terms: Sequence[Term],
    covered_tokens: int,
    cost_of: CostOf,
    local_ratio: LocalRatio,
) -> DistilLoss:
    weighed, covered = _weigh(student, rollouts.action_mask, terms, covered_tokens, cost_of)
    nothing = torch.zeros_like(student.log_total).detach()
    nowhere = nothing.new_zeros(rollouts.action_mask.shape)
    charged = _Charged(
        charge=nothing,
        fractions=tuple(part.covering for part in weighed),
        cost=student.places.spread(sum((part.future_cost(CostKind.KL) for part in weighed), nothing)),
        cost_to_go=nowhere,
        baseline=nowhere,
        excess=nowhere,
        ratio=nowhere,
        num_charged=nothing.new_zeros(()),
        num_clipped=nothing.new_zeros(()),
    )
    return _assemble(student, rollouts, weighed, covered, charged, covered_tokens, local_ratio)


def _weigh(
    student: Student, action_mask: Tensor, terms: Sequence[Term], covered_tokens: int, cost_of: CostOf
) -> tuple[list[_Weighed], Tensor]:
    """Every term's cost and weights, and which rollouts [B] are covered by a whole-coverage or drawn term."""
    nothing = torch.zeros_like(student.log_total).detach()
    local = [_local_weights(student, term, action_mask) for term in terms]
    pick = student.places.pick
    covering = [nothing if isinstance(t, PartialTerm) else pick(t.weights).to(nothing.dtype) for t in terms]
    local_total, covering_total = sum(local, nothing), sum(covering, nothing)
    require_count("covered_tokens", covered_tokens, int((covering_total > 0).sum()))
    weighed = [
        _Weighed(
            term=term,
            cost=cost_of(student, term, own > 0),
            mix=_divide(own, local_total),
            covering=_divide(cover, covering_total),
            charge=_inverse_probability(student, term, own > 0) if isinstance(term, DrawnTerm) else nothing + 1,
            per_token=_per_token(term, int((own > 0).sum()), covered_tokens),
        )
        for term, own, cover in zip(terms, local, covering, strict=True)
    ]
    return weighed, student.places.spread(covering_total).gt(0).any(1)


def _local_weights(student: Student, term: Term, action_mask: Tensor) -> Tensor:
    """The term's own weights [N], 0 where it is absent. Raises ValueError for a weight that is negative, NaN or
    infinite, and for a term on a token that is no action."""
    per_row = not isinstance(term, PartialTerm)
    require_shape(f"{term.name}: weights", term.weights, action_mask.shape[:1] if per_row else action_mask.shape)
    spoken = action_mask
    if isinstance(term, PartialTerm):
        spoken = term.weights != 0
    elif isinstance(term, DrawnTerm):
        require_shape(f"{term.name}: drawn", term.drawn, action_mask.shape)
        require_shape(f"{term.name}: probability", term.probability, action_mask.shape)
        spoken = term.drawn
    if (spoken & ~action_mask).any():
        row, step = (spoken & ~action_mask).nonzero()[0].tolist()
        raise ValueError(f"row {row}, step {step}: {term.name} speaks about a token that is no action")
    weights = student.places.pick(term.weights).to(student.log_total.dtype)
    student.places.refuse(~(weights.isfinite() & (weights >= 0)), f"{term.name}: a weight is negative, NaN or infinite")
    return weights * student.places.pick(term.drawn) if isinstance(term, DrawnTerm) else weights


def _divide(weights: Tensor, total: Tensor) -> Tensor:
    return weights / torch.where(total > 0, total, 1)


def _inverse_probability(student: Student, term: DrawnTerm, drawn: Tensor) -> Tensor:
    probability = student.places.pick(term.probability).to(student.log_total.dtype)
    student.places.refuse(drawn & ~((probability > 0) & (probability <= 1)), f"{term.name}: probability outside 0..1")
    return torch.where(drawn, 1 / probability, 0)


def _per_token(term: Term, num_here: int, covered_tokens: int) -> float:
    """The factor on a term's local cost at one token, beside its weight."""
    if isinstance(term, WholeTerm):
        return 1 / max(covered_tokens, 1)
    require_count(f"{term.name}: num_tokens", term.num_tokens, num_here)
    return term.share / max(term.num_tokens, 1)


def require_count(name: str, count: int, here: int) -> None:
    if count < here:
        raise ValueError(f"{name} is {count}, but this micro-batch alone has {here}")


def _charge(
    student: Student,
    rollouts: Rollouts,
    weighed: Sequence[_Weighed],
    covered: Tensor,
    baseline: LeaveOneOut | Tensor,
    credit: Credit,
) -> _Charged:
    """A_t = R_t - b_t, clipped, at the tokens of covered rollouts whose sampler is known."""
    mask = rollouts.action_mask
    _refuse_long(mask, covered & rollouts.credited, credit)
    nothing = torch.zeros_like(student.log_total).detach()
    costs = [student.places.spread(part.future_cost(credit.cost)) for part in weighed]
    cost = sum(costs, student.places.spread(nothing))
    returns = scaled_return(cost, mask, credit)
    expected = _expect(returns, covered, baseline)
    applies = student.places.pick(covered & rollouts.credited)
    student.places.refuse(applies & ~student.places.pick(expected).isfinite(), "the baseline is NaN or infinite")
    sampler = student.places.pick(rollouts.sampler_logprobs).to(returns.dtype)
    student.places.refuse(applies & ~sampler.isfinite(), "credited, but its sampler's logprobs are NaN or infinite")
    ratio = (student.action_logprobs.detach() - sampler).exp().clamp(max=RATIO_CAP)
    ratio = torch.where(applies, ratio, 0)
    unclipped = student.places.pick(returns - expected)
    excess = torch.where(applies, unclipped.clamp(-credit.clip, credit.clip), 0)
    to_go = student.places.pick(returns)
    fractions = tuple(
        # where no cost is left, the excess comes from the baseline alone and is shared out by weight
        torch.where(to_go > NEGLIGIBLE, student.places.pick(scaled_return(own, mask, credit)) / to_go, part.covering)
        for part, own in zip(weighed, costs, strict=True)
    )
    return _Charged(
        charge=credit.weight * ratio * excess,
        fractions=fractions,
        cost=cost,
        cost_to_go=torch.where(mask, returns, 0),
        baseline=torch.where(mask & covered[:, None], expected, 0),
        excess=student.places.spread(excess),
        ratio=student.places.spread(ratio),
        num_charged=applies.sum(),
        num_clipped=(applies & (unclipped.abs() > credit.clip)).sum(),
    )


def _refuse_long(action_mask: Tensor, applies: Tensor, credit: Credit) -> None:
    """Raises ValueError if a rollout that is charged is longer than its sampler allowed, and the scale needs that."""
    if credit.scale is not Scale.ROOM_LEFT:
        return
    too_long = applies & (action_mask.sum(1) > credit.max_tokens)
    if too_long.any():
        row = int(too_long.nonzero()[0])
        taken = int(action_mask[row].sum())
        raise ValueError(f"row {row}: {taken} action tokens, more than max_tokens={credit.max_tokens}")


def _expect(returns: Tensor, covered: Tensor, baseline: LeaveOneOut | Tensor) -> Tensor:
    """The baseline [B, T], checked against the rollouts' shape."""
    if isinstance(baseline, Tensor):
        require_shape("baseline", baseline, returns.shape if baseline.dim() == 2 else returns.shape[1:])
        return baseline.detach().to(returns.dtype).expand_as(returns)
    require_shape("group", baseline.group, returns.shape[:1])
    require_shape("half", baseline.half, returns.shape[:1])
    require_shape("fallback", baseline.fallback, returns.shape[1:])
    return leave_one_out(returns, covered, baseline)


def _weigh_states(student: Student, rollouts: Rollouts, local_ratio: LocalRatio) -> Tensor:
    """The factors on the local costs [N]: the question's emphasis and, if wanted, a truncated ratio."""
    places = student.places
    emphasis = places.pick(rollouts.emphasis).to(student.log_total.dtype)
    if local_ratio is LocalRatio.NONE:
        return emphasis
    known = places.pick(rollouts.credited)
    sampler = places.pick(rollouts.sampler_logprobs).to(emphasis.dtype)
    places.refuse(known & ~sampler.isfinite(), "credited, but its sampler's logprobs are NaN or infinite")
    log_ratio = torch.where(known, student.action_logprobs.detach() - sampler, 0)
    if local_ratio is LocalRatio.PREFIX:
        log_ratio = places.pick(places.spread(log_ratio).cumsum(1)) - log_ratio
    return emphasis * log_ratio.exp().clamp(max=RATIO_CAP)


def _assemble(
    student: Student,
    rollouts: Rollouts,
    weighed: Sequence[_Weighed],
    covered: Tensor,
    charged: _Charged,
    covered_tokens: int,
    local_ratio: LocalRatio,
) -> DistilLoss:
    """The loss, its parts and the figures for the ledger."""
    places, count = student.places, max(covered_tokens, 1)
    states = _weigh_states(student, rollouts, local_ratio)
    emphasis = places.pick(rollouts.emphasis).to(states.dtype)
    future = emphasis * charged.charge * student.action_logprobs / count
    nothing = student.log_total.sum() * 0  # keeps the graph where no term speaks, so every micro-batch has a backward
    local, partial, cost_mean, kl = nothing, nothing, nothing.detach(), nothing.detach()
    parts = []
    for part, fraction in zip(weighed, charged.fractions, strict=True):
        weight = states * part.mix * part.per_token
        by_token = weight * part.cost.cost
        own = by_token.sum()
        if isinstance(part.term, WholeTerm):
            local = local + own
        else:
            partial = partial + own
        cost_mean = cost_mean + part.future_cost(CostKind.CROSS_ENTROPY).sum() / count
        kl = kl + part.future_cost(CostKind.KL).sum() / count
        own_future = fraction * future.detach()
        theirs = part.cost.action_logprobs
        compared = torch.zeros_like(part.mix, dtype=torch.bool) if theirs is None else part.mix > 0
        more = nothing.detach() if theirs is None else (theirs - student.action_logprobs.detach())[compared].sum()
        parts.append(
            TermPart(
                name=part.term.name,
                num_tokens=(part.mix > 0).sum(),
                weight=part.mix.sum(),
                local=own.detach(),
                future=own_future.sum(),
                gap=more,
                num_compared=compared.sum(),
                row_local=places.spread(by_token.detach()).sum(1),
                row_weight=places.spread(weight).sum(1),
                row_future=places.spread(own_future).sum(1),
                choices=_spread_choices(places, part.cost.choices),
            )
        )
    felt = charged.excess.abs() > NEGLIGIBLE
    return DistilLoss(
        loss=local + partial + future.sum(),
        local=local.detach(),
        partial=partial.detach(),
        future=future.detach().sum(),
        cost_mean=cost_mean,
        kl=kl,
        covered=covered,
        num_future_tokens=felt.sum(),
        num_future_rows=felt.any(1).sum(),
        num_charged=charged.num_charged,
        num_clipped=charged.num_clipped,
        parts=tuple(parts),
        cost=charged.cost,
        cost_to_go=charged.cost_to_go,
        baseline=charged.baseline,
        excess=charged.excess,
        ratio=charged.ratio,
        action_logprobs=places.spread(student.action_logprobs.detach()),
    )


def _spread_choices(places: Places, choices: Choices | None) -> Choices | None:
    return None if choices is None else Choices(places.spread(choices.ids), places.spread(choices.probs))
