"""The losses: DistIL (METHOD: forward cross-entropy to experts, with credit to earlier tokens) and its two relatives.

`distil_loss` = local term + future term; `forward_ce_loss` = the local term alone; `sft_loss` = the log-likelihood of
given tokens, also used as the imitation term (the rest of a corrected text, of a continuation).

Pure: tensors in, named tensors out. Every sum is divided by a count over the *whole update*, which the caller passes
in: the losses of its micro-batches add up to the loss of the update, and so do its parts.

Not covered: making the experts' distributions, choosing weights and shares, sampling, logging, devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.credit import CostKind, Credit, LeaveOneOut, leave_one_out, scaled_return
from trainer.terms import (
    DrawnTerm,
    PartialTerm,
    StepCost,
    Student,
    Term,
    WholeTerm,
    read_student,
    require_shape,
    step_cost,
)

RATIO_CAP = 2.0  # the token ratio of off-policy rollouts is cut here: bounded variance for a little bias
NEGLIGIBLE = 1e-4  # nats; float32 leaves about 1e-5 of a KL that is zero, over a vocabulary of 50,000


@dataclass(frozen=True, eq=False)
class Rollouts:
    """What the student sampled, padded to one length.

    Shapes: token_ids [B, T]; action_mask [B, T] bool, False for tool turns and padding; temperature [B] of the
    sampler; sampler_logprobs [B, T], read where `credited`; credited [B] bool: False where the sampler's logprobs are
    unknown or top-p/top-k cut its distribution, and such a rollout trains the local term alone.
    """

    token_ids: Tensor
    action_mask: Tensor
    temperature: Tensor
    sampler_logprobs: Tensor
    credited: Tensor


@dataclass(frozen=True, eq=False)
class TermPart:
    """One term's part in a loss; each number is a detached sum, so those of micro-batches add up.

    num_tokens: action tokens it covers; weight: its normalised weights there, in tokens; local, future: its part of
    the loss. The future term is shared out in proportion to the later costs, after the clip.
    Shapes: row_local, row_weight [B], what each rollout has of `local` and of the weights it was averaged with, so
    that their quotient is the term's cost on that rollout, in nats per token.
    """

    name: str
    num_tokens: Tensor
    weight: Tensor
    local: Tensor
    future: Tensor
    row_local: Tensor
    row_weight: Tensor


@dataclass(frozen=True, eq=False)
class DistilLoss:
    """A loss and what the ledger keeps of it. Only `loss` carries a gradient.

    loss = local + partial + future, scalars: whole-coverage terms, partial and drawn terms, credit for later costs.
    cross_entropy, kl: nats per action token of the update's covered rollouts, over whole-coverage terms (samples give
    CE in both). covered [B] bool: rollouts that have a cost-to-go. num_future_tokens, num_future_rows: those whose
    future term is not negligible. Shapes [B, T], 0 where nothing is charged: cost d_t; cost_to_go R_t (scaled);
    baseline; excess (R_t less its baseline, clipped, 0 where no future term applies); ratio (truncated);
    action_logprobs.
    """

    loss: Tensor
    local: Tensor
    partial: Tensor
    future: Tensor
    cross_entropy: Tensor
    kl: Tensor
    covered: Tensor
    num_future_tokens: Tensor
    num_future_rows: Tensor
    parts: tuple[TermPart, ...]
    cost: Tensor
    cost_to_go: Tensor
    baseline: Tensor
    excess: Tensor
    ratio: Tensor
    action_logprobs: Tensor


@dataclass(frozen=True, eq=False)
class SftLoss:
    """loss: nats per token of the update; logprobs [B, T] of the given tokens, detached, 0 off the mask."""

    loss: Tensor
    logprobs: Tensor


@dataclass(frozen=True, eq=False)
class _Weighed:
    """One term on N action tokens: what it costs, what it weighs locally and in the cost-to-go.

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
        cost = self.cost.cross_entropy.detach()
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


def distil_loss(
    student_logits: Tensor,
    rollouts: Rollouts,
    terms: Sequence[Term],
    baseline: LeaveOneOut | Tensor,
    credit: Credit,
    covered_tokens: int,
) -> DistilLoss:
    """Forward cross-entropy to the experts on the student's own states, with credit to earlier tokens.

    Descends E_{y ~ student}[sum_t c_t], c_t = sum_k w_k H(expert_k(.|s_t, f), student(.|s_t)) (DistIL,
    arXiv:2606.05152, Prop. 1): each step is pulled to the experts, and each sampled token is charged with the cost
    that came after it, less a baseline independent of that token. Exact for sums of CE without scale and clip, if f
    does not depend on the rollout itself (or credit.reach is the whole rollout); with KL and means a relative of it
    that does not reward stopping early.

    student_logits [B, T, V]: of one micro-batch, at the tokens of `rollouts`. baseline: LeaveOneOut, whose groups
    must then be whole in this micro-batch, or given [B, T] or [T]: zeros, a running mean. covered_tokens: action
    tokens over the whole update of rollouts with a whole-coverage or drawn term. A micro-batch without any usable
    term gives a loss of 0. Raises ValueError, naming the row, where the result would mean nothing.
    """
    student = read_student(student_logits, rollouts.token_ids, rollouts.action_mask, rollouts.temperature)
    weighed, covered = _weigh(student, rollouts.action_mask, terms, covered_tokens)
    charged = _charge(student, rollouts, weighed, covered, baseline, credit)
    return _assemble(student, rollouts.action_mask.shape, weighed, covered, charged, covered_tokens)


