"""How is a decision kept that was taken, until its run has heard of it?

Whoever has the database writes a decision down before sending it. The run looks here when a deadline comes: a message that was
lost on its way has lost nothing. What is written down is judged like any message, by the database's clock.
"""

from datetime import datetime

from activities.postgres import Connection, Database
from durable_agents.activity_contracts import SentDecision
from durable_agents.domain.approvals import ApprovalDecision
from durable_agents.domain.canonical import digest
from durable_agents.domain.identifiers import ApprovalId, RunId, TenantId

MOST = 100
"""Decisions about one approval that are looked at; the oldest first."""


class SentDecisions:
    """Where a client keeps what it sends; give it to `AgentClient`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def keep(self, tenant: TenantId, run: RunId, decision: ApprovalDecision) -> bool:
        """Write it down, once. False: there is no such run."""
        async with self._database.transaction(tenant) as connection:
            return await keep(connection, tenant, run, decision)


async def keep(connection: Connection, tenant: TenantId, run: RunId, decision: ApprovalDecision) -> bool:
    """Write a decision down, once. False: there is no such run."""
    body = decision.model_dump(mode="json")
    await connection.execute(
        "insert into sent_decision (tenant, run_id, approval_id, digest, body) select tenant, run_id, $3, $4, $5 from run"
        " where tenant = $1 and run_id = $2 on conflict do nothing",
        tenant, run, decision.approval_id, digest(body), body,
    )  # fmt: skip
    return bool(await connection.fetchval("select 1 from run where tenant = $1 and run_id = $2", tenant, run))


async def sent(
    connection: Connection, tenant: TenantId, run: RunId, approval: ApprovalId, since: datetime, until: datetime
) -> tuple[SentDecision, ...]:
    """What was written down about an approval from `since` on and before `until`, oldest first."""
    rows = await connection.fetch(
        "select body, sent_at from sent_decision where tenant = $1 and run_id = $2 and approval_id = $3"
        " and sent_at >= $4 and sent_at < $5 order by sent_at, digest limit $6",
        tenant, run, approval, since, until, MOST,
    )  # fmt: skip
    return tuple(SentDecision(at=row["sent_at"], decision=ApprovalDecision.model_validate(row["body"])) for row in rows)
