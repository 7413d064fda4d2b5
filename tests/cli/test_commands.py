"""Every command that reaches the api, with --json and in words, against the real api."""

import json
import math
from datetime import UTC, datetime
from typing import cast
from uuid import UUID

import pytest
from rich.console import Console
from sqlalchemy import select, update

from services.cli.client import ApiClient
from services.cli.commands import demo
from services.cli.options import api_of
from services.cli.output.progress import Progress
from services.contracts.answers import AnswerKind
from services.contracts.consultations import ConsultationStatus
from services.contracts.experts import ConsultResult
from services.contracts.ids import new_id
from services.contracts.rollouts import GroupStatus, Purpose, Sampling
from services.contracts.sources import ContextSource
from services.contracts.status import LoopSwitch, Status
from services.contracts.tasks import Split
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.corrections import corrections
from services.store.loop import consultations, dead_letters, groups, settling, switches, tasks
from services.store.people import logins, passwords, persons
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import UpdateRow
from services.store.tables.loop import AnswerRow, ConsultationRow, EvaluationRow, GroupRow, RolloutRow
from tests.cli.conftest import CommandLine
from tests.store.conftest import World, show
from tests.store.loop.test_opinions import expert as opinionated
from tests.store.loop.test_opinions import put_seen
from tests.web.correcting import Queue

pytestmark = pytest.mark.integration

HUMAN = (AnswerKind.SCORE, AnswerKind.FEEDBACK, AnswerKind.SOLUTION)
NOBODY = str(UUID(int=0))


@pytest.fixture
def queued(store: Store, world: World) -> list[RolloutRow]:
    """Two rollouts of a train task without a reference that are in the human queue."""
    with store.transaction() as session:
        world.expert(session, "human", kinds=HUMAN, verifier=False).group_fraction = 0
        world.expert(session, "judge")
        rollouts = world.drawn(session, world.task(session), size=2)
        ids = consultations.pending_of(session, [rollout.id for rollout in rollouts])
        questions = consultations.claim(session, ids, lease_seconds=60)
    with store.transaction() as session:
        for question in questions:
            settling.settle(session, question, ConsultResult(score=0.0))
        for rollout in rollouts:
            corrections.ask_for(session, rollout.id)
    return rollouts


def test_tasks_are_imported_listed_and_shown(cli: CommandLine) -> None:
    file = cli.home / "tasks.jsonl"
    body = {"key": "k", "domain": "math", "messages": [{"role": "user", "content": "What is 1?"}]}
    file.write_text(json.dumps(body) + "\n")
    assert cli.json("tasks", "import", file) == {"num_created": 1, "num_existing": 0}
    assert cli.words("tasks", "import", file) == "0 new tasks, 1 already imported\n"
    [row] = cli.rows("tasks", "list")
    assert (row["key"], row["split"]) == ("k", "train")
    assert cli.json("tasks", "show", row["id"])["messages"] == body["messages"]
    assert cli.words("tasks", "list").splitlines()[0].split() == ["id", "key", "domain", "family", "split"]
    assert "What is 1?" in cli.words("tasks", "show", row["id"])
    refusal = cli.refused("tasks", "show", NOBODY)
    assert (refusal["error"], refusal["detail"]) == ("task-not-found", f"no task {NOBODY}")


def test_lists_show_only_the_rows_that_their_filters_name(cli: CommandLine, store: Store, world: World) -> None:
    with store.transaction() as session:
        judge = world.expert(session, "judge")
        other = world.expert(session, "other")
        first, second = world.task(session, "a", domain="math/a"), world.task(session, "b", domain="math/b")
        [rollout] = world.drawn(session, first, size=1)
        world.drawn(session, second, size=1)
        task, rollout_id, group, expert = first.id, rollout.id, rollout.group_id, judge.id
        assert other.id != expert
    assert [row["id"] for row in cli.rows("tasks", "list", "--domain", "math/a")] == [str(task)]
    assert cli.rows("tasks", "list", "--split", "heldout") == []
    for narrow in (("--task", task), ("--group", group), ("--domain", "math/a")):
        assert [row["id"] for row in cli.rows("rollouts", "list", *narrow)] == [str(rollout_id)]
    assert len(cli.rows("rollouts", "list", "--purpose", "train")) == 2
    consulted = cli.rows("consultations", "list", "--expert", expert)
    assert [row["expert_name"] for row in consulted] == ["judge", "judge"]


