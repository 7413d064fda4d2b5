"""The family that learns from scores: within a group, rollouts that score above their siblings become likelier."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from services.contracts.updates import TermKind
from trainer.batch.rows import Row
from trainer.objectives.base import Objective, Reading, S

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.losses.reward import RewardLoss
    from trainer.objectives.account import Account


class FromScores(Objective[S]):
    """advantages: by lesson; a lesson without a score, without a known sampler or without siblings has none."""

    advantages: dict[UUID, float]

    @abstractmethod
    def compare_scores(self, scores: "Tensor", group: "Tensor") -> "Tensor":
        """The advantage of each score within its group. Shapes: scores, group, result [B]."""

    def compare(self, rows: Sequence[Row]) -> None:
        import torch

        judged = [row for row in rows if row.score is not None and row.credited]
        groups = sorted({row.siblings for row in judged})
        group = torch.tensor([groups.index(row.siblings) for row in judged], dtype=torch.long)
        scores = torch.tensor([row.score for row in judged], dtype=torch.float64)
        sizes, values = torch.bincount(group)[group], self.compare_scores(scores, group)
        self.advantages = {
            row.lesson_id: float(value) for row, value, size in zip(judged, values, sizes, strict=True) if int(size) > 1
        }

    def reads(self, row: Row) -> bool:
        return row.lesson_id in self.advantages

    def loss(self, reading: Reading, account: "Account") -> "Tensor":
        import torch

        from trainer.losses.reward import policy_gradient_loss

        own = [self.advantages.get(row.lesson_id) for row in reading.rows]
        device = reading.rollouts.token_ids.device
        advantages = torch.tensor([0.0 if value is None else value for value in own], device=device)
        judged = torch.tensor([value is not None for value in own], device=device)
        loss = policy_gradient_loss(reading.student, reading.rollouts, advantages, judged, self.num_tokens)
        self._record(account, reading, own, loss)
        return loss.loss

    def _record(
        self, account: "Account", reading: Reading, advantages: Sequence[float | None], loss: "RewardLoss"
    ) -> None:
        account.add("num_charged_tokens", float(loss.row_tokens.sum()))
        account.add("num_clipped_tokens", float(loss.num_clipped))
        for index, (row, advantage) in enumerate(zip(reading.rows, advantages, strict=True)):
            if advantage is None:
                continue
            account.add("num_rows_without_signal", float(advantage == 0))
            account.record(
                row,
                TermKind.SCORE,
                row.verdicts,
                weight=self.weight * advantage,
                share=self.weight * float(loss.row_loss[index]),
                cost=None,
                num_tokens=int(loss.row_tokens[index]),
            )

    @property
    def figures(self) -> Sequence[str]:
        return ("num_rows_without_signal",)
