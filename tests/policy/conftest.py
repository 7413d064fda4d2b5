"""A tiny random policy, its engine and adapters that visibly change it."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from services.policy.artifacts import ArtifactStore
from services.policy.engines.base import Engine
from services.policy.engines.base_probe import forget_weights, measure_base
from services.policy.engines.embedded import EmbeddedEngine, EngineSettings
from services.policy.engines.vllm import VllmEngine, VllmSettings
from services.policy.engines.vllm_client import VllmClient
from services.policy.model.adapters import add_lora, save_adapter
from services.policy.model.modeling import LoadedPolicy, load_policy
from services.policy.model.tiny import make_tiny_policy
from tests.policy.engines.vllm_server import VllmStandIn, make_app
from tests.serving import serve


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(
        tmp_path_factory.mktemp("model") / "tiny", hidden_size=128
    )  # heads of 32: vLLM has no smaller


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


@dataclass(frozen=True)
class Limits:
    """An engine's limits, small, so that prompts wait and are admitted in parts."""

    max_rows: int = 6
    max_context: int = 256
    max_waiting_rows: int = 4096


StartEngine = Callable[[Limits], Engine]
SERVER_VARIABLE = "PRECEPTOR_TEST_VLLM_URL"


def start_embedded(model_folder: Path, store: ArtifactStore, limits: Limits) -> Engine:
    settings = EngineSettings(
        max_rows=limits.max_rows,
        max_context=limits.max_context,
        max_waiting_rows=limits.max_waiting_rows,
        score_tokens=32,
        prefix_tokens=64,
    )
    return EmbeddedEngine(load_policy(model_folder), store, settings)


def start_vllm(model_folder: Path, store: ArtifactStore, limits: Limits, url: str) -> VllmEngine:
    """An engine that asks the vLLM server at a URL."""
    policy = load_policy(model_folder)
    probe = measure_base(policy)
    forget_weights(policy)
    settings = VllmSettings(
        max_rows=limits.max_rows, max_context=limits.max_context, max_waiting_rows=limits.max_waiting_rows
    )
    return VllmEngine(policy, probe, store, VllmClient(url), settings)


@pytest.fixture(scope="session")
def stand_in_url(model_folder: Path) -> Iterator[str]:
    """A server that speaks vLLM's recorded protocol."""
    with serve(make_app(VllmStandIn(model_folder))) as url:
        yield url


@pytest.fixture(
    params=[
        "embedded",
        pytest.param("vllm", marks=pytest.mark.integration),
        pytest.param("vllm-server", marks=pytest.mark.e2e),
    ]
)
def start_engine(request: pytest.FixtureRequest, model_folder: Path, store: ArtifactStore) -> Iterator[StartEngine]:
    """Starts engines of one kind; they are closed at the test's end."""
    started: list[Engine] = []

    def start(limits: Limits) -> Engine:
        if request.param == "embedded":
            started.append(start_embedded(model_folder, store, limits))
        else:
            url = os.environ.get(SERVER_VARIABLE, "")
            if request.param == "vllm":
                url = request.getfixturevalue("stand_in_url")
            elif not url:
                pytest.skip(f"{SERVER_VARIABLE} names no vLLM server of the tiny policy (docs/vllm.md)")
            started.append(start_vllm(model_folder, store, limits, url))
        return started[-1]

    yield start
    for engine in started:
        engine.close()


@pytest.fixture
def engine(start_engine: StartEngine) -> Engine:
    """A running engine of its own."""
    return start_engine(Limits())


@pytest.fixture
def embedded(model_folder: Path, store: ArtifactStore) -> Iterator[Engine]:
    """A running embedded engine of its own."""
    running = start_embedded(model_folder, store, Limits())
    yield running
    running.close()
