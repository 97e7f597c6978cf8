"""What does the environment say?

The one place that reads it. Our own variables begin with `DURABLE_AGENTS_` and an unknown one is an error (a typo must
not silently mean the default); the ecosystem's own names (`TEMPORAL_*`, `DATABASE_URL`, provider keys) are used as they are.
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from durable_agents.domain.durations import Duration

PREFIX = "DURABLE_AGENTS_"
TASK_QUEUE = "durable-agents"


class SettingsError(ValueError):
    """The environment holds something that cannot be; the message is one line with the remedy."""


class Settings(BaseSettings):
    """All settings of clients, workers and the command line."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    agents_path: str = "agents"
    """Folders of agents, separated by `:`."""
    state_dir: Path = Path(".durable-agents")
    """Where the embedded servers keep their data."""
    task_queue: str = TASK_QUEUE
    identity: str = ""
    """Who acts from here, e.g. decides approvals; empty: the login name."""
    signing_key: Path | None = None
    """The file of the private key with which decisions from here are signed."""
    owner_database_url: SecretStr | None = None
    """The owner role, for migrations only; workers never need it."""
    graceful_shutdown: Duration = timedelta(seconds=180)
    """How long a stopping worker lets running activities finish; longer than the longest call."""
    worker_concurrency: int = Field(default=100, gt=0, le=2000)
    """Activities a worker runs at once on each of its task queues: the main one, and one for each provider's model calls."""
    notify_urls: SecretStr | None = None
    """Who is told of limits reached and of what does not add up: apprise URLs, separated by spaces."""
    audit_anchors: Path | None = None
    """A file outside the database to which workers append the heads of the audit log."""
    log_level: str = "INFO"
    build_id: str = Field(default="dev", min_length=1, max_length=64)
    """Which build of the code a worker runs; the Web UI shows it at every step the worker made."""

    temporal_address: str | None = Field(default=None, validation_alias="TEMPORAL_ADDRESS")
    database_url: SecretStr | None = Field(default=None, validation_alias="DATABASE_URL")
    anthropic_api_key: SecretStr | None = Field(default=None, validation_alias="ANTHROPIC_API_KEY")
    anthropic_base_url: str | None = Field(default=None, validation_alias="ANTHROPIC_BASE_URL")
    openai_api_key: SecretStr | None = Field(default=None, validation_alias="OPENAI_API_KEY")
    openai_base_url: str | None = Field(default=None, validation_alias="OPENAI_BASE_URL")

    @field_validator("audit_anchors", mode="before")
    @classmethod
    def _no_file(cls, value: object) -> object:
        return None if value == "" else value

    @property
    def notified(self) -> tuple[SecretStr, ...]:
        """The URLs of `notify_urls`, each a secret of its own."""
        return tuple(SecretStr(url) for url in self.notify_urls.get_secret_value().split()) if self.notify_urls else ()

    @property
    def agent_folders(self) -> tuple[Path, ...]:
        """The folders of `agents_path`."""
        return tuple(Path(part) for part in self.agents_path.split(":") if part)


def read_settings() -> Settings:
    """The settings of this process.

    Raises:
        SettingsError: an unknown `DURABLE_AGENTS_*` variable, or a value that does not parse.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise SettingsError(f"unknown setting {unknown[0]}: check the spelling (known: {', '.join(sorted(known & _own(known)))})")
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise SettingsError(f"setting {PREFIX}{str(first['loc'][0]).upper()}: {first['msg']}") from None


def environment_value(name: str, environment: Mapping[str, str] | None = None) -> str | None:
    """A variable that an agent's `settings:` refers to."""
    return (os.environ if environment is None else environment).get(name)


def _own(names: set[str]) -> set[str]:
    aliased = {PREFIX + name.upper() for name, field in Settings.model_fields.items() if field.validation_alias}
    return names - aliased
