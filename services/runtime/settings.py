"""Settings of the services, read once at a process's entrypoint and passed down. Environment: PRECEPTOR_*.

The text below a field is its row in docs/settings.md (`make docs`). `DATABASE_URL` and `REDIS_URL` are read without the
prefix too, since every platform sets them. Values may also lie in files: `PRECEPTOR_SECRETS_DIR` is a folder whose
files, or whose folders' files, are called like the variables in lower case (`preceptor_internal_key`).
"""

from pathlib import Path

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SecretsSettingsSource, SettingsConfigDict

from services.runtime.secret_files import secret_folders


class Settings(BaseSettings):
    """Addresses, keys and limits. Times in seconds."""

    model_config = SettingsConfigDict(env_prefix="PRECEPTOR_", frozen=True, extra="ignore", populate_by_name=True)

    home: Path = Path("~/.local/share/preceptor").expanduser()
    """The data folder; deleting it deletes everything that Preceptor keeps on this machine."""
    database_url: str = Field(
        default="postgresql://postgres@127.0.0.1:5432/preceptor",
        validation_alias=AliasChoices("PRECEPTOR_DATABASE_URL", "DATABASE_URL"),
    )
    """Postgres 15 or newer. `preceptor up` starts an embedded one unless this is set."""
    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0", validation_alias=AliasChoices("PRECEPTOR_REDIS_URL", "REDIS_URL")
    )
    """Redis or Valkey. `preceptor up` starts an embedded one unless this is set."""
    lineage: str = "main"
    """The model in training; tasks, rollouts and versions belong to one lineage."""

    api_url: str = "http://127.0.0.1:8700"
    """Where the other processes and commands find the API. `preceptor up` chooses free ports for all four."""
    policy_url: str = "http://127.0.0.1:8710"
    """Where they find the policy server."""
    sandbox_url: str = "http://127.0.0.1:8720"
    """Where they find the sandbox."""
    experts_url: str = "http://127.0.0.1:8730"
    """Where they find the built-in experts."""

    internal_key: str = ""
    """Bearer key of the policy server; empty: it asks for none, and listens on loopback only."""
    sandbox_key: str = ""
    """Bearer key of the sandbox, the same as its own SANDBOX_API_KEY."""
    vllm_url: str = ""
    """A vLLM server that draws and scores for the policy server; empty: the policy server computes itself."""
    vllm_key: str = ""
    """The key that the vLLM server was started with (`--api-key`); empty: none."""
    expert_secret: str = ""
    """Signs consultations of the built-in experts and their answers (Standard Webhooks, `whsec_…`)."""
    api_open: bool = False
    """Ask for no API key or login; refused unless the API listens on loopback only."""

    metrics_listen: str = Field(default="", pattern=r"^(\S+:\d{1,5})?$")
    """HOST:PORT where a worker or trainer serves /metrics; empty: nowhere. Other processes use their own port."""
    metrics_key: str = ""
    """Bearer key for /metrics from other machines; empty: this machine only."""

    otlp_endpoint: str = Field(
        default="", validation_alias=AliasChoices("PRECEPTOR_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    )
    """Base URL of an OpenTelemetry collector for traces (OTLP over HTTP, usually port 4318); empty: no traces."""

    teacher_temperature: float = Field(default=0.5, gt=0)
    """Sampling temperature of every teacher made of the policy: the trainer's own and the expert `teacher`. Below 1 it
    is sharper than the policy."""

    precedents: int = Field(default=1, ge=0, le=8)
    """Other tasks, each with a right answer, that a teacher is shown together; 0 shows none."""

    allowed_expert_networks: list[str] = ["127.0.0.0/8", "::1/128"]
    """Where an expert's endpoint may be, besides public addresses: networks, or names of hosts, which allow the address
    that the name has when the expert is consulted."""

    group_size: int = Field(default=8, ge=1, le=256)
    """Rollouts drawn of one prompt; they are each other's baseline."""
    roll_in: float = Field(default=0.0, ge=0, le=1)
    """Share of a group that the teacher draws instead of the policy, for a task that the policy never passes; it falls
    to 0 as its pass rate rises (docs/method.md, Roll-in). 0: the policy draws alone."""
    roll_in_group_size: int = Field(default=2, ge=2, le=256)
    """Rollouts of a group with a teacher's share, while fewer than two of GROUP_SIZE would pass: more tasks are then
    learned beside each other, and siblings have nothing to show. As many as GROUP_SIZE at most."""
    max_new_tokens: int = Field(default=64, ge=1)
    """The longest answer, in tokens; longer ones are cut off. Raise it for anything but the starter tasks."""
    sampling_temperature: float = Field(default=1.0, gt=0)
    """Temperature of train rollouts. Evaluations state their own; measurements use the teacher's."""
    self_critique: bool = False
    """The built-in self-evaluation also has the policy write a critique of its answer, as feedback. For larger models:
    a small one's critique misleads its teacher."""
    stop: list[str] = ["\n```"]
    """Strings that end an answer; the default ends it after the first fenced block."""
    max_backlog_lessons: int = Field(default=48, ge=1)
    """Drawing pauses while this many train rollouts are planned or drawn and not yet trained on."""
    max_groups_per_task: int = Field(default=8, ge=1)
    """Groups drawn of one train task, smaller ones counted by their rollouts; when all tasks have had theirs the loop
    waits for new ones."""
    max_groups_in_flight: int = Field(default=24, ge=1)
    """Groups that the policy server draws at once; enough to keep its batch full."""
    seed: int = 0
    """Decides the order of tasks and every draw's sampling seed."""
    measuring_share: float = Field(default=0.2, ge=0, lt=1)
    """No tasks are begun to be measured while more than this share of all rollouts was drawn for that; 0: only what a
    person asks for is measured."""
    measuring_tokens: int = Field(default=100_000, ge=1)
    """Tokens drawn for one measurement, student, teacher and control together; then it ends, decided or not."""
    remeasure_versions: int = Field(default=32, ge=1)
    """A source is measured again after this many policy versions began to serve; after four times as many without a new
    verdict, that it teaches holds no longer."""
    remeasure_answers: int = Field(default=1000, ge=1)
    """The same after this many answers of its expert."""
    promote_measured: bool = False
    """Whether an expert on probation that is measured to teach becomes active by itself; else a person confirms it."""
    max_staleness: int = Field(default=8, ge=0)
    """Versions that may have begun to serve since a rollout was drawn; older rollouts are set aside."""

    group_lease_seconds: float = 300
    """How long a worker holds a group that it draws; then another worker may draw it."""
    consultation_lease_seconds: float = 60
    """How long a worker holds a consultation; the expert has 0.8 of it to answer one attempt."""
    lesson_lease_seconds: float = 120
    """How long the trainer holds lessons without renewing its lease."""
    max_attempts: int = Field(default=5, ge=1)
    """Failures after which a consultation or a draw is dead."""
    resend_seconds: float = 30
    """After this long an unclaimed row's message is sent again."""
    quarantine_after_failures: int = Field(default=20, ge=1)
    """Failures in a row after which an expert is quarantined."""

    min_free_gb: float = Field(default=2.0, ge=0)
    """Gigabytes (10^9 bytes) that stay free on the disks of data folder and embedded database; with less, no rollout is
    drawn or stored. 0: no such bound, though a full disk still stops the trainer."""
    max_home_gb: float = Field(default=0.0, ge=0)
    """The same when the data folder is larger than this; 0: no bound."""
    max_database_gb: float = Field(default=0.0, ge=0)
    """The same when the database is larger than this, for a server whose disk cannot be seen; 0: no bound."""

    keep_unused_rollouts_days: float = Field(default=30.0, ge=0)
    """Days until groups that no update, evaluation or decided correction refers to are deleted; 0: never."""
    keep_attempts_days: float = Field(default=30.0, ge=0)
    """Days until single attempts behind settled consultations are deleted; 0: never."""
    keep_adapters_days: float = Field(default=90.0, ge=0)
    """Days until weights of superseded, rejected and withdrawn versions are deleted; their rows stay. 0: never."""
    keep_idempotency_days: float = Field(default=7.0, ge=1)
    """Days until stored answers behind idempotency keys are deleted."""

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
