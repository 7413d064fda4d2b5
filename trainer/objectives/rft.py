"""`rft`: the log-likelihood of the policy's own successes."""

from dataclasses import replace
from typing import TYPE_CHECKING

from trainer.batch.rows import Row, Source
from trainer.objectives.base import Objective, OwnSettings, Reading

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.objectives.account import Account


class Rft(Objective[OwnSettings]):
    """Imitates rollouts that were scored a success."""

    name = "rft"

    def reads(self, row: Row) -> bool:
        """A success of the policy's own, not a text from elsewhere; a late lesson's rollout was learned already."""
        return row.solved and row.sampler_logprobs is not None and not row.late

    def loss(self, reading: Reading, account: "Account") -> "Tensor":
        import torch

        from trainer.losses.imitation import sft_loss

        won = [self.reads(row) for row in reading.rows]
        weights = torch.tensor(won, dtype=torch.float32, device=reading.rollouts.token_ids.device)
        loss = sft_loss(reading.student, reading.rollouts, weights, self.num_tokens)
        sources = [_name(row) if own else None for row, own in zip(reading.rows, won, strict=True)]
        account.record_imitation(self.weight, reading.rows, sources, loss)
        return loss.loss


def _name(row: Row) -> tuple[Source, float]:
    """The verdicts that call it a success, with the trust in it."""
    return replace(row.verdicts, names=("the policy's own success", *row.verdicts.names)), 1.0
