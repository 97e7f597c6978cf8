"""What must be looked after although no run asks for it?

Started by a schedule that every worker makes sure of, one at a time: the ledgers are gone over, the audit logs are anchored, and
people are told what they have not been told yet.
"""

from temporalio import workflow

from durable_agents.activity_contracts import UpkeepReport, UpkeepRound, anchor_audit, deliver_notifications, reconcile_ledgers
from workflows import activity_options


@workflow.defn(name="Upkeep")
class Upkeep:
    """One round; what goes wrong in it is tried again until the next round is due."""

    @workflow.run
    async def run(self) -> UpkeepReport:
        """Tell people last: what was found is told in the same round."""
        this = UpkeepRound(at=workflow.now())
        found = await workflow.execute_activity(reconcile_ledgers, this, **activity_options.upkeep("ledgers"))
        anchored = await workflow.execute_activity(anchor_audit, this, **activity_options.upkeep("anchors"))
        told = await workflow.execute_activity(deliver_notifications, this, **activity_options.upkeep("notifications"))
        return UpkeepReport(ledgers=found, anchors=anchored, notifications=told)
