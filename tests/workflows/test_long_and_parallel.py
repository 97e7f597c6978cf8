"""Do long runs go on over many executions, and do calls and waits run side by side?"""

import asyncio
import uuid
from pathlib import Path

import pytest

from durable_agents import AgentClient, Budget, RunStatus
from durable_agents.errors import InvalidRequest
from starter.embedded.servers import Endpoints
from starter.embedded.temporal import EmbeddedTemporal
from tests.support.scripts import Call, refund, turns
from tests.support.waiting import pending
from tests.support.world import TestDatabase, World, open_world, settings_for
from worker import build_worker


async def test_tool_calls_of_one_turn_run_in_parallel(world: World) -> None:
    """Three slow look-ups cost the time of one: all three hang at the shop at the same time."""
    await world.fault(path="/orders/*", after_effect="hang", times=3)
    lookups: list[Call] = [("lookup_order", {"order": f"A-100{n}"}) for n in (1, 2, 3)]
    await world.script(turns(lookups, "done"))
    async with world.worker():
        run = await world.start()
        response = await world.http.get(f"{world.shop_url}/hanging", params={"at_least": 3}, timeout=20)
        assert response.status_code == 200
        await world.http.post(f"{world.shop_url}/release")
        result = await run.result()
    assert result.status is RunStatus.COMPLETED
    assert result.spend.tool_calls == 3
    await world.replay(run)


async def test_waiting_for_humans_holds_no_worker_slot(world: World) -> None:
    """A worker that can do one activity at a time serves another run while eight wait for a human."""
    settings = world.settings.model_copy(update={"worker_concurrency": 1})
    await world.script(turns(refund(), "done"))
    async with build_worker(world.client.temporal, settings, world.resources, max_cached_workflows=0):
        waiting = [await world.start() for _ in range(8)]
        for run in waiting:
            await pending(run)
        await world.script(turns("done"))
        result = await (await world.start()).result()
        assert result.status is RunStatus.COMPLETED
        for run in waiting:
            assert len(await run.pending_approvals()) == 1
            await run.cancel()
        await asyncio.gather(*(run.result() for run in waiting))


async def test_a_long_run_continues_as_new_at_turn_boundaries_and_keeps_what_it_spent(
    endpoints: Endpoints, database: TestDatabase, model_url: str, shop_url: str, tmp_path: Path
) -> None:
    """No run is ended by the server for its length: 40 turns over several executions, one budget, one conversation."""
    temporal = EmbeddedTemporal(tmp_path, headless=True, dynamic_config={"limit.historyCount.suggestContinueAsNew": 100})
    address = (await temporal.start()).address
    try:
        queue = f"q-{uuid.uuid4().hex[:8]}"
        client = await AgentClient.connect(address, task_queue=queue, identity="tester")
        settings = settings_for(database.app, queue, model_url)
        async with open_world(endpoints, database, client, settings, model_url, shop_url) as world:
            await world.script({"repeat_tool": {"name": "echo", "arguments": {"text": "{n}"}, "times": 40, "then_text": "done"}})
            async with world.worker(cached=10):
                run = await world.start(budget=Budget(turns=45, tool_calls=40))
                first = (await world.client.temporal.get_workflow_handle(run.id).describe()).run_id
                result = await run.result()
                last = await world.client.temporal.get_workflow_handle(run.id).describe()
            assert (result.status, result.turns, result.spend.tool_calls) == (RunStatus.COMPLETED, 41, 40)
            assert last.run_id != first
            assert last.history_length < 150
            assert len((await world.bill())["requests"]) == 41  # type: ignore[arg-type]
            (row,) = await world.rows("select sum(cost_micros) as cost from model_attempt")
            assert row["cost"] == result.spend.cost_micros
            await world.replay(run)
    finally:
        await temporal.stop()


async def test_a_stopping_worker_lets_a_running_tool_finish(world: World) -> None:
    """A deploy in the middle of a call is no failure of the call: it finishes, once, and its result is kept."""
    settings = world.settings.model_copy(update={"graceful_shutdown": world.settings.graceful_shutdown * 20})
    await world.fault(path="/refunds", after_effect="hang", times=1)
    await world.script(turns(refund("50.00"), "done"))
    run = await world.start()
    worker = build_worker(world.client.temporal, settings, world.resources, max_cached_workflows=0)
    async with worker:
        await world.http.get(f"{world.shop_url}/hanging", params={"at_least": 1}, timeout=20)
        stopping = asyncio.create_task(worker.shutdown())

        await world.http.post(f"{world.shop_url}/release")
        await stopping
    async with world.worker():
        result = await run.result()
    assert result.status is RunStatus.COMPLETED
    assert [tuple(row) for row in await world.rows("select state, tries from tool_dispatch")] == [("settled", 1)]
    assert (await world.shop_counts())["refund_requests"] == 1


async def test_an_oversize_decision_is_refused_before_it_is_sent(world: World) -> None:
    """An update of megabytes would wedge the run at the server (a signal would not); our door does not let it out."""
    await world.script(turns(refund(), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        with pytest.raises(InvalidRequest, match="reason"):
            await run.approve(approval.id, reason="x" * 3_000_000)
        await run.deny(approval.id, by="ann")
        await run.result()
