"""What may a workflow ask of the outside world?

Typed stubs, one page: workflows call these, workers register implementations of the same names (`activities/`). Nothing here
does I/O, so importing a workflow never loads a provider SDK or a database driver.
"""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue
from temporalio import activity

from durable_agents.domain.agents import Admitted
from durable_agents.domain.approvals import ApprovalDecision, Consent
from durable_agents.domain.audit import Note
from durable_agents.domain.failures import Failure
from durable_agents.domain.identifiers import ApprovalId, Digest, RunId, TenantId, UserId
from durable_agents.domain.model_calls import ModelCallRequest, ModelOutcome
from durable_agents.domain.run_state import Unverified
from durable_agents.domain.runs import RunRequest, RunResult
from durable_agents.domain.signatures import Bound
from durable_agents.domain.tool_calls import ToolCallRequest, ToolOutcome


class AdmissionRequest(BaseModel):
    """Input of `admit_run`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    request: RunRequest
    first_execution: str
    """Temporal's id of the run's first execution: it tells this run from an older one under the same key."""
    stands_in_for: RunId | None = None
    """The parent run whose input is taken, and whose remaining budget bounds this one."""


class EarlierAnswer(BaseModel):
    """What an earlier, effectless run of the same agent answered to the same input of the same user; None: there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    run_id: RunId | None = None
    output: JsonValue = None
    output_artifact: Digest | None = None


class RunReference(BaseModel):
    """Input of `find_earlier_answer`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tenant: TenantId
    run_id: RunId


class Admission(BaseModel):
    """The run is bound to an agent version and written down."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["admitted"] = "admitted"
    terms: Admitted


class Refusal(BaseModel):
    """The run cannot begin; nothing was written."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["refused"] = "refused"
    failure: Failure


AdmissionOutcome = Annotated[Admission | Refusal, Field(discriminator="kind")]


class ArrivalQuestion(BaseModel):
    """Input of `find_arrival`: did this decision reach the server after the question was asked, and before the deadline?"""

    model_config = ConfigDict(frozen=True, extra="forbid")
    run_id: RunId
    execution: str
    """Temporal's id of the execution whose history is searched."""
    decision: ApprovalDecision
    asked_since: AwareDatetime
    """The same words sent before were judged then, and refused."""
    deadline: AwareDatetime


class Arrival(BaseModel):
    """When the decision reached the server, by the server's clock; None: not before the deadline."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    at: AwareDatetime | None


class VerificationQuestion(BaseModel):
    """Input of `verify_decisions`: do these signatures say that these people decided exactly this?"""

    model_config = ConfigDict(frozen=True, extra="forbid")
    bound: Bound
    decisions: tuple[Unverified, ...]


class Verification(BaseModel):
    """What is wrong with each of the decisions, in their order; empty where nothing is."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    problems: tuple[str, ...]


class SentQuestion(BaseModel):
    """Input of `find_sent_decisions`: what was written down about this approval from `since` on and before `until`?"""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tenant: TenantId
    run_id: RunId
    approval_id: ApprovalId
    since: AwareDatetime
    until: AwareDatetime


class SentDecision(BaseModel):
    """A decision that its sender wrote down before sending it, and when, by the database's clock."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    at: AwareDatetime
    decision: ApprovalDecision


class SentDecisionsFound(BaseModel):
    """What was written down, oldest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    decisions: tuple[SentDecision, ...] = ()


class Notice(BaseModel):
    """Input of `tell_approvers`: who must decide what, until when, and why they are told now."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tenant: TenantId
    run_id: RunId
    approval_id: ApprovalId
    occasion: Literal["asked", "reminder", "escalation"]
    title: str
    asked: str
    requester: UserId
    rung: int
    deadline: AwareDatetime


class DecisionRecord(BaseModel):
    """Input of `record_decision`: what a human decided about the run itself, not about one of its tool calls."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tenant: TenantId
    run_id: RunId
    turn: int
    decision: Consent
    notes: tuple[Note, ...] = ()
    """What else the run has to say to the audit log."""


