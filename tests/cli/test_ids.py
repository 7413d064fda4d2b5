"""Short ids: lists show the ends of ids, and commands take them, against the real api."""

from uuid import UUID

import pytest
from sqlalchemy import update

from services.cli.ids import NUM_SHOWN
from services.contracts.persons import Role
from services.store.core.transaction import Store
from services.store.people import persons
from services.store.tables.loop import ExpertRow
from services.web.rendering import short
from tests.cli.conftest import CommandLine
from tests.store.conftest import World

pytestmark = pytest.mark.integration

END = "0000-7000-8000-00000000abcd"


def give_id(store: Store, world: World, name: str, id: str) -> None:
    with store.transaction() as session:
        world.expert(session, name)
        session.execute(update(ExpertRow).where(ExpertRow.name == name).values(id=UUID(id)))


def test_what_a_list_or_a_page_shows_of_an_id_names_the_thing(cli: CommandLine, store: Store, world: World) -> None:
    with store.transaction() as session:
        expert, task = world.expert(session, "judge").id, world.task(session)
        [rollout] = world.drawn(session, task, size=1)
        task_id, rollout_id = task.id, rollout.id
    shown = cli.words("experts", "list").splitlines()[1].split()[0]
    assert shown == short(expert) == str(expert)[-NUM_SHOWN:]
    assert cli.json("experts", "show", shown)["id"] == str(expert)
    assert cli.json("experts", "show", shown.upper())["id"] == str(expert)
    assert cli.json("experts", "pause", shown)["status"] == "paused"
    assert cli.json("tasks", "show", short(task_id))["id"] == str(task_id)
    [row] = cli.rows("rollouts", "list", "--task", short(task_id))
    assert row["id"] == str(rollout_id)
    [asked] = cli.rows("consultations", "list", "--expert", shown)
    listed = cli.words("consultations", "list").splitlines()[1].split()
    assert listed[:2] == [short(str(asked["id"])), short(rollout_id)]


def test_the_ends_of_ids_of_people_their_keys_and_sessions_name_them(cli: CommandLine, store: Store) -> None:
    with store.transaction() as session:
        ann = persons.create(session, "ann", Role.ANNOTATOR)[0].id
    assert cli.json("persons", "role", short(ann), "operator")["role"] == "operator"
    [key] = cli.rows("keys", "list", "--person", short(ann))
    assert cli.words("keys", "list", "--person", short(ann)).splitlines()[1].startswith(short(str(key["id"])))
    assert cli.json("persons", "end-sessions", short(ann)) == {"num_ended": 0}
    done = cli.words("audit", "--action", "persons.role").splitlines()[1]
    assert str(ann) in done, "the filter --id takes it whole"


def test_an_end_that_several_ids_share_is_refused_with_all_of_them(
    cli: CommandLine, store: Store, world: World
) -> None:
    ids = [f"0000000{n}-{END}" for n in (1, 2)]
    for name, id in zip(("one", "two"), ids, strict=True):
        give_id(store, world, name, id)
    refusal = cli.refused("experts", "show", "abcd")
    assert refusal["error"] == "short-id-ambiguous"
    assert all(id in str(refusal["detail"]) for id in ids)
    assert cli.json("experts", "show", f"2-{END}")["name"] == "two"


def test_an_end_that_no_id_has_is_refused_with_where_they_are_listed(cli: CommandLine) -> None:
    refusal = cli.refused("tasks", "show", "abcd1234")
    assert refusal["error"] == "short-id-unknown"
    assert refusal["detail"] == "none of the newest 1,000 tasks has an id that ends in abcd1234"
    assert "`preceptor tasks list`" in str(refusal["hint"])
    assert "/evaluations" in str(cli.refused("eval", "--against", "abcd1234")["hint"])


@pytest.mark.parametrize("text", ["abc", "judge", "0123-xyz"])
def test_what_is_no_end_of_an_id_is_wrong_usage(cli: CommandLine, text: str) -> None:
    assert cli.refused("experts", "show", text)["error"] == "usage-wrong"
