"""What must people be told, so that it is said once and never lost?

A notification is written in the transaction of what it is about, under an id that says what that is; delivering comes later.
"""

from dataclasses import dataclass

from activities.postgres import Connection, Database
from durable_agents.activity_contracts import Notice
from durable_agents.domain.accounts import Crossing
from durable_agents.domain.approvals import Consent
from durable_agents.domain.canonical import inert
from durable_agents.domain.identifiers import RunId, TenantId
from durable_agents.domain.prices import format_usd


async def write(connection: Connection, tenant: TenantId, identity: str, kind: str, title: str, body: str) -> None:
    """Write down what people must be told; the same id is told once."""
    await connection.execute(
        "insert into notification (tenant, id, kind, title, body) values ($1, $2, $3, $4, $5) on conflict do nothing",
        tenant, identity, kind, title, body,
    )  # fmt: skip


async def write_crossing(connection: Connection, tenant: TenantId, crossing: Crossing) -> None:
    """An account has reached so many percent of its limit: once for each account, period and percentage."""
    account, percent = crossing.account, crossing.percent
    limits = []
    if account.limit_micros is not None:
        limits.append(format_usd(account.limit_micros))
    if account.limit_tokens is not None:
        limits.append(f"{account.limit_tokens:,} tokens")
    title = f"{account.name} has reached {percent} % of its limit"
    drawn = f"{format_usd(account.drawn.micros)} and {account.drawn.tokens:,} tokens are drawn"
    body = f"The limit is {' and '.join(limits)}; {drawn} before the last step."
    name = account.name
    identity = f"budget {name.scope} {name.name} {name.period} {name.starts} {percent}"
    await write(connection, tenant, identity, "budget", title, body)


async def write_notice(connection: Connection, notice: Notice) -> None:
    """Somebody must decide: once for each request, rung and occasion."""
    words = {"asked": "Decide", "reminder": "Still to decide", "escalation": "Nobody decided, so you are asked"}
    body = (
        f"Asked: {notice.asked}, until {notice.deadline:%Y-%m-%d %H:%M} UTC. For {notice.requester}, in {notice.run_id}. "
        f"See `python -m starter pending {notice.run_id}`."
    )
    identity = f"approval {notice.run_id} {notice.approval_id} {notice.rung} {notice.occasion}"
    title = f"{words[notice.occasion]}: {notice.title}"
    await write(connection, notice.tenant, identity, "approval", title, body)


async def write_decided(connection: Connection, tenant: TenantId, run: RunId, title: str, consent: Consent) -> None:
    """It is decided: once for each request."""
    said = "Nobody decided in time" if consent.expired else f"{'Approved' if consent.approved else 'Denied'} by {consent.people}"
    body = f"{inert(consent.reason, 300)}\nIn {run}.".strip()
    await write(connection, tenant, f"approval {run} {consent.approval_id} decided", "approval", f"{said}: {title}", body)


@dataclass(frozen=True)
class Waiting:
    """A notification that nobody has got yet."""

    id: str
    title: str
    body: str


async def waiting(database: Database, tenant: TenantId) -> list[Waiting]:
    """What a tenant's people have not been told yet, oldest first, at most a hundred at once."""
    async with database.transaction(tenant) as connection:
        rows = await connection.fetch(
            "select id, title, body from notification where tenant = $1 and delivered_at is null order by created_at limit 100",
            tenant,
        )
    return [Waiting(row["id"], row["title"], row["body"]) for row in rows]


async def delivered(database: Database, tenant: TenantId, identity: str) -> None:
    """They have been told."""
    async with database.transaction(tenant) as connection:
        await connection.execute("update notification set delivered_at = now() where tenant = $1 and id = $2", tenant, identity)


async def failed(database: Database, tenant: TenantId, identity: str) -> None:
    """They could not be told; the next round tries again."""
    async with database.transaction(tenant) as connection:
        await connection.execute("update notification set tries = tries + 1 where tenant = $1 and id = $2", tenant, identity)
