"""A trainer in a thread of the test's own process, and its parts without the loop."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.contracts.ids import new_id
from services.policy.artifacts import ArtifactStore
from services.policy.client import PolicyClient
from services.policy.model.modeling import load_policy
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.ledger.fallbacks import StartingPoint
from tests.trainer.world import World
from trainer.batch.build import build_batch
from trainer.config import TrainerConfig
from trainer.loop.ledger import Ledger, meet_lineage
from trainer.loop.publish import Publisher
from trainer.loop.train import run
from trainer.step.ranks import Ranks
from trainer.step.state import TrainerState, begin, save
from trainer.step.update import make_update

NOWHERE = "http://127.0.0.1:9"  # nobody listens


def settings_of(home: Path, database_url: str, redis_url: str = NOWHERE, policy_url: str = NOWHERE) -> Settings:
    return Settings(
        home=home, database_url=database_url, redis_url=redis_url, policy_url=policy_url, max_new_tokens=12, stop=[]
    )


@contextmanager
def training(settings: Settings, config: TrainerConfig) -> Iterator[threading.Thread]:
    """A trainer at work until the block ends. Fails if it raised."""
    stop, raised = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            run(config, settings, stop)
        except BaseException as error:  # noqa: BLE001 - handed to the test below
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join()
    assert not thread.is_alive()
    if raised:
        raise raised[0]


@dataclass
class Bench:
    """The trainer's parts on one lineage, to be moved by hand."""

    state: TrainerState
    ledger: Ledger
    publisher: Publisher
    client: PolicyClient
    checkpoints: ArtifactStore
    settings: Settings
    config: TrainerConfig
    held: str
    store: Store

    @classmethod
    def set_up(cls, world: World, settings: Settings, config: TrainerConfig) -> "Bench":
        store = Store(settings.database_url, pool_size=2)
        stop = threading.Event()
        lineage = meet_lineage(store, settings.lineage, stop)
        ledger = Ledger(store, lineage, settings, config, new_id(), stop)
        state = begin(load_policy(Path(world.folder)), config)
        client = PolicyClient(settings.policy_url)
        artifacts = ArtifactStore(settings.home / "artifacts")
        checkpoints = ArtifactStore(settings.home / "checkpoints")
        publisher = Publisher(ledger, client, artifacts, settings, config)
        return cls(state, ledger, publisher, client, checkpoints, settings, config, save(state, checkpoints), store)

    def close(self) -> None:
        self.client.close()
        self.store.close()

    def update(self) -> None:
        """One applied update over what is ready."""
        claim = self.ledger.claim(StartingPoint(self.state.number, self.held))
        assert claim is not None
        state = self.state
        batch = build_batch(
            claim.lessons, claim.showable, state.tokenizer, state.vocabulary, self.config, self.settings, 0
        )
        result = make_update(state, batch, self.config, self.settings, Ranks(0, 1), lambda: False)
        self.held = save(state, self.checkpoints)
        self.ledger.apply(claim, self.held, result.metrics, result.contributions)
