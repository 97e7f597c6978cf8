"""Does a run outlive the servers it stands on: Temporal and PostgreSQL killed with SIGKILL, in the middle of it?"""

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import JsonValue

from durable_agents import AgentClient, RunStatus
from starter.embedded.processes import free_ports
from starter.embedded.servers import EmbeddedServers
from tests.support.scripts import refund, turns
from tests.support.waiting import eventually, pending
from tests.support.world import World, fresh_database, open_world, prepare_template, settings_for

pytestmark = pytest.mark.timeout(120)
REFUNDS = 12


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[EmbeddedServers]:
    """Servers of this test's own, which it may kill."""
    own = EmbeddedServers(tmp_path / "servers", headless=True, temporal_port=free_ports(1)[0])  # the same after a restart
    yield own
    await own.stop()


@pytest.fixture
async def mortal(servers: EmbeddedServers, model_url: str, shop_url: str) -> AsyncIterator[World]:
    """A world whose servers may be killed."""
    endpoints = await servers.start()
    assert endpoints.urls is not None
    await prepare_template(endpoints.urls)
    async with fresh_database(endpoints.urls) as database:
        queue = f"q-{uuid.uuid4().hex[:8]}"
        client = await AgentClient.connect(endpoints.temporal_address, task_queue=queue, identity="tester")
        settings = settings_for(database.app, queue, model_url)
        async with open_world(endpoints, database, client, settings, model_url, shop_url) as world:
            yield world


async def kill_and_restart(servers: EmbeddedServers) -> None:
    """Both servers die at once, without a word, and come back on their old data and ports."""
    for pid in (servers.temporal.pid, servers.postgres.pid):
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    await servers.start()


async def test_killing_both_servers_loses_no_run_no_decision_and_no_effect(servers: EmbeddedServers, mortal: World) -> None:
    """A decision taken before the crash is honoured after it, and the work in flight is done once."""
    await mortal.script(turns(refund(), "done"))
    async with mortal.worker(cached=10):
        run = await mortal.start()
        (approval,) = await pending(run)
        await run.approve(approval.id, by="ann")
        await kill_and_restart(servers)
        async with asyncio.timeout(60):
            result = await run.result()
    assert result.status is RunStatus.COMPLETED
    assert (await mortal.shop_counts())["refunds"] == 1


async def test_a_busy_run_goes_on_after_both_servers_were_killed_under_it(servers: EmbeddedServers, mortal: World) -> None:
    """Twelve refunds, the servers killed after some of them: twelve in the shop's books, none twice, all in the ledger."""
    arguments: JsonValue = {"order": "A-1001", "amount": "{n}.00"}
    await mortal.script({"repeat_tool": {"name": "issue_refund", "arguments": arguments, "times": REFUNDS, "then_text": "done"}})
    async with mortal.worker(cached=10):
        run = await mortal.start()

        async def some_are_made() -> bool:
            return (await mortal.shop_counts())["refunds"] >= 3

        await eventually(some_are_made)
        await kill_and_restart(servers)
        async with asyncio.timeout(90):
            result = await run.result()
    assert result.status is RunStatus.COMPLETED
    records = (await mortal.http.get(f"{mortal.shop_url}/records")).json()
    assert sorted(float(made["amount"]) for made in records["refunds"]) == [float(n) for n in range(1, REFUNDS + 1)]
    (row,) = await mortal.rows(
        "select sum(cost_micros) as cost, count(*) filter (where state = 'dispatched') as open from model_attempt"
    )
    assert (row["cost"], row["open"]) == (result.spend.cost_micros, 0)
    bill = (await mortal.bill())["requests"]
    assert isinstance(bill, list)
    attempts = await mortal.rows("select count(*) as n from model_attempt")
    assert len(bill) <= attempts[0]["n"]
