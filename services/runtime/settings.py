"""Settings of the services, read once at a process's entrypoint and passed down. Environment: PRECEPTOR_*.

`DATABASE_URL` and `REDIS_URL` are read without the prefix too, as every platform sets them. What the environment does
not name is looked for in files: `PRECEPTOR_SECRETS_DIR` is a folder whose files, or whose folders' files, are called
like the variables in lower case (`preceptor_internal_key`).
"""

from pathlib import Path

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SecretsSettingsSource, SettingsConfigDict

from services.runtime.secret_files import secret_folders


class Settings(BaseSettings):
    """Where things are and how far they may go. Times in seconds."""

    model_config = SettingsConfigDict(env_prefix="PRECEPTOR_", frozen=True, extra="ignore", populate_by_name=True)

    home: Path = Path("~/.local/share/preceptor").expanduser()
    database_url: str = Field(
        default="postgresql://postgres@127.0.0.1:5432/preceptor",
        validation_alias=AliasChoices("PRECEPTOR_DATABASE_URL", "DATABASE_URL"),
    )
    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0", validation_alias=AliasChoices("PRECEPTOR_REDIS_URL", "REDIS_URL")
    )
    lineage: str = "main"

    api_url: str = "http://127.0.0.1:8700"
    policy_url: str = "http://127.0.0.1:8710"
    sandbox_url: str = "http://127.0.0.1:8720"
    experts_url: str = "http://127.0.0.1:8730"

    internal_key: str = ""
    """Bearer key of the policy server; empty means none is asked for."""
    sandbox_key: str = ""
    """Bearer key of the sandbox: what its own SANDBOX_API_KEY is."""
    vllm_url: str = ""
    """A vLLM server that draws and scores for the policy process; empty: it computes itself."""
    vllm_key: str = ""
    """The key that the vLLM server was started with (`--api-key`); empty means it asks for none."""
    expert_secret: str = ""
    """Signs consultations to our own experts and their answers (Standard Webhooks), `whsec_` form."""
    api_open: bool = False
    """No API key asked for; refused unless the api listens on loopback only."""

    metrics_listen: str = Field(default="", pattern=r"^(\S+:\d{1,5})?$")
    """HOST:PORT where a worker or trainer serves its /metrics; empty: nowhere. Other processes have a port anyway."""
    metrics_key: str = ""
    """Bearer key for /metrics from other machines; empty: from this machine only."""

    otlp_endpoint: str = Field(
        default="", validation_alias=AliasChoices("PRECEPTOR_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    )
    """Base URL of an OpenTelemetry collector (OTLP over HTTP, usually port 4318) that gets traces; empty: none."""

    teacher_temperature: float = Field(default=0.5, gt=0)
    """Sharpness of every teacher made of the policy itself: the trainer's own and the expert `teacher`."""

    allowed_expert_networks: list[str] = ["127.0.0.0/8", "::1/128"]
    """Where an expert's endpoint may be, besides public addresses: networks, or names of hosts, which allow whatever
    address the name has when the expert is asked."""

    group_size: int = Field(default=8, ge=1, le=256)
    max_new_tokens: int = Field(default=64, ge=1)
    sampling_temperature: float = Field(default=1.0, gt=0)
    stop: list[str] = ["\n```"]
    max_backlog_lessons: int = Field(default=48, ge=1)
    """The sampler pauses while this many train rollouts are drawn or asked for and not yet trained on."""
    max_groups_per_task: int = Field(default=8, ge=1)
    """How often one train task may be drawn; then the loop waits for new tasks."""
    max_groups_in_flight: int = Field(default=10, ge=1)
    """Draws asked of the policy at once; enough to keep its batch full."""
    seed: int = 0
    """Chooses the order of tasks and every draw's sampling seed."""
    max_staleness: int = Field(default=8, ge=0)
    """Rollouts sampled this many policy versions ago are still trained on; older ones are set aside."""

    group_lease_seconds: float = 300
    consultation_lease_seconds: float = 60
    lesson_lease_seconds: float = 120
    max_attempts: int = Field(default=5, ge=1)
    """How often a consultation or a draw may fail before it is dead."""
    resend_seconds: float = 30
    """A row whose message was sent this long ago and is still unclaimed is sent again."""
    quarantine_after_failures: int = Field(default=20, ge=1)

    min_free_gb: float = Field(default=2.0, ge=0)
    """Gigabytes (10^9 bytes) that stay free under the data folder and the database's files: with less, no rollout is
    drawn or taken in until there is room again. 0: no such bound; a disk that is full stops the trainer too."""
    max_home_gb: float = Field(default=0.0, ge=0)
    """The same when the data folder is larger than this; 0: no such bound."""
    max_database_gb: float = Field(default=0.0, ge=0)
    """The same when the database is larger than this, for a database whose disk cannot be seen; 0: no such bound."""

    keep_unused_rollouts_days: float = Field(default=30.0, ge=0)
    """Groups of rollouts that no update and no evaluation refers to are deleted after this; 0: never."""
    keep_attempts_days: float = Field(default=30.0, ge=0)
    """The single tries behind settled consultations are deleted after this; 0: never."""
    keep_adapters_days: float = Field(default=90.0, ge=0)
    """Weights of superseded and rejected policy versions are deleted after this; their rows stay. 0: never."""
    keep_idempotency_days: float = Field(default=7.0, ge=1)
    """The answers behind idempotency keys are deleted after this."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment, then files."""
        folders: list[str | Path] = list(secret_folders())
        return init_settings, env_settings, SecretsSettingsSource(settings_cls, secrets_dir=folders)
