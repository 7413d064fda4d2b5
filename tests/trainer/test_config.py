"""The trainer's settings."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from trainer.config import TrainerConfig


def test_settings_load_without_torch_or_a_database() -> None:
    code = "import sys, trainer.config; print(sorted({'torch', 'sqlalchemy', 'celery'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_environment_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_TRAINER_LAM", "1")
    monkeypatch.setenv("PRECEPTOR_TRAINER_EXPERT_WEIGHTS", '{"teacher": 2}')
    config = TrainerConfig()
    assert config.lam == 1
    assert config.weight_of("teacher", registered=1.0) == 2


def test_an_expert_that_is_not_active_has_no_weight_whatever_is_set() -> None:
    config = TrainerConfig(expert_weights={"trial": 5.0})
    assert config.weight_of("trial", registered=0.0) == 0
    assert config.weight_of("judge", registered=0.7) == 0.7


def test_a_discount_is_refused_where_every_token_pays_for_the_whole_rollout() -> None:
    with pytest.raises(ValidationError, match="gamma must be 1"):
        TrainerConfig(reach="whole_rollout", gamma=0.9)


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
