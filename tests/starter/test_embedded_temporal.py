"""Does the embedded Temporal keep its workflows, whatever is killed, and does it run with the settings we count on?"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.service import RPCError

from starter.embedded.processes import EmbeddedServerError, port_problem
from starter.embedded.temporal import SEARCH_ATTRIBUTES, EmbeddedTemporal, TemporalAddresses
from starter.embedded.temporal_identity import answers_from

ROOT = Path(__file__).parents[2]
SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from starter.embedded.temporal import EmbeddedTemporal

async def main():
    addresses = await EmbeddedTemporal(Path(sys.argv[1]), headless=True).start()
    print(addresses.address, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
ATTRIBUTES = TypedSearchAttributes(
    [
        SearchAttributePair(SearchAttributeKey.for_keyword("AgentName"), "refunds"),
        SearchAttributePair(SearchAttributeKey.for_keyword("Tenant"), "acme"),
        SearchAttributePair(SearchAttributeKey.for_keyword("AgentStatus"), "running"),
        SearchAttributePair(SearchAttributeKey.for_keyword_list("PendingApprovals"), ["a1"]),
    ]
)


@pytest.fixture(scope="module")
async def address(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """One server for the tests that only use it."""
    async with running(EmbeddedTemporal(tmp_path_factory.mktemp("state"), headless=True)) as addresses:
        yield addresses.address


@asynccontextmanager
async def running(server: EmbeddedTemporal) -> AsyncIterator[TemporalAddresses]:
    """The server while it runs."""
    try:
        yield await server.start()
    finally:
        await server.stop()


async def start_workflow(address: str, workflow_id: str) -> None:
    """A workflow that no worker takes: it stays open. All our search attributes are on it."""
    client = await Client.connect(address)
    await client.start_workflow("Nobody", id=workflow_id, task_queue="nobody", search_attributes=ATTRIBUTES, start_signal="kept")


async def history(address: str, workflow_id: str) -> list[str]:
    """The names of a workflow's events."""
    client = await Client.connect(address)
    events = (await client.get_workflow_handle(workflow_id).fetch_history()).events
    return [event.WhichOneof("attributes") or "" for event in events]


async def test_right_after_the_first_start_a_workflow_with_our_search_attributes_can_be_started(address: str) -> None:
    """Ready means ready: a demo that fails in its first second, now and then, is worse than a slow one."""
    await start_workflow(address, "first")
    client = await Client.connect(address)
    asked = ListSearchAttributesRequest(namespace="default")
    registered = (await client.operator_service.list_search_attributes(asked)).custom_attributes
    types = {pair.key.name: IndexedValueType.Name(registered[pair.key.name]) for pair in ATTRIBUTES}
    keyword = "INDEXED_VALUE_TYPE_KEYWORD"
    assert types == {"AgentName": keyword, "Tenant": keyword, "AgentStatus": keyword, "PendingApprovals": f"{keyword}_LIST"}
    assert types.keys() == SEARCH_ATTRIBUTES.keys()
    described = await client.get_workflow_handle("first").describe()
    assert described.typed_search_attributes[SearchAttributeKey.for_keyword_list("PendingApprovals")] == ["a1"]


async def test_ids_longer_than_production_allows_are_refused(address: str) -> None:
    """It shows that dynamic configuration arrives, and keeps development from accepting what production will not."""
    with pytest.raises(RPCError, match="length"):
        await start_workflow(address, "x" * 256)


async def test_a_restart_keeps_a_workflow_also_after_kill_9_of_the_server(tmp_path: Path) -> None:
    """That a run is never lost begins with its history on disk."""
    server = EmbeddedTemporal(tmp_path, headless=True)
    async with running(server) as first:
        await start_workflow(first.address, "kept")
    async with running(server) as second:
        await start_workflow(second.address, "killed")
        assert server.process is not None
        server.process.kill()
        third = await server.start()
        for workflow_id in ("kept", "killed"):
            assert "workflow_execution_signaled_event_attributes" in await history(third.address, workflow_id)


async def test_after_kill_9_of_its_starter_the_server_is_adopted_and_still_ends_with_its_last_user(tmp_path: Path) -> None:
    """A closed terminal must leave neither a second server on the same file nor one that runs for ever."""
    program = [sys.executable, "-c", SUPERVISOR, str(tmp_path)]
    starter = await asyncio.create_subprocess_exec(*program, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    assert starter.stdout is not None
    server = EmbeddedTemporal(tmp_path, headless=True)
    try:
        address = (await asyncio.wait_for(starter.stdout.readline(), 30)).decode().strip()
        starter.kill()
        await starter.wait()
        assert (await server.start()).address == address
        assert server.process is None, "adopted, not started"
    finally:
        await server.stop()
    assert port_problem(int(address.rpartition(":")[2])) is None


async def test_two_starts_at_once_give_one_server_and_the_last_user_ends_it(tmp_path: Path) -> None:
    """Two servers on one SQLite file would each own its shards and lose the other's work."""
    both = [EmbeddedTemporal(tmp_path, headless=True), EmbeddedTemporal(tmp_path, headless=True)]
    one, other = await asyncio.gather(*(server.start() for server in both))
    assert one == other
    starter, joined = sorted(both, key=lambda server: server.process is None)
    assert starter.process is not None
    assert joined.process is None
    await starter.stop()
    assert await answers_from(one.address, tmp_path / "temporal.db"), "the second user still works"
    await joined.stop()
    assert port_problem(int(one.address.rpartition(":")[2])) is None


async def test_a_server_on_other_data_is_never_taken_for_ours(address: str, tmp_path: Path) -> None:
    """Another project's server may have the port; workflows started there would be lost to us."""
    assert not await answers_from(address, tmp_path / "temporal.db")


async def test_an_asked_for_port_in_use_is_one_clear_error(address: str, tmp_path: Path) -> None:
    """The person has to learn which port, and what to do."""
    port = int(address.rpartition(":")[2])
    with pytest.raises(EmbeddedServerError, match=rf"port {port} for Temporal is in use: choose another port"):
        await EmbeddedTemporal(tmp_path, port).start()
    with pytest.raises(EmbeddedServerError, match=rf"port {port} for the Temporal Web UI is in use"):
        await EmbeddedTemporal(tmp_path, ui_port=port).start()


async def test_the_default_ports_in_use_are_replaced_by_free_ones_and_the_ui_answers(tmp_path: Path) -> None:
    """A second project on the same machine is no error."""
    with socket.socket() as busy, socket.socket() as busy_ui:
        for each, port in ((busy, 7233), (busy_ui, 8233)):
            if port_problem(port) is None:
                each.bind(("127.0.0.1", port))
                each.listen()
        async with running(EmbeddedTemporal(tmp_path)) as addresses:
            assert not addresses.address.endswith(":7233")
            assert addresses.ui_url is not None
            ui_port = int(addresses.ui_url.rpartition(":")[2])
            assert ui_port != 8233
            _, writer = await asyncio.open_connection("127.0.0.1", ui_port)
            writer.close()
            await writer.wait_closed()


async def test_a_server_that_dies_while_starting_tells_its_last_line_at_once(tmp_path: Path) -> None:
    """Waiting a minute for a process that is gone, then saying "timeout", hides the cause twice."""
    (tmp_path / "temporal.db").write_text("this is no database, and long enough to be looked at " * 20)
    async with asyncio.timeout(10):
        with pytest.raises(EmbeddedServerError, match=r"Temporal ended while starting \(.*not a database"):
            await EmbeddedTemporal(tmp_path, headless=True).start()
