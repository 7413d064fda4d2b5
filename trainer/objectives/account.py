"""The account of an update: each lesson's part of the loss, term by term, and sums that become metrics.

Objectives write into it; it knows none of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import torch
from torch import Tensor

from services.contracts.updates import TermKind, TermRecord
from trainer.batch.rows import Row, Source
from trainer.losses.imitation import SftLoss
from trainer.losses.student import Choices


@dataclass
class Account:
    """The rows of a micro-batch in the loss; sums that add up over micro-batches and ranks.

    sums: parts of the loss and diagnostics by name. terms, token_costs: by lesson. choices: the teacher's
    likeliest tokens, [T, K], 0 where it is absent. future: lessons with a future term that is not negligible. returns:
    the costs-to-go that the running mean of later updates is made of, [T] each.
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

    def record(
        self,
        row: Row,
        kind: TermKind,
        source: Source,
        *,
        weight: float,
        share: float,
        cost: float | None,
        num_tokens: int,
        context_sha256: str | None = None,
        teacher_sha256: str | None = None,
    ) -> None:
        """Write down a term of a row, and who is behind the states that it is about: those that a teacher was shown
        who drew the rollout. share: its part of the loss; cost: in nats per token."""
        source = source.drawn_after(row.drawn_after)
        record = TermRecord(
            kind=kind,
            answers=list(source.answers),
            sources=list(source.names),
            source=source.kind,
            template=source.template,
            speakers=list(source.speakers),
            weight=weight,
            share=share,
            cost=cost,
            num_tokens=num_tokens,
            context_sha256=context_sha256,
            teacher_sha256=teacher_sha256,
        )
        self.terms.setdefault(row.lesson_id, []).append(record)

    def record_imitation(
        self, weight: float, rows: Sequence[Row], sources: Sequence[tuple[Source, float] | None], loss: SftLoss
    ) -> None:
        """Write down texts that were imitated. sources: who gave each row's text, and the trust in them; None where the
        row has no part in it."""
        self.add("imitation", weight * float(loss.loss.detach()))
        for index, (row, given) in enumerate(zip(rows, sources, strict=True)):
            if given is None:
                continue
            tokens = float(loss.row_tokens[index])
            self.record(
                row,
                TermKind.IMITATION,
                given[0],
                weight=given[1],
                share=weight * float(loss.row_loss[index]),
                cost=-float(loss.logprobs[index].sum()) / max(tokens, 1),
                num_tokens=int(tokens),
            )

    def keep_choices(self, row: Row, choices: Choices, index: int) -> None:
        """Keep the teacher's likeliest tokens along a row. At a token that several contexts speak about the first one
        counts; contexts on whole rollouts come first."""
        length = len(row.token_ids)
        new = Choices(choices.ids[index, :length].cpu(), choices.probs[index, :length].cpu())
        known = self.choices.get(row.lesson_id)
        if known is not None:
            silent = known.probs[:, :1] == 0
            new = Choices(torch.where(silent, new.ids, known.ids), torch.where(silent, new.probs, known.probs))
        self.choices[row.lesson_id] = new

    def merge(self, other: "Account") -> None:
        """Add another account to this one."""
        for name, value in other.sums.items():
            self.add(name, value)
        for lesson_id, terms in other.terms.items():
            self.terms.setdefault(lesson_id, []).extend(terms)
        self.token_costs.update(other.token_costs)
        self.choices.update(other.choices)
        self.future |= other.future
        self.returns.extend(other.returns)
