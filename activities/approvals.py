"""When did a decision reach the server, if no worker was there to see it; did it get lost; and who signed it?

A decision is honoured when it arrived before the deadline, by the server's clock, even if every worker was down until after it.
The workflow cannot know that: it only sees that both the deadline and the decision lie behind it. The history can. Nor can it
know keys, which are in PostgreSQL, or what somebody wrote down there without getting it delivered.
"""

from datetime import UTC

from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client

from activities import approver_keys, consents, notifications, sent_decisions, signatures
from activities.postgres import Connection, Database
from activities.storage_errors import storage_errors
from durable_agents.activity_contracts import (
    Arrival,
    ArrivalQuestion,
    Notice,
    SentDecisionsFound,
    SentQuestion,
    Verification,
    VerificationQuestion,
)
from durable_agents.domain.approvals import ApprovalDecision
from durable_agents.domain.identifiers import KeyId
from durable_agents.domain.run_state import Unverified
from durable_agents.domain.signatures import ApproverKey, Bound, decision_problem

SIGNAL = "submit_approval"


class ApprovalActivities:
    """`find_arrival`, `verify_decisions`, `find_sent_decisions` and `tell_approvers`."""

    def __init__(self, temporal: Client, database: Database) -> None:
        self._temporal = temporal
        self._database = database

    @activity.defn
    async def find_arrival(self, question: ArrivalQuestion) -> Arrival:
        """Look up by the server's clock when a decision arrived that no worker was there to see."""
        handle = self._temporal.get_workflow_handle(question.run_id, run_id=question.execution)
        async for event in handle.fetch_history_events():
            if event.event_type != EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
                continue
            arrived = event.event_time.ToDatetime(tzinfo=UTC)
            if question.asked_since <= arrived < question.deadline and _carries(event, question.decision):
                return Arrival(at=arrived)
        return Arrival(at=None)

    @activity.defn
    async def verify_decisions(self, question: VerificationQuestion) -> Verification:
        """Check the signatures of decisions against the keys that are registered now."""
        wanted = {one.decision.signature.key for one in question.decisions if one.decision.signature is not None}
        with storage_errors():
            async with self._database.transaction(question.bound.tenant) as connection:
                keys = await approver_keys.load(connection, question.bound.tenant, wanted)
                problems = [await _problem(connection, question.bound, one, keys) for one in question.decisions]
        return Verification(problems=tuple(problems))

    @activity.defn
    async def find_sent_decisions(self, question: SentQuestion) -> SentDecisionsFound:
        """Look up what was decided and may never have been delivered."""
        with storage_errors():
            async with self._database.transaction(question.tenant) as connection:
                found = await sent_decisions.sent(
                    connection, question.tenant, question.run_id, question.approval_id, question.since, question.until
                )
        return SentDecisionsFound(decisions=found)

    @activity.defn
    async def tell_approvers(self, notice: Notice) -> None:
        """Write down what those who must decide are told; it is delivered with the next round of upkeep."""
        with storage_errors():
            async with self._database.transaction(notice.tenant) as connection:
                await notifications.write_notice(connection, notice)


async def _problem(connection: Connection, bound: Bound, one: Unverified, keys: dict[KeyId, ApproverKey]) -> str:
    signature = one.decision.signature
    if signature is None:
        return ""
    wrong = decision_problem(one.decision, bound, keys.get(signature.key), one.at, signatures.verify)
    if wrong is not None:
        return wrong
    used = await consents.used_elsewhere(connection, bound.tenant, signature.key, signature.nonce, signature.value)
    return consents.USED if used else ""


def _carries(event: HistoryEvent, wanted: ApprovalDecision) -> bool:
    """Read as the run reads it: whatever else lies in the history, in whatever encoding, is no decision."""
    attributes = event.workflow_execution_signaled_event_attributes
    if attributes.signal_name != SIGNAL or len(attributes.input.payloads) != 1:
        return False
    try:
        return ApprovalDecision.read(attributes.input.payloads[0].data) == wanted
    except ValueError:
        return False
