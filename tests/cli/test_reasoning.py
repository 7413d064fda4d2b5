"""`preceptor tasks import reasoning-gym:NAME`, down to a verdict."""

import pytest

from services.cli.commands import reasoning
from services.contracts.tasks import Split, TaskCreate
from services.experts.own.reasoning import FamilyRefused
from tests.cli.conftest import CommandLine


def of_split(made: list[TaskCreate], split: Split) -> list[TaskCreate]:
    return [task for task in made if task.split is split]


def test_splits_never_share_a_question_nor_a_family() -> None:
    made = reasoning.make_tasks(reasoning.parse("reasoning-gym:chain_sum?size=30&heldout=10&validation=5&max_terms=3"))
    questions = [task.messages[-1].content for task in made]
    assert len(set(questions)) == len(questions) == 45
    families = {split: {task.family for task in of_split(made, split)} for split in Split}
    assert families == {
        Split.TRAIN: {"chain_sum"},
        Split.VALIDATION: {"chain_sum/validation"},
        Split.HELDOUT: {"chain_sum/heldout"},
    }


def test_only_train_tasks_carry_a_right_answer() -> None:
    made = reasoning.make_tasks(reasoning.parse("reasoning-gym:leg_counting?size=4&heldout=4"))
    assert all("reference" in task.metadata for task in of_split(made, Split.TRAIN))
    assert not any("reference" in task.metadata for task in of_split(made, Split.HELDOUT))


def test_another_seed_makes_other_questions_and_the_same_seed_the_same() -> None:
    def make(seed: int) -> list[str]:
        made = reasoning.make_tasks(reasoning.parse(f"reasoning-gym:chain_sum?size=5&heldout=0&seed={seed}"))
        return [task.messages[-1].content for task in made]

    assert make(1) == make(1)
    assert make(1) != make(2)


def test_a_family_with_few_questions_gives_those_it_has() -> None:
    source = "reasoning-gym:gcd?size=30&heldout=0&min_numbers=2&max_numbers=2&min_value=2&max_value=4"
    assert 1 <= len(reasoning.make_tasks(reasoning.parse(source))) <= 9


@pytest.mark.parametrize(
    "source",
    [
        "reasoning-gym:no_such_family",
        "reasoning-gym:composite",
        "reasoning-gym:chain_sum?size=-1",
        "reasoning-gym:chain_sum?size=many",
        "reasoning-gym:chain_sum?operators=eval",
        "reasoning-gym:chain_sum?no_such_setting=1",
        "reasoning-gym:chain_sum?min_terms=9&max_terms=2",
    ],
)
def test_what_cannot_be_made_is_refused_with_the_reason(source: str) -> None:
    with pytest.raises(FamilyRefused):
        reasoning.make_tasks(reasoning.parse(source))


@pytest.mark.integration
def test_a_family_is_imported_through_the_api_once(cli: CommandLine) -> None:
    source = "reasoning-gym:chain_sum?size=6&heldout=2"
    assert cli.json("tasks", "import", source) == {"num_created": 8, "num_existing": 0}
    assert cli.json("tasks", "import", source) == {"num_created": 0, "num_existing": 8}
    rows = cli.rows("tasks", "list")
    assert {(row["domain"], row["split"]) for row in rows} == {
        ("reasoning-gym/chain_sum", "train"),
        ("reasoning-gym/chain_sum", "heldout"),
    }


@pytest.mark.integration
def test_the_families_are_listed(cli: CommandLine) -> None:
    listed = cli.words("tasks", "import", "reasoning-gym:").split()
    assert {"chain_sum", "countdown", "sudoku"} <= set(listed)
    assert "simple_integration" not in listed
