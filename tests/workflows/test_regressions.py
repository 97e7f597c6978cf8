"""Ways in which runs once went wrong, each as a run: do they still go right?"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import JsonValue
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, ResetReapplyType
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest

from activities.agents import AgentCatalog
from durable_agents import Budget, RunStatus
from durable_agents.domain.run_state import MAX_DEPTH
from tests.support.scripts import Call, refund, turns
from tests.support.waiting import eventually, pending
from tests.support.world import AGENTS, World
from worker import build_worker

pytestmark = pytest.mark.timeout(90)
BAD: JsonValue = {"status": 400, "error": {"type": "invalid_request_error"}}


async def test_a_call_whose_wait_ran_out_of_time_is_asked_for_again_when_the_time_was_raised(world: World) -> None:
    """The raise comes while another call of the turn is still busy: the model must not be asked over a call without result."""
    both: list[Call] = [("tell_customer", {"order": "A-1001", "text": "END"}), ("lookup_order", {"order": "A-1001"})]
    await world.script(turns(both, "done"))
    await world.fault(path="/orders/*", after_effect="hang", times=1)
    async with world.worker():
        run = await world.start(budget=Budget(wall_time=timedelta(seconds=3)))
        (approval,) = await pending(run)

        async def time_is_over() -> bool:
            events = (await world.history(run)).events
            fired = next((event.event_id for event in events if event.event_type == EventType.EVENT_TYPE_TIMER_FIRED), None)
            done = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
            return fired is not None and any(event.event_id > fired and event.event_type == done for event in events)

        await eventually(time_is_over)
        await run.raise_budget(Budget(wall_time=timedelta(hours=1)), by="ann")
        await world.http.post(f"{world.shop_url}/release")

        async def settled() -> bool:
            return len(await world.rows("select 1 from tool_dispatch where state = 'settled'")) == 1

        await eventually(settled)
        await run.approve(approval.id, by="ann")
        result = await run.result()
    assert result.status is RunStatus.COMPLETED, result.explanation
    assert (await world.shop_counts())["messages"] == 1
    assert (result.turns, result.spend.tool_calls) == (2, 2)
    await world.replay(run)


async def test_a_wait_longer_than_the_time_that_is_left_ends_the_run_as_out_of_time(world: World) -> None:
    """The server gives the model call up at once when its next try would come too late; that is no bug of ours."""
    busy: JsonValue = {"status": 529, "error": {"type": "overloaded_error"}, "headers": {"retry-after": "60"}}
    await world.script({"steps": [busy], "per": "turn"})
    async with world.worker():
        run = await world.start(budget=Budget(wall_time=timedelta(seconds=20)))
        result = await run.result()
    assert result.status is RunStatus.BUDGET_EXHAUSTED, result
    assert "wall_time" in result.explanation
    await world.replay(run)


@asynccontextmanager
async def planner(world: World, folder: Path, fallbacks: str) -> AsyncIterator[None]:
    """A worker that also has an agent `planner` with these fallbacks, on a model of its own."""
    home = folder / "planner"
    home.mkdir()
    (home / "agent.yaml").write_text(
        "name: planner\ndescription: d\nmodels: [{provider: anthropic, model: claude-opus-5-5, max_tokens: 300}]\n"
        f"budget: {{cost_usd: '0.80'}}\nfallbacks:\n{fallbacks}"
    )
    ladders = "ladders: {operators: {rungs: [{approvers: [ann], within: 8h}]}}\n"
    (home / "policy.yaml").write_text(f"rules: [{{allow: nothing}}]\n{ladders}")
    (home / "prompt.md").write_text("You are a planner.")
    resources = replace(world.resources, catalog=AgentCatalog.load([folder, AGENTS]))
    async with build_worker(world.client.temporal, world.settings, resources, max_cached_workflows=50):
        yield


async def end_the_stand_in(world: World) -> None:
    """Terminate the stand-in in the middle of its work, as an operator would."""

    async def waiting() -> str | None:
        rows = await world.rows("select run_id from approval where kind = 'tool_call'")
        return str(rows[0]["run_id"]) if rows else None

    await world.client.temporal.get_workflow_handle(await eventually(waiting)).terminate("enough")


async def test_a_stand_in_that_was_refused_gives_way_to_the_next_fallback(world: World, tmp_path: Path) -> None:
    """A worker without that agent is no reason to fail a run whose file knows another way."""
    await world.script({"steps": [BAD], "per": "turn"})
    async with planner(world, tmp_path, "  - {on: [any], agent: nobody}\n  - {on: [any], text: We call you back.}\n"):
        run = await world.start(agent="planner")
        result = await run.result()
    assert (result.status, result.output) == (RunStatus.DEGRADED, "We call you back.")
    await world.replay(run)


async def test_what_a_lost_stand_in_was_given_is_not_given_again(world: World, tmp_path: Path) -> None:
    """It may have spent all of it, and nobody says: a second one must not bring the run to twice its limit."""
    await world.script({"steps": [BAD, {"tool_calls": [call(*refund())]}, {"text": "more"}], "per": "global"})
    async with planner(world, tmp_path, "  - {on: [any], agent: clerk}\n  - {on: [any], agent: memory}\n"):
        run = await world.start(agent="planner")
        await end_the_stand_in(world)
        result = await run.result()
    assert result.status is RunStatus.BUDGET_EXHAUSTED
    assert result.spend.committed_micros == 800_000
    assert len((await world.bill())["requests"]) == 2  # type: ignore[arg-type]
    await world.replay(run)


async def test_a_human_who_is_asked_to_take_over_stays_asked_when_the_run_continues_as_new(world: World, tmp_path: Path) -> None:
    """The new execution must not begin again with the stand-in that was lost, and fail because its name is taken."""
    await world.script({"steps": [BAD, {"tool_calls": [call(*refund())]}], "per": "global"})
    async with planner(world, tmp_path, "  - {on: [any], agent: clerk}\n  - {on: [any], human: operators}\n"):
        run = await world.start(agent="planner")
        handle = world.client.temporal.get_workflow_handle(run.id)
        first = (await handle.describe()).run_id
        await end_the_stand_in(world)
        (asked,) = await pending(run)
        for _ in range(16):
            await asyncio.gather(*(handle.signal("junk", n) for n in range(100)))

        async def continued() -> bool:
            return (await handle.describe()).run_id != first

        await eventually(continued)
        (again,) = await pending(run)
        assert (again.id, again.deadline) == (asked.id, asked.deadline)
        await run.approve(asked.id, by="ann")
        assert (await run.result()).status is RunStatus.HANDED_OFF
    await world.replay(run)


async def test_two_agents_that_stand_in_for_each_other_come_to_an_end(world: World, tmp_path: Path) -> None:
    """A calls B calls A: four runs, and then the failure that began it."""
    for name, other in (("ping", "pong"), ("pong", "ping")):
        home = tmp_path / name
        home.mkdir()
        (home / "agent.yaml").write_text(
            f"name: {name}\ndescription: d\nmodels: [{{provider: anthropic, model: claude-opus-5-5, max_tokens: 300}}]\n"
            f"fallbacks: [{{on: [any], agent: {other}}}]\n"
        )
        (home / "policy.yaml").write_text("rules: [{allow: nothing}]\n")
        (home / "prompt.md").write_text("You are one of two.")
    await world.script({"steps": [BAD], "per": "turn"})
    resources = replace(world.resources, catalog=AgentCatalog.load([tmp_path]))
    async with build_worker(world.client.temporal, world.settings, resources, max_cached_workflows=50):
        result = await (await world.start(agent="ping")).result()
    assert result.failure is not None
    assert (result.status, result.failure.kind) == (RunStatus.FAILED, "bad_request")
    assert len(await world.rows("select 1 from run")) == 1 + MAX_DEPTH


async def test_a_decision_that_comes_while_the_run_is_about_to_continue_as_new_goes_along(world: World) -> None:
    """A flood made it stop waiting, another call is still busy, and now the approval comes: it counts, so it is acted upon."""
    both: list[Call] = [refund(), ("lookup_order", {"order": "A-1001"})]
    await world.script(turns(both, "done"))
    await world.fault(path="/orders/*", after_effect="hang", times=2)
    async with world.worker(cached=50):
        run = await world.start()
        handle = world.client.temporal.get_workflow_handle(run.id)
        first = (await handle.describe()).run_id
        (approval,) = await pending(run)
        for _ in range(16):
            await asyncio.gather(*(handle.signal("junk", n) for n in range(100)))
        await run.approve(approval.id, by="ann")
        assert (await run.status()).rejected_count == 1600
        assert (await handle.describe()).run_id == first, "the other call is still busy"
        await world.http.post(f"{world.shop_url}/release")
        result = await run.result()
        assert (await handle.describe()).run_id != first
    assert result.status is RunStatus.COMPLETED
    assert (await world.shop_counts())["refunds"] == 1
    await world.replay(run)


def call(name: str, arguments: dict[str, JsonValue]) -> JsonValue:
    """A tool call of a script's step."""
    return {"name": name, "arguments": arguments}


async def test_a_run_that_an_operator_resets_to_its_beginning_acts_and_pays_nothing_twice(world: World) -> None:
    """A reset is how operators mend a run: what was answered, decided and done before is found again, not done again."""
    await world.script(turns([refund(), ("tell_customer", {"order": "A-1001", "text": "hello"})], "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        await run.approve(approval.id, by="ann")
        before = await run.result()
        bill, counts = await world.bill(), await world.shop_counts()
        events = (await world.history(run)).events
        done = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
        request = ResetWorkflowExecutionRequest(
            namespace=world.client.temporal.namespace,
            workflow_execution=WorkflowExecution(workflow_id=run.id),
            reason="again",
            request_id=uuid.uuid4().hex,
            workflow_task_finish_event_id=next(event.event_id for event in events if event.event_type == done),
            reset_reapply_type=ResetReapplyType.RESET_REAPPLY_TYPE_NONE,
        )
        await world.client.temporal.workflow_service.reset_workflow_execution(request)
        after = await run.result()
    assert after == before
    assert (await world.bill(), await world.shop_counts()) == (bill, counts)
    assert len(await world.rows("select 1 from audit_entry where event = 'run_ended'")) == 1
    await world.replay(run)
