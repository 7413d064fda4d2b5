"""The trainer, read top to bottom: start, recover, then claim → batch → step → checkpoint → commit → publish, forever.

Postgres is the truth. One commit applies an update; before it the update has no effect, after it all of it counts.
Killed at any point, the next start continues from the last applied update with the same bits. At most one trainer of a
lineage works at a time, by a lock that ends with its connection.

Not covered: losses (`objectives`, `losses`), which answers train (`batch`), how weights reach the server (`publish`).
"""

import math
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from services.contracts.ids import new_id
from services.http import metrics
from services.policy.artifacts import ArtifactDamaged, ArtifactNotFound, ArtifactRefused, ArtifactStore
from services.policy.client import PolicyClient
from services.policy.model.modeling import LoadedPolicy, load_policy, spell_tokens
from services.runtime import space
from services.runtime.collector import open_tracing
from services.runtime.errors import PreceptorError
from services.runtime.settings import Settings
from services.store.core.locks import LineageLock
from services.store.core.transaction import Store, StoreUnavailable
from services.store.ledger.fallbacks import StartingPoint
from services.store.ledger.updates import LeaseLost
from services.store.tables.ledger import PolicyVersionRow
from trainer.batch.build import build_batch
from trainer.batch.rows import Batch
from trainer.config import TrainerConfig
from trainer.loop.ledger import Claim, Ledger, LineageFacts, Outlook, StopRequested, meet_lineage
from trainer.loop.metrics import UpdateMeter
from trainer.loop.publish import Publisher
from trainer.loop.pulse import Pulse
from trainer.loop.spans import trace_update
from trainer.loop.wake import Wake
from trainer.step.ranks import Ranks
from trainer.step.state import TrainerState, begin, begin_from, prune, restore, save
from trainer.step.update import StepResult, Stopped, make_update

POLL_SECONDS = 1.0  # between two looks at the rows, unless a hint comes first
SETTLE_SECONDS = 10.0  # between two looks at the policy server, while no update is due
FULL_SECONDS = 5.0  # between two looks at a full disk
FULL_AT_MOST_SECONDS = 60.0  # before an update that did not fit on the disk is tried again without more room
MAX_REFUSALS = 3  # in a row, then training falls back; one or two may be bad luck with a small probe
POLICY_SECONDS = 120.0  # the longest the policy server may take for one answer

log = structlog.get_logger("trainer")


class WrongModel(PreceptorError):
    """The model folder does not hold the weights the lineage was begun with."""

    title = "Wrong model"
    hint = "Name the folder with --model, or set PRECEPTOR_LINEAGE to a new name to train another model."


@dataclass(frozen=True)
class Order:
    """Rank 0's request to all ranks: an update of this batch after that checkpoint; without a batch, wait for the next
    order; end: leave."""

    batch: Batch | None = None
    parent: StartingPoint | None = None
    end: bool = False


def run(config: TrainerConfig, settings: Settings, stop: threading.Event) -> None:
    """Train until `stop` is set. Raises WrongModel, CheckpointDiffers, or the disk's error; the ledger stays whole."""
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(config.device == "cpu")
    ranks = Ranks.join(config.device)
    store = Store(settings.database_url, pool_size=3)
    owner = new_id()
    try:
        lineage = meet_lineage(store, settings.lineage, stop)
        policy = open_model(config, lineage, ranks)
        checkpoints = ArtifactStore(settings.home / "checkpoints" / lineage.name)
        state = begin(policy, config)
        if ranks.rank > 0:
            follow(state, checkpoints, config, settings, ranks, stop)
            return
        first = save_patiently(state, checkpoints, stop)  # update 1 continues from it; the same on every start
        ledger = Ledger(store, lineage, settings, config, owner, stop)
        ledger.keep_vocabulary(policy.tokenizer_hash, lambda: spell_tokens(policy.tokenizer))
        registry = metrics.make_registry()
        meter = UpdateMeter(registry)
        with (
            Pulse(store, owner, settings.lesson_lease_seconds) as pulse,
            metrics.open_server(registry, settings.metrics_listen, settings.metrics_key) or nullcontext(),
        ):
            meter.watch(pulse.totals)
            Leader(state, first, checkpoints, ledger, pulse, meter, config, settings, ranks, stop).run()
    except StopRequested:
        log.info("stopped")
    finally:
        store.close()
        ranks.leave()