def test_an_expert_is_shown_with_its_conformance_report(cli: CommandLine, store: Store, world: World) -> None:
    with store.transaction() as session:
        expert_id = world.expert(session, "judge").id
    assert cli.json("experts", "show", expert_id)["name"] == "judge"
    words = cli.words("experts", "show", expert_id).splitlines()
    assert words[0].startswith("judge@")
    assert any(line.startswith("may see") for line in words)
    assert cli.refused("experts", "show", NOBODY)["detail"] == f"no expert {NOBODY}"


def test_a_file_with_a_bad_line_is_refused_by_its_line(cli: CommandLine) -> None:
    file = cli.home / "tasks.jsonl"
    file.write_text('{"key": "k"}\n')
    assert "line 1: domain: Field required" in str(cli.refused("tasks", "import", file)["detail"])
    assert cli.rows("tasks", "list") == []


def test_a_rollout_says_what_its_teacher_was_shown(cli: CommandLine, store: Store, world: World) -> None:
    with store.transaction() as session:
        context = show(ContextSource.OWN_SUCCESS)
        own, shown = world.drawn(session, world.task(session), 2, context=context, num_shown=1)
    assert {row["id"]: row["shown"] for row in cli.rows("rollouts", "list")} == {
        str(own.id): False,
        str(shown.id): True,
    }
    assert "drawn by the teacher after: own success, as turns\n" in cli.words("rollouts", "show", str(shown.id))
    assert "teacher" not in cli.words("rollouts", "show", str(own.id))
    assert [row["num_shown"] for row in cli.rows("draws", "list")] == [1]


def test_rollouts_are_added_listed_by_status_and_shown(cli: CommandLine, store: Store, world: World) -> None:
    with store.transaction() as session:
        task_id = world.task(session).id
    made = cli.json("rollouts", "add", task_id, "an answer")
    assert [row["id"] for row in cli.rows("rollouts", "list")] == [made["id"]]
    assert cli.rows("rollouts", "list", "--status", "ready") == []
    assert cli.words("rollouts", "list", "--status", "ready") == "none\n"
    head, row = cli.words("rollouts", "list", "--status", "set_aside").splitlines()
    assert "reason" in head
    assert str(cli.rows("rollouts", "list", "--status", "set_aside")[0]["reason"])[:40] in row
    shown = cli.json("rollouts", "show", made["id"])
    assert shown["rollout"] == made | shown["rollout"]  # type: ignore[operator]
    assert "an answer" in cli.words("rollouts", "show", made["id"])


def test_a_dead_consultation_is_found_with_its_reason_and_asked_again(
    cli: CommandLine, store: Store, world: World
) -> None:
    with store.transaction() as session:
        world.expert(session, "judge")
        [rollout] = world.drawn(session, world.task(session), size=1)
        [row] = session.query(ConsultationRow).where(ConsultationRow.rollout_id == rollout.id)
        row.status, row.reason = ConsultationStatus.DEAD.value, "no route to it"
        consultation_id = row.id
    words = cli.words("consultations", "list", "--status", "dead")
    assert "no route to it" in words
    assert [row["id"] for row in cli.rows("consultations", "list")] == [str(consultation_id)]
    assert cli.json("consultations", "requeue", consultation_id)["status"] == "pending"
    assert cli.rows("consultations", "list", "--status", "dead") == []
    assert cli.refused("consultations", "requeue", consultation_id)["hint"] is not None
    assert "one ID or --all" in str(cli.refused("consultations", "requeue")["detail"])
    assert "one ID or --all" in str(cli.refused("consultations", "requeue", consultation_id, "--all")["detail"])


