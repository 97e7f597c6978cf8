"""How does a person with nothing installed get both servers, and a program the addresses it needs?"""

import asyncio
import shutil
from collections.abc import Coroutine, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from starter.embedded.postgres import EmbeddedPostgres
from starter.embedded.postgres_files import PostgresUrls
from starter.embedded.processes import EmbeddedServerError
from starter.embedded.state import ServerLocks
from starter.embedded.temporal import EmbeddedTemporal, TemporalAddresses

NAMESPACE = "default"
_STATE = ("pg*", "passwords.json*", "postgres.port*", "postgres.log*", "temporal.db*", "temporal.json*", "temporal.log*")


A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Endpoints:
    """Where everything is.

    Attributes:
        temporal_address: host:port for clients.
        temporal_ui: URL of the Web UI, None when ours runs without one or the server is not ours.
        urls: the database in each role, None when the database is not ours.
        environment: what a worker or client needs in its environment; holds passwords.
    """

    temporal_address: str
    temporal_ui: str | None
    urls: PostgresUrls | None
    environment: Mapping[str, str] = field(repr=False)


class EmbeddedServers:
    """Temporal and PostgreSQL for one state folder, started and stopped together.

    Args:
        state_dir: where both keep their state.
        temporal_address: a Temporal server of the person's own; then none is started.
        database_url: a PostgreSQL server of the person's own; then none is started.
        temporal_port: see EmbeddedTemporal.
        ui_port: see EmbeddedTemporal.
        postgres_port: see EmbeddedPostgres.
        headless: Temporal without its Web UI.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        temporal_address: str | None = None,
        database_url: str | None = None,
        temporal_port: int | None = None,
        ui_port: int | None = None,
        postgres_port: int | None = None,
        headless: bool = False,
    ) -> None:
        self._temporal_address = temporal_address
        self._database_url = database_url
        self.temporal = EmbeddedTemporal(state_dir, temporal_port, ui_port, headless=headless)
        self.postgres = EmbeddedPostgres(state_dir, postgres_port)

    async def start(self) -> Endpoints:
        """Starts what is needed, both at once.

        Raises:
            EmbeddedServerError: one of them could not be started; the other is stopped again.
        """
        try:
            addresses, urls = await _both(self._start_temporal(), self._start_postgres())
        except BaseException:  # a Ctrl-C while starting must not leave a server behind either
            await self.stop()
            raise
        return Endpoints(
            temporal_address=addresses.address,
            temporal_ui=addresses.ui_url,
            urls=urls,
            environment=self._environment(addresses.address, urls),
        )

    async def stop(self) -> None:
        """Stops what was started, both at once."""
        await _both(self.temporal.stop(), self.postgres.stop())

    async def __aenter__(self) -> Endpoints:
        """Starts both."""
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stops both."""
        await self.stop()

    async def _start_temporal(self) -> TemporalAddresses:
        if self._temporal_address is not None:
            return TemporalAddresses(address=self._temporal_address, ui_url=None)
        return await self.temporal.start()

    async def _start_postgres(self) -> PostgresUrls | None:
        return await self.postgres.start() if self._database_url is None else None

    def _environment(self, address: str, urls: PostgresUrls | None) -> dict[str, str]:
        environment = {"TEMPORAL_ADDRESS": address}
        if self._temporal_address is None:  # a server of the person's own may have another namespace: theirs stays
            environment["TEMPORAL_NAMESPACE"] = NAMESPACE
        if urls is not None:
            environment["DATABASE_URL"] = urls.app
            environment["DURABLE_AGENTS_OWNER_DATABASE_URL"] = urls.owner
        elif self._database_url is not None:
            environment["DATABASE_URL"] = self._database_url
        return environment


async def _both(first: Coroutine[None, None, A], second: Coroutine[None, None, B]) -> tuple[A, B]:
    """Waits for both to end, also when one fails, and then raises the first failure alone."""
    one, two = await asyncio.gather(first, second, return_exceptions=True)
    if isinstance(one, BaseException):
        raise one
    if isinstance(two, BaseException):
        raise two
    return one, two


def reset(state_dir: Path) -> None:
    """Deletes what the servers keep in `state_dir`, and nothing else that lies there.

    Raises:
        EmbeddedServerError: a server runs, or somebody is just starting one; nothing is deleted then.
    """
    if not state_dir.exists():
        return
    with ExitStack() as held:
        for server in ("postgres", "temporal"):
            if not held.enter_context(ServerLocks(state_dir, server).nobody_here()):
                raise EmbeddedServerError(
                    f"the {server} server of {state_dir} is running: stop it where it was started, then reset"
                )
        for found in [path for pattern in _STATE for path in state_dir.glob(pattern)]:
            shutil.rmtree(found) if found.is_dir() else found.unlink()
