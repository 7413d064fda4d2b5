"""What makes an empty database ready for use: the schema, the lineage, the owner's key, our own experts.

Called by `preceptor up` on a laptop and by `preceptor init` where the servers are somebody else's. Repeating it
changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import httpx2
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from services.contracts.experts import Expert, ExpertCreate, OwnKind
from services.contracts.status import LoopSwitch
from services.policy.client import PolicyClient
from services.runtime.errors import PreceptorError
from services.runtime.settings import Settings
from services.store.core import audit, migrate
from services.store.core.transaction import Store
from services.store.loop import lineages, switches
from services.store.people import persons

REGISTRATION_SECONDS = 120  # a conformance run asks the policy to score a few times


@dataclass(frozen=True)
class OwnExpert:
    """One of our own experts: what it may see, how much it is asked. It is mounted at the name of its kind."""

    kind: OwnKind
    granted: tuple[str, ...] = ()
    weight: float = 1.0
    group_fraction: float = 1.0
    rollouts_per_group: int | None = None
    optional: bool = False
    """Left out where the experts' process does not serve it: it needs a package that need not be installed."""


SHOWN_TO_TEACHER = ("tests", "tools", "expected_result", "answer", "reference", "reasoning_gym")
"""The remote teacher is shown what other experts say, which may quote what they were given."""

OWN_EXPERTS = (
    OwnExpert(OwnKind.EXECUTION, granted=("tests",)),
    OwnExpert(OwnKind.TOOL_CALL, granted=("tools", "expected_result")),
    OwnExpert(OwnKind.EXACT_MATCH, granted=("answer",)),
    OwnExpert(OwnKind.REFERENCE, granted=("reference",)),
    OwnExpert(OwnKind.PRECEDENTS, granted=("precedents",)),
    OwnExpert(OwnKind.REASONING_GYM, granted=("reasoning_gym",), optional=True),
    OwnExpert(OwnKind.SELF_EVALUATION, rollouts_per_group=2),
    OwnExpert(OwnKind.TEACHER, granted=SHOWN_TO_TEACHER, group_fraction=0.25),
    OwnExpert(OwnKind.HUMAN, group_fraction=0.25, rollouts_per_group=1),
)


class RegistrationFailed(PreceptorError):
    """One of our own experts was refused; its process is not healthy."""

    status_code = 500
    title = "An own expert could not be registered"


def prepare_database(
    settings: Settings, keep: Callable[[str], None] = lambda key: None, *, is_lost: bool = False
) -> str | None:
    """Migrate, and make the owner with a key when there is none. Returns the new key: it is shown this once.

    keep: handed the new key before it is committed, so that a key that could not be kept is none. is_lost: the owner's
    key is in nobody's hands; they get one more.
    """
    migrate.upgrade(settings.database_url)
    store = Store(settings.database_url, pool_size=1)
    try:
        with store.transaction() as session:
            key = persons.ensure_owner(session, is_lost=is_lost)
            if key is not None:
                keep(key)
            return key
    finally:
        store.close()


def prepare_lineage(settings: Settings) -> None:
    """Make the lineage of the model the policy serves. Errors: LineageModelDiffers (409), PolicyUnavailable (503)."""
    store = Store(settings.database_url, pool_size=1)
    try:
        with PolicyClient(settings.policy_url, settings.internal_key) as policy:
            info = policy.info()
        with store.transaction() as session:
            lineages.ensure(
                session,
                settings.lineage,
                info.model,
                info.base_sha256,
                info.tokenizer_hash,
                info.vocab_size,
                former_sha256=info.former_base_sha256,
            )
    finally:
        store.close()


def switch_loop(settings: Settings, *, on: bool) -> None:
    """Turn the lineage's loop on without an end, or pause it, before anything runs that would draw or train.

    Recorded as an act of our own processes where it changes something. No broker need be up.
    """
    # Here, because the messages' app reads its broker's address from the environment when it is imported.
    from services.acts import loop
    from services.acts.call import Call

    store = Store(settings.database_url, pool_size=1)
    try:
        with store.reading() as session:
            now = switches.get(session, lineages.get(session, settings.lineage).id)
        if (now.sampling, now.training, now.max_updates) != (on, on, None):
            call = Call(store=store, settings=settings, actor=audit.SYSTEM)
            loop.switch(call, LoopSwitch(sampling=on, training=on, no_end=True))
    finally:
        store.close()


def register_own_experts(settings: Settings, api_key: str) -> list[Expert]:
    """Register our own experts through the API, with the owner's key; those already there only move.

    Errors: RegistrationFailed.
    """
    registered = []
    with httpx2.Client(
        base_url=settings.api_url, headers={"Authorization": f"Bearer {api_key}"}, timeout=REGISTRATION_SECONDS
    ) as client:
        for own in OWN_EXPERTS:
            if own.optional and not _is_served(f"{settings.experts_url}/{own.kind}"):
                continue
            wanted = ExpertCreate.model_validate(
                {
                    "endpoint": f"{settings.experts_url}/{own.kind}",
                    "granted": own.granted,
                    "trusted": True,
                    "weight": own.weight,
                    "group_fraction": own.group_fraction,
                    "rollouts_per_group": own.rollouts_per_group,
                    "temperature": settings.teacher_temperature if own.kind is OwnKind.TEACHER else 1.0,
                    "signing_secret": settings.expert_secret or None,
                }
            )
            registered.append(_register(client, own.kind, wanted))
    return registered


@retry(
    retry=retry_if_exception_type(httpx2.TransportError), stop=stop_after_delay(30), wait=wait_fixed(1), reraise=True
)
def _is_served(endpoint: str) -> bool:
    return httpx2.get(f"{endpoint}/healthz", timeout=REGISTRATION_SECONDS).is_success


@retry(
    retry=retry_if_exception_type(httpx2.TransportError), stop=stop_after_delay(30), wait=wait_fixed(1), reraise=True
)
def _register(client: httpx2.Client, kind: OwnKind, wanted: ExpertCreate) -> Expert:
    response = client.post(
        f"/v1/experts/own/{kind}", content=wanted.model_dump_json(), headers={"Content-Type": "application/json"}
    )
    if not response.is_success:
        raise RegistrationFailed(f"{wanted.endpoint}: {response.text[:2000]}")
    return Expert.model_validate_json(response.content)