def test_all_dead_consultations_are_asked_again_over_as_many_calls_as_it_takes(
    cli: CommandLine, store: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "MAX_AT_ONCE", 2)
    with store.transaction() as session:
        world.expert(session, "judge")
        world.drawn(session, world.task(session), size=3)
        session.execute(update(ConsultationRow).values(status=ConsultationStatus.DEAD.value, reason="away"))
    assert cli.json("consultations", "requeue", "--all") == {"num_requeued": 3}
    assert {row["status"] for row in cli.rows("consultations", "list")} == {"pending"}
    assert cli.words("consultations", "requeue", "--all") == "0 consultations are requeued\n"


def test_dead_draws_are_found_with_their_reason_and_drawn_again(cli: CommandLine, store: Store, world: World) -> None:
    with store.transaction() as session:
        task = world.task(session, "hard")
        drawn = [groups.add(session, task, purpose=Purpose.TRAIN, size=4, sampling=Sampling()) for _ in range(3)]
        for row in drawn[:2]:
            row.status, row.reason, row.failures = GroupStatus.DEAD.value, "the policy did not answer", 5
        first = drawn[0].id
    assert len(cli.rows("draws", "list")) == 3
    assert "the policy did not answer" in cli.words("draws", "list", "--status", "dead")
    assert cli.words("draws", "requeue", first) == "hard is drawn again: pending\n"
    assert cli.refused("draws", "requeue", first)["error"] == "illegal-status-change"
    assert cli.refused("draws", "requeue", NOBODY)["detail"] == f"no draw {NOBODY}"
    assert cli.words("draws", "requeue", "--all") == "1 draw is requeued\n"
    assert cli.rows("draws", "list", "--status", "dead") == []


def test_experts_are_listed_paused_and_retired(cli: CommandLine, store: Store, world: World) -> None:
    with store.transaction() as session:
        expert_id = world.expert(session, "judge").id
    assert [row["name"] for row in cli.rows("experts", "list")] == ["judge"]
    for action, status in (("pause", "paused"), ("retire", "retired")):
        changed = cli.json("experts", action, expert_id, "--reason", "maintenance")
        assert (changed["status"], changed["reason"]) == (status, "maintenance")
    assert cli.refused("experts", "activate", expert_id)["detail"], "nobody answers at its address"
    assert cli.refused("experts", "add", "not a url")["error"]
    nobody = new_id()
    assert cli.refused("experts", "add", "http://127.0.0.1:1", "--moved", nobody)["detail"] == f"no expert {nobody}"


def test_how_well_an_opinion_tells_right_from_wrong_is_listed_and_shown(
    cli: CommandLine, store: Store, world: World
) -> None:
    with store.transaction() as session:
        people, critic = opinionated(session, world, "human"), opinionated(session, world, "critic")
        people_id, critic_id = str(people.id), str(critic.id)
    assert "AUC" not in cli.words("experts", "list")
    put_seen(store, world, "human", "critic", [(0.9, 1.0), (0.2, 0.0)] * 8)
    line = (
        "prose score: AUC 1.00 (at least 0.69), Brier 0.025 (of the mean 0.250), 16 answers on 8 tasks, 8 of them with "
        "right and wrong ones: calibrated"
    )
    assert f"critic: {line}" in cli.words("experts", "list").splitlines()
    shown = cli.words("experts", "show", critic_id).splitlines()
    assert line in shown
    assert any(said.startswith("prose p_yes: AUC 0.00 (at least 0.00)") for said in shown)
    assert "AUC" not in cli.words("experts", "show", people_id)
    assert {row["name"] for row in cli.rows("experts", "list")} == {"human", "critic"}


def test_an_experts_weight_is_set_alone(cli: CommandLine, store: Store, world: World) -> None:
    with store.transaction() as session:
        expert_id = world.expert(session, "judge").id
    assert cli.words("experts", "weight", expert_id, "0.5") == "judge is active, weight 0.5\n"
    assert [row["weight"] for row in cli.rows("experts", "list")] == [0.5]
    assert cli.refused("experts", "weight", expert_id, "101")["error"] == "usage-wrong"


def test_an_experts_dead_consultations_are_asked_again(cli: CommandLine, store: Store, world: World) -> None:
    with store.transaction() as session:
        expert_id = world.expert(session, "judge").id
        world.drawn(session, world.task(session), size=1)
        session.execute(update(ConsultationRow).values(status=ConsultationStatus.DEAD.value, reason="away"))
    assert cli.words("experts", "requeue", expert_id) == "judge is active\n"
    assert [row["status"] for row in cli.rows("consultations", "list")] == ["pending"]


