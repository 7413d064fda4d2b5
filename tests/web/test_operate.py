"""The operator's pages over HTTP, on a store as a loop leaves it and on an empty one."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import func, select
from starlette.testclient import TestClient

from services.contracts.experts import BY_HAND
from services.contracts.persons import Role
from services.contracts.sources import ContextSource
from services.contracts.tasks import Split, TaskCreate
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.loop import evaluations, lineages, tasks
from services.store.tables.ledger import LessonRow, UpdateLessonRow, UpdateRow
from services.store.tables.loop import ConsultationRow, EvaluationRow, ExpertRow, GroupRow, LoopRow, RolloutRow, TaskRow
from services.store.tables.people import AuditRow
from services.store.views import versions
from services.web.app import create_app
from tests.store.conftest import show
from tests.web.conftest import Browser
from tests.web.fill import fill

pytestmark = pytest.mark.integration

LISTS = ("/", "/tasks", "/rollouts", "/experts", "/policies", "/evaluations", "/updates", "/dead")


@dataclass(frozen=True)
class Filled:
    """A filled store, its settings and who asks for pages."""

    store: Store
    settings: Settings
    http: httpx2.Client

    def page(self, path: str) -> str:
        response = self.http.get(path, headers={"Accept": "text/html"})
        assert response.status_code == 200, (path, response.status_code, response.text[:1000])
        return response.text

    def send(self, path: str, seen_on: str, **fields: str | list[str]) -> httpx2.Response:
        token = re.search(r'name="csrf_token" value="([^"]+)"', self.page(seen_on))
        assert token is not None
        return self.http.post(path, data={"csrf_token": token[1], **fields}, headers={"Accept": "text/html"})


@pytest.fixture(scope="module")
def filled(fresh_database: Callable[[], str], broker: str) -> Iterator[Filled]:
    """A store that a loop has run on, and an open installation's pages over it."""
    url = fresh_database()
    store = Store(url, pool_size=4)
    fill(store, num_updates=9)
    settings = Settings.model_validate({"database_url": url, "api_open": True, "redis_url": broker})
    app = create_app(settings)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False, follow_redirects=False) as http:
        yield Filled(store, settings, http)
    store.close()


def one(filled: Filled, table: type, **where: object) -> UUID:
    with filled.store.transaction() as session:
        found = session.query(table).filter_by(**where).first()
        assert found is not None
        identity: UUID = found.id
        return identity


@pytest.mark.parametrize("path", LISTS)
def test_lists_say_what_to_do_where_there_is_nothing(owner: Browser, path: str) -> None:
    response = owner.get(path)
    assert response.status_code == 200
    if path != "/policies":  # the base is always there
        assert 'class="empty"' in response.text


@pytest.mark.parametrize("path", [*LISTS, "/overview/now", "/overview/curves"])
def test_pages_show_a_loop_that_has_run(filled: Filled, path: str) -> None:
    filled.page(path)


def test_the_overview_tells_what_serves_what_waits_and_how_curves_go(filled: Filled) -> None:
    page = filled.page("/")
    for told in ("main-v2", "Backlog", "Lessons ready to train", "draw is dead", "Loss terms", "updates 1 to 9"):
        assert told in page, told
    assert page.count("<polyline") >= 6  # readable without script
    assert 'hx-get="/overview/now"' in page


def test_charts_are_sent_again_only_after_another_update(filled: Filled) -> None:
    piece = filled.page("/overview/curves")
    assert "<html" not in piece
    for title in ("Loss terms", "Distance from experts", "Entropy of the policy", "Pass rate by version"):
        assert title in piece
    assert 'hx-get="/overview/curves?after=9"' in piece
    assert filled.page("/overview/curves?after=8") == piece
    assert filled.http.get("/overview/curves?after=9").status_code == 204


def test_every_point_of_a_chart_is_in_its_table(filled: Filled) -> None:
    piece = filled.page("/overview/curves")
    for chart in ("chart-loss", "chart-kl", "chart-seconds"):
        table = piece.partition(f'<table id="{chart}-table">')[2].partition("</table>")[0]
        assert re.findall(r'<th scope="row">(\d+)</th>', table) == [str(number) for number in range(9, 0, -1)]
    versions = piece.partition('<table id="by-version-table">')[2].partition("</table>")[0]
    assert re.findall(r'<th scope="row">([^<]+)</th>', versions) == ["main-v2", "main-v1", "base"]


