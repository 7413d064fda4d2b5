"""The schema: what the migrations make is what the models say, and the database refuses what must never be."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy import create_engine, inspect, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerContent
from services.contracts.experts import Ask
from services.contracts.ids import new_id
from services.contracts.rollouts import Purpose
from services.contracts.tasks import Split
from services.local.servers.postgres import EmbeddedPostgres
from services.prepare import prepare_database
from services.runtime.settings import Settings
from services.store.core import migrate
from services.store.core.transaction import Store, sqlalchemy_url
from services.store.loop import answers, consultations
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import LessonRow
from services.store.tables.loop import ConsultationRow, RolloutRow
from services.store.tables.schema import METADATA, STATUS_CHANGES
from tests.conftest import execute
from tests.store.conftest import World


def test_there_is_one_newest_migration() -> None:
    assert len(ScriptDirectory.from_config(migrate.config()).get_heads()) == 1


@contextmanager
def empty_database(server: EmbeddedPostgres, name: str) -> Iterator[str]:
    execute(server, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    yield server.url_of(name)
    execute(server, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def describe(url: str) -> dict[str, str]:
    """Everything the schema holds, by kind and name: columns, constraints, indexes, triggers, functions, rows."""
    queries = {
        "columns": "SELECT table_name || '.' || column_name, data_type || is_nullable || coalesce(column_default, '')"
        " FROM information_schema.columns WHERE table_schema = 'public'",
        "constraints": "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace",
        "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "triggers": "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
        "functions": "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    }
    engine = create_engine(sqlalchemy_url(url))
    try:
        with engine.connect() as connection:
            return {
                f"{kind} {name}": definition
                for kind, query in queries.items()
                for name, definition in connection.execute(text(query))
                if "alembic_version" not in name
            }
    finally:
        engine.dispose()


@pytest.mark.integration
def test_the_models_are_what_the_migrations_make(database_url: str) -> None:
    engine = create_engine(sqlalchemy_url(database_url))
    try:
        with engine.connect() as connection:
            options = {"compare_type": True, "compare_server_default": True}
            context = MigrationContext.configure(connection, opts=options)
            assert compare_metadata(context, METADATA) == []
    finally:
        engine.dispose()


@pytest.mark.integration
def test_check_constraints_of_the_models_are_those_of_the_database(
    database_url: str, postgres_server: EmbeddedPostgres
) -> None:
    with empty_database(postgres_server, "from_models") as url:
        engine = create_engine(sqlalchemy_url(url))
        METADATA.create_all(engine)
        engine.dispose()
        modelled = {k: v for k, v in describe(url).items() if not k.startswith(("triggers", "functions"))}
    migrated = {k: v for k, v in describe(database_url).items() if not k.startswith(("triggers", "functions"))}
    assert migrated == modelled


@pytest.mark.integration
def test_a_database_of_an_older_version_is_migrated_before_it_is_served_and_keeps_its_rows(
    database_url: str, store: Store, world: World, next_schema: str
) -> None:
    with store.transaction() as session:
        key = world.task(session).key
    prepare_database(Settings.model_validate({"database_url": database_url}))
    with store.transaction() as session:
        assert migrate.find_revision(session) == migrate.find_head() == next_schema
        assert session.scalars(text("SELECT key FROM task")).all() == [key]
        assert session.scalars(text("SELECT note FROM lineage")).all() == ["none yet"]


@pytest.mark.integration
def test_a_migration_that_fails_leaves_the_database_as_it_was(
    database_url: str, store: Store, world: World, next_schema: str
) -> None:
    before = describe(database_url)
    with store.transaction() as session:
        session.execute(text("UPDATE lineage SET name = 'refused'"))  # the next schema wants another
    with pytest.raises(IntegrityError):
        migrate.upgrade(database_url)
    assert describe(database_url) == before


@pytest.mark.integration
def test_a_database_of_a_newer_version_is_left_alone(database_url: str, store: Store) -> None:
    with store.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '29990101_later'"))
    before = describe(database_url)
    with pytest.raises(migrate.DatabaseNewer, match="at 29990101_later"):
        migrate.upgrade(database_url)
    assert describe(database_url) == before


@pytest.mark.parametrize("url", ["nonsense", "mysql://me:hidden@h/x", "postgresql://me:hidden@h:port/x"])
def test_an_address_of_something_else_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(migrate.DatabaseUrlWrong) as refused:
        migrate.upgrade(url)
    assert "hidden" not in refused.value.detail


@pytest.mark.integration
def test_migrating_twice_changes_nothing(database_url: str) -> None:
    before = describe(database_url)
    migrate.upgrade(database_url)
    assert describe(database_url) == before


@pytest.mark.integration
def test_the_database_knows_exactly_the_status_changes_of_the_contracts(store: Store) -> None:
    with store.transaction() as session:
        rows = {(r.noun, r.old, r.new) for r in session.execute(text("SELECT noun, old, new FROM status_change"))}
    assert rows == {
        (noun, old, new) for noun, changes in STATUS_CHANGES.items() for old, news in changes.items() for new in news
    }


@pytest.mark.integration
def test_every_table_with_a_status_is_guarded(store: Store) -> None:
    with store.transaction() as session:
        guarded = set(
            session.scalars(text("SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname LIKE '%_status_change'"))
        )
        with_status = {
            table
            for table in inspect(session.connection()).get_table_names()
            if any(column["name"] == "status" for column in inspect(session.connection()).get_columns(table))
        }
    assert {name.strip('"') for name in guarded} == set(STATUS_CHANGES)
    assert with_status - set(STATUS_CHANGES) == {"update_lesson"}  # follows its update


def row_of(session: Session, world: World, noun: str) -> str:
    """A row of the noun, made in any way; returns its id."""
    world.expert(session)
    task = world.task(session)
    [rollout] = world.drawn(session, task, size=1)
    made = {
        "rollout": rollout.id,
        "rollout_group": rollout.group_id,
        "expert": session.scalar(text("SELECT id FROM expert")),
        "consultation": session.scalar(text("SELECT id FROM consultation")),
        "policy_version": session.scalar(text("SELECT id FROM policy_version")),
    }
    return str(made[noun])


@pytest.mark.integration
@pytest.mark.parametrize("noun", ["rollout", "rollout_group", "expert", "consultation", "policy_version"])
def test_the_database_allows_the_changes_of_the_contract_and_refuses_every_other(
    store: Store, world: World, noun: str
) -> None:
    words = {word for old, news in STATUS_CHANGES[noun].items() for word in (old, *news)}
    with store.transaction() as session:
        row = row_of(session, world, noun)
    for old in sorted(words):
        for new in sorted(words - {old}):
            with store.transaction() as session:
                session.execute(text(f'ALTER TABLE "{noun}" DISABLE TRIGGER {noun}_status_change'))
                session.execute(text(f"UPDATE \"{noun}\" SET status = '{old}', reason = 'r' WHERE id = '{row}'"))  # noqa: S608
                session.execute(text(f'ALTER TABLE "{noun}" ENABLE TRIGGER {noun}_status_change'))
            change = text(f"UPDATE \"{noun}\" SET status = '{new}' WHERE id = '{row}'")  # noqa: S608
            if new in STATUS_CHANGES[noun].get(old, ()):
                with store.transaction() as session:
                    session.execute(change)
            else:
                with (
                    pytest.raises(IntegrityError, match=f"cannot change from {old} to {new}"),
                    store.transaction() as session,
                ):
                    session.execute(change)


@pytest.mark.integration
def test_a_word_that_is_no_status_is_refused(store: Store, world: World) -> None:
    with pytest.raises(IntegrityError), store.transaction() as session:
        world.expert(session, status="asleep")


# --- held-out never trains ----------------------------------------------------------------------------------------


def lesson_of(rollout: RolloutRow, **changes: str) -> LessonRow:
    columns = {"split": rollout.split, "purpose": rollout.purpose} | changes
    return LessonRow(
        lineage_id=rollout.lineage_id,
        rollout_id=rollout.id,
        group_id=rollout.group_id,
        ordinal=0,
        status="ready",
        **columns,
    )


@pytest.mark.integration
@pytest.mark.parametrize("split", [Split.VALIDATION, Split.HELDOUT])
@pytest.mark.parametrize(
    "claim", [{}, {"split": "train"}, {"purpose": "train"}, {"split": "train", "purpose": "train"}]
)
def test_the_database_refuses_a_lesson_of_a_task_that_is_not_for_training(
    store: Store, world: World, split: Split, claim: dict[str, str]
) -> None:
    with store.transaction() as session:
        [rollout] = world.drawn(session, world.task(session, split=split), size=1, purpose=Purpose.EVALUATION)
    with pytest.raises(IntegrityError), store.transaction() as session:
        session.add(lesson_of(rollout, **claim))


@pytest.mark.integration
@pytest.mark.parametrize("purpose", [Purpose.EVALUATION, Purpose.PROBE, Purpose.CHAT])
def test_the_database_refuses_a_lesson_of_a_rollout_drawn_for_something_else(
    store: Store, world: World, purpose: Purpose
) -> None:
    with store.transaction() as session:
        [rollout] = world.drawn(session, world.task(session), size=1, purpose=purpose)
    for claim in ({}, {"purpose": "train"}):
        with pytest.raises(IntegrityError), store.transaction() as session:
            session.add(lesson_of(rollout, **claim))


@pytest.mark.integration
@pytest.mark.parametrize("table", ["rollout", "rollout_group"])
def test_the_database_refuses_a_train_draw_of_a_heldout_task(store: Store, world: World, table: str) -> None:
    with store.transaction() as session:
        [rollout] = world.drawn(session, world.task(session, split=Split.HELDOUT), size=1, purpose=Purpose.EVALUATION)
    row = rollout.id if table == "rollout" else rollout.group_id
    for change in ("purpose = 'train'", "split = 'train'", "purpose = 'train', split = 'train'"):
        with pytest.raises(IntegrityError), store.transaction() as session:
            session.execute(text(f"UPDATE {table} SET {change} WHERE id = '{row}'"))  # noqa: S608


@pytest.mark.integration
def test_a_task_never_moves_to_another_split_once_it_was_answered(store: Store, world: World) -> None:
    with store.transaction() as session:
        task = world.task(session, split=Split.HELDOUT)
        world.drawn(session, task, size=1, purpose=Purpose.EVALUATION)
    with pytest.raises(IntegrityError), store.transaction() as session:
        session.execute(text("UPDATE task SET split = 'train'"))


@pytest.mark.integration
def test_the_database_refuses_a_reference_on_a_heldout_task(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.task(session, split=Split.HELDOUT)
    with pytest.raises(IntegrityError, match="reference_is_train_only"), store.transaction() as session:
        session.execute(text("""UPDATE task SET metadata = '{"reference": "r"}'"""))


@pytest.mark.integration
def test_the_database_refuses_precedents_on_a_heldout_task(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.task(session, split=Split.HELDOUT)
    with pytest.raises(IntegrityError, match="precedents_are_train_only"), store.transaction() as session:
        session.execute(text("""UPDATE task SET metadata = '{"precedents": []}'"""))


@pytest.mark.integration
def test_the_database_refuses_a_solution_about_a_heldout_task(store: Store, world: World) -> None:
    with store.transaction() as session:
        expert = world.expert(session)
        [rollout] = world.drawn(session, world.task(session, split=Split.HELDOUT), size=1, purpose=Purpose.EVALUATION)
        question = session.scalars(select(ConsultationRow)).one()
        answers.record(session, question, rollout, AnswerContent(score=1.0, solution="s"))
        assert expert.id == question.expert_id
    with store.transaction() as session:
        assert session.scalar(text("SELECT solution FROM answer")) is None
    for change in ("solution = 's'", "solution = 's', split = 'train'"):
        with pytest.raises(IntegrityError), store.transaction() as session:
            session.execute(text(f"UPDATE answer SET {change}"))  # noqa: S608


@pytest.mark.integration
@pytest.mark.parametrize("claimed", ["heldout", "train"])
def test_the_database_refuses_a_correction_to_a_heldout_rollout(store: Store, world: World, claimed: str) -> None:
    with store.transaction() as session:
        expert = world.expert(session)
        rollout = world.external(session, world.task(session, split=Split.HELDOUT), purpose=Purpose.CHAT)
        question = consultations.open_one(session, rollout, expert, 1, Ask(kinds=["score"]))
    with pytest.raises(IntegrityError), store.transaction() as session:
        session.add(
            CorrectionRow(
                lineage_id=rollout.lineage_id, consultation_id=question.id, rollout_id=rollout.id, split=claimed
            )
        )


# --- other shapes that must never be ------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE rollout SET action_mask = '{t}'", "mask_is_aligned"),
        ("UPDATE rollout SET sampler_logprobs = '{-1}'", "logprobs_are_aligned"),
        ("UPDATE rollout SET status = 'set_aside', reason = NULL", "set_aside_has_a_reason"),
        ("UPDATE consultation SET status = 'dead', reason = NULL", "dead_has_a_reason"),
        (
            "INSERT INTO consultation_attempt (consultation_id, number, outcome)"
            " SELECT id, 1, 'maybe' FROM consultation",
            "outcome",
        ),
        (
            "INSERT INTO correction (id, lineage_id, consultation_id, rollout_id, split, status, skip_reason)"
            " SELECT gen_random_uuid(), lineage_id, id, rollout_id, 'train', 'open', 'I know the author'"
            " FROM consultation",
            "words_have_an_author",
        ),
        ("UPDATE policy_version SET number = 3", "has_weights"),
        (
            "INSERT INTO policy_version (id, lineage_id, number, name, status, artifact_sha256)"
            " SELECT gen_random_uuid(), id, 1, 'main-v1', 'serving', 'x' FROM lineage",
            "uq_policy_version_serving",
        ),
        (
            "INSERT INTO expert SELECT (jsonb_populate_record(e, jsonb_build_object('id', gen_random_uuid()))).*"
            " FROM expert e",
            "uq_expert_live_name",
        ),
    ],
)
def test_the_database_refuses_rows_that_mean_nothing(
    store: Store, world: World, statement: str, constraint: str
) -> None:
    with store.transaction() as session:
        world.expert(session)
        world.drawn(session, world.task(session), size=1)
    with pytest.raises(IntegrityError, match=constraint), store.transaction() as session:
        session.execute(text(statement))


@pytest.mark.integration
def test_a_lesson_counts_in_one_update_at_most(store: Store, world: World) -> None:
    with store.transaction() as session:
        [rollout] = world.drawn(session, world.task(session), size=1)
        lesson = lesson_of(rollout)
        session.add(lesson)
        session.flush()
        ids = [new_id(), new_id()]
        for number, update in enumerate(ids, start=1):
            session.execute(
                text("""
                    INSERT INTO update
                        (id, lineage_id, number, status, owner, objective, settings, metrics, batch_sha256)
                    VALUES (:id, :lineage, :number, 'started', :id, 'distil', '{}', '{}', 'x')
                """),
                {"id": update, "lineage": world.lineage_id, "number": number},
            )
    use = text(
        "INSERT INTO update_lesson (update_id, lesson_id, status, terms) VALUES (:update, :lesson, 'started', '[]')"
    )
    with store.transaction() as session:
        session.execute(use, {"update": ids[0], "lesson": lesson.id})
    with pytest.raises(IntegrityError, match="uq_update_lesson_counts"), store.transaction() as session:
        session.execute(use, {"update": ids[1], "lesson": lesson.id})
    with store.transaction() as session:
        session.execute(text("UPDATE update_lesson SET status = 'abandoned'"))
        session.execute(use, {"update": ids[1], "lesson": lesson.id})
