"""What do operators see of the providers' gates, and what can they say to all workers at once?

Each function belongs into a transaction of the system tenant, and holds from its commit on.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from activities.postgres import Connection
from activities.provider_gates import MEMORY, RATE, SEEN, Sight, change, sight_of
from durable_agents.domain import provider_gates
from durable_agents.domain.provider_gates import SYSTEM_TENANT, Gate, GateId

_KNOWN = f"""
select provider, model, turned_away_at, {SEEN}, {RATE.format(memory="$2")}
from provider_gate full join provider_limit using (tenant, provider, model) where tenant = $1 order by provider, model, key
"""  # noqa: S608 - names of our own columns


@dataclass(frozen=True)
class KnownGate:
    """A gate, or limits of a model that nobody has asked yet: then `key` is empty."""

    id: GateId
    sight: Sight
    turned_away_at: datetime | None


async def known(connection: Connection) -> list[KnownGate]:
    """Every gate and limit."""
    rows = await connection.fetch(_KNOWN, SYSTEM_TENANT, MEMORY.total_seconds())
    return [
        KnownGate(GateId(row["provider"], row["model"], row["key"] or ""), sight_of(row), row["turned_away_at"]) for row in rows
    ]


async def set_limits(connection: Connection, provider: str, model: str, requests: int | None, tokens: int | None) -> None:
    """Set limits a minute of a model, for each key; None leaves one as it is."""
    await connection.execute(
        "insert into provider_limit as old (tenant, provider, model, requests_per_minute, tokens_per_minute)"
        " values ($1, $2, $3, $4, $5) on conflict (tenant, provider, model) do update set changed_at = now(),"
        " requests_per_minute = coalesce(excluded.requests_per_minute, old.requests_per_minute),"
        " tokens_per_minute = coalesce(excluded.tokens_per_minute, old.tokens_per_minute)",
        SYSTEM_TENANT, provider, model, requests, tokens,
    )  # fmt: skip


async def clear_limits(connection: Connection, provider: str, model: str) -> bool:
    """Remove the limits of a model; False when it had none."""
    removed = await connection.fetchval(
        "update provider_limit set requests_per_minute = null, tokens_per_minute = null, changed_at = now()"
        " where tenant = $1 and provider = $2 and model = $3"
        " and (requests_per_minute is not null or tokens_per_minute is not null) returning 1",
        SYSTEM_TENANT, provider, model,
    )  # fmt: skip
    return removed is not None


async def force(connection: Connection, provider: str, model: str, *, is_open: bool) -> None:
    """Let nothing through to a model, or let requests through again and forget what was held against it, for every key."""
    await connection.execute(
        "insert into provider_limit (tenant, provider, model, forced_open) values ($1, $2, $3, $4)"
        " on conflict (tenant, provider, model) do update set forced_open = excluded.forced_open, changed_at = now()",
        SYSTEM_TENANT, provider, model, is_open,
    )  # fmt: skip
    if not is_open:
        keys = "select key from provider_gate where tenant = $1 and provider = $2 and model = $3"
        for row in await connection.fetch(keys, SYSTEM_TENANT, provider, model):
            await change(connection, GateId(provider, model, row["key"]), _forgiven)


def _forgiven(sight: Sight) -> Gate:
    return replace(provider_gates.closed(sight.gate, sight.now), paused_until=None)
