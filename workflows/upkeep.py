"""What must be looked after although no run asks for it?

Started by a schedule that every worker makes sure of, one at a time: the ledgers are gone over, the audit logs are anchored, and
people are told what they have not been told yet.
"""

from temporalio import workflow
from temporalio.exceptions import ActivityError

from durable_agents.activity_contracts import (
    AnchorReport,
    LedgerReport,
    UpkeepReport,
    UpkeepRound,
    anchor_audit,
    deliver_notifications,
    reconcile_ledgers,
)
from workflows import activity_options


@workflow.defn(name="Upkeep")
class Upkeep:
    """One round; what goes wrong in it is tried again until the next round is due."""

    @workflow.run
    async def run(self) -> UpkeepReport:
        """Tell people last, and whatever went wrong before: what was found is told in the same round."""
        this, ledgers, anchors = UpkeepRound(at=workflow.now()), LedgerReport(), AnchorReport()
        trouble: list[ActivityError] = []
        try:
            ledgers = await workflow.execute_activity(reconcile_ledgers, this, **activity_options.upkeep("ledgers"))
        except ActivityError as error:
            trouble.append(error)
        try:
            anchors = await workflow.execute_activity(anchor_audit, this, **activity_options.upkeep("anchors"))
        except ActivityError as error:
            trouble.append(error)
        told = await workflow.execute_activity(deliver_notifications, this, **activity_options.upkeep("notifications"))
        if trouble:
            raise trouble[0]
        return UpkeepReport(ledgers=ledgers, anchors=anchors, notifications=told)
