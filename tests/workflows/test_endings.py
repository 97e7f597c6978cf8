"""Does every run end exactly once, in the way it should, and say why?"""

from typing import Any

import pytest
from temporalio.client import WorkflowExecutionStatus

from durable_agents import Budget, RunRequest, RunStatus
from durable_agents.errors import KeyReused, NotFound
from tests.support.scripts import refund, turns
from tests.support.waiting import pending
from tests.support.world import World


async def test_a_cancel_stops_a_waiting_run_and_its_call_is_never_made(world: World) -> None:
    """Stopping must work while a human is awaited, and must not leave an effect behind."""
    await world.script(turns(refund(), "never said"))
    async with world.worker():
        run = await world.start()
        await pending(run)
        await run.cancel(reason="no longer needed", by="ann")
        result = await run.result()
    assert result.status is RunStatus.CANCELLED
    assert "ann: no longer needed" in result.explanation
    assert (await world.shop_counts())["refund_requests"] == 0
    (row,) = await world.rows("select status, ended_at is not null as ended from run")
    assert tuple(row) == ("cancelled", True)
    await world.replay(run)


async def test_temporals_own_cancel_is_the_same_cancel(world: World) -> None:
    """Who cancels in the Web UI must get the same careful stop."""
    await world.script(turns(refund(), "never said"))
    async with world.worker():
        run = await world.start()
        await pending(run)
        await world.client.temporal.get_workflow_handle(run.id).cancel()
        result = await run.result()
    assert result.status is RunStatus.CANCELLED
    await world.replay(run)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"agent": "nobody"}, "unknown_agent", "this worker has: cacher, caching-clerk, clerk"),
        ({"budget": Budget(cost_usd="6.00")}, "budget_above_agent", "agent.yaml"),
        ({"agent": "strict", "input": {"order": 7}}, "invalid_input", "order"),
        ({"agent": "dreamer"}, "unknown_model", "claude-dream-9"),
    ],
)
async def test_what_cannot_be_admitted_fails_with_its_kind_and_writes_nothing(
    world: World, change: dict[str, Any], kind: str, says: str
) -> None:
    """Bad input ends in one clear line, in Temporal's Failed, and leaves nothing half-written."""
    async with world.worker():
        run = await world.start(**change)
        result = await run.result()
        status = (await world.client.temporal.get_workflow_handle(run.id).describe()).status
    assert result.status is RunStatus.FAILED
    assert result.failure is not None
    assert result.failure.kind == kind
    assert says in result.explanation
    assert "\n" not in result.explanation
    assert status is WorkflowExecutionStatus.FAILED
    assert await world.rows("select 1 from run union all select 1 from message") == []
    await world.replay(run)


async def test_starting_twice_with_one_key_is_one_run(world: World) -> None:
    """A caller that repeats its start, also after the end, gets the run it has, and pays once."""
    await world.script(turns("done"))
    async with world.worker():
        first = await world.start({"n": 1}, key="k-1")
        again = await world.start({"n": 1}, key="k-1")
        assert first.id == again.id
        await first.result()
        late = await world.start({"n": 1}, key="k-1")
        assert (await late.result()).status is RunStatus.COMPLETED
    assert len((await world.bill())["requests"]) == 1  # type: ignore[arg-type]


async def test_one_key_for_two_requests_is_refused(world: World) -> None:
    """A key that silently returned another order's refund would be worse than an error."""
    await world.script(turns("done"))
    async with world.worker():
        run = await world.start({"n": 1}, key="k-2")
        with pytest.raises(KeyReused, match="different request"):
            await world.start({"n": 2}, key="k-2")
        await run.result()
        with pytest.raises(KeyReused):
            await world.start({"n": 2}, key="k-2")


async def test_an_output_that_does_not_fit_is_sent_back_and_then_accepted(world: World) -> None:
    """Structured output is checked by us, whatever the provider promises; the model may mend it twice."""
    await world.script(
        {"steps": [{"text": "sure!"}, {"text": '{"total": "x"}'}, {"text": '```json\n{"total": 3}\n```'}], "per": "global"}
    )
    async with world.worker():
        run = await world.start({"order": "A-1001"}, agent="strict")
        result = await run.result()
    assert (result.status, result.output) == (RunStatus.COMPLETED, {"total": 3})
    assert result.spend.model_calls == 3
    await world.replay(run)


async def test_an_output_that_never_fits_is_a_typed_end(world: World) -> None:
    """The same mistake twice and then the end: no endless, paid-for argument about a schema."""
    await world.script({"steps": [{"text": "no"}] * 9, "per": "global"})
    async with world.worker():
        run = await world.start({"order": "A-1001"}, agent="strict")
        result = await run.result()
    assert result.status is RunStatus.FAILED
    assert result.failure is not None
    assert result.failure.kind == "output_invalid"
    assert result.spend.model_calls == 2


async def test_asking_for_a_run_that_never_was_says_so(world: World) -> None:
    """A typo in an id is one clear line."""
    with pytest.raises(NotFound, match="there is no run"):
        await world.client.get("run:acme:nothing").result()


async def test_a_raw_start_by_temporals_own_tools_works_too(world: World) -> None:
    """People start workflows from the Web UI and the Temporal CLI: plain JSON is enough."""
    await world.script(turns("done"))
    async with world.worker():
        payload = {"agent": "clerk", "user": "u", "tenant": "acme", "idempotency_key": "raw"}
        handle = await world.client.temporal.start_workflow(
            "AgentRun", payload, id=RunRequest(agent="clerk", user="u", tenant="acme", idempotency_key="raw").run_id,
            task_queue=world.settings.task_queue,
        )  # fmt: skip
        result = await world.client.get(handle.id).result()
    assert result.status is RunStatus.COMPLETED


async def test_a_raw_start_under_another_id_is_refused(world: World) -> None:
    """The id is the key: under a foreign one the same key could run twice, and its rightful owner be refused."""
    async with world.worker():
        payload = {"agent": "clerk", "user": "u", "tenant": "acme", "idempotency_key": "mine"}
        handle = await world.client.temporal.start_workflow(
            "AgentRun", payload, id="another", task_queue=world.settings.task_queue
        )
        result = await world.client.get(handle.id).result()
    assert result.failure is not None
    assert result.failure.kind == "invalid_input"
    assert await world.rows("select 1 from run") == []


async def test_a_caller_can_wait_until_somebody_is_asked(world: World) -> None:
    """Start, wait, decide: the shortest program that approves; after the end there is nothing to wait for."""
    await world.script(turns(refund(), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await run.wait_for_approvals()
        await run.approve(approval.id, by="ann")
        await run.result()
        assert await run.wait_for_approvals() == ()
