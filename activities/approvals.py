"""When did a decision reach the server, if no worker was there to see it?

A decision is honoured when it arrived before the deadline, by the server's clock, even if every worker was down until after it.
The workflow cannot know that: it only sees that both the deadline and the decision lie behind it. The history can.
"""

from datetime import UTC

from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client

from durable_agents.activity_contracts import Arrival, ArrivalQuestion
from durable_agents.domain.approvals import ApprovalDecision

SIGNAL = "submit_approval"


class ApprovalActivities:
    """`find_arrival`."""

    def __init__(self, temporal: Client) -> None:
        self._temporal = temporal

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


def _carries(event: HistoryEvent, wanted: ApprovalDecision) -> bool:
    """Read as the run reads it: whatever else lies in the history, in whatever encoding, is no decision."""
    attributes = event.workflow_execution_signaled_event_attributes
    if attributes.signal_name != SIGNAL or len(attributes.input.payloads) != 1:
        return False
    try:
        return ApprovalDecision.read(attributes.input.payloads[0].data) == wanted
    except ValueError:
        return False
