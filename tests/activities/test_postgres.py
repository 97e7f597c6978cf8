"""Is a database that does not fit refused in one line, and a schema changed once, by one, for good?"""

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from pydantic import JsonValue

from activities.postgres import MIGRATIONS, Database, DatabaseError, migrate
from durable_agents.domain.canonical import escape_json
from durable_agents.domain.identifiers import TenantId
from starter.embedded.servers import Endpoints
from tests.support.world import TestDatabase, at


@asynccontextmanager
async def login(database: TestDatabase, options: str = "") -> AsyncIterator[str]:
    """The URL of a role made for one test, with these options."""
    name = f"role_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(database.admin)
    try:
        await admin.execute(f"create role {name} login password 'secret-word' {options}")
        await admin.execute(f"grant select on all tables in schema public to {name}")
        try:
            yield f"postgresql://{name}:secret-word@{database.admin.rpartition('@')[2]}"
        finally:
            await admin.execute(f"drop owned by {name}")
            await admin.execute(f"drop role {name}")
    finally:
        await admin.close()


async def refusal(url: str) -> str:
    """The one line with which a worker refuses to use this database."""
    with pytest.raises(DatabaseError) as refused:
        await (await Database.open(url)).close()
    line = str(refused.value)
    assert "\n" not in line
    assert "secret-word" not in line
    return line


async def as_admin(database: TestDatabase, command: str) -> None:
    """Change something past all privileges."""
    admin = await asyncpg.connect(database.admin)
    try:
        await admin.execute(command)
    finally:
        await admin.close()


async def test_the_app_role_is_taken(database: TestDatabase) -> None:
    """The refusals below mean something only if the right role gets in."""
    opened = await Database.open(database.app)
    async with opened.transaction(TenantId("acme")) as connection:
        assert await connection.fetchval("select current_user") == "durable_agents_app"
        assert await connection.fetchval("show statement_timeout") == "15s"
        assert await connection.fetchval("show lock_timeout") == "5s"
    await opened.close()


async def test_a_worker_refuses_superusers_and_owners(database: TestDatabase) -> None:
    """Row-level security binds neither; one wrong URL would switch tenancy off without a word."""
    assert "is a superuser or bypasses row-level security" in await refusal(database.admin)
    owner = await refusal(database.owner)
    assert owner.startswith("role durable_agents_owner is the owner of the tables")
    assert "give workers the durable_agents_app role in DATABASE_URL" in owner


ABLE_TO_GET_PAST = {
    "bypassrls": "is a superuser or bypasses",
    "superuser": "is a superuser or bypasses",
    "in role durable_agents_owner": "is the owner of the tables",
    "noinherit in role durable_agents_owner": "is the owner of the tables",
    "noinherit in role postgres": "is a superuser or bypasses",
}


async def test_a_worker_refuses_every_role_that_could_get_past_its_tenant(database: TestDatabase) -> None:
    """Also one that only could become such a role by `set role`."""
    for options, reason in ABLE_TO_GET_PAST.items():
        async with login(database, options) as url:
            assert reason in await refusal(url), options


async def test_a_role_that_may_not_read_the_schema_version_is_refused_in_one_line(database: TestDatabase) -> None:
    """The auditor's kin: right server, right database, wrong role."""
    async with login(database) as url:
        await as_admin(database, f"revoke select on schema_migration from {url.partition('//')[2].partition(':')[0]}")
        assert "may not read the schema version" in await refusal(url)


async def test_a_database_newer_than_the_code_is_refused_by_worker_and_migration(database: TestDatabase) -> None:
    """An old worker writing into a new schema damages what the new one relies on."""
    await as_admin(database, "insert into schema_migration values (9999, '9999_future.sql', 'x')")
    line = "the database is newer than this code (migration 9999): run a newer release"
    assert await refusal(database.app) == line
    with pytest.raises(DatabaseError) as refused:
        await migrate(database.owner)
    assert str(refused.value) == line


async def test_a_database_that_lacks_a_migration_is_refused(database: TestDatabase) -> None:
    """With the command that brings it up to date."""
    await as_admin(database, "delete from schema_migration where version = 1")
    assert "lacks migration 1: run `python -m starter migrate`" in await refusal(database.app)
    await as_admin(database, "drop table schema_migration")
    assert "lacks migration 1" in await refusal(database.app)


