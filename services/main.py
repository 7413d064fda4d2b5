"""What makes an empty database ready for use: the schema, the lineage, the owner's key, our own experts.

Called by `preceptor up` on a laptop and by `preceptor init` where the servers are somebody else's. Repeating it
changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import httpx2
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from services.contracts.experts import Expert, ExpertCreate
from services.errors import PreceptorError
from services.policy.client import PolicyClient
from services.settings import Settings
from services.store import lineages, migrate, persons
from services.store.store import Store

REGISTRATION_SECONDS = 120  # a conformance run asks the policy to score a few times


@dataclass(frozen=True)
class OwnExpert:
    """One of our own experts: where it is mounted, what it may see, how much it is asked."""

    path: str
    granted: tuple[str, ...] = ()
    weight: float = 1.0
    group_fraction: float = 1.0
    rollouts_per_group: int | None = None
    optional: bool = False
    """Left out where the experts' process does not serve it: it needs a package that need not be installed."""


OWN_EXPERTS = (
    OwnExpert("execution", granted=("tests",)),
    OwnExpert("tool-call", granted=("tools", "expected_result")),
    OwnExpert("exact-match", granted=("answer",)),
    OwnExpert("reference", granted=("reference",)),
    OwnExpert("reasoning-gym", granted=("reasoning_gym",), optional=True),
    OwnExpert("self-evaluation", rollouts_per_group=2),
    OwnExpert("teacher", group_fraction=0.25),
    OwnExpert("human", group_fraction=0.25, rollouts_per_group=1),
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
                session, settings.lineage, info.model, info.base_sha256, info.tokenizer_hash, info.vocab_size
            )
    finally:
        store.close()


def register_own_experts(settings: Settings, api_key: str) -> list[Expert]:
    """Register our own experts through the API, as anyone registers theirs; those already there only move.

    Errors: RegistrationFailed.
    """
    registered = []
    with httpx2.Client(
        base_url=settings.api_url, headers={"Authorization": f"Bearer {api_key}"}, timeout=REGISTRATION_SECONDS
    ) as client:
        for own in OWN_EXPERTS:
            if own.optional and not _is_served(f"{settings.experts_url}/{own.path}"):
                continue
            wanted = ExpertCreate.model_validate(
                {
                    "endpoint": f"{settings.experts_url}/{own.path}",
                    "granted": own.granted,
                    "trusted": True,
                    "weight": own.weight,
                    "group_fraction": own.group_fraction,
                    "rollouts_per_group": own.rollouts_per_group,
                    "temperature": settings.teacher_temperature if own.path == "teacher" else 1.0,
                    "signing_secret": settings.expert_secret or None,
                }
            )
            registered.append(_register(client, wanted))
    return registered


@retry(
    retry=retry_if_exception_type(httpx2.TransportError), stop=stop_after_delay(30), wait=wait_fixed(1), reraise=True
)
def _is_served(endpoint: str) -> bool:
    return httpx2.get(f"{endpoint}/healthz", timeout=REGISTRATION_SECONDS).is_success


@retry(
    retry=retry_if_exception_type(httpx2.TransportError), stop=stop_after_delay(30), wait=wait_fixed(1), reraise=True
)
def _register(client: httpx2.Client, wanted: ExpertCreate) -> Expert:
    response = client.post(
        "/v1/experts", content=wanted.model_dump_json(), headers={"Content-Type": "application/json"}
    )
    if not response.is_success:
        raise RegistrationFailed(f"{wanted.endpoint}: {response.text[:2000]}")
    return Expert.model_validate_json(response.content)