def test_a_list_goes_on_where_its_page_ended_and_keeps_its_filters(filled: Filled) -> None:
    page = filled.page("/rollouts?purpose=train&limit=50")
    more = re.search(r'rel="next" href="([^"]+)"', page)
    assert more is not None
    following = filled.page(more[1].replace("&amp;", "&"))
    seen = [set(re.findall(r'href="/rollouts/([0-9a-f-]{36})"', text)) for text in (page, following)]
    assert len(seen[0]) == 50
    assert seen[1]
    assert not seen[0] & seen[1]
    assert "evaluation</td>" not in page + following


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/rollouts?status=set_aside", "No rollout matches"),
        ("/rollouts?status=&purpose=&version=", "add_up"),
        ("/tasks?split=heldout&family=", "clamp"),
        ("/experts?status=quarantined", "old-linter"),
        ("/updates?status=abandoned", "No update has this status"),
        ("/policies?status=serving", "main-v2"),
    ],
)
def test_filters_are_in_the_address(filled: Filled, path: str, expected: str) -> None:
    assert expected in filled.page(path)


@pytest.mark.parametrize(
    "path",
    [
        "/rollouts?status=nonsense",
        "/rollouts?cursor=nonsense",
        "/dead?draws=nonsense",
        "/updates/2147483648",
        "/updates/99999999999999999999",
        "/updates/-1",
        "/overview/curves?after=99999999999999999999",
    ],
)
def test_addresses_that_mean_nothing_are_refused(filled: Filled, path: str) -> None:
    assert filled.http.get(path, headers={"Accept": "text/html"}).status_code == 422


def test_a_rollout_that_was_trained_on_shows_its_costs_and_who_would_have_said_what(filled: Filled) -> None:
    with filled.store.transaction() as session:
        row = session.query(RolloutRow).join(LessonRow).filter(LessonRow.status == "used").first()
        assert row is not None
        identity, num_tokens = row.id, row.num_tokens
    page = filled.page(f"/rollouts/{identity}")
    assert page.count('class="token heat-') == num_tokens
    assert page.count("data-row=") == num_tokens
    for told in (
        "our teacher, in update",
        "larger-model",
        "Cost-to-go",
        "nats</td>",
        "Ran 3 tests",
        "Share of the update",
    ):
        assert told in page, told


def test_an_answer_that_a_teacher_drew_is_marked_wherever_it_is_shown(filled: Filled) -> None:
    context = show(ContextSource.CORRECTION, words="It is forty-two.").model_dump(mode="json")
    with filled.store.transaction() as session:
        number, lesson = session.execute(
            select(UpdateRow.number, LessonRow)
            .join(UpdateLessonRow, UpdateLessonRow.update_id == UpdateRow.id)
            .join(LessonRow, LessonRow.id == UpdateLessonRow.lesson_id)
            .order_by(UpdateRow.number.desc(), LessonRow.id.desc())
            .limit(1)
        ).one()
        group, drawn = session.get_one(GroupRow, lesson.group_id), session.get_one(RolloutRow, lesson.rollout_id)
        logprobs, drawn.sampler_logprobs, drawn.shown = drawn.sampler_logprobs, None, True
        group.context, group.num_shown = context, 1
    page = filled.page(f"/rollouts/{drawn.id}")
    assert "Drawn by the teacher after: correction, as turns." in page
    assert "It is forty-two." in page
    listed = filled.page(f"/rollouts?group_id={group.id}")
    assert "The teacher drew the last of them after: correction." in listed
    assert listed.count(">teacher</span>") == 1
    assert filled.page(f"/tasks/{drawn.task_id}").count(">teacher</span>") == 1
    assert filled.page(f"/updates/{number}").count("drawn by the teacher after: correction") == 1
    with filled.store.transaction() as session:
        group, drawn = session.get_one(GroupRow, group.id), session.get_one(RolloutRow, drawn.id)
        drawn.shown, group.num_shown, group.context = False, 0, None
        session.flush()
        drawn.sampler_logprobs = logprobs
    assert "by the teacher" not in filled.page(f"/rollouts/{drawn.id}")


def test_a_rollout_that_no_update_used_says_so_and_shows_what_is_there(filled: Filled) -> None:
    with filled.store.transaction() as session:
        row = (
            session.query(RolloutRow)
            .join(LessonRow)
            .filter(LessonRow.status == "ready", RolloutRow.index_in_group == 0)
            .first()
        )
        assert row is not None
        identity = row.id
    page = filled.page(f"/rollouts/{identity}")
    assert "No update has used this rollout yet" in page
    assert "larger-model would have said" in page
    assert "nats</td>" not in page


