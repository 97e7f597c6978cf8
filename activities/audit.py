"""Who did what, and can anybody have changed the record since?

One hash chain per tenant. The head row is locked for each append: reading the newest entry instead would let two appends
follow the same predecessor. Timestamps are integers, because a rounded one would not verify.
"""

import time

from pydantic import JsonValue

from activities.postgres import Connection
from durable_agents.domain.canonical import digest
from durable_agents.domain.identifiers import Digest, RunId, TenantId

GENESIS = Digest("0" * 64)


def entry_hash(
    *, tenant: str, sequence: int, previous: str, at_micros: int, run: str, event: str, body: dict[str, JsonValue]
) -> Digest:
    """The hash of an entry: it covers everything the entry says and its predecessor's hash."""
    return digest(
        {
            "domain": "durable-agents/audit/1",
            "tenant": tenant,
            "sequence": sequence,
            "previous": previous,
            "at_micros": at_micros,
            "run": run,
            "event": event,
            "body": body,
        }
    )


async def append(connection: Connection, tenant: TenantId, run: RunId, event: str, body: dict[str, JsonValue]) -> None:
    """Append one entry, in the transaction of what it records. Call it last: it locks the tenant's chain until commit."""
    await connection.execute("insert into audit_head values ($1, 0, $2) on conflict do nothing", tenant, GENESIS)
    head = await connection.fetchrow("select sequence, hash from audit_head where tenant = $1 for update", tenant)
    assert head is not None
    sequence, previous, now = head["sequence"] + 1, head["hash"], time.time_ns() // 1000
    hashed = entry_hash(tenant=tenant, sequence=sequence, previous=previous, at_micros=now, run=run, event=event, body=body)
    await connection.execute(
        "insert into audit_entry values ($1, $2, $3, $4, $5, $6, $7, $8)",
        tenant, sequence, previous, hashed, now, run, event, body,
    )  # fmt: skip
    await connection.execute("update audit_head set sequence = $2, hash = $3 where tenant = $1", tenant, sequence, hashed)


async def verify(connection: Connection, tenant: TenantId) -> str | None:
    """Check a tenant's whole chain, its tail against the head row included. What is wrong with it, or None."""
    previous, sequence = GENESIS, 0
    async for row in connection.cursor("select * from audit_entry where tenant = $1 order by sequence", tenant):
        sequence += 1
        hashed = entry_hash(
            tenant=tenant, sequence=sequence, previous=previous, at_micros=row["at_micros"],
            run=row["run_id"], event=row["event"], body=row["body"],
        )  # fmt: skip
        if (row["sequence"], row["previous"], row["hash"]) != (sequence, previous, hashed):
            return f"entry {row['sequence']} does not follow from its predecessor"
        previous = hashed
    head = await connection.fetchrow("select sequence, hash from audit_head where tenant = $1", tenant)
    if head is None:
        return f"the log has {sequence} entries, but its head is gone" if sequence else None
    if (head["sequence"], head["hash"]) != (sequence, previous):
        return f"the log ends at entry {sequence} ({previous[:12]}), its head says {head['sequence']} ({head['hash'][:12]})"
    return None
