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
from durable_agents.data_converter import DATA_CONVERTER
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
            if arrived < question.deadline and await _carries(event, question.decision):
                return Arrival(at=arrived)
        return Arrival(at=None)


async def _carries(event: HistoryEvent, wanted: ApprovalDecision) -> bool:
    attributes = event.workflow_execution_signaled_event_attributes
    if attributes.signal_name != SIGNAL:
        return False
    try:
        (decision,) = await DATA_CONVERTER.decode(attributes.input.payloads, [ApprovalDecision])
    except (ValueError, RuntimeError):  # a malformed signal is no decision
        return False
    return bool(decision == wanted)
