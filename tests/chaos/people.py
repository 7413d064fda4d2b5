"""People who correct many answers at once, each request on a connection of its own."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from services.cli.client import ApiClient, ApiProblem
from services.contracts.corrections import Correction, CorrectionCreate, CorrectionItem, CorrectionSubmit

HANDS = 16


def correct(api: ApiClient, rollouts: Sequence[UUID], text: str) -> list[UUID]:
    """Ask for a correction of each rollout, claim it and submit `text`, all at once; the items that were taken.

    A rollout that may no longer be corrected is left out.
    """

    def one(rollout_id: UUID) -> UUID | None:
        try:
            item = api.post("/v1/corrections", CorrectionCreate(rollout_id=rollout_id), Correction)
            api.post(f"/v1/corrections/{item.id}/claim", None, CorrectionItem)
            api.post(f"/v1/corrections/{item.id}/submit", CorrectionSubmit(verdict="corrected", text=text), Correction)
        except ApiProblem as problem:
            if problem.status_code == 409:
                return None
            raise
        return item.id

    with ThreadPoolExecutor(HANDS) as hands:
        return [item for item in hands.map(one, rollouts) if item is not None]