def test_lessons_and_answers_are_listed_and_an_answer_is_withdrawn(
    cli: CommandLine, store: Store, queued: list[RolloutRow]
) -> None:
    [shown, _] = cli.rows("lessons", "list", "--status", "ready")
    assert shown["reason"] is None
    assert cli.words("lessons", "list", "--status", "set_aside") == "none\n"
    [said] = cli.rows("answers", "list", shown["rollout_id"])
    assert cli.words("answers", "withdraw", said["id"]) == f"answer {said['id']} is withdrawn\n"
    [gone] = cli.rows("lessons", "list", "--status", "withdrawn")
    assert gone["reason"] == "an answer of it was withdrawn"


def test_a_correction_goes_through_the_command_line(cli: CommandLine, queued: list[RolloutRow]) -> None:
    fixed = cli.home / "fixed.txt"
    fixed.write_text("1")
    item = cli.json("corrections", "claim")
    assert cli.refused("corrections", "submit", item["id"])["detail"]
    assert cli.json("corrections", "submit", item["id"], "--file", fixed)["status"] == "submitted"
    assert "used by updates: none yet" in cli.words("corrections", "show", item["id"])
    other = cli.json("corrections", "claim")
    assert cli.json("corrections", "skip", other["id"], "not mine")["status"] == "skipped"
    assert {str(row["id"]) for row in cli.rows("corrections", "list")} == {str(item["id"]), str(other["id"])}
    assert "not mine" in cli.words("corrections", "list")
    assert cli.refused("corrections", "claim")["detail"] == "there is nothing to correct at the moment"


def test_an_answer_with_only_a_newline_more_is_said_to_be_kept_as_fine(
    cli: CommandLine, queued: list[RolloutRow]
) -> None:
    saved = cli.home / "saved.txt"
    item = cli.json("corrections", "claim")
    saved.write_text(f"{item['rollout_text']}\n")
    assert "as fine, since only white space differs" in cli.words("corrections", "submit", item["id"], "--file", saved)


def test_a_draft_is_kept_and_a_correction_taken_back_on_the_command_line(
    cli: CommandLine, queued: list[RolloutRow]
) -> None:
    half, fixed = cli.home / "half.txt", cli.home / "fixed.txt"
    half.write_text("hal")
    fixed.write_text("1")
    item = cli.json("corrections", "claim")["id"]
    assert "--file saves one" in str(cli.refused("corrections", "draft", item)["detail"])
    assert cli.json("corrections", "draft", item, "--file", half)["version"] == 1
    assert cli.words("corrections", "draft", item).strip() == "hal"
    cli.json("corrections", "submit", item, "--file", fixed)
    taken = cli.json("corrections", "undo", item)
    assert (taken["status"], taken["draft"]["text"]) == ("claimed", "1")  # type: ignore[index, call-overload]
    assert cli.json("corrections", "release", item)["status"] == "open"
    assert cli.json("corrections", "claim")["id"] == item, "what one has a draft of comes first"
    assert cli.refused("corrections", "skip", item)["detail"]
    assert cli.json("corrections", "skip", item, "--kind", "unclear")["skip_kind"] == "unclear"


def test_an_item_is_asked_for_claimed_by_its_id_remarked_on_and_submitted_as_its_draft(
    cli: CommandLine, store: Store, world: World
) -> None:
    queue = Queue(store, world)
    queue.experts("reviewer")
    queue.ask(queue.draw("first", "What is it?", "six", {}))
    item = cli.json("corrections", "ask", queue.draw("t", "What is it?", "two plus two", {}))["id"]
    assert cli.json("corrections", "claim", item)["id"] == item
    renewed = cli.json("corrections", "renew", item)
    assert cli.words("corrections", "leave", item) == "left\n"
    with store.reading() as session:
        until = session.get_one(CorrectionRow, UUID(str(item))).lease_until
    assert until is not None
    assert until < datetime.fromisoformat(str(renewed["lease_until"]))
    remark = {"start": 4, "end": 8, "text": "a sign, not a word"}
    assert cli.json("corrections", "remark", item, "plus", "a sign, not a word")["spans"] == [remark]
    assert "'minus'" in str(cli.refused("corrections", "remark", item, "minus", "which")["detail"])
    with_comment = cli.refused("corrections", "submit", item, "--draft", "--comment", "no")
    assert "a comment of its own" in str(with_comment["detail"])
    half = cli.home / "half.txt"
    half.write_text("2 + 2")
    cli.json("corrections", "draft", item, "--file", half)
    done = cli.json("corrections", "submit", item, "--draft")
    assert (done["verdict"], done["text"]) == ("corrected", "2 + 2")
    with store.reading() as session:
        said = session.query(AnswerRow).filter_by(consultation_id=UUID(str(done["consultation_id"]))).one()
    assert said.feedback is not None
    assert said.feedback["spans"] == [remark]


