"""Reads and writes the ledger: claims whole groups, opens an update, and applies it in one commit.

Every call waits while the database is away and then continues; only a request to stop ends the wait. Results are plain
data that can be sent to other processes.
"""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.contracts.base import JsonObject
from services.contracts.updates import UpdateStatus
from services.runtime.settings import Settings
from services.store.core.transaction import Store, StoreUnavailable
from services.store.ledger import fallbacks, lesson_facts, lessons, policies, updates
from services.store.ledger.fallbacks import StartingPoint
from services.store.ledger.lesson_facts import LessonFacts
from services.store.ledger.updates import Contribution
from services.store.loop import lineages, standing, vocabularies
from services.store.loop import switches as loop
from services.store.tables.ledger import LessonRow, PolicyVersionRow, UpdateLessonRow, UpdateRow
from services.store.teaching.material import find_fixed
from trainer.batch.build import hash_batch
from trainer.batch.contexts import Showable
from trainer.config import TrainerConfig

RETRY_SECONDS = 1.0
MAX_LATE_LESSONS = 8  # an update takes along, beside its groups: about half of its rows at the default group size
SHARED_SETTINGS = (
    "teacher_temperature",
    "precedents",
    "roll_in",
    "roll_in_group_size",
    "max_new_tokens",
    "max_staleness",
)  # that an update depends on

T = TypeVar("T")
log = structlog.get_logger("trainer")


class StopRequested(Exception):
    """The process was asked to end while it waited."""


@dataclass(frozen=True)
class LineageFacts:
    """The model being trained."""

    id: UUID
    name: str
    model: str
    base_sha256: str


@dataclass(frozen=True)
class Fallback:
    """The version that serves, those the gate refused since, and the checkpoint of the update that made it, if any."""

    version: PolicyVersionRow
    refused: Sequence[PolicyVersionRow]
    checkpoint_sha256: str | None


@dataclass(frozen=True)
class Outlook:
    """Work that is ready: rollouts of whole groups, and late lessons. idle: why training must pause; None when it may
    continue."""

    num_rollouts: int
    num_late: int
    idle: str | None


@dataclass(frozen=True)
class Claim:
    """A started update and everything it is made of. newest_version: its place (`policies.place`)."""

    update_id: UUID
    number: int
    lessons: tuple[LessonFacts, ...]
    showable: Showable
    newest_version: int


def keep_trying(store: Store, stop: threading.Event, do: Callable[[Session], T]) -> T:
    """The outcome of one transaction, tried until the database is there. Raises StopRequested."""
    said = False
    while True:
        try:
            with store.transaction() as session:
                return do(session)
        except StoreUnavailable as error:
            if not said:
                log.warning("the database is away; waiting", reason=error.detail)
                said = True
            if stop.wait(RETRY_SECONDS):
                raise StopRequested from error


def meet_lineage(store: Store, name: str, stop: threading.Event) -> LineageFacts:
    """The lineage of that name, waited for until it is begun. Raises StopRequested."""
    while True:
        try:
            row = keep_trying(store, stop, lambda session: lineages.get(session, name))
        except lineages.LineageNotFound:
            if stop.wait(RETRY_SECONDS):
                raise StopRequested from None
            continue
        return LineageFacts(row.id, row.name, row.model, row.base_sha256)


