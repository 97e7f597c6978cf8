"""Does a tenant see and change its own rows alone, whatever a query forgets or a value claims?"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg
import pytest

from activities.postgres import Database
from durable_agents.domain.identifiers import TenantId
from tests.support.world import TestDatabase

if TYPE_CHECKING:
    Own = asyncpg.Connection[asyncpg.Record]
else:
    Own = asyncpg.Connection

FORGETFUL = ("cache_entry", "account_limit")  # what may be deleted: nobody's record of anything
APPEND_ONLY = (
    "agent_version",
    "artifact",
    "audit_entry",
    "known_tenant",
    "ledger_entry",
    "message",
    "model_call",
    "policy_decision",
    "policy_version",
)
SEED = {
    "run": "('{t}', 'r', 'x', 'd', 'a', 'v', 'u', '{{}}')",
    "agent_version": "('{t}', 'v', '{{}}')",
    "artifact": "('{t}', 'd', 'secret of {t}')",
    "message": "('{t}', 'r', 0, 0, 'd', 1, '{{}}')",
    "model_call": "('{t}', 'r', 1, 1, 0, '{{}}')",
    "model_attempt": "('{t}', 'r', 1, 1, 1, 'p', 'm', 'dispatched', 5)",
    "tool_dispatch": "('{t}', 'r', 1, 0, 'key', 'tool', 'read', 'd', 'dispatched', 1, 1)",
    "approval": "('{t}', 'r', 'ap', 1, 0, 'k', 'tool', 'd', 'p', '{{}}')",
    "audit_head": "('{t}', 0, repeat('0', 64))",
    "provider_limit": "('{t}', 'p', 'm')",
    "provider_gate": "('{t}', 'p', 'm', 'key')",
    "cache_entry": "('{t}', 'k', '{{}}', now(), now())",
    "account_limit": "('{t}', 'user', 'u', 'day', 1, 1, 'ann')",
    "account": "('{t}', 'user', 'u', 'day', '2026-01-01')",
    "envelope": "('{t}', 'r', '2026-01-01', 'u', 'a')",
    "ledger_entry": "('{t}', 'r', '2026-01-01', 'draw', '1.1', 'accounts', 'rest', 1, 1)",
    "known_tenant": "('{t}', 'n')",
    "policy_version": "('{t}', 'a', 1, '{{}}', 'd', 'ann', 'why')",
    "policy_in_force": "('{t}', 'a', 1)",
    "policy_decision": "('{t}', 'r', 1, 0, 0, 'a', 'u', 'tool', 'allow', 0, 'why', 'd', '{{}}')",
    "approver_key": "('{t}', 'k', 'ann', repeat('a', 64), 'admin')",
    "sent_decision": "('{t}', 'r', 'ap', 'd', '{{}}')",
    "used_nonce": "('{t}', 'k', 'n', 'r', 'ap', 's')",
    "notification": "('{t}', 'id', 'k', 'title', 'body')",
    "audit_entry": "('{t}', 1, repeat('0', 64), 'h', 1, 'r', 'e', '{{}}')",
}
UNPROTECTED = """
select c.relname from pg_class c
where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'm', 'v', 'f') and c.relname <> 'schema_migration'
and not (
    c.relkind = 'r' and c.relrowsecurity and c.relforcerowsecurity
    and (select count(*) = 1 and bool_and(
            p.polpermissive and p.polcmd = '*' and p.polroles = array[0::oid]
            and pg_get_expr(p.polqual, c.oid) = $1 and pg_get_expr(p.polwithcheck, c.oid) = $1)
         from pg_policy p where p.polrelid = c.oid)
    and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant' and a.attnotnull)
    and (select i.indkey[0] from pg_index i where i.indrelid = c.oid and i.indisprimary)
        = (select a.attnum from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant')
)
"""
TENANT_ONLY = "(tenant = current_setting('app.tenant'::text, true))"


@asynccontextmanager
async def connected(url: str, tenant: str | None = None) -> AsyncIterator[Own]:
    """A connection of a role, with a tenant for its whole life."""
    connection = await asyncpg.connect(url)
    try:
        if tenant is not None:
            await connection.execute("select set_config('app.tenant', $1, false)", tenant)
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def seeded(database: TestDatabase) -> TestDatabase:
    """A row of each of two tenants in every table."""
    async with connected(database.admin) as admin:
        for tenant in ("acme", "rival"):
            for table, values in SEED.items():
                columns = (
                    ""
                    if table != "run"
                    else "(tenant, run_id, first_execution, request_digest, agent, agent_version, user_id, terms)"
                )
                await admin.execute(f"insert into {table} {columns} values {values.format(t=tenant)}")
    return database


async def count(connection: Own, table: str, tenant: str | None = None) -> int:
    """How many rows of a table, or of one tenant's, a connection sees."""
    where = "" if tenant is None else " where tenant = $1"
    found: int = await connection.fetchval(f"select count(*) from {table}{where}", *([] if tenant is None else [tenant]))
    return found


async def test_every_table_is_bound_to_its_tenant(database: TestDatabase) -> None:
    """A table somebody adds later without row-level security is a leak that no query shows."""
    async with connected(database.owner) as owner:
        assert await owner.fetch(UNPROTECTED, TENANT_ONLY) == []
        await owner.execute("create table forgotten (tenant text not null primary key)")
        await owner.execute("create table enabled_only (tenant text not null primary key)")
        await owner.execute("alter table enabled_only enable row level security")
        await owner.execute(f"create policy p on enabled_only using {TENANT_ONLY} with check {TENANT_ONLY}")
        await owner.execute("create table reading_only (tenant text not null primary key)")
        await owner.execute("alter table reading_only enable row level security, force row level security")
        await owner.execute(f"create policy p on reading_only for select using {TENANT_ONLY}")
        await owner.execute("create policy also on artifact using (true)")
        found = {row["relname"] for row in await owner.fetch(UNPROTECTED, TENANT_ONLY)}
    assert found == {"forgotten", "enabled_only", "reading_only", "artifact"}


async def test_the_seed_knows_every_table(database: TestDatabase) -> None:
    """The tests below go through all of them; a new table must not be left out."""
    async with connected(database.admin) as admin:
        tables = await admin.fetch("select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'")
    assert {row["relname"] for row in tables} == {*SEED, "schema_migration"}


async def test_a_tenant_sees_its_own_rows_alone(seeded: TestDatabase) -> None:
    """Also where the query forgets the tenant, and where it names another one."""
    async with connected(seeded.app, "acme") as app, connected(seeded.auditor, "acme") as auditor:
        for table in SEED:
            for connection in (app, auditor):
                assert await count(connection, table) == 1, table
                assert await count(connection, table, "rival") == 0, table


async def test_without_the_right_tenant_there_is_nothing(seeded: TestDatabase) -> None:
    """A transaction that forgot to say whose it is must find nothing, and a forged name is only a name."""
    for tenant in (None, "", "nobody", "acme' or 'a'='a", "%", "*", "acme,rival", "ACME", "acme "):
        async with connected(seeded.app, tenant) as app, connected(seeded.owner, tenant) as owner:
            for table in SEED:
                assert await count(app, table) == 0, (table, tenant)
                assert await count(owner, table) == 0, f"{table} does not bind its owner"
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
                await app.execute("insert into artifact values ('acme', 'new', 'x')")


async def test_no_row_is_written_for_another_tenant(seeded: TestDatabase) -> None:
    """By no table, no parameter and no text that tries to be more than a text."""
    async with connected(seeded.app, "acme") as app:
        for table, values in SEED.items():
            columns = (
                "(tenant, run_id, first_execution, request_digest, agent, agent_version, user_id, terms)"
                if table == "run"
                else ""
            )
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
                await app.execute(f"insert into {table} {columns} values {values.format(t='third')}")
        for forged in ("rival", "rival'); select set_config('app.tenant', 'rival', false); --", "'||'rival"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
                await app.execute("insert into artifact values ($1, 'new', 'x')", forged)
        assert await app.execute("update run set status = 'failed' where tenant = $1", "rival") == "UPDATE 0"
        assert await app.execute("update run set status = 'failed'") == "UPDATE 1"
    async with connected(seeded.admin) as admin:
        assert await admin.fetchval("select status from run where tenant = 'rival'") == "running"


async def test_what_is_written_stays_written(seeded: TestDatabase) -> None:
    """A log that its writer may change proves nothing; only what has to change may."""
    async with connected(seeded.app, "acme") as app:
        for table in SEED:
            forgotten = [] if table in FORGETFUL else [f"delete from {table}"]
            for command in (*forgotten, f"truncate {table}", f"update {table} set tenant = 'rival'"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await app.execute(command)
        for table in APPEND_ONLY:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await app.execute(
                    f"update {table} set created_at = now()" if table != "audit_entry" else "update audit_entry set event = ''"
                )
        for table, column in (("run", "terms"), ("run", "user_id"), ("approval", "digest"), ("approval", "request"),
                              ("tool_dispatch", "effect_key"), ("tool_dispatch", "arguments_digest"),
                              ("model_attempt", "hold_micros")):  # fmt: skip
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await app.execute(f"update {table} set {column} = {column}")


FREEING = (
    "alter table run disable row level security",
    "alter table run no force row level security",
    "drop policy tenant_only on run",
    "create policy everybody on run using (true)",
    "alter table run owner to current_user",
    "set role durable_agents_owner",
    "set role postgres",
    "set session authorization durable_agents_owner",
    "create table mine (tenant text)",
    "create function f() returns int language sql security definer as 'select 1'",
    "alter role durable_agents_app bypassrls",
    "update schema_migration set sha256 = ''",
)


async def test_neither_role_can_free_itself(database: TestDatabase) -> None:
    """Whoever gets hold of a worker's connection gets its tenant's rows and nothing beyond."""
    for url in (database.app, database.auditor):
        async with connected(url) as connection:
            for command in FREEING:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(command)


async def test_switching_row_security_off_ends_in_an_error_not_in_all_rows(seeded: TestDatabase) -> None:
    """`row_security = off` means: fail rather than filter. It must not mean: show everything."""
    async with connected(seeded.app, "acme") as app:
        await app.execute("set row_security = off")
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await count(app, "artifact")


async def test_an_auditor_reads_and_writes_nothing(seeded: TestDatabase) -> None:
    """Who checks the books must not be able to write them."""
    async with connected(seeded.auditor, "acme") as auditor:
        for table, values in SEED.items():
            if table != "run":
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await auditor.execute(f"insert into {table} values {values.format(t='acme')}")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await auditor.execute(f"delete from {table}")


async def test_a_tenant_ends_with_its_transaction(seeded: TestDatabase) -> None:
    """Connections are shared; the next transaction on one must not inherit the last one's tenant, also after an error."""
    opened = await Database.open(seeded.app, max_size=1)
    try:
        async with opened.transaction(TenantId("acme")) as connection:
            assert await connection.fetchval("select body from artifact") == "secret of acme"
        async with opened.transaction(TenantId("rival")) as connection:
            assert await connection.fetchval("select body from artifact") == "secret of rival"
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with opened.transaction(TenantId("acme")) as connection:
                await connection.execute("select 1/0")
        async with opened._pool.acquire() as connection:
            assert await connection.fetchval("select count(*) from artifact") == 0
    finally:
        await opened.close()
