"""How does a machine without PostgreSQL get one that keeps what it acknowledged?

A real server, run as our own child from the binaries of a wheel: listening on 127.0.0.1 only, scram-sha-256, no unix socket,
fsync on. A server that a killed process left behind is taken over, but only after a connection to it has succeeded.
"""

import asyncio
import subprocess
from datetime import timedelta
from pathlib import Path

import asyncpg

from starter.embedded.postgres_binaries import PostgresBinaries, find_postgres
from starter.embedded.postgres_files import Passwords, PostgresFiles, PostgresUrls
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
    to_the_end,
    wait_until_ready,
)
from starter.embedded.roles import ensure_roles
from starter.embedded.state import ServerLocks, prepare_state_folder

READY_LIMIT = timedelta(seconds=120)  # crash recovery replays up to max_wal_size of log
ADOPT_LIMIT = timedelta(seconds=60)  # for a left-behind server that is just starting, or dying
CONNECT_SECONDS = 3.0  # for one try; a port may accept and then say nothing
PORT_RACES = 3  # how often a free port may be taken before our server has it

# For one person's machine. fsync, full_page_writes and synchronous_commit stay on: what is acknowledged is on disk.
SETTINGS = {
    "max_connections": "200",  # several workers and a test run at once
    "shared_buffers": "128MB",
    "jit": "off",  # short statements only: compiling them costs more than running them
    "wal_level": "minimal",  # nobody replicates from here
    "max_wal_senders": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

# While a server starts, ends or is somebody else's, a connection fails in all these ways.
_NOT_YET = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class EmbeddedPostgres:
    """One PostgreSQL server for one state folder, shared by every process that starts it.

    Args:
        state_dir: where its data, passwords and log live.
        port: the loopback port it must have; None means the last one, else any free one.
    """

    def __init__(self, state_dir: Path, port: int | None = None) -> None:
        self._files = PostgresFiles(state_dir.resolve())
        self._locks = ServerLocks(state_dir.resolve(), "postgres")
        self._wanted_port = port
        self._binaries: PostgresBinaries | None = None
        self.process: subprocess.Popen[bytes] | None = None  # None too when the server is another process's child

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it is our child."""
        return self.process.pid if self.process else None

    @property
    def _installed(self) -> PostgresBinaries:
        if self._binaries is None:
            raise RuntimeError("start() has not been called")
        return self._binaries

    @property
    def _data_dir(self) -> Path:
        return self._files.data_dir(self._installed.major)

    async def start(self) -> PostgresUrls:
        """Starts the server, or joins the one that runs; then makes sure of roles and database.

        Returns:
            The URLs of the four roles.

        Raises:
            EmbeddedServerError: one line a person can act on; nothing is left running then.
        """
        self._binaries = await asyncio.to_thread(find_postgres)
        prepare_state_folder(self._files.state_dir)
        async with self._locks.starting():
            passwords = await to_the_end(asyncio.to_thread(self._files.ensure_data, self._binaries))
            port = await self._adopt(passwords) or await self._launch(passwords)
            self._locks.join()
        return passwords.urls(port)

    async def stop(self) -> None:
        """Leaves the server; it ends when nobody else uses it. Does nothing when there is none."""
        if self._binaries is None:
            return
        async with self._locks.starting():
            if self._locks.leave():
                await self._end(self._binaries.major)
            elif self.process is not None:
                hand_over(self.process)
                self.process = None

    async def _adopt(self, passwords: Passwords) -> int | None:
        """Returns the port of the server that already runs on our data, or None when none of its processes lives."""
        found: list[int] = []

        async def look() -> bool:
            said = self._files.postmaster(self._installed.major)
            if said is not None and await self._answers(passwords, said[1]):
                found.append(said[1])
            return bool(found) or not self._locks.server_alive()

        if not await comes_true(look, ADOPT_LIMIT):
            raise EmbeddedServerError(
                f"a PostgreSQL server on {self._data_dir} runs but does not answer ({self._files.log}): "
                "end its processes, then start again"
            )
        if not found:
            return None
        await self._require_adopted_port(found[0])
        await self._ensure_roles(passwords, found[0])
        return found[0]

    async def _require_adopted_port(self, port: int) -> None:
        if self._wanted_port not in (None, port):
            raise EmbeddedServerError(
                f"the PostgreSQL server of {self._files.state_dir} already runs on port {port}, not {self._wanted_port}: "
                "stop it first, or ask for no port"
            )

    async def _launch(self, passwords: Passwords) -> int:
        for _ in range(PORT_RACES - 1):
            try:
                return await self._launch_once(passwords)
            except ServerDiedError as died:
                if self._wanted_port is not None or not died.port_was_taken:
                    raise
        return await self._launch_once(passwords)

    async def _launch_once(self, passwords: Passwords) -> int:
        port = self._choose_port()
        self._files.drop_stale_pid_file(self._installed.major)
        if self.process is not None:  # ours once, and dead, or there would be nothing to launch
            await terminate_child(self.process)
        with self._locks.lock_for_server() as alive:
            self.process = spawn(self._command(port), log=self._files.log, alive=alive)
        try:
            await wait_until_ready(
                lambda: self._answers(passwords, port),
                self.process,
                name="PostgreSQL",
                log=self._files.log,
                limit=READY_LIMIT,
            )
            await self._ensure_roles(passwords, port)
        except BaseException:  # a Ctrl-C while starting must not leave a server behind either
            await terminate_child(self.process)
            raise
        self._files.remember_port(port)
        return port

    def _choose_port(self) -> int:
        if self._wanted_port is not None:
            return require_port(self._wanted_port, "PostgreSQL")
        return first_free_port([self._files.last_port()])

    def _command(self, port: int) -> list[str]:
        settings = [argument for name, value in SETTINGS.items() for argument in ("-c", f"{name}={value}")]
        where = ["-D", str(self._data_dir), "-h", LOOPBACK, "-p", str(port), "-k", ""]
        return self._installed.command("postgres", *where, *settings)

    async def _answers(self, passwords: Passwords, port: int) -> bool:
        """Whether the server on `port` knows our password and works on our data, not on a copy of it."""
        try:
            connection = await asyncpg.connect(passwords.urls(port).admin, timeout=CONNECT_SECONDS)
            try:
                works_on = await connection.fetchval("show data_directory", timeout=CONNECT_SECONDS)
            finally:
                await connection.close(timeout=CONNECT_SECONDS)
        except _NOT_YET:
            return False
        return isinstance(works_on, str) and Path(works_on) == self._data_dir

    async def _ensure_roles(self, passwords: Passwords, port: int) -> None:
        connection = await asyncpg.connect(passwords.urls(port).admin)
        try:
            await ensure_roles(connection, passwords.of_roles)
        finally:
            await connection.close()

    async def _end(self, major: int) -> None:
        if self.process is not None:
            await terminate_child(self.process)
            self.process = None
        said = self._files.postmaster(major)
        if said is not None:
            await terminate_left_behind(said[0], lambda pid: self._files.is_ours(pid, major))