def test_a_draft_is_discarded_on_the_command_line(cli: CommandLine, queued: list[RolloutRow]) -> None:
    item = cli.json("corrections", "claim")["id"]
    half = cli.home / "half.txt"
    half.write_text("hal")
    cli.json("corrections", "draft", item, "--file", half)
    assert cli.words("corrections", "discard", item) == "the draft is discarded\n"
    assert (
        cli.refused("corrections", "draft", item)["detail"]
        == f"you have no draft of correction {item}; --file saves one"
    )


def test_persons_are_added_and_their_keys_rotated_and_revoked(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cli.json("persons", "add", "ann", "--role", "operator")
    assert {row["name"] for row in cli.rows("persons", "list")} >= {"ann"}
    rotated = cli.json("persons", "rotate-key", made["id"])
    assert rotated["api_key"] not in ("", made["api_key"])
    assert cli.words("persons", "revoke-key", made["id"]) == "ann (operator) has no key\n"
    monkeypatch.setenv("PRECEPTOR_API_KEY", str(rotated["api_key"]))
    assert "not known" in str(cli.refused("tasks", "list")["detail"])


def test_the_ledger_and_the_versions_are_listed_and_shown(cli: CommandLine, store: Store, world: World) -> None:
    with store.transaction() as session:
        session.add(
            UpdateRow(
                lineage_id=world.lineage_id,
                number=1,
                status="applied",
                owner=new_id(),
                objective="pg",
                settings={},
                metrics={"loss": 0.5},
                checkpoint_sha256="c" * 64,
                batch_sha256="d" * 64,
                applied_at=datetime.now(UTC),
            )
        )
    assert [row["number"] for row in cli.rows("updates", "list")] == [1]
    assert cli.json("updates", "show", 1)["metrics"] == {"loss": 0.5}
    assert "update 1 is applied" in cli.words("updates", "show", 1)
    assert cli.refused("updates", "show", 2)["detail"]
    assert [row["name"] for row in cli.rows("policies", "list")] == ["base"]
    assert cli.json("policies", "show", "base")["status"] == "serving"
    assert "base is serving" in cli.words("policies", "show", "base")


def test_an_evaluation_needs_tasks_and_another_split_than_train(cli: CommandLine) -> None:
    assert cli.refused("eval")["detail"]
    assert "'train' is not one of 'heldout', 'validation'" in str(cli.refused("eval", "--split", "train")["detail"])


def test_an_evaluation_of_an_unknown_domain_or_version_says_so_and_is_not_begun(
    cli: CommandLine, store: Store, world: World
) -> None:
    with store.transaction() as session:
        world.task(session, split=Split.HELDOUT)
    assert cli.refused("eval", "--domain", "maths") == {
        "error": "nothing-to-evaluate",
        "detail": "split 'heldout' has no tasks of maths",
        "hint": "It has tasks of math.",
    }
    unknown = cli.refused("eval", "--policy", "main-v9")
    assert (unknown["error"], unknown["detail"]) == ("policy-version-not-found", "no policy version 'main-v9'")
    with store.reading() as session:
        assert session.scalars(select(EvaluationRow)).all() == []


def test_sessions_are_listed_and_ended_and_a_password_is_set(
    cli: CommandLine, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.transaction() as session:
        owner_id = persons.find_owner(session).id
        ids = [logins.start(session, owner_id, None, "10.0.0.7", "a browser")[0] for _ in range(3)]
    assert {row["id"] for row in cli.rows("sessions", "list")} == {str(one) for one in ids}
    assert cli.json("sessions", "end", ids[0]) == {"num_ended": 1}
    assert cli.words("persons", "end-sessions") == "sessions ended: 2\n"
    typed = iter(["", "seven grey herons at the weir"])
    monkeypatch.setattr("typer.prompt", lambda *_, **__: next(typed))
    assert cli.words("persons", "set-password") == "the password is set\n"
    with store.transaction() as session:
        assert passwords.find(session, owner_id) is not None


def test_the_loops_parts_are_switched_alone_and_its_end_is_set_and_taken_away(cli: CommandLine) -> None:
    cli.words("loop", "off")
    assert cli.words("loop", "on", "--only", "sampling") == "sampling is on, training is off\n"
    assert cli.json("loop", "--until", 7) == {"sampling": True, "training": False, "max_updates": 7}
    assert cli.json("loop", "--no-end")["max_updates"] is None
    assert "on or off" in str(cli.refused("loop")["detail"])
    assert cli.refused("loop", "on", "--until", 7, "--no-end")["detail"]


def test_the_status_says_what_the_loop_waits_for(
    cli: CommandLine, store: Store, world: World, settings: Settings
) -> None:
    def waits() -> list[str]:
        found = cli.json("status")["waits_for"]
        assert isinstance(found, list)
        return [str(line) for line in found]

    with store.transaction() as session:
        switches.switch(session, world.lineage_id, sampling=True, training=True)
    assert waits() == ["there are no train tasks; import some"]
    with store.transaction() as session:
        task = world.task(session)
    assert waits() == []
    with store.transaction() as session:
        tasks.get(session, task.id).num_rollouts = settings.max_groups_per_task * settings.group_size
    [drawn_out] = waits()
    assert drawn_out == (
        f"every train task was drawn {settings.max_groups_per_task} times; "
        "import more or raise PRECEPTOR_MAX_GROUPS_PER_TASK"
    )
    with store.transaction() as session:
        row = session.get(
            GroupRow,
            groups.add(session, tasks.get(session, task.id), purpose=Purpose.TRAIN, size=8, sampling=Sampling()).id,
        )
        assert row is not None
        row.status, row.reason = GroupStatus.DEAD.value, "the prompt is too long"
        groups.add(
            session,
            tasks.get(session, task.id),
            purpose=Purpose.TRAIN,
            size=settings.max_backlog_lessons,
            sampling=Sampling(),
        )
        switches.switch(session, world.lineage_id, sampling=False, training=True)
    assert waits() == [
        "sampling is off",
        drawn_out,
        "the backlog is full: no draws until the trainer has used some of it",
        "1 draw is dead: last reason: the prompt is too long",
    ]
    assert "waits: sampling is off" in cli.words("status")


class ClockedApi:
    """Says that 14 updates are made while the loop trains, and 15 once it is told to stop."""

    def __init__(self, status: Status) -> None:
        self.status, self.num_updates = status, 0

    def get(self, path: str, kind: object) -> Status:
        assert path == "/v1/status"
        now = self.status.model_copy(update={"num_updates": self.num_updates, "processes": []})
        self.num_updates = max(self.num_updates, 14)
        return now

    def post(self, path: str, body: object, kind: object) -> object:
        if isinstance(body, LoopSwitch) and body.training is False:
            self.num_updates = 15  # the one that was under way
        return None

    def pages(self, path: str, limit: int, query: object) -> list[object]:
        return []


def test_the_demo_counts_the_update_that_was_under_way_when_the_time_was_up(cli: CommandLine) -> None:
    api: ApiClient = api_of(None, None)
    clocked = cast(ApiClient, ClockedApi(api.get("/v1/status", Status)))
    api.close()
    quiet = Progress(Console(quiet=True))
    trained = demo.train(clocked, demo.DemoPlan(num_updates=16), quiet, lambda: None, deadline=-math.inf)
    assert (trained.num_updates, trained.notes) == (15, ["Time was up after 15 of 16 updates."])