OUT_OF_REACH = {
    "postgresql://u:secret-word@127.0.0.1:1/d": "Connect call failed",
    "postgresql://u:secret-word@127.0.0.1:port/d": "invalid literal",
    "mysql://u:secret-word@localhost/d": "expected to be either",
    "nonsense": "expected to be either",
    "": "check DATABASE_URL",
    "postgresql://u:secret-word@[/d": "Invalid IPv6 URL",
}


async def test_a_database_that_cannot_be_reached_is_one_line(database: TestDatabase) -> None:
    """The line names the variable to look at and the reason, and never the password."""
    elsewhere = {
        at(database.app, "no_such_database"): 'database "no_such_database" does not exist',
        database.app.replace("durable_agents_app:", "nobody_here:"): "password authentication failed",
    }
    for url, reason in (OUT_OF_REACH | elsewhere).items():
        line = await refusal(url)
        assert line.startswith("PostgreSQL does not let us in: check DATABASE_URL (")
        assert reason in line
        with pytest.raises(DatabaseError, match=r"^PostgreSQL does not let the owner in: check the owner's URL") as refused:
            await migrate(url)
        assert "\n" not in str(refused.value)
        assert "secret-word" not in str(refused.value)


@pytest.fixture
async def empty(endpoints: Endpoints) -> AsyncIterator[str]:
    """The owner's URL of a database without a schema."""
    assert endpoints.urls is not None
    name = f"empty_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(endpoints.urls.admin)
    await admin.execute(f"create database {name} owner durable_agents_owner")
    yield at(endpoints.urls.owner, name)
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


async def test_five_migrations_at_once_apply_each_file_once(empty: str) -> None:
    """Every worker of a deployment may run it; one does the work and the others find it done."""
    done = await asyncio.gather(*(migrate(empty) for _ in range(5)))
    names = sorted(file.name for file in MIGRATIONS.glob("*.sql"))
    assert sorted(done, key=len) == [[], [], [], [], names]
    assert await migrate(empty) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the migrations that may be changed."""
    copied = tmp_path / "sql"
    shutil.copytree(MIGRATIONS, copied)
    return copied


async def test_an_applied_migration_that_was_changed_is_refused(empty: str, folder: Path) -> None:
    """Two databases of one version with different schemas are found by nobody until they differ in public."""
    await migrate(empty, folder)
    file = folder / "0001_runs.sql"
    file.write_text(f"{file.read_text()}-- a comment\n")
    with pytest.raises(
        DatabaseError, match=r"^0001_runs.sql was changed after it was applied here: add a new migration instead$"
    ):
        await migrate(empty, folder)


async def test_a_migration_that_fails_leaves_nothing_and_says_which(empty: str, folder: Path) -> None:
    """Half a schema is worse than the old one."""
    (folder / "9000_more.sql").write_text("create table more (tenant text);\nselect 1/0;\n")
    with pytest.raises(DatabaseError, match=r"^9000_more.sql cannot be applied: division by zero"):
        await migrate(empty, folder)
    connection = await asyncpg.connect(empty)
    assert await connection.fetchval("select to_regclass('more')") is None
    assert await connection.fetchval("select max(version) from schema_migration") < 9000
    await connection.close()
    (folder / "9000_more.sql").write_text("create table more (tenant text);\n")
    assert await migrate(empty, folder) == ["9000_more.sql"]


async def test_a_migration_by_the_wrong_role_is_one_line(database: TestDatabase, folder: Path) -> None:
    """The commonest mistake: the worker's URL where the owner's belongs."""
    (folder / "9000_more.sql").write_text("create table more (tenant text);\n")
    with pytest.raises(DatabaseError) as refused:
        await migrate(database.app, folder)
    assert "\n" not in str(refused.value)
    assert "owner" in str(refused.value)


async def test_json_comes_back_as_it_went_in(database: TestDatabase) -> None:
    """Escaped at the door, so that jsonb takes it; read back without a change."""
    awkward: list[JsonValue] = ["x\x00y", "\ud800", {"\x00": ["\x1a", "ü", 1.5, None, True, 2**70]}]
    opened = await Database.open(database.app)
    for value in awkward:
        escaped = escape_json(value)
        async with opened.transaction(TenantId("acme")) as connection:
            assert await connection.fetchval("select $1::jsonb", escaped) == escaped
        with pytest.raises((asyncpg.PostgresError, asyncpg.DataError, ValueError)):
            await _unescaped(opened, value)
    await opened.close()


async def _unescaped(database: Database, value: JsonValue) -> None:
    async with database.transaction(TenantId("acme")) as connection:
        await connection.fetchval("select $1::jsonb", value)
