"""What does a run ask of the executor of tools, and what can come back?"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from durable_agents.domain.approvals import ApprovalKind, Consent, Ladder
from durable_agents.domain.audit import Note
from durable_agents.domain.canonical import inert
from durable_agents.domain.compact import Compact
from durable_agents.domain.identifiers import ApprovalId, Digest, RunId, TenantId


class ToolCallRequest(Compact):
    """Input of `run_tool`. The arguments are read from the transcript, so nobody can swap them on the way."""

    tenant: TenantId
    run_id: RunId
    turn: int
    index: int
    consent: Consent | None = None
    """The human decision this call waited for."""
    near_limit: bool = False
    """The budget runs out: the agent's file says which tools are not used any more."""
    notes: tuple[Note, ...] = ()
    """What the run has to say to the audit log."""


class ToolSettled(Compact):
    """The call is over, its result stands in the transcript for the model to read."""

    kind: Literal["settled"] = "settled"
    result: Literal["ok", "error", "refused"]
    """`error`: the tool failed; `refused`: the policy or a human said no, or the call made no sense."""
    preview: str
    message_bytes: int
    rule: str = ""
    """The policy's reason, or what was wrong with the call."""
    mistake: bool = False
    """The call made no sense: the model's own mistake, to be mended by it."""
    fingerprint: str = ""
    """Stands for tool, arguments and result: equal fingerprints are the same call with the same outcome."""
    policy_digest: Digest | None = None
    """The policy it was judged by, where it was refused or that policy is another than at the run's admission."""


class ConsentNeeded(BaseModel):
    """Nothing was done: a human must decide first."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["consent_needed"] = "consent_needed"
    approval_id: ApprovalId
    approval_kind: ApprovalKind
    tool: str
    title: str
    facts: dict[str, str]
    model_says: str
    digest: Digest
    policy_digest: Digest
    policy_version: int = 0
    ladder: Ladder


ToolOutcome = Annotated[ToolSettled | ConsentNeeded, Field(discriminator="kind")]


def facts(arguments: dict[str, JsonValue]) -> dict[str, str]:
    """Canonical arguments as a person reads them before consenting: one inert line each."""
    return {inert(name, 60): inert(value if isinstance(value, str) else str(value)) for name, value in arguments.items()}


def call_line(tool: str, arguments: dict[str, JsonValue] | None) -> str:
    """A call as one short line for timelines: `issue_refund order=A-1001 amount=250.00`."""
    if arguments is None:
        return inert(f"{tool} (large or malformed arguments)", 160)
    parts = [f"{name}={value if isinstance(value, str) else str(value)}" for name, value in arguments.items()]
    return inert(" ".join([tool, *parts]), 160)
