"""What is asked for when a run is started, where does it stand, and how can it end?"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, field_validator

from durable_agents.domain.approvals import Approval
from durable_agents.domain.budgets import Budget, Spend
from durable_agents.domain.canonical import Words, canonical_json, digest, ensure_escaped_json
from durable_agents.domain.failures import Failure
from durable_agents.domain.identifiers import Digest, Key, Micros, Name, Person, RunId, TenantId, UserId, run_id

MAX_INPUT_BYTES = 256 * 1024
"""Larger things are handed over by reference (a URL, a document id); the server refuses payloads over 2 MiB."""


Priority = Literal["low", "normal", "high"]


class RunRequest(BaseModel):
    """Start one run of an agent.

    `idempotency_key` makes starting safe to repeat: the same key of a tenant is the same run, for ever. `budget` may narrow
    the agent's own budget, never widen it. `input` is checked against the agent's input schema when the run is admitted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    agent: Name
    input: dict[str, JsonValue] = Field(default_factory=dict)
    tenant: Name = "default"
    user: Key
    idempotency_key: Key
    budget: Budget | None = None
    priority: Priority = "normal"
    """`low` runs are refused with a hint when there is too much to do; `high` ones go first."""

    @field_validator("input")
    @classmethod
    def _storable(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        escaped = ensure_escaped_json(value)
        size = len(canonical_json(escaped))
        if size > MAX_INPUT_BYTES:
            raise ValueError(
                f"the input has {size:,} bytes, at most {MAX_INPUT_BYTES:,} are taken; pass large things by reference"
            )
        assert isinstance(escaped, dict)
        return escaped

    @property
    def run_id(self) -> RunId:
        """The run's id, which is its Temporal workflow id."""
        return run_id(TenantId(self.tenant), self.idempotency_key)

    def digest(self) -> Digest:
        """What tells a repeated start from another request under the same key."""
        return digest(self.model_dump(mode="json"))


class RunStatus(StrEnum):
    """Where a run stands. Everything from COMPLETED on is an end, and a run has exactly one."""

    STARTING = "starting"
    RUNNING = "running"
    WAITING_APPROVAL = "waiting_approval"
    COMPLETED = "completed"
    DEGRADED = "degraded"
    DENIED = "denied"
    EXPIRED = "expired"
    BUDGET_EXHAUSTED = "budget_exhausted"
    CANCELLED = "cancelled"
    HANDED_OFF = "handed_off"
    FAILED = "failed"

    @property
    def is_end(self) -> bool:
        """Has the run ended?"""
        return self not in (RunStatus.STARTING, RunStatus.RUNNING, RunStatus.WAITING_APPROVAL)


class RunResult(BaseModel):
    """How a run ended, what came of it and what it cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    run_id: RunId
    status: RunStatus
    output: JsonValue = None
    """The agent's answer: JSON when it has an output schema, else text; partial or None unless completed or degraded."""
    output_artifact: Digest | None = None
    """Where an output over 16 KiB lies."""
    explanation: Words = ""
    """One line: why it ended like this."""
    failure: Failure | None = None
    agent_version: Digest | None = None
    turns: int = 0
    spend: Spend = Spend()


class TimelineEntry(BaseModel):
    """One line of what happened."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    at: AwareDatetime
    what: str


class RejectedMessage(BaseModel):
    """A message that did not count, kept so that whoever sent it can see why."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    at: AwareDatetime
    message: str
    """The name of the signal."""
    reason: str
    excerpt: str = ""
    """The beginning of the payload, inert."""


def _beginning(reason: object) -> object:
    return reason[:2000] if isinstance(reason, str) else reason


class CancelRequest(BaseModel):
    """The payload of `request_cancel`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    by: Person = UserId("unknown")
    reason: Annotated[Words, BeforeValidator(_beginning)] = ""
    """Cut, never refused: Temporal's own cancel comes with a reason of any length."""


class BudgetRaise(BaseModel):
    """The payload of `raise_budget`: new, higher limits; a limit that is not named stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    budget: Budget
    by: Person
    reason: Words = Field(default="", max_length=2000)


class BudgetView(BaseModel):
    """The answer to the query `budget` and to `raise_budget`: what may be used and what was."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    budget: Budget
    spend: Spend
    kept_micros: Micros = Micros(0)
    """What the run has drawn of the accounts above it and keeps for its next calls."""
    accounts_used: int = 0
    """Percent of the account above it that is nearest its limit, as of the last draw."""
    wall_seconds: float
    working_seconds: float


class RunView(BaseModel):
    """The answer to the query `status`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    run_id: RunId
    agent: str
    agent_version: Digest | None
    policy_digest: Digest | None = None
    """Of the policy in force when the run was admitted."""
    policy_version: int = 0
    tenant: TenantId
    user: UserId
    status: RunStatus
    turn: int
    doing: str
    spend: Spend
    budget: Budget
    pending_approvals: tuple[Approval, ...]
    rejected_messages: tuple[RejectedMessage, ...]
    rejected_count: int
    cancel_requested: CancelRequest | None
    result: RunResult | None
