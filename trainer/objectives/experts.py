"""The two families that learn from experts' distributions: from every expert, or from our own teacher alone.

They share reading and bookkeeping; a member adds the loss that it descends.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from pydantic import Field

from services.contracts.updates import TermKind
from trainer.batch.rows import ImitationRow, Row
from trainer.objectives.base import Objective, OwnSettings, Reading, S, TermSource

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.losses.distil import DistilLoss, TermPart
    from trainer.losses.terms import Term
    from trainer.objectives.account import Account


class ExpertSettings(OwnSettings):
    """Weights of terms that do not cover whole rollouts."""

    partial_share: float = Field(default=0.1, ge=0)
    """`distil`, `forward_ce`: weight of a term that covers some tokens only (labels, samples at prefixes) beside terms
    that cover whole rollouts."""
    imitation_share: float = Field(default=0.1, ge=0)
    """`distil`, `forward_ce`: weight of imitating the rest of a person's text after the token they corrected."""


E = TypeVar("E", bound=ExpertSettings)


class FromDistributions(Objective[S]):
    """Descends a cost of the student under experts' distributions."""

    hears_experts = True

    @abstractmethod
    def follow(self, reading: Reading, terms: Sequence["Term"]) -> "DistilLoss":
        """The loss on a micro-batch, from the terms it hears."""

    @abstractmethod
    def measured(self, loss: "DistilLoss") -> Mapping[str, float]:
        """The costs it reports, in nats per action token, under names of its own."""

    def hears(self, term: "Term") -> bool:
        """Whether it learns from this term."""
        return True

    def loss(self, reading: Reading, account: "Account") -> "Tensor":
        heard = [
            (term, source) for term, source in zip(reading.terms, reading.sources, strict=True) if self.hears(term)
        ]
        loss = self.follow(reading, [term for term, _ in heard])
        self._record_sums(account, loss)
        for part, (_, source) in zip(loss.parts, heard, strict=True):
            self._record_term(account, reading, part, source)
        self._record_rows(account, reading, loss)
        return loss.loss

    def _record_sums(self, account: "Account", loss: "DistilLoss") -> None:
        account.add("local", self.weight * float(loss.local))
        account.add("partial", self.weight * float(loss.partial))
        account.add("future", self.weight * float(loss.future))
        for name, value in self.measured(loss).items():
            account.add(name, value)
        account.add("num_future_tokens", float(loss.num_future_tokens))
        account.add("num_charged_tokens", float(loss.num_charged))
        account.add("num_clipped_tokens", float(loss.num_clipped))
        account.add("gap_sum", sum(float(part.gap) for part in loss.parts))
        account.add("num_shown", sum(float(part.num_compared) for part in loss.parts))

    def _record_term(self, account: "Account", reading: Reading, part: "TermPart", source: TermSource) -> None:
        is_teacher = source.kind is TermKind.CONDITIONED
        for index, row in enumerate(reading.rows):
            about = source.rows[index]
            if about is None:
                continue
            own, weight, num_tokens = about
            local, tokens = float(part.row_local[index]), float(part.row_weight[index])
            account.record(
                row,
                source.kind,
                own,
                weight=self.weight * weight,
                share=self.weight * (abs(local) + abs(float(part.row_future[index]))),
                cost=local / tokens if tokens > 0 else None,
                num_tokens=num_tokens,
                context_sha256=source.context_sha256[index],
                teacher_sha256=reading.teacher_sha256 if is_teacher else None,
            )
            if part.choices is not None:
                account.keep_choices(row, part.choices, index)

    def _record_rows(self, account: "Account", reading: Reading, loss: "DistilLoss") -> None:
        from trainer.losses.distil import NEGLIGIBLE

        felt = (loss.excess.abs() > NEGLIGIBLE).any(1).tolist()
        for index, row in enumerate(reading.rows):
            account.token_costs.setdefault(row.lesson_id, tuple(loss.cost[index, : len(row.token_ids)].tolist()))
            if felt[index]:
                account.future.add(row.lesson_id)
            if self.shares_baseline and bool(loss.covered[index]) and not row.rolled_in:
                account.returns.append(loss.cost_to_go[index].cpu())


class FromExperts(FromDistributions[E]):
    """Learns by cross-entropy, whose gradient is linear in the experts: any number of them, on any of the tokens."""

    def reads(self, row: Row) -> bool:
        return row.covered or bool(row.contexts or row.samples or row.labels)

    def counts(self, row: Row) -> bool:
        return row.covered

    def texts(self, row: Row) -> Sequence[ImitationRow]:
        return row.imitations

    @property
    def text_share(self) -> float:
        return self.settings.imitation_share

    def measured(self, loss: "DistilLoss") -> Mapping[str, float]:
        return {f"kl_{self.name}": float(loss.kl), f"cross_entropy_{self.name}": float(loss.cost_mean)}


class FromTeacher(FromDistributions[S]):
    """Learns by a divergence that needs a whole distribution on the whole rollout: only our teacher has one."""

    def reads(self, row: Row) -> bool:
        return row.followed

    def hears(self, term: "Term") -> bool:
        from trainer.losses.terms import FullVocabulary, HiddenStates, WholeTerm

        return isinstance(term, WholeTerm) and isinstance(term.expert, FullVocabulary | HiddenStates)

    def measured(self, loss: "DistilLoss") -> Mapping[str, float]:
        return {f"divergence_{self.name}": float(loss.cost_mean)}

    @property
    def figures(self) -> Sequence[str]:
        return (f"divergence_{self.name}",)


class CoarseSettings(OwnSettings):
    """How finely `sdpo` and `paper` look at the vocabulary."""

    student_top_k: int = Field(default=100, ge=1)
    """`sdpo`, `paper`: the student's likeliest tokens that they look at, beside a tail bucket."""
