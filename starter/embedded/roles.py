"""Which roles and which database does this system need in PostgreSQL, and what may each of them do?

- `durable_agents_owner` owns the database `durable_agents` and everything in it; migrations run as this role.
- `durable_agents_app` is what workers connect as: it owns nothing, so row security holds for it.
- `durable_agents_auditor` reads the audit trail, and owns nothing either.

None of them is a superuser or passes row security by. The embedded server calls `ensure_roles` at every start; an init job in
production may call it with whatever administrator it has, superuser or not (it needs CREATEROLE and CREATEDB).
"""

from __future__ import annotations  # asyncpg's Connection takes its type parameter in the stubs only

from dataclasses import dataclass, field

import asyncpg

DATABASE = "durable_agents"
OWNER_ROLE = "durable_agents_owner"
APP_ROLE = "durable_agents_app"
AUDITOR_ROLE = "durable_agents_auditor"
MINIMUM_MAJOR = 15  # since 15 the schema `public` belongs to the database's owner, and nobody else may create in it

_LOCK = 0x6475726162  # "durab": two init jobs at once take turns

_TOO_MUCH = """
select rolname from pg_roles
where rolname = any($1) and (rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolreplication)
"""
_OWNERS_BY_MEMBERSHIP = """
select rolname from pg_roles
where rolname = any($1) and pg_has_role(oid, (select oid from pg_roles where rolname = $2), 'member')
"""


@dataclass(frozen=True)
class RolePasswords:
    """One password for each role; never shown when printed."""

    owner: str = field(repr=False)
    app: str = field(repr=False)
    auditor: str = field(repr=False)


async def ensure_roles(connection: asyncpg.Connection[asyncpg.Record], passwords: RolePasswords) -> None:
    """Creates what is missing and corrects what differs; calling it again changes nothing.

    Args:
        connection: an administrator's, to any database of the server; not inside a transaction (CREATE DATABASE forbids it).
        passwords: set at each call, so a new password takes effect.

    Raises:
        RuntimeError: the server is older than PostgreSQL 15.
        asyncpg.PostgresError: the administrator may not do what is needed.
    """
    if connection.get_server_version().major < MINIMUM_MAJOR:
        raise RuntimeError(f"PostgreSQL is older than {MINIMUM_MAJOR}: use a newer server")
    await connection.execute("select pg_advisory_lock($1)", _LOCK)
    try:
        await _ensure_logins(connection, passwords)
        await _ensure_harmless(connection)
        await _ensure_database(connection)
    finally:
        await connection.execute("select pg_advisory_unlock($1)", _LOCK)


async def _ensure_logins(connection: asyncpg.Connection[asyncpg.Record], passwords: RolePasswords) -> None:
    pairs = ((OWNER_ROLE, passwords.owner), (APP_ROLE, passwords.app), (AUDITOR_ROLE, passwords.auditor))
    for role, password in pairs:
        if not await connection.fetchval("select true from pg_roles where rolname = $1", role):
            await connection.execute(f"create role {role}")
        # A utility statement takes no parameters; the server itself quotes the value.
        quoted = await connection.fetchval("select quote_literal($1)", password)
        await connection.execute(f"alter role {role} login password {quoted}")


async def _ensure_harmless(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Takes back what somebody gave by hand.

    Harmless roles get no statement at all: an administrator who is no superuser may not even say `nosuperuser`.
    """
    for record in await connection.fetch(_TOO_MUCH, [OWNER_ROLE, APP_ROLE, AUDITOR_ROLE]):
        await connection.execute(f"alter role {record['rolname']} nosuperuser nobypassrls nocreaterole nocreatedb noreplication")
    for record in await connection.fetch(_OWNERS_BY_MEMBERSHIP, [APP_ROLE, AUDITOR_ROLE], OWNER_ROLE):
        await connection.execute(f"revoke {OWNER_ROLE} from {record['rolname']}")


async def _ensure_database(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    if not await connection.fetchval("select rolsuper from pg_roles where rolname = current_user"):
        await connection.execute(f"grant {OWNER_ROLE} to current_user")  # to hand the database over to the owner
    owner = await connection.fetchval("select pg_get_userbyid(datdba) from pg_database where datname = $1", DATABASE)
    if owner is None:
        await connection.execute(f"create database {DATABASE} owner {OWNER_ROLE}")
    elif owner != OWNER_ROLE:
        await connection.execute(f"alter database {DATABASE} owner to {OWNER_ROLE}")
    await connection.execute(f"revoke all on database {DATABASE} from public")
    await connection.execute(f"grant connect on database {DATABASE} to {APP_ROLE}, {AUDITOR_ROLE}")
