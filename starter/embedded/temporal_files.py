"""Which files make up the embedded Temporal in a state folder?

temporal.db       everything it knows, a SQLite database (with -wal and -shm beside it)
temporal.json     ports and pid of the last launch: hearsay, believed only after a connection
temporal.log      what the server said since its last start; `.1` is the start before
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from starter.embedded.processes import LOOPBACK, command_names
from starter.embedded.state import write_aside


@dataclass(frozen=True)
class LaunchRecord:
    """Where a server was told to listen, and the pid it got; `ui_port` None means without a Web UI."""

    port: int
    ui_port: int | None
    pid: int | None

    @property
    def address(self) -> str:
        """Host and port for clients."""
        return f"{LOOPBACK}:{self.port}"

    def with_pid(self, pid: int) -> Self:
        """The same, once the process is there."""
        return replace(self, pid=pid)


class TemporalFiles:
    """The files of one embedded Temporal. Change them only while holding the lock `starting`."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.database = state_dir / "temporal.db"
        self.log = state_dir / "temporal.log"
        self._record = state_dir / "temporal.json"

    def last_launch(self) -> LaunchRecord | None:
        """What the last launch noted, or None."""
        try:
            return LaunchRecord(**json.loads(self._record.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def remember(self, record: LaunchRecord) -> None:
        """Notes a launch, for the next start and for whoever finds the server left behind."""
        write_aside(self._record, json.dumps(asdict(record)))

    def is_ours(self, pid: int) -> bool | None:
        """Whether the process `pid` is a server on our database file; None when the system does not tell."""
        return command_names(pid, ["start-dev", str(self.database)])
