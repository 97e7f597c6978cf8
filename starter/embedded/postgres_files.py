"""Which files make up the embedded PostgreSQL in a state folder, and which of them may be believed after a crash?

pg18/             the data, named by major version: another major cannot read it
passwords.json    the four passwords, readable by this user alone
postgres.port     the port used last
postgres.log      what the server said since its last start; `.1` is the start before
"""

import json
import re
import secrets
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import quote

from starter.embedded.postgres_binaries import PostgresBinaries
from starter.embedded.processes import LOOPBACK, EmbeddedServerError, command_names
from starter.embedded.roles import APP_ROLE, AUDITOR_ROLE, DATABASE, OWNER_ROLE, RolePasswords
from starter.embedded.state import write_aside


@dataclass(frozen=True)
class PostgresUrls:
    """How to reach the database in each role: libpq URLs with their password, never shown when printed."""

    admin: str = field(repr=False)
    owner: str = field(repr=False)
    app: str = field(repr=False)
    auditor: str = field(repr=False)


@dataclass(frozen=True)
class Passwords:
    """What is in passwords.json."""

    admin: str = field(repr=False)
    owner: str = field(repr=False)
    app: str = field(repr=False)
    auditor: str = field(repr=False)

    def urls(self, port: int) -> PostgresUrls:
        """Returns the four URLs for a server on this loopback port."""
        return PostgresUrls(
            admin=_url("postgres", self.admin, port, "postgres"),
            owner=_url(OWNER_ROLE, self.owner, port, DATABASE),
            app=_url(APP_ROLE, self.app, port, DATABASE),
            auditor=_url(AUDITOR_ROLE, self.auditor, port, DATABASE),
        )

    @property
    def of_roles(self) -> RolePasswords:
        """The passwords of the roles that `ensure_roles` makes."""
        return RolePasswords(owner=self.owner, app=self.app, auditor=self.auditor)


class PostgresFiles:
    """The files of one embedded PostgreSQL. Change them only while holding the lock `starting`."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.log = state_dir / "postgres.log"
        self._passwords = state_dir / "passwords.json"
        self._port = state_dir / "postgres.port"

    def data_dir(self, major: int) -> Path:
        """Where the data of this major version lies."""
        return self.state_dir / f"pg{major}"

    def ensure_data(self, binaries: PostgresBinaries) -> Passwords:
        """Makes the cluster if there is none, and returns its passwords.

        Raises:
            EmbeddedServerError: the data is of another major version, or its passwords are gone.
        """
        data_dir = self.data_dir(binaries.major)
        if data_dir.exists():
            return self._read_passwords(data_dir)
        self._refuse_other_major(binaries.major)
        passwords = Passwords(*(secrets.token_urlsafe(24) for _ in range(4)))
        self._make_cluster(binaries, data_dir, passwords)
        return passwords

    def last_port(self) -> int | None:
        """The port used last, or None."""
        try:
            return int(self._port.read_text())
        except (OSError, ValueError):
            return None

    def remember_port(self, port: int) -> None:
        """Notes the port, so that the next start has the same URLs."""
        write_aside(self._port, f"{port}\n")

    def postmaster(self, major: int) -> tuple[int, int] | None:
        """Pid and port in postmaster.pid. Both are hearsay: a killed server leaves the file behind."""
        try:
            lines = (self.data_dir(major) / "postmaster.pid").read_text().splitlines()
            return int(lines[0]), int(lines[3])
        except (OSError, ValueError, IndexError):
            return None

    def is_ours(self, pid: int, major: int) -> bool | None:
        """Whether the process `pid` is a server on our data; None when the system does not tell."""
        return command_names(pid, ["postgres", str(self.data_dir(major))])

    def drop_stale_pid_file(self, major: int) -> None:
        """Removes a postmaster.pid whose pid now belongs to another program, which would keep PostgreSQL from starting."""
        said = self.postmaster(major)
        if said is not None and self.is_ours(said[0], major) is False:
            (self.data_dir(major) / "postmaster.pid").unlink(missing_ok=True)

    def _make_cluster(self, binaries: PostgresBinaries, data_dir: Path, passwords: Passwords) -> None:
        for leftover in self.state_dir.glob("pg*.init*"):
            shutil.rmtree(leftover)
        aside = self.state_dir / f"{data_dir.name}.init"  # initdb is not atomic, the rename is
        aside.mkdir(mode=0o700)
        password_file = aside / "password"
        write_aside(password_file, passwords.admin)
        binaries.initdb(aside / "data", password_file)
        # Passwords first: a crash in between leaves passwords without data, which the next start replaces.
        write_aside(self._passwords, json.dumps(asdict(passwords)))
        (aside / "data").rename(data_dir)
        shutil.rmtree(aside)

    def _read_passwords(self, data_dir: Path) -> Passwords:
        try:
            return Passwords(**json.loads(self._passwords.read_text()))
        except (OSError, ValueError, TypeError):
            raise EmbeddedServerError(
                f"{self._passwords} is missing or damaged, and the data in {data_dir} opens only with it: "
                "bring the file back, or reset the state"
            ) from None

    def _refuse_other_major(self, major: int) -> None:
        for folder in self.state_dir.glob("pg*"):
            if re.fullmatch(r"pg\d+", folder.name):
                raise EmbeddedServerError(
                    f"{folder} holds data of PostgreSQL {folder.name[2:]}, and the binaries are version {major}: "
                    "install the old version and dump the data, or reset the state"
                )


def _url(role: str, password: str, port: int, database: str) -> str:
    # The wheel's PostgreSQL has no TLS, and on loopback none is missed; said here, PGSSLMODE in the environment changes nothing.
    return f"postgresql://{role}:{quote(password, safe='')}@{LOOPBACK}:{port}/{database}?sslmode=disable"
