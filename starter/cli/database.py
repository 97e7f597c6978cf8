"""Who brings the database's schema up to date, and where is it without its password?"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg

from activities.postgres import Database, DatabaseError, migrate
from durable_agents.settings import Settings, read_settings
from starter.cli.connection import servers_of_dev
from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.options import Session
from starter.cli.screen import Screen

OWNER_URL = "DURABLE_AGENTS_OWNER_DATABASE_URL"


def without_password(url: str) -> str:
    """A database's address that may be shown."""
    parts = urlsplit(url)
    user = f"{parts.username}@" if parts.username else ""
    return f"{parts.scheme}://{user}{parts.netloc.rpartition('@')[2]}{parts.path}"


def database_url(settings: Settings) -> str | None:
    """The application's database: the environment's, else that of a running `dev`."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    found = servers_of_dev(settings)
    return found.environment.get("DATABASE_URL") if found else None


@asynccontextmanager
async def open_database(too_long: str) -> AsyncIterator[Database]:
    """The application's tables. `too_long` is cause and remedy where a statement runs out of time.

    Raises:
        CliError: there is no database, it does not let us in, or it takes too long.
    """
    url = database_url(read_settings())
    if url is None:
        raise CliError("no database: set DATABASE_URL, or start `dev`")
    try:
        database = await Database.open(url, max_size=1)
    except DatabaseError as error:
        raise CliError(str(error), ExitCode.NOT_REACHABLE) from error
    try:
        yield database
    except (asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError, TimeoutError):
        raise CliError(too_long, ExitCode.UNEXPECTED) from None
    finally:
        await database.close()


def owner_url(settings: Settings) -> str | None:
    """The same database as its owner."""
    if settings.owner_database_url is not None:
        return settings.owner_database_url.get_secret_value()
    found = servers_of_dev(settings) if settings.database_url is None else None
    return found.environment.get(OWNER_URL) if found else None


async def migrate_as(owner: str) -> list[str]:
    """Apply the migrations that the database lacks, as its owner; their names.

    Raises:
        CliError: not reachable, or newer than this code.
    """
    try:
        return await migrate(owner)
    except DatabaseError as error:
        raise CliError(str(error), ExitCode.NOT_REACHABLE) from error


async def bring_up_to_date(session: Session) -> ExitCode:
    """Apply the migrations that the database lacks."""
    owner = owner_url(read_settings())
    if owner is None:
        raise CliError(f"no owner to migrate as: set {OWNER_URL}, or start `dev`, which migrates by itself")
    applied = await migrate_as(owner)
    screen = Screen(as_json=session.as_json)
    screen.line(f"applied {', '.join(applied)}" if applied else "the schema is up to date")
    screen.document({"applied": list(applied)})
    return ExitCode.OK
