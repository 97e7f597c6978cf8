"""Which rounds are made over all tenants, whether or not anything runs?"""

from datetime import date
from pathlib import Path

import asyncpg
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities import account_limits, audit_anchors, notifications, reconciliation
from activities.audit_anchors import AnchorFileBusyError, AnchorFileError
from activities.heartbeat import heartbeating
from activities.notifiers import NotDelivered, Notifier
from activities.postgres import Database
from activities.storage_errors import storage_errors
from durable_agents.activity_contracts import AnchorReport, LedgerReport, NotificationReport, UpkeepRound
from durable_agents.domain.identifiers import TenantId
from durable_agents.domain.prices import format_usd
from durable_agents.domain.provider_gates import SYSTEM_TENANT

NOT_DELIVERED = "not_delivered"
NOT_RECONCILED = "not_reconciled"


class UpkeepActivities:
    """`reconcile_ledgers`, `anchor_audit` and `deliver_notifications`."""

    def __init__(self, database: Database, notifier: Notifier, anchors: Path | None = None) -> None:
        self._database = database
        self._notifier = notifier
        self._anchors = anchors

    @activity.defn
    async def reconcile_ledgers(self, round_: UpkeepRound) -> LedgerReport:
        """Flag requests whose worker is gone, return what lies idle, hold counters against entries; tell people what is wrong."""
        total, failed = reconciliation.Reconciled(), ""
        async with heartbeating():
            with storage_errors():
                tenants = await account_limits.known_tenants(self._database)
            for tenant in tenants:
                try:
                    found = await reconciliation.reconcile_tenant(self._database, tenant)
                    await self._tell(tenant, found, round_.at.date())
                except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                    failed = f"tenant {tenant}: {str(error).partition(chr(10))[0] or type(error).__name__}"  # the others are not
                else:
                    total = total.plus(found)
        if failed:
            raise ApplicationError(f"some ledgers were not gone over: {failed}", type=NOT_RECONCILED)
        return LedgerReport(
            flagged=total.flagged,
            returned_micros=total.returned_micros,
            unknown=total.unknown,
            unknown_micros=total.unknown_micros,
            differences=len(total.differences),
        )

    @activity.defn
    async def anchor_audit(self, round_: UpkeepRound) -> AnchorReport:
        """Append the heads of the audit logs to the file outside the database, if there is one; tell people what is wrong."""
        if self._anchors is None:
            return AnchorReport()
        today = round_.at.date()
        async with heartbeating():
            with storage_errors():
                try:
                    done = await audit_anchors.append_heads(self._database, self._anchors)
                except AnchorFileBusyError:  # somebody anchors by command
                    return AnchorReport()
                except AnchorFileError as error:  # nothing a retry would mend within the round, and people must hear of it
                    await self._alarm(SYSTEM_TENANT, f"anchors {today}", "the audit logs are not anchored", str(error))
                    return AnchorReport()
                for problem in done.problems:
                    title = f"tenant {problem.tenant}: the audit log was changed"
                    line = f"Entry {problem.sequence}: {problem.why}. See `starter audit verify`."
                    await self._alarm(SYSTEM_TENANT, f"audit {today} {problem.tenant} {problem.sequence}", title, line)
        return AnchorReport(anchored=len(done.appended), broken=len({problem.tenant for problem in done.problems}))

    @activity.defn
    async def deliver_notifications(self, round_: UpkeepRound) -> NotificationReport:
        """Tell people what they have not been told yet."""
        del round_
        delivered, failed = 0, ""
        async with heartbeating():
            with storage_errors():
                for tenant in (SYSTEM_TENANT, *await account_limits.known_tenants(self._database)):
                    for waiting in await notifications.waiting(self._database, tenant):
                        try:
                            await self._notifier.tell(waiting.title, waiting.body)
                        except NotDelivered as error:
                            failed = str(error)
                            await notifications.failed(self._database, tenant, waiting.id)
                        else:
                            delivered += 1
                            await notifications.delivered(self._database, tenant, waiting.id)
        if failed:  # what was delivered is, and is not told again
            raise ApplicationError(f"some were not delivered: {failed}", type=NOT_DELIVERED)
        return NotificationReport(delivered=delivered)

    async def _alarm(self, tenant: TenantId, key: str, title: str, body: str) -> None:
        async with self._database.transaction(tenant) as connection:
            await notifications.write(connection, tenant, key, "audit", title, body)

    async def _tell(self, tenant: TenantId, found: reconciliation.Reconciled, today: date) -> None:
        if not found.flagged and not found.differences:
            return
        async with self._database.transaction(tenant) as connection:
            if found.flagged:
                title = (
                    f"tenant {tenant}: {found.unknown} requests may have been billed, up to {format_usd(found.unknown_micros)}"
                )
                body = "Their workers are gone. See `starter ledger unknown`, and settle them by the provider's bill."
                await notifications.write(connection, tenant, f"unknown {found.unknown} {today}", "unknown", title, body)
            for line in found.differences:
                title = f"tenant {tenant}: the ledger does not add up"
                await notifications.write(connection, tenant, f"difference {today} {line}", "difference", title, line)
