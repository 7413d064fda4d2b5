"""Publishes policy versions: store the artifact, add a candidate, pass the gate, have the server serve it, record it.

Crash-safe by its order. Rows and server may disagree for a moment at any point; `Publisher.settle` makes them agree
again. A candidate left over from a crash goes through the gate again, or is rejected if training has continued since.
The old version serves until the new one does. While the server is away, training continues and only publishing waits.

The trainer's own measurements come first. Then the server proves the version and samples from it in one request,
between two steps of its other work. While training continues, a thread that touches no weights waits for that; at most
one version is in this state.
"""

import shutil
import threading
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
from peft import PeftModel
from sqlalchemy.orm import Session
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from services.contracts.policies import GateCheck, GateReport, PolicyStatus
from services.policy.artifacts import ArtifactNotFound, ArtifactStore
from services.policy.client import PolicyClient, PolicyRefused, PolicyUnavailable
from services.policy.contract import (
    BASE_VERSION,
    ProbeItem,
    ProveRequest,
    SamplePrompt,
    SampleRequest,
    Version,
    VersionStatus,
)
from services.policy.model.adapters import save_adapter
from services.policy.model.modeling import project, response_hidden
from services.runtime import space
from services.runtime.errors import PreceptorError
from services.runtime.settings import Settings
from services.store.ledger import fallbacks, policies
from services.store.ledger.lesson_facts import LessonFacts
from services.store.loop import groups
from services.store.tables.ledger import PolicyVersionRow
from trainer.config import TrainerConfig
from trainer.loop import gate
from trainer.loop.ledger import Ledger, StopRequested
from trainer.step.state import TrainerState, read_adapter
from trainer.step.teacher import trainable, with_weights

PROBE_ROLLOUTS = 4  # of the last update, from different groups: the server's draws wait while it reads them
PROBE_TOKENS = 64  # of an answer; enough to see any layer that differs
SAMPLES_PER_PROBE = 1
MAX_DRAWN_TOKENS = 256
FINISH_SECONDS = 30.0  # for a version that is being proved, when the trainer has to stop
KEEP_LOADED = 4  # versions the server holds: enough to finish draws from older ones

log = structlog.get_logger("trainer")


@dataclass(frozen=True, eq=False)
class Measured:
    """The trainer's measurements of a candidate that has passed so far. own: its logprobs on the probe, [T, V] each."""

    checks: tuple[GateCheck, ...]
    probe: tuple[LessonFacts, ...]
    own: tuple[Tensor, ...]


