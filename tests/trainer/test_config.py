"""The trainer's settings."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from services.contracts.sources import SOURCE_ORDER, ContextSettings
from services.jobs.runtime import TrainerContexts
from trainer.config import TrainerConfig


def test_settings_load_without_torch_or_a_database() -> None:
    code = "import sys, trainer.config; print(sorted({'torch', 'sqlalchemy', 'celery'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_environment_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_TRAINER_LAM", "0.3")
    monkeypatch.setenv("PRECEPTOR_TRAINER_GROUPS_PER_UPDATE", "32")
    config = TrainerConfig()
    assert (config.lam, config.groups_per_update) == (0.3, 32)


def test_an_unknown_objective_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValidationError, match=r"no objective is called ppo; there are distil, forward_ce, .*, rft"):
        TrainerConfig(objective="ppo")


def test_a_mix_adds_objectives_with_their_weights_and_is_named_in_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_TRAINER_OBJECTIVE", "forward_ce")
    monkeypatch.setenv("PRECEPTOR_TRAINER_MIX", '{"grpo": 0.1, "sft": 2}')
    config = TrainerConfig()
    assert config.objectives == {"forward_ce": 1.0, "grpo": 0.1, "sft": 2.0}
    assert config.objective_title == "forward_ce + 0.1 grpo + 2 sft"
    monkeypatch.delenv("PRECEPTOR_TRAINER_MIX")
    assert TrainerConfig().objective_title == "forward_ce"


@pytest.mark.parametrize("name", ["lam", "learning_rate"])
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_weight_or_rate_that_is_no_number_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValidationError):
        TrainerConfig.model_validate({name: value})


@pytest.mark.parametrize("mix", [{"distil": 1.0}, {"grpo": 0.0}, {"grpo": -1.0}, {"grpo": "inf"}, {"ppo": 1.0}])
def test_a_mix_that_means_nothing_is_refused(mix: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        TrainerConfig.model_validate({"mix": mix})


def test_a_setting_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError):
        TrainerConfig.model_validate({"learning_rat": 1e-4})


def test_teachers_that_draw_are_shown_what_the_trainer_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_TRAINER_SOURCES", '{"math": ["reference", "feedback"], "*": ["precedents"]}')
    monkeypatch.setenv("PRECEPTOR_TRAINER_TEMPLATE", "reprompt")
    monkeypatch.setenv("PRECEPTOR_TRAINER_SEED", "3")
    settings: list[ContextSettings] = [TrainerConfig(), TrainerContexts()]
    for one in settings:
        assert [one.order_of("math"), one.order_of("code")] == [("reference", "feedback"), ("precedents",)]
        shown_by = {source.value: one.template_of(source).value for source in SOURCE_ORDER[-3:]}
        assert shown_by == {"precedents": "turns", "reference": "reprompt", "feedback": "reprompt"}
    monkeypatch.setenv("PRECEPTOR_TRAINER_SOURCES", '{"*": ["distribution"]}')
    for kind in (TrainerConfig, TrainerContexts):
        with pytest.raises(ValidationError, match="which no context shows"):
            kind()
