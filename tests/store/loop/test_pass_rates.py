"""Pass rates: what the policy itself drew, newest first, and nothing else."""

import pytest

from services.contracts.rollouts import Purpose
from services.contracts.sources import ContextSource
from services.contracts.status import PassRate
from services.store.core.transaction import Store
from services.store.loop import lineages, pass_rates
from services.store.tables.loop import RolloutRow
from services.store.views import status, versions
from services.store.views.versions import TaskAnswers
from tests.store.conftest import World, show

pytestmark = pytest.mark.integration


def score(rows: list[RolloutRow], *scores: float) -> None:
    for row, value in zip(rows, scores, strict=True):
        row.score = value


def test_what_a_teacher_drew_a_probe_and_a_rollout_from_elsewhere_count_in_no_pass_rate(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        task = world.task(session)
        score(world.drawn(session, task, size=4), 1.0, 0.0, 0.0, 0.0)
        shown = world.drawn(session, task, size=3, context=show(ContextSource.CORRECTION), num_shown=2)
        score(shown, 0.0, 1.0, 1.0)
        score(world.drawn(session, task, purpose=Purpose.PROBE), 1.0, 1.0)
        score([world.external(session, task)], 1.0)
        world.drawn(session, task)  # not judged yet
    with store.transaction() as session:
        assert pass_rates.of_tasks(session, world.lineage_id, [task.id]) == {task.id: 0.2}
        told = status.status(
            session, lineages.get(session, "main"), max_backlog=48, max_groups_per_task=8, group_size=8
        )
        assert told.pass_rates == [PassRate(domain="math", num_judged=5, pass_rate=0.2)]
        practice = versions.practice(session, world.lineage_id, ["base"])["base"]
        assert (practice.num_judged, practice.num_passed) == (5, 1)
        assert TaskAnswers("base", "train", 7, 5, 1) in versions.answers_to_task(session, task.id)


def test_a_tasks_pass_rate_is_of_its_sixteen_newest_rollouts(store: Store, world: World) -> None:
    with store.transaction() as session:
        task, other = world.task(session), world.task(session, "other")
        score(world.drawn(session, task, size=8), *[1.0] * 8)
        score(world.drawn(session, task, size=16), *[0.0] * 12, *[1.0] * 4)
        assert pass_rates.of_tasks(session, world.lineage_id, [task.id, other.id]) == {task.id: 0.25}