class Publisher:
    """Brings the server in line with the rows, and the rows with the weights. Talks to one policy process."""

    def __init__(
        self,
        ledger: Ledger,
        client: PolicyClient,
        artifacts: ArtifactStore,
        settings: Settings,
        config: TrainerConfig,
    ) -> None:
        self._ledger = ledger
        self._client = client
        self.artifacts = artifacts
        self._settings = settings
        self._config = config
        self._beside: threading.Thread | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the server is proving a version while training continues."""
        return self._beside is not None and self._beside.is_alive()

    def finish(self) -> None:
        """Wait a while for the version that the server is proving."""
        if self._beside is not None:
            self._beside.join(FINISH_SECONDS)

    def settle(self, state: TrainerState, *, resting: bool = False, beside: bool = False) -> str | None:
        """Gate leftover candidates, publish a version if one is due, and make the server agree with the rows.

        resting: no update will follow for now, so every unpublished update is due.
        beside: return while the server is still proving the version; the next one waits until it is done.
        Returns the name of a version that began to serve.
        """
        if self._beside is not None:
            if beside and self._beside.is_alive():
                return None
            self._beside.join()
            self._beside = None
        try:
            with state.as_published():
                served = self._gate_candidates(state, beside)
                if self._is_due(state, resting):
                    self._add_candidate(state)
                    served = self._gate_candidates(state, beside)
            if not self.is_busy:
                self._restore(state)
        except PolicyUnavailable as error:
            log.warning("the policy server is away", reason=error.detail)
            return None
        except (
            PolicyRefused,
            ArtifactNotFound,
        ) as error:  # of the version that should serve; a candidate is rejected instead
            log.error("the policy server cannot serve the version it should", reason=error.detail)
            return None
        return served

    def _is_due(self, state: TrainerState, resting: bool) -> bool:
        def read(session: Session) -> tuple[PolicyVersionRow, int]:
            lineage_id = self._ledger.lineage.id
            back = fallbacks.newest(session, lineage_id)  # the weights it fell back to are published
            return policies.latest(session, lineage_id), 0 if back is None else back.after_update

        newest, left_behind = self._ledger.transact(read)
        if newest.update_number == state.number > left_behind and self._would_pass(newest):
            return True
        unpublished = state.number - max(newest.update_number, left_behind)
        return unpublished >= (1 if resting else self._config.publish_every)

    def _would_pass(self, row: PolicyVersionRow) -> bool:
        """Whether the gate refused a version by bounds that have been set otherwise since, so that it would pass."""
        if row.status != PolicyStatus.REJECTED.value or row.gate is None:
            return False
        bounds = {
            gate.PROBE: self._config.gate_tolerance,
            gate.KL_BASE: self._config.gate_max_kl_base,
            gate.KL_PREVIOUS: self._config.gate_max_kl_previous,
            gate.LENGTH: self._config.gate_length_ratio,
        }
        failed = [check for check in GateReport.model_validate(row.gate).checks if not check.passed]
        return bool(failed) and all(0 <= check.value <= bounds.get(check.name, -1.0) for check in failed)

    def _add_candidate(self, state: TrainerState) -> None:
        scratch = self.artifacts.root / f".publishing-{state.number}"
        address = _store_adapter(state, self.artifacts, scratch)
        row = self._ledger.transact(
            lambda session: policies.add_candidate(
                session, self._ledger.lineage.id, artifact_sha256=address, update_number=state.number
            )
        )
        log.info("candidate", version=row.name, update=state.number)

    def _gate_candidates(self, state: TrainerState, beside: bool) -> str | None:
        served = None
        for row in self._ledger.transact(lambda session: policies.candidates(session, self._ledger.lineage.id)):
            if row.update_number != state.number:
                self._reject(row, None, f"overtaken: the weights are at update {state.number} by now")
            elif not self.is_busy and (measured := self._measure(state, row)) is not None:
                if beside:
                    self._beside = threading.Thread(
                        target=self._pass_beside, args=(row, measured), name="publish", daemon=True
                    )
                    self._beside.start()
                elif self._pass_gate(row, measured):
                    served = row.name
        return served

    def _measure(self, state: TrainerState, row: PolicyVersionRow) -> Measured | None:
        """Measure a candidate without the server; None if that is enough to reject it, so that the server never loads
        weights that have diverged."""
        probe = choose_probe(self._ledger.used_last(), PROBE_ROLLOUTS)
        checks = [gate.check_finite(count_bad(state.model))]
        own: list[Tensor] = []
        if GateReport(checks=checks).passed:
            own = probe_logprobs(state.model, probe)
            checks += self._compare(state, row, probe, own)
        if (report := GateReport(checks=checks)).passed:
            return Measured(tuple(checks), tuple(probe), tuple(own))
        self._refuse(row, report)
        return None

    def _pass_beside(self, row: PolicyVersionRow, measured: Measured) -> None:
        try:
            self._pass_gate(row, measured)
        except PreceptorError as error:  # the server is away, or another trainer took over: `settle` comes back to it
            log.warning("version not published", version=row.name, reason=error.detail)
        except StopRequested:
            log.info("version left to the next start", version=row.name)

    def _pass_gate(self, row: PolicyVersionRow, measured: Measured) -> bool:
        """Serve a candidate or reject it. Raises PolicyUnavailable with the row as it was."""
        if row.artifact_sha256 is None:
            raise ValueError(f"{row.name} has no weights")  # a constraint of the table
        checks = list(measured.checks)
        try:
            self._client.load_version(row.name, row.artifact_sha256)
            checks += self._prove(row.name, measured.probe, measured.own, draw=True)
            report = GateReport(checks=checks)
            if report.passed:
                self._client.serve_version(row.name)
        except PolicyRefused as error:
            self._reject(row, GateReport(checks=checks), f"the policy server refused it: {error.detail}")
            return False
        if not report.passed:
            self._refuse(row, report)
            return False
        self._ledger.transact(lambda session: policies.serve(session, row.id, report))
        log.info("serving", version=row.name, **{check.name: round(check.value, 5) for check in checks})
        return True

    def _refuse(self, row: PolicyVersionRow, report: GateReport) -> None:
        failed = ", ".join(check.name for check in report.checks if not check.passed)
        self._reject(row, report, f"the gate refused it: {failed}")

    def _reject(self, row: PolicyVersionRow, report: GateReport | None, reason: str) -> None:
        self._ledger.transact(lambda session: policies.reject(session, row.id, report, reason))
        log.warning("version rejected", version=row.name, reason=reason)
        self._delete(row.name)

    # --- measuring ---

    def _prove(
        self, name: str, probe: Sequence[LessonFacts], own: Sequence[Tensor], *, draw: bool = False
    ) -> list[GateCheck]:
        """Check that the server computes our logprobs; with `draw`, also the length of its answers."""
        config = self._config
        request = ProveRequest(
            items=probe_items(probe, own),
            tolerance=config.gate_tolerance,
            draw=self._ask_for_answers(probe) if draw else None,
        )
        result = self._client.prove_version(name, request).probe
        if result is None:
            raise PolicyUnavailable(f"{name} was not probed")
        checks = [gate.check_probe(result.max_difference, config.gate_tolerance, result.num_tokens)]
        if result.drawn_lengths:
            before = [min(len(fact.token_ids), self._answer_tokens) for fact in probe]
            checks.append(gate.check_length(_mean(result.drawn_lengths), _mean(before), config.gate_length_ratio))
        return checks

    def _compare(
        self, state: TrainerState, row: PolicyVersionRow, probe: Sequence[LessonFacts], own: Sequence[Tensor]
    ) -> list[GateCheck]:
        config, model = self._config, state.model
        with model.disable_adapter():
            base = probe_logprobs(model, probe)
        previous = base
        serving = self._ledger.transact(lambda session: policies.serving(session, row.lineage_id))
        if serving is not None and serving.artifact_sha256 is not None:
            with with_weights(model, read_adapter(model, self.artifacts.adapter(serving.artifact_sha256))):
                previous = probe_logprobs(model, probe)
        return [
            gate.check_kl(gate.KL_BASE, mean_kl(own, base), config.gate_max_kl_base),
            gate.check_kl(gate.KL_PREVIOUS, mean_kl(own, previous), config.gate_max_kl_previous),
        ]

    @property
    def _answer_tokens(self) -> int:
        """Limit on answers that are drawn for their length: the server's other work waits for them."""
        return min(self._settings.max_new_tokens, MAX_DRAWN_TOKENS)

    def _ask_for_answers(self, probe: Sequence[LessonFacts]) -> SampleRequest:
        return SampleRequest(
            prompts=[
                SamplePrompt(id=str(index), token_ids=list(fact.prompt_token_ids), n=SAMPLES_PER_PROBE, seed=index)
                for index, fact in enumerate(probe)
            ],
            max_new_tokens=self._answer_tokens,
            temperature=self._settings.sampling_temperature,
            stop=self._settings.stop,
        )

    # --- the server after a restart of its own ---

    def _restore(self, state: TrainerState) -> None:
        """Make the server serve the version that the rows name, and load those that draws wait for: it starts with the
        base alone."""
        row, wanted = self._ledger.transact(self._read_wanted)
        info = self._client.info()
        self._forget_old(info.versions, {version.name for version in (row, *wanted) if version is not None})
        if row is not None and info.serving != row.name:
            self._bring_back(state, row, info.versions)
            self._client.serve_version(row.name if row.artifact_sha256 is not None else BASE_VERSION)
            log.info("the policy server serves again", version=row.name, instead_of=info.serving)
        for version in wanted:
            try:
                self._bring_back(state, version, self._client.info().versions)
            except (PolicyRefused, ArtifactNotFound) as error:
                log.error("the policy server cannot load a version that draws wait for", reason=error.detail)

    def _read_wanted(self, session: Session) -> tuple[PolicyVersionRow | None, list[PolicyVersionRow]]:
        lineage_id = self._ledger.lineage.id
        names = sorted(groups.wanted_versions(session, lineage_id))
        known = [name for name in names if policies.can_be_drawn_from(session, lineage_id, name)]
        return policies.serving(session, lineage_id), [policies.by_name(session, lineage_id, name) for name in known]

    def _bring_back(self, state: TrainerState, row: PolicyVersionRow, held: Sequence[Version]) -> None:
        """Have the server load and prove a version that passed its gate before."""
        status = next((version.status for version in held if version.name == row.name), None)
        if row.artifact_sha256 is None or status in (VersionStatus.PROVED, VersionStatus.SERVING):
            return
        probe = choose_probe(self._ledger.used_last(), PROBE_ROLLOUTS)
        if status is VersionStatus.REFUSED or not probe:  # the same lessons would give the same result
            log.error(
                "not proved again", version=row.name, reason="its probe failed" if probe else "no lesson to probe"
            )
            return
        self._client.load_version(row.name, row.artifact_sha256)
        weights = read_adapter(state.model, self.artifacts.adapter(row.artifact_sha256))
        with with_weights(state.model, weights):
            own = probe_logprobs(state.model, probe)
        self._prove(row.name, probe, own)

    def _forget_old(self, loaded: Sequence[Version], wanted: AbstractSet[str]) -> None:
        """Have the server drop adapters of versions superseded long ago; the artifacts still hold them."""
        newest = self._ledger.transact(
            lambda session: policies.newest(session, self._ledger.lineage.id, before=None, limit=KEEP_LOADED)
        )
        kept = {BASE_VERSION, *wanted, *(row.name for row in newest)}
        for version in loaded:
            if version.name not in kept and version.status is not VersionStatus.SERVING:
                self._delete(version.name)

    def _delete(self, name: str) -> None:
        try:
            self._client.delete_version(name)
        except PolicyRefused:
            log.debug("not deleted", version=name)  # never loaded, or still in use


