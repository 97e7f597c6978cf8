"""How do activities reach PostgreSQL, and what does every connection promise?

The one module that opens a pool. Each transaction carries its tenant, so row-level security sees to it that a query which
forgets the tenant finds nothing. Text passes `canonical.escape_text` before it comes here.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from durable_agents.domain.identifiers import TenantId

if TYPE_CHECKING:
    Connection = PoolConnectionProxy[asyncpg.Record]
    OwnConnection = asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
else:  # the generic forms exist for type checkers only
    Connection = PoolConnectionProxy
    OwnConnection = asyncpg.Connection
    Pool = asyncpg.Pool

MIGRATIONS = Path(__file__).parent / "sql"
_MIGRATION_LOCK = 0x64757261626C65  # any fixed number; all migrating processes take the same
_STATEMENT_TIMEOUT = "15s"
_LOCK_TIMEOUT = "5s"


class DatabaseError(Exception):
    """The database cannot be used. `str()` is one line: cause and remedy."""


class Database:
    """A pool of connections of the application role."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, dsn: str, *, max_size: int = 20) -> "Database":
        """Open the pool and check the promises: right schema, and a role that row-level security binds.

        Raises:
            DatabaseError: not reachable, wrong role, or a schema that this code does not fit.
        """
        try:
            pool = await asyncpg.create_pool(
                dsn,
                min_size=1,
                max_size=max_size,
                init=_prepare,
                reset=_nothing_to_reset,
                timeout=5,
                command_timeout=30,
                server_settings={"statement_timeout": _STATEMENT_TIMEOUT, "lock_timeout": _LOCK_TIMEOUT},
            )
        except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise DatabaseError(f"PostgreSQL does not let us in: check DATABASE_URL ({_line(error)})") from error
        try:
            async with pool.acquire() as connection:
                await _require_bound_role(connection)
                await _require_schema(connection)
        except BaseException:
            await pool.close()
            raise
        return cls(pool)

    @asynccontextmanager
    async def transaction(self, tenant: TenantId, *, snapshot: bool = False) -> AsyncIterator[Connection]:
        """A transaction that sees and writes one tenant's rows; as a snapshot all of its statements see the same moment."""
        isolation: Literal["repeatable_read"] | None = "repeatable_read" if snapshot else None
        async with self._pool.acquire() as connection, connection.transaction(isolation=isolation):
            await connection.execute("select set_config('app.tenant', $1, true)", tenant)
            yield connection

    async def close(self) -> None:
        """Close every connection; waits for the ones in use for at most 10 s."""
        try:
            async with asyncio.timeout(10):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()


@asynccontextmanager
async def as_tenant(connection: Connection, tenant: TenantId, back: TenantId) -> AsyncIterator[None]:
    """A part of `back`'s transaction that sees and writes another tenant's rows. After an error the transaction is over."""
    await connection.execute("select set_config('app.tenant', $1, true)", tenant)
    yield
    await connection.execute("select set_config('app.tenant', $1, true)", back)


async def migrate(owner_dsn: str, folder: Path = MIGRATIONS) -> list[str]:
    """Bring the schema up to date; run it as the owner role. Returns the names of the files it applied.

    Forward only, one transaction each, under an advisory lock, so any number of processes may try at once.

    Raises:
        DatabaseError: not reachable, the wrong role, a database newer than this code, an applied file that was changed since,
            or a file that fails; nothing of that file is left then.
    """
    try:
        connection = await asyncpg.connect(owner_dsn, timeout=5)
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise DatabaseError(f"PostgreSQL does not let the owner in: check the owner's URL ({_line(error)})") from error
    try:
        await connection.execute("select pg_advisory_lock($1)", _MIGRATION_LOCK)
        return await _apply_missing(connection, folder)
    except asyncpg.InsufficientPrivilegeError as error:
        raise DatabaseError(f"this role may not change the schema ({_line(error)}): run migrations as the owner role") from error
    finally:
        await connection.close()


async def _apply_missing(connection: OwnConnection, folder: Path) -> list[str]:
    await connection.execute(
        "create table if not exists schema_migration (version integer primary key, name text not null,"
        " sha256 text not null, applied_at timestamptz not null default now())"
    )
    applied = {row["version"]: row["sha256"] for row in await connection.fetch("select version, sha256 from schema_migration")}
    files = _migrations(folder)
    _require_not_newer(set(applied), set(files))
    done = []
    for version, file in files.items():
        text = file.read_text(encoding="utf8")
        checksum = hashlib.sha256(text.encode()).hexdigest()
        if version not in applied:
            await _apply(connection, version, file.name, text, checksum)
            done.append(file.name)
        elif applied[version] != checksum:
            raise DatabaseError(f"{file.name} was changed after it was applied here: add a new migration instead")
    return done


async def _apply(connection: OwnConnection, version: int, name: str, text: str, checksum: str) -> None:
    try:
        async with connection.transaction():
            await connection.execute(text)
            await connection.execute("insert into schema_migration values ($1, $2, $3)", version, name, checksum)
    except asyncpg.InsufficientPrivilegeError:
        raise
    except asyncpg.PostgresError as error:
        raise DatabaseError(f"{name} cannot be applied: {_line(error)}") from error


def _migrations(folder: Path) -> dict[int, Path]:
    return {int(file.name[:4]): file for file in sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.sql"))}


def _require_not_newer(applied: set[int], known: set[int]) -> None:
    if unknown := applied - known:
        raise DatabaseError(f"the database is newer than this code (migration {max(unknown)}): run a newer release")


async def _require_schema(connection: Connection) -> None:
    try:
        applied = {row["version"] for row in await connection.fetch("select version from schema_migration")}
    except asyncpg.UndefinedTableError:
        applied = set()
    except asyncpg.InsufficientPrivilegeError as error:
        raise DatabaseError("the database's role may not read the schema version: use the durable_agents_app role") from error
    known = set(_migrations(MIGRATIONS))
    _require_not_newer(applied, known)
    if missing := known - applied:
        raise DatabaseError(f"the database lacks migration {min(missing)}: run `python -m starter migrate` as its owner")


async def _require_bound_role(connection: Connection) -> None:
    """Row-level security binds neither superusers nor BYPASSRLS roles; an owner could switch it off. Nor may it become one."""
    row = await connection.fetchrow(
        "select r.rolname, exists (select 1 from pg_roles s where (s.rolsuper or s.rolbypassrls)"
        "                          and pg_has_role(r.rolname, s.oid, 'member')) as unbound,"
        " exists (select 1 from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'"
        "         and pg_has_role(r.rolname, c.relowner, 'member')) as owner"
        " from pg_roles r where r.rolname = current_user"
    )
    assert row is not None
    if row["unbound"] or row["owner"]:
        what = "is a superuser or bypasses row-level security" if row["unbound"] else "is the owner of the tables"
        remedy = "give workers the durable_agents_app role in DATABASE_URL"
        raise DatabaseError(f"role {row['rolname']} {what}, or may become one: {remedy}")


async def _prepare(connection: OwnConnection) -> None:
    await connection.set_type_codec("jsonb", encoder=_dump, decoder=json.loads, schema="pg_catalog")


async def _nothing_to_reset(connection: OwnConnection) -> None:
    """All that we set holds for a transaction, and asyncpg itself ends one that was left open: a round trip saved for each."""


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