def test_an_expert_shows_its_figures_and_its_conformance(filled: Filled) -> None:
    page = filled.page(f"/experts/{one(filled, ExpertRow, name='style-judge')}")
    for told in ("Agrees with verifiers", "Median latency", "refuses unknown fields", "On probation", "Activate"):
        assert told in page, told
    assert "Against verdicts" in page
    assert "Against verdicts" not in filled.page(f"/experts/{one(filled, ExpertRow, name='execution')}")
    assert "8 failures in a row" in filled.page(f"/experts/{one(filled, ExpertRow, name='old-linter')}")


def test_experts_show_what_they_were_measured_to_teach(filled: Filled) -> None:
    listed = filled.page("/experts")
    for told in (
        "own success (turns) in code/python, teaches: +0.21 ± 0.14",
        "feedback in code/python, measured, not taught: +0.19 ± 0.11, less the control +0.02 ± 0.12",
        "none of 8 tasks had anything to show",
    ):
        assert told in listed, told
    page = filled.page(f"/experts/{one(filled, ExpertRow, name='execution')}")
    for told in ("What it teaches", "Measure now", "[-0.18, -0.06]", "8 of 16"):
        assert told in page, told


def test_all_measurements_are_listed_with_what_they_found_and_one_is_stopped(filled: Filled) -> None:
    assert 'href="/measurements"' in filled.page("/experts")
    listed = filled.page("/measurements")
    for told in ("larger-model", "[+0.07, +0.35]", "[-0.10, +0.14]", "teaches", "does not teach", "8 of 16"):
        assert told in listed, told
    expert_id = one(filled, ExpertRow, name="execution")
    assert f"/measurements?expert_id={expert_id}" in filled.page(f"/experts/{expert_id}")
    own = filled.page(f"/measurements?expert_id={expert_id}")
    assert "larger-model" not in own
    assert f'href="/measurements?expert_id={expert_id}&amp;cursor=' in filled.page(
        f"/measurements?expert_id={expert_id}&limit=2"
    )
    assert own.count("Stop measuring") == 1
    measuring = filled.page("/measurements?status=measuring")
    assert "does not teach</span>" not in measuring
    assert measuring.count("Stop measuring") == 2


def test_versions_updates_evaluations_and_tasks_have_pages_of_their_own(filled: Filled) -> None:
    version = filled.page("/policies/main-v1")
    for told in ("Before and after", "paired by family", "kl from the parent", "/updates/4"):
        assert told in version, told
    update = filled.page("/updates/9")
    for told in ("What shaped it", "reference", "conditioned", "learning rate"):
        assert told in update, told
    assert "pass@4" in filled.page(f"/evaluations/{one(filled, EvaluationRow)}")
    assert "Write a function" in filled.page(f"/tasks/{one(filled, TaskRow)}")


def test_an_evaluation_leads_to_its_answers_to_each_task(filled: Filled) -> None:
    page = filled.page(f"/evaluations/{one(filled, EvaluationRow)}")
    links = re.findall(r'href="(/rollouts\?task_id=[^"]+)"', page)
    assert len(links) == 6
    answers = filled.page(links[0].replace("&amp;", "&"))
    assert len(re.findall(r'<td data-label="Rollout"', answers)) == 1 + 3 * 4
    assert len(re.findall(r'<td data-label="Purpose">evaluation</td>', answers)) == 1 + 3 * 4


def test_a_task_counts_the_answers_of_each_version(filled: Filled) -> None:
    task = one(filled, TaskRow, split="heldout")
    with filled.store.transaction() as session:
        rows = session.query(RolloutRow).filter_by(task_id=task, policy_version="base").all()
        passed = sum(row.score == 1 for row in rows)
    line = filled.page(f"/tasks/{task}").partition("version=base")[2].partition("</tr>")[0]
    found = re.findall(r'data-label="(?:Passed|Judged|Answers)" class="right">(\d+)', line)
    assert found == [str(passed), str(len(rows)), str(len(rows))]