def _store_adapter(state: TrainerState, artifacts: ArtifactStore, scratch: Path) -> str:
    shutil.rmtree(scratch, ignore_errors=True)  # left by a publication that was killed
    try:
        with space.writing("a version's weights"):
            save_adapter(state.model, scratch, state.base_sha256)
            return artifacts.store(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def choose_probe(lessons: Sequence[LessonFacts], number: int) -> list[LessonFacts]:
    """A few rollouts of the last update: one of each group, then a second one of each, and so on."""
    turn: dict[str, int] = {}
    ordered = []
    for fact in lessons:
        turn[str(fact.group_id)] = turn.get(str(fact.group_id), 0) + 1
        ordered.append((turn[str(fact.group_id)], fact))
    return [fact for _, fact in sorted(ordered, key=lambda pair: pair[0])[:number]]


def count_bad(model: PeftModel) -> int:
    """How many of the adapter's weights are NaN or infinite."""
    return sum(int((~parameter.isfinite()).sum()) for parameter in trainable(model).values())


def probe_items(probe: Sequence[LessonFacts], own: Sequence[Tensor]) -> list[ProbeItem]:
    """The logprobs of the probe's tokens, for the server to compare with its own. Shapes: own [T, V] each."""
    items = []
    for fact, logprobs in zip(probe, own, strict=True):
        ids = list(fact.token_ids[:PROBE_TOKENS])
        chosen = logprobs.gather(-1, torch.tensor(ids, device=logprobs.device)[:, None])[:, 0]
        items.append(
            ProbeItem(prompt_token_ids=list(fact.prompt_token_ids), response_token_ids=ids, logprobs=chosen.tolist())
        )
    return items


@torch.no_grad()
def probe_logprobs(model: PeftModel, probe: Sequence[LessonFacts]) -> list[Tensor]:
    """The model's log-probabilities of every token at each of the probe's places, [T, V] each.

    Rollouts of one prompt go through the model together: the prompt is read once.
    """
    device = next(model.parameters()).device
    places: dict[tuple[int, ...], list[int]] = {}
    for place, fact in enumerate(probe):
        places.setdefault(fact.prompt_token_ids, []).append(place)
    scores: dict[int, Tensor] = {}
    for prompt_ids, together in places.items():
        responses = [torch.tensor(probe[place].token_ids[:PROBE_TOKENS], device=device) for place in together]
        ids = pad_sequence(responses, batch_first=True)
        exists = pad_sequence([torch.ones_like(response, dtype=torch.bool) for response in responses], batch_first=True)
        hidden = response_hidden(model, torch.tensor(prompt_ids, device=device), ids, exists)
        for place, row, real in zip(together, hidden, exists, strict=True):
            scores[place] = project(model, row[real]).log_softmax(-1)
    return [scores[place] for place in range(len(probe))]


def mean_kl(new: Sequence[Tensor], old: Sequence[Tensor]) -> float:
    """KL(new ‖ old), in nats, averaged over all places."""
    costs = [(n.exp() * (n - o)).sum(-1) for n, o in zip(new, old, strict=True)]
    return float(torch.cat(costs).mean()) if costs else 0.0


def _mean(values: Sequence[int]) -> float:
    return sum(values) / max(len(values), 1)
