"""Which key is whose, since when, and until when?

Keys are a tenant's. One is added and revoked by whoever may write to the database; both stand in the audit log.
"""

from collections.abc import Iterable

import asyncpg

from activities import audit
from activities.account_limits import OF_NO_RUN
from activities.postgres import Connection
from durable_agents.domain.identifiers import KeyId, TenantId
from durable_agents.domain.signatures import ApproverKey, key_id


async def add(connection: Connection, tenant: TenantId, approver: str, public: str, by: str) -> KeyId | None:
    """Register a public key (hex) of an approver; None: this key is registered already, perhaps as somebody else's."""
    key = key_id(public)
    added = await connection.fetchval(
        "insert into approver_key (tenant, key_id, approver, public_key, added_by) values ($1, $2, $3, $4, $5)"
        " on conflict do nothing returning 1",
        tenant, key, approver, public, by,
    )  # fmt: skip
    if not added:
        return None
    await audit.append(
        connection, tenant, OF_NO_RUN, "key_added", {"key": key, "approver": approver, "public_key": public, "by": by}
    )
    return key


async def revoke(connection: Connection, tenant: TenantId, key: KeyId, by: str) -> bool:
    """Nothing signed with it counts from now on, for ever. False: there is no such key, or it is revoked already."""
    approver = await connection.fetchval(
        "update approver_key set revoked_by = $3, revoked_at = now() where tenant = $1 and key_id = $2 and revoked_at is null"
        " returning approver",
        tenant, key, by,
    )  # fmt: skip
    if approver is None:
        return False
    await audit.append(connection, tenant, OF_NO_RUN, "key_revoked", {"key": key, "approver": approver, "by": by})
    return True


async def load(connection: Connection, tenant: TenantId, wanted: Iterable[KeyId]) -> dict[KeyId, ApproverKey]:
    """Those of these keys that are registered, revoked or not."""
    rows = await connection.fetch(
        "select * from approver_key where tenant = $1 and key_id = any($2)", tenant, sorted(set(wanted))
    )
    return {key.key: key for key in map(_key, rows)}


async def everyone(connection: Connection, tenant: TenantId) -> list[ApproverKey]:
    """All keys of a tenant, by approver and age."""
    rows = await connection.fetch("select * from approver_key where tenant = $1 order by approver, added_at", tenant)
    return [_key(row) for row in rows]


def _key(row: asyncpg.Record) -> ApproverKey:
    return ApproverKey(
        key=row["key_id"],
        approver=row["approver"],
        public=row["public_key"],
        added_by=row["added_by"],
        added_at=row["added_at"],
        revoked_by=row["revoked_by"],
        revoked_at=row["revoked_at"],
    )
