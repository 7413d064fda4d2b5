"""A new objective is one file and one registration: here is one, registered by the tests alone, that trains."""

from pathlib import Path

import pytest
from pydantic import Field, ValidationError
from torch import Tensor

from services.contracts.updates import TermKind
from services.policy.model.modeling import LoadedPolicy
from tests.trainer.step.test_update import batch_of, fresh, group, train
from trainer.batch.rows import Row
from trainer.config import TrainerConfig
from trainer.objectives.account import Account
from trainer.objectives.base import Objective, OwnSettings, Reading
from trainer.objectives.registry import OBJECTIVES


class BrevitySettings(OwnSettings):
    """Its settings."""

    brevity_limit: int = Field(default=1, ge=0)
    """Tokens an answer may have."""


class Brevity(Objective[BrevitySettings]):
    """Makes the tokens of rollouts less likely from a length on, whatever experts and scores say."""

    name = "brevity"

    def reads(self, row: Row) -> bool:
        return row.num_actions > self.settings.brevity_limit

    def loss(self, reading: Reading, account: Account) -> Tensor:
        places = reading.student.places
        too_late = places.pick(reading.rollouts.action_mask.cumsum(1) > self.settings.brevity_limit)
        by_token = reading.student.action_logprobs * too_late / self.num_tokens
        for row, share in zip(reading.rows, places.spread(by_token.detach()).sum(1).tolist(), strict=True):
            account.record(row, TermKind.SCORE, row.verdicts, weight=1.0, share=share, cost=None, num_tokens=1)
        account.add("num_too_long", float(too_late.sum()))
        return by_token.sum()

    @property
    def figures(self) -> tuple[str, ...]:
        return ("num_too_long",)


class Config(BrevitySettings, TrainerConfig):
    """The trainer's settings with the objective's own."""


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, Brevity.name, Brevity)


def configure(**settings: object) -> Config:
    return Config.model_validate({"lora_r": 4, "learning_rate": 3e-3, "objective": "brevity"} | settings)


def test_it_trains_and_its_account_reaches_ledger_and_metrics(model_folder: Path, policy: LoadedPolicy) -> None:
    config = configure(brevity_limit=4)
    state = fresh(model_folder, config)
    batch = batch_of(state, group(policy), config)
    results = [train(state, batch, config) for _ in range(4)]
    first, last = results[0].metrics, results[-1].metrics
    assert [one.untrained for one in results] == [None] * 4
    assert first["loss"] == first["loss_brevity"]
    assert float(str(last["loss"])) < float(str(first["loss"])), "those tokens are less likely"
    too_long = [row for row in batch.rows if row.num_actions > 4]
    assert first["num_too_long"] == sum(row.num_actions - 4 for row in too_long)
    assert first["num_rows_unused"] == len(batch.rows) - len(too_long)
    terms = {one.lesson_id: [term.kind for term in one.terms] for one in results[0].contributions if one.terms}
    assert terms == {row.lesson_id: [TermKind.SCORE] for row in too_long}


def test_it_joins_a_mix_with_its_weight_and_is_named_in_the_ledger(model_folder: Path, policy: LoadedPolicy) -> None:
    mixed, alone = configure(objective="distil", mix={"brevity": 0.5}), configure()
    found = {}
    for config in (mixed, alone):
        state = fresh(model_folder, config)
        found[config.objective] = train(state, batch_of(state, group(policy), config), config).metrics
    assert mixed.objective_title == "distil + 0.5 brevity"
    assert float(str(found["distil"]["loss_brevity"])) == pytest.approx(0.5 * float(str(found["brevity"]["loss"])))
    assert found["distil"]["loss_distil"] != 0


def test_the_environment_sets_its_settings_and_its_checks_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_TRAINER_OBJECTIVE", "brevity")
    monkeypatch.setenv("PRECEPTOR_TRAINER_BREVITY_LIMIT", "7")
    assert (Config().objective, Config().brevity_limit) == ("brevity", 7)
    with pytest.raises(ValidationError):
        configure(brevity_limit=-1)
