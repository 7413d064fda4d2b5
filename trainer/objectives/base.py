"""Objectives: which rows take part in an update, how they count, the loss, its account, and settings of their own.

An objective is one file in this folder and one line in `registry`. An update makes it anew from its rows alone, before
any model runs, so every rank gets the same one. Settings are read before torch is loaded, so the modules here import
whatever needs torch inside the methods that compute.

Not covered: the arithmetic (`trainer.losses`), and how rows are cut into micro-batches (`trainer.step`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from services.contracts.updates import TermKind
from trainer.batch.rows import ImitationRow, Row, Source

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.losses.student import Rollouts, Student
    from trainer.losses.terms import Term
    from trainer.objectives.account import Account


class OwnSettings(BaseModel):
    """An objective's own settings. They are fields of `TrainerConfig` too: PRECEPTOR_TRAINER_ and the field's name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


S = TypeVar("S", bound=OwnSettings)


@dataclass(frozen=True)
class TermSource:
    """Where a term of a micro-batch came from, row by row: source, weight and number of tokens, or None if the row has
    no part in it."""

    kind: TermKind
    rows: tuple[tuple[Source, float, int] | None, ...]
    context_sha256: tuple[str | None, ...]


@dataclass(frozen=True, eq=False)
class Reading:
    """Rollouts of one prompt that the student has read once, for every objective of the update.

    terms, sources: the experts' distributions and where each came from; empty unless an objective `hears_experts`.
    running_mean [T]: the cost-to-go by position in earlier updates, in nats. teacher_sha256: the teacher's weights.
    """

    rows: Sequence[Row]
    rollouts: "Rollouts"
    student: "Student"
    terms: Sequence["Term"]
    sources: Sequence[TermSource]
    running_mean: "Tensor"
    teacher_sha256: str


class Objective(Generic[S]):
    """One objective in one update.

    weight: its own in the update's loss. num_tokens: the action tokens over the whole update that its loss on rollouts
    is divided by. num_text_tokens: the same for texts, each token times the trust in who gave it.
    """

    name: ClassVar[str]
    hears_experts: ClassVar[bool] = False
    """Whether it needs the experts' distributions, the teacher's included."""

    def __init__(self, settings: S, weight: float, rows: Sequence[Row]) -> None:
        self.settings, self.weight = settings, weight
        self.compare(rows)
        self.num_tokens = sum(row.num_actions for row in rows if self.counts(row))
        self.num_text_tokens = sum(text.weight * text.num_learned for row in rows for text in self.texts(row))

    # --- who takes part, and how it counts ---

    def compare(self, rows: Sequence[Row]) -> None:
        """Compare rows with each other, such as scores within a group. Called first, with all rows of the update."""

    def reads(self, row: Row) -> bool:
        """Whether it learns from the rollout's own tokens."""
        return False

    def counts(self, row: Row) -> bool:
        """Whether the rollout's action tokens are among those that its loss is averaged over."""
        return self.reads(row)

    def texts(self, row: Row) -> Sequence[ImitationRow]:
        """Texts it imitates after the rollout's prompt, in place of the rollout."""
        return ()

    @property
    def text_share(self) -> float:
        """Weight of imitating texts, beside its loss on rollouts."""
        return 1.0

    @property
    def shares_baseline(self) -> bool:
        """Whether a rollout's loss depends on its siblings' costs, so that they must be read together."""
        return False

    # --- its loss and its account ---

    def loss(self, reading: Reading, account: "Account") -> "Tensor":
        """Its loss on a micro-batch of which it reads at least one row, without its weight; it writes each
        row's part into the account. Raises ValueError, naming the row, for input without a meaningful result."""
        raise NotImplementedError(f"{self.name} reads rollouts and needs a loss on them")

    @property
    def figures(self) -> Sequence[str]:
        """Sums of its account that become metrics of the update, 0 by default."""
        return ()
