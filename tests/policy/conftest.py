"""A tiny random policy, its engine and adapters that visibly change it."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from services.policy.artifacts import ArtifactStore
from services.policy.engine_transformers import EmbeddedEngine, EngineSettings
from services.policy.modeling import LoadedPolicy, add_lora, load_policy, make_tiny_policy, save_adapter


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def policy(model_folder: Path) -> LoadedPolicy:
    """The tiny policy for reading only."""
    return load_policy(model_folder)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(tmp_path_factory.mktemp("artifacts"))


def make_adapter(model_folder: Path, folder: Path, seed: int) -> LoadedPolicy:
    """Write an adapter that changes the tiny model's output, and return the model with it unmerged, as peft runs it."""
    loaded = load_policy(model_folder)
    model = add_lora(loaded.model, r=4, alpha=8, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    save_adapter(model, folder, loaded.base_sha256)
    return loaded


@pytest.fixture(scope="session")
def adapter(model_folder: Path, store: ArtifactStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a stored adapter."""
    folder = tmp_path_factory.mktemp("adapter") / "a"
    make_adapter(model_folder, folder, seed=1)
    return store.store(folder)


@pytest.fixture(scope="session")
def other_adapter(model_folder: Path, store: ArtifactStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of another stored adapter."""
    folder = tmp_path_factory.mktemp("adapter") / "b"
    make_adapter(model_folder, folder, seed=2)
    return store.store(folder)


@pytest.fixture
def engine(model_folder: Path, store: ArtifactStore) -> Iterator[EmbeddedEngine]:
    """A running engine of its own with few rows, so that prompts wait and are admitted in parts."""
    settings = EngineSettings(max_rows=6, max_context=256, score_tokens=32, prefix_tokens=64)
    running = EmbeddedEngine(load_policy(model_folder), store, settings)
    yield running
    running.close()