def forward_ce_loss(
    student_logits: Tensor, rollouts: Rollouts, terms: Sequence[Term], covered_tokens: int
) -> DistilLoss:
    """Forward cross-entropy to the experts on the student's own states, token by token: DistIL without its future term.

    Arguments and errors as in `distil_loss`. `cost` is the KL; cost-to-go, baseline, excess and ratio are 0.
    """
    student = read_student(student_logits, rollouts.token_ids, rollouts.action_mask, rollouts.temperature)
    weighed, covered = _weigh(student, rollouts.action_mask, terms, covered_tokens)
    shape = rollouts.action_mask.shape
    nothing = torch.zeros_like(student.log_total).detach()
    nowhere = nothing.new_zeros(shape)
    cost = student.spread(sum((part.future_cost(CostKind.KL) for part in weighed), nothing), shape)
    charged = _Charged(
        charge=nothing,
        fractions=tuple(part.covering for part in weighed),
        cost=cost,
        cost_to_go=nowhere,
        baseline=nowhere,
        excess=nowhere,
        ratio=nowhere,
    )
    return _assemble(student, shape, weighed, covered, charged, covered_tokens)


def sft_loss(student_logits: Tensor, token_ids: Tensor, mask: Tensor, temperature: Tensor, num_tokens: int) -> SftLoss:
    """The negative log-likelihood of given tokens, such as a solution's.

    Shapes: student_logits [B, T, V], token_ids [B, T], mask [B, T] bool (the tokens to learn), temperature [B].
    num_tokens: of all masks of the update. Raises ValueError as `read_student` does, and if num_tokens is too small.
    """
    student = read_student(student_logits, token_ids, mask, temperature)
    _require_count("num_tokens", num_tokens, len(student.rows))
    return SftLoss(
        loss=-student.action_logprobs.sum() / num_tokens,
        logprobs=student.spread(student.action_logprobs.detach(), mask.shape),
    )


def _weigh(
    student: Student, action_mask: Tensor, terms: Sequence[Term], covered_tokens: int
) -> tuple[list[_Weighed], Tensor]:
    """Every term's cost and weights, and which rollouts [B] are covered by a whole-coverage or drawn term."""
    shape = action_mask.shape
    nothing = torch.zeros_like(student.log_total).detach()
    local = [_local_weights(student, term, action_mask) for term in terms]
    covering = [nothing if isinstance(t, PartialTerm) else student.pick(t.weights).to(nothing.dtype) for t in terms]
    local_total, covering_total = sum(local, nothing), sum(covering, nothing)
    _require_count("covered_tokens", covered_tokens, int((covering_total > 0).sum()))
    weighed = [
        _Weighed(
            term=term,
            cost=step_cost(student, term.name, term.expert, own > 0, shape),
            mix=_divide(own, local_total),
            covering=_divide(cover, covering_total),
            charge=_inverse_probability(student, term, own > 0) if isinstance(term, DrawnTerm) else nothing + 1,
            per_token=_per_token(term, int((own > 0).sum()), covered_tokens),
        )
        for term, own, cover in zip(terms, local, covering, strict=True)
    ]
    return weighed, student.spread(covering_total, shape).gt(0).any(1)


def _local_weights(student: Student, term: Term, action_mask: Tensor) -> Tensor:
    """The term's own weights [N], 0 where it says nothing. Raises ValueError for a weight nobody could have meant."""
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
    weights = student.pick(term.weights).to(student.scores.dtype)
    student.refuse(~(weights.isfinite() & (weights >= 0)), f"{term.name}: a weight is negative, NaN or infinite")
    return weights * student.pick(term.drawn) if isinstance(term, DrawnTerm) else weights


def _divide(weights: Tensor, total: Tensor) -> Tensor:
    return weights / torch.where(total > 0, total, 1)


def _inverse_probability(student: Student, term: DrawnTerm, drawn: Tensor) -> Tensor:
    probability = student.pick(term.probability).to(student.scores.dtype)
    student.refuse(drawn & ~((probability > 0) & (probability <= 1)), f"{term.name}: probability outside 0..1")
    return torch.where(drawn, 1 / probability, 0)


