"""Versions on their way to the server: proved, gated, served, and put right after a crash of either side."""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from sqlalchemy import select

from services.contracts.policies import GateReport, PolicyStatus
from services.contracts.rollouts import Purpose, Sampling
from services.policy.artifacts import ArtifactStore
from services.policy.contract import ProveRequest, Version
from services.policy.engines.embedded import EmbeddedEngine, EngineSettings
from services.policy.model.modeling import load_policy
from services.policy.server.app import create_app
from services.store.core.transaction import Store
from services.store.ledger import policies
from services.store.loop import groups
from services.store.tables.ledger import PolicyVersionRow, UpdateRow
from services.store.tables.loop import GroupRow, TaskRow
from tests.serving import serve
from tests.trainer.training import NOWHERE, Bench, settings_of, training
from tests.trainer.world import World
from tests.waiting import wait_until
from trainer.config import TrainerConfig
from trainer.loop.publish import choose_probe, mean_kl, probe_items, probe_logprobs
from trainer.step.state import read_adapter
from trainer.step.teacher import copy_weights

pytestmark = pytest.mark.integration

CONFIG = TrainerConfig(lora_r=4, groups_per_update=1, publish_every=2, gate_length_ratio=50, learning_rate=1e-2)


@contextmanager
def policy_server(folder: Path, home: Path) -> Iterator[str]:
    """A policy process's app over a real engine that has just been started with the base."""
    engine = EmbeddedEngine(
        load_policy(folder), ArtifactStore(home / "artifacts"), EngineSettings(max_rows=8, max_context=512), name="tiny"
    )
    with serve(create_app(engine)) as url:
        yield url


@pytest.fixture
def server(model_folder: Path, tmp_path: Path) -> Iterator[str]:
    with policy_server(model_folder, tmp_path) as url:
        yield url


SetUp = Callable[..., Bench]


@pytest.fixture
def set_up(world: World, tmp_path: Path, database_url: str) -> Iterator[SetUp]:
    """Makes the trainer's parts against a policy server."""
    benches: list[Bench] = []
    world.lessons(num_groups=4)

    def make(url: str, config: TrainerConfig = CONFIG) -> Bench:
        benches.append(Bench.set_up(world, settings_of(tmp_path, database_url, policy_url=url), config))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def test_an_update_without_a_bound_on_its_charges_is_made_and_says_so(set_up: SetUp) -> None:
    bench = set_up(NOWHERE, CONFIG.model_copy(update={"clip": math.inf}))
    bench.update()
    with bench.store.transaction() as session:
        kept = session.scalars(select(UpdateRow)).one()
    assert (kept.status, kept.settings["clip"]) == ("applied", "Infinity")
    own = {name: value for name, value in kept.settings.items() if name in TrainerConfig.model_fields}
    assert TrainerConfig.model_validate(own).clip == math.inf


def statuses(store: Store) -> dict[str, str]:
    with store.transaction() as session:
        return {row.name: row.status for row in session.scalars(select(PolicyVersionRow))}


def add_candidate(bench: Bench) -> PolicyVersionRow:
    bench.publisher._add_candidate(bench.state)  # what a trainer that is killed now leaves behind
    with bench.store.transaction() as session:
        return policies.latest(session, bench.ledger.lineage.id)


def test_a_version_is_published_after_every_second_update_and_serves(
    world: World, store: Store, set_up: SetUp, server: str
) -> None:
    bench = set_up(server)
    bench.update()
    assert bench.publisher.settle(bench.state) is None
    bench.update()
    assert bench.publisher.settle(bench.state) == "main-v1"
    assert statuses(store) == {"base": "superseded", "main-v1": "serving"}
    assert bench.client.info().serving == "main-v1"
    with store.transaction() as session:
        row = policies.by_name(session, world.lineage_id, None)
    report = GateReport.model_validate(row.gate)
    assert report.passed
    assert [check.name for check in report.checks] == [
        "finite_weights",
        "kl_base",
        "kl_previous",
        "probe_difference",
        "length_ratio",
    ]
    assert row.update_number == 2
    assert next(check.value for check in report.checks if check.name == "kl_base") > 0


def test_an_average_of_the_weights_is_proved_and_served_in_their_place(
    world: World, store: Store, set_up: SetUp, server: str
) -> None:
    bench = set_up(server, CONFIG.model_copy(update={"publish_average": 0.25}))
    bench.update()
    bench.update()
    own, average = copy_weights(bench.state.model), bench.state.published
    assert bench.publisher.settle(bench.state) == "main-v1"
    with store.transaction() as session:
        row = policies.by_name(session, world.lineage_id, "main-v1")
    assert row.artifact_sha256 is not None
    assert average is not None
    served = read_adapter(bench.state.model, bench.publisher.artifacts.adapter(row.artifact_sha256))
    assert all(torch.equal(served[name], average[name]) for name in own)
    assert any(not torch.equal(served[name], own[name]) for name in own)
    assert all(torch.equal(tensor, own[name]) for name, tensor in copy_weights(bench.state.model).items())