def test_a_version_is_compared_with_any_other(filled: Filled) -> None:
    assert "Compared with main-v2" in filled.page("/policies/main-v1?compare=main-v2")
    assert "No evaluations to compare" in filled.page("/policies/base?compare=main-v2")
    compared = filled.page("/policies/base?compare=main-v1")
    assert "paired by family" in compared
    assert '<th scope="col">main-v1</th><th scope="col">base</th>' in compared


def test_an_evaluation_is_started_on_the_page_of_evaluations_and_shown(filled: Filled) -> None:
    wanted = {"split": "heldout", "policy_version": "base", "num_tasks": "1", "num_samples": "2"}
    response = filled.send("/evaluations", "/evaluations", **wanted)
    assert response.status_code == 303
    started = filled.page(response.headers["location"])
    assert '<a href="/policies/base">base</a> on heldout tasks' in started
    assert "The evaluation has started." in started
    with filled.store.reading() as session:
        settings = evaluations.get(session, UUID(response.headers["location"].split("/")[-1].split("?")[0])).settings
    assert settings["temperatures"] == [0.0, 0.25, 0.5, 1.0]
    for bad in ({"split": "train"}, {"temperatures": "0, 0"}, {"temperatures": "1,,2"}, {"temperatures": "11"}):
        assert filled.send("/evaluations", "/evaluations", **wanted | bad).status_code == 422


def test_the_form_of_an_evaluation_offers_the_domains_that_can_be_measured(filled: Filled) -> None:
    assert 'name="domains"' not in filled.page("/evaluations")  # of one domain there is nothing to choose
    with filled.store.transaction() as session:
        lineage = lineages.get(session, "main")
        for domain, split in (("math", Split.HELDOUT), ("speech", Split.TRAIN), ("tool-call", Split.VALIDATION)):
            task = {"key": domain, "domain": domain, "split": split, "messages": [{"role": "user", "content": domain}]}
            tasks.add(session, lineage.id, TaskCreate.model_validate(task))
    offered = re.findall(r'name="domains" value="([^"]+)">', filled.page("/evaluations"))
    assert offered == ["code/python", "math", "tool-call"]

    wanted: dict[str, str | list[str]] = {"split": "heldout", "num_tasks": "1", "num_samples": "2"}
    for chosen, asked, drawn in (
        ({}, "all", {"code/python", "math"}),
        ({"domains": "math"}, "math", {"math"}),
        ({"domains": ["math", "code/python"]}, "code/python, math", {"code/python", "math"}),
    ):
        location = filled.send("/evaluations", "/evaluations", **wanted | chosen).headers["location"]
        assert f"Domains: {asked}." in filled.page(location)
        with filled.store.reading() as session:
            evaluation_id = UUID(location.split("/")[-1].split("?")[0])
            of_groups = select(TaskRow.domain).join(GroupRow, GroupRow.task_id == TaskRow.id)
            found = session.scalars(
                of_groups.where(GroupRow.evaluation_id == evaluation_id, GroupRow.split == Split.HELDOUT.value)
            )
            assert {*found} == drawn

    count = select(func.count()).select_from(EvaluationRow)
    with filled.store.reading() as session:
        num_before = session.scalar(count)
    for bad, status, told in (
        ({"domains": ["math", "tool-call"]}, 422, "has no tasks of tool-call"),
        ({"policy_version": "main-v99"}, 404, "no policy version"),
    ):
        response = filled.send("/evaluations", "/evaluations", **wanted | bad)
        assert (response.status_code, told in response.text) == (status, True)
    with filled.store.reading() as session:
        assert session.scalar(count) == num_before


def test_the_overview_and_an_evaluation_lead_with_the_best_of_both_versions(filled: Filled) -> None:
    with filled.store.reading() as session:
        ids = session.scalars(select(EvaluationRow.id).order_by(EvaluationRow.id)).all()
        base, newest = (evaluations.get(session, one) for one in ids[:2])
        [at_1, _] = versions.compare_two(session, base, newest).headline
    assert at_1.rise is not None
    told = (
        f'T={at_1.before_temperature:g}</span></td><td data-label="{newest.policy_version}">',
        f"{at_1.rise.mean * 100:+.0f} points",
    )
    for path in ("/", f"/evaluations/{newest.id}", f"/policies/{newest.policy_version}?compare=base"):
        page = filled.page(path)
        for words in told:
            assert words in page, (path, words)
        assert page.index(told[1]) < page.index("Both at the same temperature")
    assert filled.http.get(f"/overview/headline?after={newest.id}").status_code == 204
    assert "Better than the base?" in filled.page("/overview/headline")


