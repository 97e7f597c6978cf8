"""Which answers may be given again, to whom, and for how long?

A tenant's own, under a digest of everything that matters, until they expire. Only answers without an effect come here.
"""

from datetime import timedelta

from pydantic import JsonValue

from activities.postgres import Connection
from durable_agents.domain.identifiers import Digest, TenantId

_SWEPT_AT_ONCE = 100
"""Expired rows that a write takes along, so that the table needs no caretaker."""


async def get(connection: Connection, tenant: TenantId, key: Digest) -> JsonValue:
    """The value under this key; None when there is none that is still good."""
    found: JsonValue = await connection.fetchval(
        "select value from cache_entry where tenant = $1 and key = $2 and expires_at > now()", tenant, key
    )
    return found


async def put(connection: Connection, tenant: TenantId, key: Digest, value: JsonValue, lifetime: timedelta) -> None:
    """Keep a value for so long; a newer one replaces an older."""
    await connection.execute(
        "insert into cache_entry (tenant, key, value, expires_at) values ($1, $2, $3, now() + $4)"
        " on conflict (tenant, key) do update set value = excluded.value, created_at = now(), expires_at = excluded.expires_at",
        tenant, key, value, lifetime,
    )  # fmt: skip
    await connection.execute(
        "delete from cache_entry where tenant = $1 and key in (select key from cache_entry where tenant = $1"
        " and expires_at <= now() limit $2 for update skip locked)",
        tenant, _SWEPT_AT_ONCE,
    )  # fmt: skip