def test_training_goes_on_while_the_server_proves_a_version(
    world: World, store: Store, set_up: SetUp, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = set_up(server)
    prove, may_go_on = bench.client.prove_version, threading.Event()

    def prove_later(name: str, request: ProveRequest) -> Version:
        may_go_on.wait()
        return prove(name, request)

    monkeypatch.setattr(bench.client, "prove_version", prove_later)
    for _ in range(2):
        bench.update()
    assert bench.publisher.settle(bench.state, beside=True) is None
    assert bench.publisher.is_busy
    for _ in range(2):
        bench.update()
    assert bench.publisher.settle(bench.state, beside=True) is None  # the next one is due, and waits for the first
    assert statuses(store) == {"base": "serving", "main-v1": "candidate"}
    may_go_on.set()
    assert bench.publisher.settle(bench.state) == "main-v2"
    assert statuses(store) == {"base": "superseded", "main-v1": "superseded", "main-v2": "serving"}


def test_when_training_rests_whatever_was_trained_is_published(
    world: World, store: Store, set_up: SetUp, server: str
) -> None:
    bench = set_up(server)
    bench.update()
    assert bench.publisher.settle(bench.state, resting=True) == "main-v1"
    assert bench.publisher.settle(bench.state, resting=True) is None


def test_a_server_that_was_restarted_serves_the_version_of_the_rows_again(
    store: Store, set_up: SetUp, tmp_path: Path, model_folder: Path
) -> None:
    with policy_server(model_folder, tmp_path) as url:
        bench = set_up(url)
        bench.update()
        bench.publisher.settle(bench.state, resting=True)
    bench.update()  # the weights have gone on since; the server must get the published ones
    with policy_server(model_folder, tmp_path) as url:
        again = set_up(url)
        again.state = bench.state
        again.publisher.settle(again.state)
        assert again.client.info().serving == "main-v1"
    assert statuses(store)["main-v1"] == "serving"


def test_a_version_that_a_draw_names_is_brought_back_and_kept_until_it_was_drawn(
    world: World, store: Store, set_up: SetUp, tmp_path: Path, model_folder: Path
) -> None:
    with policy_server(model_folder, tmp_path) as url:
        bench = set_up(url)
        for _ in range(2):
            bench.update()
            bench.publisher.settle(bench.state, resting=True)
    assert statuses(store)["main-v1"] == "superseded"
    with store.transaction() as session:
        task = session.scalars(select(TaskRow)).first()
        assert task is not None
        group = groups.add(
            session, task, purpose=Purpose.PROBE, size=1, sampling=Sampling(seed=0), policy_version="main-v1"
        ).id
    with policy_server(model_folder, tmp_path) as url:
        again = set_up(url)
        again.state = bench.state
        again.publisher.settle(again.state)
        held = {version.name: version.status.value for version in again.client.info().versions}
        assert held == {"base": "proved", "main-v1": "proved", "main-v2": "serving"}
        with store.transaction() as session:
            session.get_one(GroupRow, group).policy_version = "main-v9"  # no such version: nothing to bring back
        again.publisher.settle(again.state)


def test_a_candidate_that_was_left_over_goes_through_the_gate(
    world: World, store: Store, set_up: SetUp, server: str
) -> None:
    bench = set_up(server)
    bench.update()
    add_candidate(bench)
    assert bench.publisher.settle(bench.state) == "main-v1"
    assert statuses(store)["main-v1"] == "serving"


def test_killed_between_the_servers_word_and_the_rows_the_next_start_makes_them_agree(
    world: World, store: Store, set_up: SetUp, server: str
) -> None:
    bench = set_up(server)
    bench.update()
    row = add_candidate(bench)
    assert row.artifact_sha256 is not None
    bench.client.load_version(row.name, row.artifact_sha256)
    probe = choose_probe(bench.ledger.used_last(), 4)
    bench.publisher._prove(row.name, probe, probe_logprobs(bench.state.model, probe))
    bench.client.serve_version(row.name)
    assert statuses(store)["main-v1"] == "candidate"
    bench.publisher.settle(bench.state)
    assert statuses(store) == {"base": "superseded", "main-v1": "serving"}


def test_a_candidate_that_training_has_overtaken_is_rejected(
    world: World, store: Store, set_up: SetUp, server: str
) -> None:
    bench = set_up(server)
    bench.update()
    add_candidate(bench)
    bench.update()
    bench.publisher.settle(bench.state)
    with store.transaction() as session:
        row = policies.by_name(session, world.lineage_id, "main-v1")
    assert row.status == "rejected"
    assert "overtaken" in str(row.reason)
    assert bench.client.info().serving == "base"


@pytest.mark.parametrize(
    ("bound", "check"), [({"gate_max_kl_previous": 1e-9}, "kl_previous"), ({"gate_tolerance": 1e-12}, "probe")]
)
def test_a_version_that_fails_the_gate_is_rejected_and_the_old_one_serves_on(
    world: World,
    store: Store,
    set_up: SetUp,
    server: str,
    bound: dict[str, float],
    check: str,
) -> None:
    bench = set_up(server, CONFIG.model_copy(update=bound))
    bench.update()
    assert bench.publisher.settle(bench.state, resting=True) is None
    with store.transaction() as session:
        row = policies.by_name(session, world.lineage_id, "main-v1")
    assert row.status == "rejected"
    assert check in str(row.reason)
    info = bench.client.info()
    assert info.serving == "base"
    assert [version.name for version in info.versions] == ["base"]
    assert bench.publisher.settle(bench.state, resting=True) is None  # not tried again with the same weights


def test_with_other_bounds_the_very_weights_that_were_refused_are_published_at_once(
    world: World, store: Store, set_up: SetUp, server: str
) -> None:
    refusing = set_up(server, CONFIG.model_copy(update={"gate_max_kl_previous": 1e-9}))
    refusing.update()
    assert refusing.publisher.settle(refusing.state, resting=True) is None
    for bound in (1e-8, 1e-7):  # other bounds that it would not pass either
        still = set_up(server, CONFIG.model_copy(update={"gate_max_kl_previous": bound}))
        assert still.publisher.settle(refusing.state, resting=True) is None
    assert statuses(store) == {"base": "serving", "main-v1": "rejected"}
    sane = set_up(server)
    assert sane.publisher.settle(refusing.state, resting=True) == "main-v2"


@pytest.mark.parametrize("factor", [30.0, -30.0])
def test_a_policy_that_ran_away_is_refused_at_the_default_bounds_before_the_server_hears_of_it(
    world: World, store: Store, set_up: SetUp, server: str, factor: float
) -> None:
    bench = set_up(server, TrainerConfig(lora_r=4, groups_per_update=1, gate_length_ratio=50))
    bench.update()
    with torch.no_grad():
        for name, parameter in bench.state.model.named_parameters():
            if name.endswith("model.norm.weight"):  # untrained, the tiny base is unsure of everything: make it sure
                parameter.mul_(100)
            elif "lora_B" in name:
                parameter.mul_(factor / float(parameter.abs().max()))
    assert bench.publisher.settle(bench.state, resting=True) is None
    with store.transaction() as session:
        row = policies.by_name(session, world.lineage_id, "main-v1")
    assert (row.status, row.reason) == ("rejected", "the gate refused it: kl_base, kl_previous")
    assert [check.name for check in GateReport.model_validate(row.gate).checks][-1] == "kl_previous"
    assert [version.name for version in bench.client.info().versions] == ["base"]


def test_an_ordinary_update_passes_the_default_bounds(set_up: SetUp, server: str) -> None:
    bench = set_up(server, TrainerConfig(lora_r=4, groups_per_update=1, gate_length_ratio=50))
    bench.update()
    assert bench.publisher.settle(bench.state, resting=True) == "main-v1"


def test_the_probe_scores_rollouts_of_one_prompt_together_as_each_alone(set_up: SetUp) -> None:
    bench = set_up(NOWHERE)
    bench.update()
    probe = choose_probe(bench.ledger.used_last(), 4)
    assert len({fact.prompt_token_ids for fact in probe}) == 1
    assert len({len(fact.token_ids) for fact in probe}) > 1
    together = probe_logprobs(bench.state.model, probe)
    alone = [one for fact in probe for one in probe_logprobs(bench.state.model, [fact])]
    assert [one.shape for one in together] == [one.shape for one in alone]
    assert all(torch.allclose(left, right, atol=1e-4) for left, right in zip(together, alone, strict=True))
    for fact, item, logprobs in zip(probe, probe_items(probe, together), together, strict=True):
        expected = [float(logprobs[step, token_id]) for step, token_id in enumerate(fact.token_ids)]
        assert item.logprobs == pytest.approx(expected)
    assert mean_kl(together, together) == 0


def test_a_server_that_is_away_costs_no_update_and_gets_the_version_later(
    world: World, store: Store, set_up: SetUp, server: str
) -> None:
    bench = set_up(NOWHERE)
    bench.update()
    assert bench.publisher.settle(bench.state, resting=True) is None
    assert statuses(store)["main-v1"] == PolicyStatus.CANDIDATE
    back = set_up(server)
    back.state = bench.state
    assert back.publisher.settle(back.state) == "main-v1"


def test_a_superseded_version_that_is_made_serving_again_in_the_rows_is_served_again(
    world: World, store: Store, set_up: SetUp, server: str
) -> None:
    bench = set_up(server)
    bench.update()
    bench.publisher.settle(bench.state, resting=True)
    with store.transaction() as session:
        policies.serve(session, policies.by_name(session, world.lineage_id, "base").id)
    bench.publisher.settle(bench.state)
    assert bench.client.info().serving == "base"


def test_the_loop_trains_and_publishes_by_itself(
    world: World, store: Store, tmp_path: Path, database_url: str, redis_url: str, server: str
) -> None:
    world.lessons(num_groups=4)
    world.stop_after(4)
    settings = settings_of(tmp_path, database_url, redis_url, server)
    with training(settings, CONFIG) as thread:
        wait_until(lambda: statuses(store).get("main-v2") == "serving", thread.is_alive)
    assert statuses(store) == {"base": "superseded", "main-v1": "superseded", "main-v2": "serving"}