def open_model(config: TrainerConfig, lineage: LineageFacts, ranks: Ranks) -> LoadedPolicy:
    """The base the lineage was begun with. Raises WrongModel if the folder holds another."""
    folder = config.model or Path(lineage.model)
    policy = load_policy(folder, ranks.place(config.device), getattr(torch, config.dtype))
    if policy.base_sha256 != lineage.base_sha256:
        raise WrongModel(
            f"{folder} holds {policy.base_sha256[:12]}…, the lineage began with {lineage.base_sha256[:12]}…"
        )
    return policy


def save_patiently(state: TrainerState, checkpoints: ArtifactStore, stop: threading.Event) -> str:
    """Store the state as soon as there is room for it. Raises StopRequested."""
    while True:
        try:
            return save(state, checkpoints)
        except space.DiskFull as error:
            log.warning("waiting for room", reason=error.detail)
            if stop.wait(FULL_SECONDS):
                raise StopRequested from error


class Leader:
    """Rank 0: it alone talks to the store, the disk and the policy server."""

    def __init__(
        self,
        state: TrainerState,
        first: str,
        checkpoints: ArtifactStore,
        ledger: Ledger,
        pulse: Pulse,
        meter: UpdateMeter,
        config: TrainerConfig,
        settings: Settings,
        ranks: Ranks,
        stop: threading.Event,
    ) -> None:
        self.state, self.first = state, first
        self.held: StartingPoint | None = StartingPoint(0, first)  # of the state in memory; None: it was never applied
        self.checkpoints, self.ledger, self.pulse, self.meter = checkpoints, ledger, pulse, meter
        self.config, self.settings, self.ranks, self.stop = config, settings, ranks, stop
        self.client = PolicyClient(settings.policy_url, settings.internal_key, read_seconds=POLICY_SECONDS)
        self.publisher = Publisher(ledger, self.client, ArtifactStore(settings.home / "artifacts"), settings, config)
        self.tracing = open_tracing(settings.otlp_endpoint, "trainer")
        self.lock = LineageLock(settings.database_url, ledger.lineage.id)
        self.wake = Wake(settings.redis_url)
        self.settled_at = -math.inf
        self.rested = False
        self.waits_since: float | None = None

    def run(self) -> None:
        """The loop."""
        try:
            while not self.stop.is_set():
                try:
                    if (full := space.find_full(self.settings.home)) is not None:
                        raise space.DiskFull(full)
                    self.take_turn()
                except space.DiskFull as error:
                    self.held = None  # the state in memory may be ahead of the ledger
                    self.await_room(f"paused: {error.detail}")
        finally:
            self.ranks.share(Order(end=True))
            self.publisher.finish()
            self.lock.release()
            self.wake.close()
            self.client.close()
            self.tracing.flush()

    def await_room(self, activity: str) -> None:
        """Return once there is more room than now; after a minute in any case, as others may use the room first."""
        home, until = self.settings.home, time.monotonic() + FULL_AT_MOST_SECONDS
        before = sum(map(space.free_bytes, space.places(home).values()))
        self.pulse.say(activity)
        while not self.stop.wait(FULL_SECONDS) and time.monotonic() < until:
            more = sum(map(space.free_bytes, space.places(home).values())) - before
            if space.find_full(home) is None and more >= space.FULL_BYTES // 2:
                return

    def take_turn(self) -> None:
        """One turn of the loop. Raises DiskFull, and then the ledger is unchanged."""
        if not self.own_lineage():
            self.pulse.say("another trainer of this lineage is at work; waiting")
            self.stop.wait(POLL_SECONDS)
            return
        self.catch_up()
        outlook = self.ledger.look(self.state.number)
        if self.fall_back() or (self.settle_policy(outlook) and self.fall_back()):
            return
        claim = self.claim(outlook)
        if claim is not None:
            self.update(claim)
            return
        self.ranks.share(Order())
        with self.pulse.spending("waiting", outlook.idle or "waiting for lessons"):
            self.wake.wait(POLL_SECONDS)

    def own_lineage(self) -> bool:
        """Take or keep the lineage's lock. A new holder first abandons the updates that the last one had started."""
        had = self.lock.held
        try:
            if not self.lock.hold():
                return False
        except StoreUnavailable as error:
            log.warning("the lineage's lock is out of reach", reason=error.detail)
            return False
        if not had and (dead := self.ledger.abandon_dead()):
            log.info("abandoned updates of a dead trainer", num_updates=dead)
        return True

    def catch_up(self) -> None:
        """Continue from the last applied update, even if another trainer made it."""
        point = self.ledger.starting_point() or StartingPoint(0, self.first)
        if point != self.held:
            go_to(self.state, self.checkpoints, point, self.config)
            self.held = point
            log.info("continuing", update=point.number, checkpoint=point.checkpoint_sha256[:12], of=point.fell_back_to)

    def fall_back(self) -> bool:
        """Once the gate has refused too many versions in a row, continue from the one that serves; True if it did.

        Killed before the ledger has the fallback, the next start makes it again; after that, it continues from there.
        """
        fallback = None if self.publisher.is_busy else self.ledger.find_fallback(MAX_REFUSALS)
        if fallback is None:
            return False
        version = fallback.version
        address = self.first if version.update_number == 0 else fallback.checkpoint_sha256
        is_fresh = address is None or not self.has_checkpoint(address)
        try:
            if address is None or is_fresh:
                self.held = None
                address = self.begin_from_adapter(version)
        except (ArtifactNotFound, ArtifactDamaged, ArtifactRefused) as error:
            log.error("training cannot fall back to the serving version", version=version.name, reason=error.detail)
            return False
        self.ledger.fall_back(fallback, address, fresh_optimizer=is_fresh)
        log.warning(
            "training fell back to the serving version",
            version=version.name,
            refused=[one.name for one in fallback.refused],
            optimizer="fresh" if is_fresh else "as it was",
        )
        return True

    def has_checkpoint(self, address: str) -> bool:
        """Whether a checkpoint is there and whole."""
        try:
            self.checkpoints.path(address)
        except (ArtifactNotFound, ArtifactDamaged, ArtifactRefused) as error:
            log.warning("checkpoint cannot be used", checkpoint=address[:12], reason=error.detail)
            return False
        return True

    def begin_from_adapter(self, version: PolicyVersionRow) -> str:
        """A checkpoint made of a version's weights alone, where that of its update is gone."""
        assert version.artifact_sha256 is not None  # a constraint of the table; the base has the first checkpoint
        begin_from(self.state, self.publisher.artifacts.adapter(version.artifact_sha256), self.config)
        return save(self.state, self.checkpoints)

    def settle_policy(self, outlook: Outlook) -> bool:
        """Publish a version if one is due; while idle, check the server now and then. True if it did either."""
        resting = outlook.idle is not None
        if resting == self.rested and time.monotonic() - self.settled_at < SETTLE_SECONDS:
            return False
        with self.pulse.spending("publishing", "publishing"):
            self.publisher.settle(self.state, resting=resting, beside=not resting)
        self.settled_at, self.rested = time.monotonic(), resting
        return True

    def claim(self, outlook: Outlook) -> Claim | None:
        """A full batch; once it has waited long enough, any lessons that are ready."""
        if outlook.idle is not None or not (outlook.num_rollouts or outlook.num_late):
            self.waits_since = None
            return None
        if self.waits_since is None:
            self.waits_since = time.monotonic()
        waited = time.monotonic() - self.waits_since
        if outlook.num_rollouts < self.ledger.rollouts_per_update and waited < self.config.patience_seconds:
            return None
        self.waits_since = None
        assert self.held is not None  # the turn began by catching up
        return self.ledger.claim(self.held)

    def update(self, claim: Claim) -> None:
        """One update, from its batch to the commit that applies it."""
        began, began_at = time.monotonic(), time.time_ns()
        log.info("update started", **_ids(claim), num_lessons=len(claim.lessons))
        try:
            with self.pulse.spending("model", f"update {claim.number}"):
                vocabulary, tokenizer = self.state.vocabulary, self.state.tokenizer
                batch = build_batch(
                    claim.lessons,
                    claim.showable,
                    tokenizer,
                    vocabulary,
                    self.config,
                    self.settings,
                    claim.newest_version,
                )
                self.ranks.share(Order(batch, self.held))
                result = make_update(self.state, batch, self.config, self.settings, self.ranks, self.stop.is_set)
        except Stopped:
            log.info("update given up", **_ids(claim), reason="the trainer was stopped")
            self.give_up(claim, "the trainer was stopped")
            return
        if result.untrained is not None:
            self.set_aside(claim, result, result.untrained)
            return
        try:
            address = save(self.state, self.checkpoints)
        except space.DiskFull as error:
            log.warning("update given up", **_ids(claim), reason=error.detail)
            self.give_up(claim, error.detail)
            raise
        measured = dict(result.metrics) | {"seconds": round(time.monotonic() - began, 3)}
        try:
            self.ledger.apply(claim, address, measured, result.contributions)
        except LeaseLost as error:
            log.warning("update abandoned", **_ids(claim), reason=error.detail)
            self.give_up(claim, error.detail)
            self.held = None  # the state in memory was never applied: the next turn loads the last that was
            return
        except StopRequested:
            self.give_up(claim, "the trainer was stopped")
            raise
        self.held = StartingPoint(claim.number, address)
        self.pulse.count("num_updates")
        self.pulse.count("num_rows", len(claim.lessons))
        self.meter.applied(claim.number, measured)
        trace_update(self.tracing, claim, began_at, time.time_ns())
        for lesson in claim.lessons:
            log.info(
                "lesson used",
                rollout_id=str(lesson.rollout_id),
                lesson_id=str(lesson.lesson_id),
                group_id=str(lesson.group_id),
                **_ids(claim),
            )
        log.info("applied", **_ids(claim), **{name: _short(measured[name]) for name in SAID})
        self.settled_at = -math.inf  # a version may be due
        in_use = self.ledger.checkpoints_in_use(self.config.keep_checkpoints)
        prune(self.checkpoints, [self.first, address, *in_use])

    def give_up(self, claim: Claim, reason: str) -> None:
        """Abandon an update and release its lessons."""
        self.ledger.abandon(claim, reason)
        self.meter.gave_up("abandoned")

    def set_aside(self, claim: Claim, result: StepResult, reason: str) -> None:
        """Abandon an update that changed no weight, and set its lessons aside: they would teach no more next time."""
        try:
            self.ledger.set_aside(claim, reason, result.metrics, result.contributions)
        except LeaseLost as error:
            log.warning("update abandoned", **_ids(claim), reason=error.detail)
            self.give_up(claim, error.detail)
            return
        self.meter.gave_up("set_aside")
        log.warning("update abandoned, its lessons set aside", **_ids(claim), reason=reason)


def go_to(state: TrainerState, checkpoints: ArtifactStore, point: StartingPoint, config: TrainerConfig) -> None:
    """The state as of that point: numbers go on after a fallback, though its checkpoint is of an earlier update."""
    restore(state, checkpoints, point.checkpoint_sha256, config)
    state.number = point.number


SAID = ("loss", "local", "future", "imitation", "kl", "gap", "grad_norm", "pass_rate", "num_rows", "seconds")


def _ids(claim: Claim) -> dict[str, object]:
    """An update as it is logged."""
    return {"update": claim.number, "update_id": str(claim.update_id)}


def _short(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value


def follow(
    state: TrainerState,
    checkpoints: ArtifactStore,
    config: TrainerConfig,
    settings: Settings,
    ranks: Ranks,
    stop: threading.Event,
) -> None:
    """The other ranks: compute their share of every update that rank 0 orders, from the checkpoint it names."""
    while not (order := ranks.share(Order())).end:
        if order.batch is None or order.parent is None:
            continue
        go_to(state, checkpoints, order.parent, config)
        try:
            make_update(state, order.batch, config, settings, ranks, stop.is_set)
        except Stopped:
            log.info("update given up", rank=ranks.rank)
