"""The tiny random policy, and a world with it in a database of its own."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from services.policy.model.modeling import LoadedPolicy, load_policy
from services.policy.model.tiny import make_tiny_policy
from services.store.core.transaction import Store
from tests.trainer.world import World


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def policy(model_folder: Path) -> LoadedPolicy:
    """The tiny policy, for reading only: a trainer puts its adapter on one of its own."""
    return load_policy(model_folder)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """The store on a database of the test's own."""
    made = Store(database_url, pool_size=4)
    yield made
    made.close()


@pytest.fixture
def world(store: Store, policy: LoadedPolicy, model_folder: Path) -> World:
    """A lineage with its base serving."""
    return World.begin(store, policy, str(model_folder))
