"""Do model calls wait on a task queue of their provider, where an operator's limit holds for all workers together?"""

import asyncio
from dataclasses import replace

import pytest
from temporalio.client import Client
from temporalio.service import RPCError

from durable_agents import AgentClient, RunStatus
from durable_agents.domain.failures import FailureKind
from durable_agents.domain.task_queues import provider_queue
from starter.embedded.temporal import find_temporal
from tests.support.scripts import Call, turns
from tests.support.world import World
from worker import build_worker

PER_SECOND = 5
RUNS = 30


async def temporal_command(world: World, *arguments: str) -> None:
    """What an operator types, against the test's server."""
    address = ("--address", world.endpoints.temporal_address)
    process = await asyncio.create_subprocess_exec(find_temporal(), *arguments, *address, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0


async def test_an_operators_limit_of_a_providers_queue_holds_for_two_workers_together(world: World) -> None:
    """The command of docs/provider-limits.md, while both workers have slots for everything: the provider sees the limit."""
    await world.script(turns("done"))
    queue = provider_queue(world.settings.task_queue, "anthropic")
    limit = ("--queue-rps-limit", str(PER_SECOND), "--queue-rps-limit-reason", "test")
    await temporal_command(world, "task-queue", "config", "set", "--task-queue", queue, "--task-queue-type", "activity", *limit)
    other = await AgentClient.connect(world.endpoints.temporal_address, task_queue=world.settings.task_queue)
    async with world.worker(cached=50), build_worker(other.temporal, world.settings, world.resources):
        runs = await asyncio.gather(*(world.start() for _ in range(RUNS)))
        results = await asyncio.gather(*(run.result() for run in runs))
    assert {result.status for result in results} == {RunStatus.COMPLETED}
    rows = await world.rows("select extract(epoch from dispatched_at)::float8 as at from model_attempt order by dispatched_at")
    times = [row["at"] for row in rows]
    assert len(times) == RUNS
    assert times[-1] - times[0] >= (RUNS - PER_SECOND) / PER_SECOND - 1


async def test_only_model_calls_wait_on_a_providers_queue(world: World) -> None:
    """Tools, admissions and endings must go on while a provider's queue is limited to nothing."""
    lookup: Call = ("lookup_order", {"order": "A-1001"})
    await world.script(turns([lookup], "done"))
    async with world.worker():
        run = await world.start()
        await run.result()
    scheduled = [event.activity_task_scheduled_event_attributes for event in (await world.history(run)).events]
    waited = {(one.activity_type.name, one.task_queue.name) for one in scheduled if one.activity_type.name}
    queue = world.settings.task_queue
    assert waited == {
        ("admit_run", queue),
        ("call_model", f"{queue}.anthropic"),
        ("run_tool", queue),
        ("finish_run", queue),
    }
    await world.replay(run)


async def test_a_provider_without_a_key_is_refused_and_not_waited_for(world: World) -> None:
    """Workers poll its queue all the same: a queue that nobody polls would keep a run that falls back to it for ever."""
    await world.script({"steps": [{"status": 400, "error": {"type": "invalid_request_error"}}]})
    resources = replace(world.resources, providers={"anthropic": world.resources.providers["anthropic"]})
    async with build_worker(world.client.temporal, world.settings, resources):
        result = await (await world.start()).result()
    assert result.status is RunStatus.FAILED
    assert result.failure is not None
    assert result.failure.kind is FailureKind.NO_KEY


async def test_an_error_that_ends_the_workers_comes_out_of_their_block(world: World) -> None:
    """A worker that goes on polling two of three queues looks healthy and is not."""
    nowhere = await Client.connect(world.endpoints.temporal_address, namespace="nowhere")
    with pytest.raises((RPCError, RuntimeError), match="nowhere"):
        async with build_worker(nowhere, world.settings, world.resources):
            await asyncio.Event().wait()
