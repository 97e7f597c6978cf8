"""What must people be told, so that it is said once and never lost?

A notification is written in the transaction of what it is about, under an id that says what that is; delivering comes later.
"""

from activities.postgres import Connection
from durable_agents.domain.accounts import Crossing
from durable_agents.domain.identifiers import TenantId
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
