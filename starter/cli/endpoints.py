"""How do commands in another terminal find the servers that `dev` runs, without any environment?

`dev` keeps `<state_dir>/endpoints.json`, readable by its user alone because it holds passwords. It holds a kernel lock on the
file as long as it lives, so a file that a killed `dev` left behind is recognised without trusting a pid in it.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from starter.cli.exit_codes import CliError, ExitCode

FILE = "endpoints.json"


@dataclass(frozen=True)
class RunningServers:
    """Where a running `dev` has its servers; `environment` is what a worker or client needs and holds passwords."""

    temporal_address: str
    temporal_ui: str | None
    environment: Mapping[str, str] = field(repr=False)


@contextmanager
def announced(state_dir: Path) -> Iterator["Announcement"]:
    """Hold the file of a state folder; it is gone when the block ends.

    Raises:
        CliError: another `dev` of the same folder runs.
    """
    path = state_dir / FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _locked(descriptor, fcntl.LOCK_EX):
            raise CliError(f"`dev` already runs on {state_dir}: use that one, or stop it first", ExitCode.NOT_REACHABLE)
        try:
            yield Announcement(descriptor)
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


class Announcement:
    """The held file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, servers: RunningServers) -> None:
        """Say where the servers are."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(asdict(servers), indent=1).encode(), 0)


def running_servers(state_dir: Path) -> RunningServers | None:
    """The servers of the `dev` that runs on this state folder now, or None."""
    try:
        descriptor = os.open(state_dir / FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _locked(descriptor, fcntl.LOCK_SH):  # nobody holds it: left behind
            return None
        return RunningServers(**json.loads(os.read(descriptor, 65536)))
    except (ValueError, TypeError):  # just being written
        return None
    finally:
        os.close(descriptor)


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