@pytest.mark.parametrize("path", ["/rollouts/{}", "/experts/{}", "/tasks/{}", "/evaluations/{}"])
def test_what_does_not_exist_is_not_found(filled: Filled, path: str) -> None:
    assert filled.http.get(path.format(UUID(int=7)), headers={"Accept": "text/html"}).status_code == 404


def test_an_experts_weight_is_set_on_its_page(filled: Filled) -> None:
    expert = one(filled, ExpertRow, name="style-judge")
    here = f"/experts/{expert}"
    assert f'action="{here}/weight"' in filled.page(here)
    assert filled.send(f"{here}/weight", here, weight="0.25").headers["location"] == here
    assert "The expert&#39;s weight is 0.25." in filled.page(here)
    assert filled.send(f"{here}/weight", here, weight="101").status_code == 422


def test_an_expert_is_activated_paused_and_retired(filled: Filled) -> None:
    expert = one(filled, ExpertRow, name="style-judge")
    here = f"/experts/{expert}"
    for action, fields, expected in (
        ("activate", {}, "active"),
        ("pause", {"reason": "too strict"}, "paused"),
        ("retire", {"reason": ""}, "retired"),
    ):
        response = filled.send(f"{here}/{action}", here, **fields)
        assert (response.status_code, response.headers["location"]) == (303, here)
        with filled.store.transaction() as session:
            row = session.get_one(ExpertRow, expert)
            assert row.status == expected
            if action != "activate":
                assert row.reason == (fields["reason"] or BY_HAND)
    assert "too strict" not in filled.page("/audit")  # what people write stays out of the trail
    with filled.store.transaction() as session:
        done = {row.action for row in session.query(AuditRow).filter_by(noun_id=str(expert))}
    assert done >= {"experts.activate", "experts.pause", "experts.retire"}


def test_an_expert_that_failed_its_checks_is_not_activated(filled: Filled) -> None:
    expert = one(filled, ExpertRow, name="old-linter")
    assert "/activate" not in filled.page(f"/experts/{expert}")
    response = filled.send(f"/experts/{expert}/activate", "/experts")
    assert response.status_code in (403, 409)


def test_dead_letters_are_tried_again_one_by_one_and_all_at_once(filled: Filled) -> None:
    dead = one(filled, ConsultationRow, status="dead")
    assert filled.send(f"/dead/consultations/{dead}/requeue", "/dead").status_code == 303
    with filled.store.transaction() as session:
        assert session.get_one(ConsultationRow, dead).status == "pending"
    assert filled.send(f"/dead/consultations/{dead}/requeue", "/dead").status_code == 409
    assert filled.send("/dead/consultations/requeue", "/dead").status_code == 303
    assert filled.send("/dead/draws/requeue", "/dead").status_code == 303
    with filled.store.transaction() as session:
        assert session.query(ConsultationRow).filter_by(status="dead").count() == 0
        assert session.query(GroupRow).filter_by(status="dead").count() == 0
    assert "No dead consultations" in filled.page("/dead")


def test_the_loop_is_switched_from_the_overview(filled: Filled) -> None:
    filled.send("/loop", "/", switch="sampling", turn="off")
    filled.send("/loop/end", "/", max_updates="40")
    with filled.store.transaction() as session:
        row = session.query(LoopRow).one()
        assert (row.sampling, row.training, row.max_updates) == (False, True, 40)
    assert "sampling is off" in filled.page("/overview/now")
    filled.send("/loop/end", "/")
    with filled.store.transaction() as session:
        assert session.query(LoopRow).one().max_updates is None
    assert filled.send("/loop", "/", switch="everything", turn="off").status_code == 422


def test_who_may_only_correct_cannot_switch_the_loop(
    browser: Callable[[], Browser], person: Callable[[str, Role], str]
) -> None:
    annotator = browser()
    annotator.log_in(person("ann", Role.ANNOTATOR))
    assert annotator.send("/loop", seen_on="/account", switch="sampling", turn="on").status_code == 403
    assert annotator.send("/dead/consultations/requeue", seen_on="/account").status_code == 403
    assert "Start sampling" not in annotator.get("/").text
    assert annotator.send("/evaluations", seen_on="/account", split="heldout", num_samples="1").status_code == 403
    assert 'aria-label="Start an evaluation"' not in annotator.get("/evaluations").text
