"""Do both servers start and stop as one, respect the servers a person has, and keep their state from being deleted under them?"""

import asyncio
import socket
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from temporalio.client import Client

from starter.embedded.processes import EmbeddedServerError, ended_within, port_problem
from starter.embedded.servers import EmbeddedServers, reset


def left_in(folder: Path) -> set[str]:
    """The names of the files there; the locks stay, because another process may wait on them."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


async def test_the_environment_reaches_both_servers_and_reset_waits_until_they_are_stopped(tmp_path: Path) -> None:
    """Deleting files under a running server gives errors hours later; and reset deletes only what the servers made."""
    (tmp_path / "notes.txt").write_text("mine")
    servers = EmbeddedServers(tmp_path, headless=True)
    endpoints = await servers.start()
    try:
        environment = endpoints.environment
        client = await Client.connect(environment["TEMPORAL_ADDRESS"], namespace=environment["TEMPORAL_NAMESPACE"])
        assert (await client.count_workflows()).count == 0
        for name, role in (("DATABASE_URL", "app"), ("DURABLE_AGENTS_OWNER_DATABASE_URL", "owner")):
            connection = await asyncpg.connect(environment[name])
            assert await connection.fetchval("select current_user") == f"durable_agents_{role}"
            await connection.close()
        with pytest.raises(EmbeddedServerError, match=r"server of .* is running: stop it where it was started, then reset"):
            reset(tmp_path)
    finally:
        await servers.stop()
    reset(tmp_path)
    assert left_in(tmp_path) == {"notes.txt", ".gitignore"}


async def test_servers_the_person_has_are_used_and_none_is_started(tmp_path: Path) -> None:
    """Who sets DATABASE_URL means it: a second database would split the data."""
    own = EmbeddedServers(tmp_path / "state", temporal_address="host:1", database_url="postgresql://mine")
    async with own as endpoints:
        assert endpoints.environment == {"TEMPORAL_ADDRESS": "host:1", "DATABASE_URL": "postgresql://mine"}
        assert (endpoints.temporal_ui, endpoints.urls) == (None, None)
    assert not (tmp_path / "state").exists()


async def test_when_one_server_cannot_start_the_other_is_stopped_again(tmp_path: Path) -> None:
    """An error must not leave half of the servers running behind it."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        servers = EmbeddedServers(tmp_path, temporal_port=busy.getsockname()[1])
        with pytest.raises(EmbeddedServerError, match="for Temporal is in use"):
            await servers.start()
    port = int((tmp_path / "postgres.port").read_text())
    assert port_problem(port) is None
    reset(tmp_path)


async def test_a_cancelled_start_leaves_no_server_behind(tmp_path: Path) -> None:
    """Ctrl-C in the first second is what people do when they see a typing error."""
    starting = asyncio.create_task(EmbeddedServers(tmp_path, headless=True).start())
    assert await ended_within(timedelta(seconds=20), (tmp_path / "temporal.log").exists)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    reset(tmp_path)