class Ledger:
    """The store as one trainer of one lineage sees it."""

    def __init__(
        self,
        store: Store,
        lineage: LineageFacts,
        settings: Settings,
        config: TrainerConfig,
        owner: UUID,
        stop: threading.Event,
    ) -> None:
        self.lineage = lineage
        self._store = store
        self._settings = settings
        self._config = config
        self._owner = owner
        self._stop = stop
        self._unreleased: dict[UUID, str] = {}  # updates given up while the database could not take it, and why

    def transact(self, do: Callable[[Session], T]) -> T:
        """The outcome of one transaction, tried until the database is there. Raises StopRequested."""
        return keep_trying(self._store, self._stop, do)

    def starting_point(self) -> StartingPoint | None:
        """The checkpoint that training continues from; None before the first update."""
        return self.transact(lambda session: fallbacks.starting_point(session, self.lineage.id))

    def checkpoints_in_use(self, number: int) -> list[str]:
        """The sha256 of the newest checkpoints that count, and of those training may have to fall back to."""

        def read(session: Session) -> list[str]:
            rows = updates.newest(session, self.lineage.id, before=None, limit=4 * number)
            applied = [row.checkpoint_sha256 for row in rows if row.status == UpdateStatus.APPLIED.value]
            return [address for address in applied[:number] if address] + policies.checkpoints(session, self.lineage.id)

        return self.transact(read)

    def find_fallback(self, max_refusals: int) -> Fallback | None:
        """The version to fall back to once the gate has refused so many in a row; None before that."""

        def read(session: Session) -> Fallback | None:
            refused = fallbacks.refusals(session, self.lineage.id).versions
            serving = policies.serving(session, self.lineage.id)
            if len(refused) < max_refusals or serving is None:
                return None
            made_by = updates.applied(session, self.lineage.id, serving.update_number)
            return Fallback(serving, refused, None if made_by is None else made_by.checkpoint_sha256)

        return self.transact(read)

    def fall_back(self, fallback: Fallback, checkpoint_sha256: str, *, fresh_optimizer: bool) -> None:
        """The one commit after which the next update starts from there."""
        self.transact(
            lambda session: fallbacks.record(
                session,
                fallback.version,
                checkpoint_sha256=checkpoint_sha256,
                fresh_optimizer=fresh_optimizer,
                refused=fallback.refused,
            )
        )

    def look(self, number: int) -> Outlook:
        """The work that is ready after update `number`. Sets stale lessons aside and releases updates that `abandon`
        could not."""

        def read(session: Session) -> Outlook:
            for update_id, reason in self._unreleased.items():
                updates.abandon(session, update_id, reason)
            if aside := lessons.set_aside_stale(session, self.lineage.id, self._settings.max_staleness):
                log.info("stale lessons set aside", num_lessons=aside, max_staleness=self._settings.max_staleness)
            switches = loop.get(session, self.lineage.id)
            ended = switches.max_updates is not None and number >= switches.max_updates
            return Outlook(
                num_rollouts=lessons.count_ready(session, self.lineage.id),
                num_late=lessons.count_ready_late(session, self.lineage.id),
                idle="paused" if ended or not switches.training else None,
            )

        outlook = self.transact(read)
        self._unreleased.clear()
        return outlook

    @property
    def rollouts_per_update(self) -> int:
        """How many rollouts fill an update."""
        return self._config.groups_per_update * self._settings.group_size

    def claim(self, parent: StartingPoint) -> Claim | None:
        """Open an update over the oldest whole groups and late lessons; None if no lesson is ready."""

        def take(session: Session) -> Claim | None:
            rows = lessons.claim(
                session,
                self.lineage.id,
                self._owner,
                num_rollouts=self.rollouts_per_update,
                max_late=MAX_LATE_LESSONS,
                lease_seconds=self._settings.lesson_lease_seconds,
            )
            if not rows:
                return None
            facts = lesson_facts.load(session, rows)
            showable = self._find_showable(session, facts)
            own: JsonObject = json.loads(self._config.model_dump_json())  # JSON has no infinity: there it is a word
            settings = own | {name: getattr(self._settings, name) for name in SHARED_SETTINGS}
            update = updates.start(
                session,
                self.lineage.id,
                self._owner,
                objective=self._config.objective_title,
                settings=settings,
                parent_sha256=parent.checkpoint_sha256,
                fell_back_to=parent.fell_back_to,
                batch_sha256=hash_batch(facts, showable),
                lesson_ids=[row.id for row in rows],
            )
            newest = policies.num_served(session, self.lineage.id)
            return Claim(update.id, update.number, tuple(facts), showable, newest)

        return self.transact(take)

    def _find_showable(self, session: Session, facts: Sequence[LessonFacts]) -> Showable:
        """What may be shown about the tasks of these lessons that is older than their groups. Late lessons are about
        their own answers alone."""
        before: dict[UUID, UUID] = {}
        for fact in facts:
            if not fact.late:
                before[fact.task_id] = min(fact.group_id, before.get(fact.task_id, fact.group_id))
        num = self._settings.precedents
        material = find_fixed(session, self.lineage.id, sorted(before), before=before, num_precedents=num)
        return Showable(material, standing.read(session, self.lineage.id))

    def apply(
        self, claim: Claim, checkpoint_sha256: str, metrics: JsonObject, contributions: Sequence[Contribution]
    ) -> None:
        """The one commit that applies the update. Errors: LeaseLost (409), and then the ledger is unchanged."""
        self.transact(
            lambda session: updates.apply(
                session,
                claim.update_id,
                self._owner,
                checkpoint_sha256=checkpoint_sha256,
                metrics=metrics,
                contributions=contributions,
            )
        )

    def set_aside(self, claim: Claim, reason: str, metrics: JsonObject, contributions: Sequence[Contribution]) -> None:
        """Abandon an update that changed no weight, and set its lessons aside. Errors: LeaseLost (409), as `apply`."""
        self.transact(
            lambda session: updates.set_aside(
                session, claim.update_id, self._owner, reason=reason, metrics=metrics, contributions=contributions
            )
        )

    def abandon(self, claim: Claim, reason: str) -> None:
        """Give the update up and release its lessons: now, or with the next `look` if the database cannot take it."""
        try:
            with self._store.transaction() as session:
                updates.abandon(session, claim.update_id, reason)
        except StoreUnavailable as error:
            self._unreleased[claim.update_id] = reason
            log.warning("update not released", update=claim.number, update_id=str(claim.update_id), reason=error.detail)

    def abandon_dead(self) -> int:
        """Abandon updates that dead trainers had started. Only the holder of the lineage's lock may call this."""
        return self.transact(
            lambda session: updates.abandon_started(session, self.lineage.id, "its trainer died before it was applied")
        )

    def keep_vocabulary(self, tokenizer_hash: str, spell: Callable[[], list[str]]) -> None:
        """Store the text of every token unless it is stored already: pages show it to people."""
        if not self.transact(lambda session: vocabularies.is_known(session, tokenizer_hash)):
            texts = spell()
            self.transact(lambda session: vocabularies.add(session, tokenizer_hash, texts))

    def used_last(self) -> list[LessonFacts]:
        """The lessons on the policy's own rollouts of the last applied update that used any, late ones last."""

        def read(session: Session) -> list[LessonFacts]:
            used = (
                select(LessonRow, UpdateRow.number)
                .join(UpdateLessonRow, UpdateLessonRow.lesson_id == LessonRow.id)
                .join(UpdateRow, UpdateRow.id == UpdateLessonRow.update_id)
                .where(
                    UpdateRow.lineage_id == self.lineage.id,
                    UpdateLessonRow.status == UpdateStatus.APPLIED.value,
                )
            )
            newest = session.scalar(used.with_only_columns(func.max(UpdateRow.number)))
            rows = session.scalars(
                used.where(UpdateRow.number == newest).order_by(LessonRow.late, LessonRow.group_id, LessonRow.id)
            )
            return [lesson for lesson in lesson_facts.load(session, rows.all()) if not lesson.shown]

        return self.transact(read)