class Recorded(BaseModel):
    """What became of a decision that was to be written down."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    problem: str = ""
    """Why it has no effect; empty: it holds."""


class Ending(BaseModel):
    """Input of `finish_run`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tenant: TenantId
    result: RunResult
    first_execution: str
    """Whose end this is: a double that was refused under the same key must not end the run it is a double of."""
    decision: Consent | None = None
    """Whether a human took the run over."""
    notes: tuple[Note, ...] = ()
    """What the run still has to say to the audit log."""
    notes_made: int = 0
    """How many it had to say altogether, those for which there was no room too."""


class UpkeepRound(BaseModel):
    """Input of the rounds over all tenants."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    at: AwareDatetime
    """When the round began."""


class LedgerReport(BaseModel):
    """What a round over all tenants' ledgers found and did."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    flagged: int = 0
    """Requests whose worker is gone; their money is unknown from now on."""
    returned_micros: int = 0
    unknown: int = 0
    """Requests that wait for somebody who has seen the provider's bill."""
    unknown_micros: int = 0
    differences: int = 0
    """Where counters and entries disagree."""


class NotificationReport(BaseModel):
    """How many notifications were delivered."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    delivered: int


class AnchorReport(BaseModel):
    """What a round over all tenants' audit logs did."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    anchored: int = 0
    """Logs whose head was appended to the file of anchors."""
    broken: int = 0
    """Logs that do not continue what was anchored of them."""


class UpkeepReport(BaseModel):
    """What a round of upkeep did; the Web UI shows it as the result."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    ledgers: LedgerReport
    anchors: AnchorReport = AnchorReport()
    notifications: NotificationReport


@activity.defn
async def reconcile_ledgers(round_: UpkeepRound) -> LedgerReport:
    """Flag requests whose worker is gone, return what lies idle, hold counters against entries; tell people what is wrong."""
    raise NotImplementedError


@activity.defn
async def anchor_audit(round_: UpkeepRound) -> AnchorReport:
    """Append the heads of the audit logs to the file outside the database, if there is one; tell people what is wrong."""
    raise NotImplementedError


@activity.defn
async def deliver_notifications(round_: UpkeepRound) -> NotificationReport:
    """Tell people what they have not been told yet."""
    raise NotImplementedError


@activity.defn
async def admit_run(request: AdmissionRequest) -> AdmissionOutcome:
    """Bind the run to the current agent version, price list and policy, and write its first rows."""
    raise NotImplementedError


@activity.defn
async def call_model(request: ModelCallRequest) -> ModelOutcome:
    """Make one logical model call: journalled before and after, never paid twice once recorded."""
    raise NotImplementedError


@activity.defn
async def run_tool(request: ToolCallRequest) -> ToolOutcome:
    """Decide on, and make, one tool call: policy, consent, dispatch row, effect, outcome."""
    raise NotImplementedError


@activity.defn
async def find_arrival(question: ArrivalQuestion) -> Arrival:
    """Look up by the server's clock when a decision arrived that no worker was there to see."""
    raise NotImplementedError


@activity.defn
async def verify_decisions(question: VerificationQuestion) -> Verification:
    """Check the signatures of decisions against the keys that are registered now."""
    raise NotImplementedError


@activity.defn
async def find_sent_decisions(question: SentQuestion) -> SentDecisionsFound:
    """Look up what was decided and may never have been delivered."""
    raise NotImplementedError


@activity.defn
async def tell_approvers(notice: Notice) -> None:
    """Write down what those who must decide are told; it is delivered with the next round of upkeep."""
    raise NotImplementedError


@activity.defn
async def find_earlier_answer(run: RunReference) -> EarlierAnswer:
    """Find what the same question brought before."""
    raise NotImplementedError


@activity.defn
async def record_decision(record: DecisionRecord) -> Recorded:
    """Write down who decided about the run, and how; a signed decision is used up."""
    raise NotImplementedError


@activity.defn
async def finish_run(ending: Ending) -> None:
    """Write down how the run ended and close its audit."""
    raise NotImplementedError
