"""How does a production database get its roles and its schema?

`python -m starter.production.prepare_database`, once before the workers of each release: as the server's administrator it makes
the three roles and the database (`starter/embedded/roles.py`), as the owner it applies the migrations, and as the workers' role
it makes sure that they will be let in. Running it again changes nothing but passwords that were changed in its environment:

    ADMIN_DATABASE_URL   an administrator of the server (CREATEROLE and CREATEDB will do), any database of it
    OWNER_PASSWORD       for durable_agents_owner, which owns the tables
    APP_PASSWORD         for durable_agents_app, which workers are
    AUDITOR_PASSWORD     for durable_agents_auditor, which reads the audit trail

The administrator's password may stand in the URL or in PGPASSWORD. Exit codes: 0 done, 2 something is missing above, 3 the
database does not let it in, or is newer than this release.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg

from activities.postgres import Database, DatabaseError, migrate
from starter.embedded.roles import APP_ROLE, DATABASE, OWNER_ROLE, RolePasswords, ensure_roles

ADMIN_URL = "ADMIN_DATABASE_URL"
PASSWORDS = ("OWNER_PASSWORD", "APP_PASSWORD", "AUDITOR_PASSWORD")
CONNECT_SECONDS = 10.0


class JobSettingsError(ValueError):
    """The environment does not say what is needed. `str()` is one line: cause and remedy."""


@dataclass(frozen=True)
class Job:
    """What the environment asks for; never shown when printed, it holds passwords."""

    admin_url: str = field(repr=False)
    passwords: RolePasswords

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Job":
        """The job that `environment` describes.

        Raises:
            JobSettingsError: a variable is missing, or two roles share a password.
        """
        missing = [name for name in (ADMIN_URL, *PASSWORDS) if not environment.get(name)]
        if missing:
            raise JobSettingsError(f"{', '.join(missing)} not set: see deploy/.env.example")
        owner, app, auditor = (environment[name] for name in PASSWORDS)
        if len({owner, app, auditor}) < len(PASSWORDS):
            raise JobSettingsError(f"two of {', '.join(PASSWORDS)} are equal: whoever has one role would have the other")
        return cls(environment[ADMIN_URL], RolePasswords(owner=owner, app=app, auditor=auditor))

    def url_of(self, role: str, password: str) -> str:
        """The application's database on the administrator's server, as this role."""
        parts = urlsplit(self.admin_url)
        server = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{role}:{quote(password, safe='')}@{server}", path=f"/{DATABASE}"))


async def prepare_database(job: Job) -> list[str]:
    """Make what is missing; the names of the migrations that were applied.

    Raises:
        DatabaseError: not reachable, not allowed, or a database newer than this code.
    """
    try:
        connection = await asyncpg.connect(job.admin_url, timeout=CONNECT_SECONDS)
        try:
            await ensure_roles(connection, job.passwords)
        finally:
            await connection.close()
    except (OSError, TimeoutError, ValueError, RuntimeError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DatabaseError(f"the administrator could not make the roles: check {ADMIN_URL} ({reason})") from error
    applied = await migrate(job.url_of(OWNER_ROLE, job.passwords.owner))
    database = await Database.open(job.url_of(APP_ROLE, job.passwords.app), max_size=1)
    await database.close()
    return applied


def main() -> int:
    """Run the job of this process's environment; its exit code."""
    try:
        applied = asyncio.run(prepare_database(Job.read(os.environ)))
    except JobSettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except DatabaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    print(f"roles ready; applied {', '.join(applied)}" if applied else "roles ready; the schema is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
