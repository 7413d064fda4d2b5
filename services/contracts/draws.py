"""Draws: prompts that the policy is to answer, planned by the loop or by an evaluation."""

from datetime import datetime
from uuid import UUID

from services.contracts.base import View
from services.contracts.rollouts import GroupStatus, Purpose


class Draw(View):
    """One prompt to be answered `size` times; `dead` when it failed as often as it may. Its id is the rollouts' group.

    policy_version: the version to draw with; null until one is chosen. num_shown: how many of them a teacher draws.
    """

    id: UUID
    task_id: UUID
    task_key: str
    purpose: Purpose
    status: GroupStatus
    policy_version: str | None
    size: int
    num_shown: int
    failures: int
    reason: str | None
    created_at: datetime