def _per_token(term: Term, num_here: int, covered_tokens: int) -> float:
    """What a term's local cost at one token is multiplied with, beside its weight."""
    if isinstance(term, WholeTerm):
        return 1 / max(covered_tokens, 1)
    _require_count(f"{term.name}: num_tokens", term.num_tokens, num_here)
    return term.share / max(term.num_tokens, 1)


def _require_count(name: str, count: int, here: int) -> None:
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
    require_shape("sampler_logprobs", rollouts.sampler_logprobs, mask.shape)
    require_shape("credited", rollouts.credited, mask.shape[:1])
    nothing = torch.zeros_like(student.log_total).detach()
    costs = [student.spread(part.future_cost(credit.cost), mask.shape) for part in weighed]
    cost = sum(costs, student.spread(nothing, mask.shape))
    returns = scaled_return(cost, mask, credit)
    expected = _expect(returns, covered, baseline)
    applies = student.pick(covered & rollouts.credited)
    student.refuse(applies & ~student.pick(expected).isfinite(), "the baseline is NaN or infinite")
    sampler = student.pick(rollouts.sampler_logprobs).to(returns.dtype)
    student.refuse(applies & ~sampler.isfinite(), "credited, but its sampler's logprobs are NaN or infinite")
    ratio = (student.action_logprobs.detach() - sampler).exp().clamp(max=RATIO_CAP)
    ratio = torch.where(applies, ratio, 0)
    excess = torch.where(applies, student.pick(returns - expected).clamp(-credit.clip, credit.clip), 0)
    to_go = student.pick(returns)
    fractions = tuple(
        # where nothing is left to pay the excess is the baseline's alone, and goes by weight
        torch.where(to_go > NEGLIGIBLE, student.pick(scaled_return(own, mask, credit)) / to_go, part.covering)
        for part, own in zip(weighed, costs, strict=True)
    )
    return _Charged(
        charge=credit.weight * ratio * excess,
        fractions=fractions,
        cost=cost,
        cost_to_go=torch.where(mask, returns, 0),
        baseline=torch.where(mask & covered[:, None], expected, 0),
        excess=student.spread(excess, mask.shape),
        ratio=student.spread(ratio, mask.shape),
    )


def _expect(returns: Tensor, covered: Tensor, baseline: LeaveOneOut | Tensor) -> Tensor:
    """The baseline [B, T], checked against the rollouts' shape."""
    if isinstance(baseline, Tensor):
        require_shape("baseline", baseline, returns.shape if baseline.dim() == 2 else returns.shape[1:])
        return baseline.detach().to(returns.dtype).expand_as(returns)
    require_shape("group", baseline.group, returns.shape[:1])
    require_shape("half", baseline.half, returns.shape[:1])
    require_shape("fallback", baseline.fallback, returns.shape[1:])
    return leave_one_out(returns, covered, baseline)


def _assemble(
    student: Student,
    shape: torch.Size,
    weighed: Sequence[_Weighed],
    covered: Tensor,
    charged: _Charged,
    covered_tokens: int,
) -> DistilLoss:
    """The loss, its parts and what the ledger keeps."""
    count = max(covered_tokens, 1)
    future = charged.charge * student.action_logprobs / count
    nothing = student.log_total.sum() * 0  # keeps the graph where no term speaks, so every micro-batch has a backward
    local, partial, cross_entropy, kl = nothing, nothing, nothing.detach(), nothing.detach()
    parts = []
    for part, fraction in zip(weighed, charged.fractions, strict=True):
        by_token = part.mix * part.cost.cross_entropy * part.per_token
        own = by_token.sum()
        if isinstance(part.term, WholeTerm):
            local = local + own
        else:
            partial = partial + own
        cross_entropy = cross_entropy + part.future_cost(CostKind.CROSS_ENTROPY).sum() / count
        kl = kl + part.future_cost(CostKind.KL).sum() / count
        parts.append(
            TermPart(
                name=part.term.name,
                num_tokens=(part.mix > 0).sum(),
                weight=part.mix.sum(),
                local=own.detach(),
                future=(fraction * future.detach()).sum(),
                row_local=student.spread(by_token.detach(), shape).sum(1),
                row_weight=student.spread(part.mix * part.per_token, shape).sum(1),
            )
        )
    felt = charged.excess.abs() > NEGLIGIBLE
    return DistilLoss(
        loss=local + partial + future.sum(),
        local=local.detach(),
        partial=partial.detach(),
        future=future.detach().sum(),
        cross_entropy=cross_entropy,
        kl=kl,
        covered=covered,
        num_future_tokens=felt.sum(),
        num_future_rows=felt.any(1).sum(),
        parts=tuple(parts),
        cost=charged.cost,
        cost_to_go=charged.cost_to_go,
        baseline=charged.baseline,
        excess=charged.excess,
        ratio=charged.ratio,
        action_logprobs=student.spread(student.action_logprobs.detach(), shape),
    )
