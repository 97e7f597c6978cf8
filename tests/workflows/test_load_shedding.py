"""Is unimportant work refused early, with a hint, when there is too much to do, while important work goes on?"""

import uuid
from datetime import timedelta

import pytest
from temporalio.testing import ActivityEnvironment

from activities import provider_gates, provider_limits
from activities.runs import RunActivities
from durable_agents import AgentClient, RunHandle, RunRequest, RunStatus
from durable_agents.activity_contracts import Admission, AdmissionRequest, Refusal
from durable_agents.domain.failures import FailureKind
from durable_agents.domain.identifiers import TenantId
from durable_agents.domain.provider_gates import LATER, SYSTEM_TENANT, GateId
from durable_agents.domain.runs import Priority
from durable_agents.domain.task_queues import provider_queue
from durable_agents.errors import Overloaded
from durable_agents.load_shedding import LONGEST_WAIT, SHORTEST_WAIT, retry_hint
from tests.support.scripts import turns
from tests.support.waiting import eventually
from tests.support.world import World
from worker import key_fingerprints

DAY = timedelta(days=1)


async def test_low_priority_is_refused_with_a_hint_while_the_backlog_is_long_and_taken_when_it_is_gone(world: World) -> None:
    """Ten runs wait and no worker is there: a low one is told when to come back, a high one is taken."""
    await world.script(turns("done"))
    client = AgentClient(world.client.temporal, task_queue=world.settings.task_queue, identity="t", shed_backlog=5)
    waiting = [await client.start_new("clerk", {}, tenant="acme", user="u", priority="normal") for _ in range(10)]

    async def refused() -> timedelta | None:
        try:
            await client.start_new("clerk", {}, tenant="acme", user="u", priority="low")
        except Overloaded as error:
            return error.retry_after
        return None

    hint = await eventually(refused)
    assert SHORTEST_WAIT <= hint <= LONGEST_WAIT
    important = await client.start_new("clerk", {}, tenant="acme", user="u", priority="high")
    async with world.worker(cached=50):
        for run in (important, *waiting):
            assert (await run.result()).status is RunStatus.COMPLETED

        async def taken() -> bool:
            try:
                run = await client.start_new("clerk", {}, tenant="acme", user="u", priority="low")
            except Overloaded:
                return False
            return (await run.result()).status is RunStatus.COMPLETED

        assert await eventually(taken)


@pytest.mark.parametrize(
    ("waiting", "rate", "hint"),
    [
        (100, 1.0, None),
        (101, 100.0, SHORTEST_WAIT),
        (160, 1.0, timedelta(seconds=60)),
        (10**6, 1.0, LONGEST_WAIT),
        (200, 0.0, LONGEST_WAIT),
    ],
)
def test_the_hint_follows_from_backlog_and_rate(waiting: int, rate: float, hint: timedelta | None) -> None:
    """At the bound nobody is refused; beyond it the hint is when the backlog should be gone, within bounds."""
    assert retry_hint(waiting, rate, 100) == hint


async def test_what_waits_on_a_providers_queue_counts_too(world: World) -> None:
    """With workers that are stuck in model calls the main queue is empty, and there is far too much to do all the same."""
    client = AgentClient(world.client.temporal, task_queue=world.settings.task_queue, identity="t", shed_backlog=5)
    queue = provider_queue(world.settings.task_queue, "openai")
    for _ in range(10):
        await world.client.temporal.start_activity(
            "call_model", id=uuid.uuid4().hex, task_queue=queue, start_to_close_timeout=DAY
        )

    async def refused() -> timedelta | None:
        try:
            await client.start_new("clerk", {}, tenant="acme", user="u", priority="low")
        except Overloaded as error:
            return error.retry_after
        return None

    assert await eventually(refused) == LONGEST_WAIT


async def test_a_low_run_is_not_let_in_while_its_provider_has_no_room_and_its_key_stays_free(world: World) -> None:
    """It would wait in the way of others; refused, it must neither be lost under its key nor run twice under it."""
    await world.script(turns("done"))
    client = AgentClient(world.client.temporal, task_queue=world.settings.task_queue, identity="t")
    own = world.settings.task_queue  # keys are of the server, which all tests share

    async def start(priority: Priority, key: str) -> RunHandle:
        return await client.start_new("clerk", {}, tenant="acme", user="u", priority=priority, idempotency_key=f"{own}-{key}")

    async with world.worker(cached=50):
        assert (await (await start("low", "first")).result()).status is RunStatus.COMPLETED
        await world.change("update provider_gate set paused_until = clock_timestamp() + interval '100 seconds'")
        shed = await (await start("low", "k")).result()
        assert shed.failure is not None
        assert (shed.status, shed.failure.kind) == (RunStatus.FAILED, FailureKind.SHED)
        assert shed.failure.retry_after is not None
        assert 95 < shed.failure.retry_after.total_seconds() <= 100
        assert f"start it again in {shed.failure.retry_after.total_seconds():.0f} s" in shed.explanation
        assert await world.rows("select 1 from run where run_id = $1", shed.run_id) == []

        assert (await (await start("low", "raised")).result()).failure is not None
        others = [await start("normal", "normal"), await start("high", "raised")]

        async def let_in() -> bool:
            return len(await world.rows("select 1 from run where run_id = any ($1)", [run.id for run in others])) == 2

        assert await eventually(let_in)
        await world.change("update provider_gate set paused_until = null")
        assert [(await run.result()).status for run in others] == [RunStatus.COMPLETED] * 2
        await world.change("update provider_gate set turned_away_at = null")  # now that nobody waits any more to say so again
        again = await start("low", "k")
        assert (await again.result()).status is RunStatus.COMPLETED
        assert (await (await start("low", "k")).result()).status is RunStatus.COMPLETED
    execution = (await world.client.temporal.get_workflow_handle(again.id).describe()).run_id
    (row,) = await world.rows("select first_execution from run where run_id = $1", again.id)
    assert row["first_execution"] == execution, "the third start found the second's run"
    await world.replay(again)


async def test_who_was_admitted_stays_admitted(world: World) -> None:
    """A worker that dies right after the admission is followed by one that sees the provider's trouble, and the run's own row."""
    catalog, providers = world.resources.catalog, world.resources.providers
    runs = RunActivities(world.resources.database, catalog, providers, key_fingerprints(world.settings))
    request = RunRequest(agent="clerk", tenant="acme", user="u", idempotency_key="k", priority="low")
    admission = AdmissionRequest(request=request, first_execution="e")
    assert isinstance(await ActivityEnvironment().run(runs.admit_run, admission), Admission)
    await world.change(
        "insert into provider_gate (tenant, provider, model, key, paused_until)"
        " values ('*', 'anthropic', 'claude-haiku-5-5', $1, now() + interval '1 hour')",
        key_fingerprints(world.settings)["anthropic"],
    )
    assert isinstance(await ActivityEnvironment().run(runs.admit_run, admission), Admission)
    other = admission.model_copy(update={"request": request.model_copy(update={"idempotency_key": "other"})})
    assert isinstance(await ActivityEnvironment().run(runs.admit_run, other), Refusal)


async def test_a_model_that_operators_have_taken_out_is_not_waited_for(world: World) -> None:
    """It may stay out for weeks; its runs go on with the next model, and low ones may as well."""
    await world.script(turns("done"))
    gates = (("anthropic", "claude-haiku-5-5"), ("openai", "gpt-6-luna"))
    keys = key_fingerprints(world.settings)
    ids = [GateId(provider, model, keys[provider]) for provider, model in gates]  # type: ignore[index]
    found = []
    for provider, model in gates:
        async with world.resources.database.transaction(TenantId("acme")) as connection:
            found.append(await provider_gates.full(connection, TenantId("acme"), ids))
        async with world.resources.database.transaction(SYSTEM_TENANT) as connection:
            await provider_limits.force(connection, provider, model, is_open=True)
    async with world.resources.database.transaction(TenantId("acme")) as connection:
        found.append(await provider_gates.full(connection, TenantId("acme"), ids))
    assert found == [None, None, LATER]


async def test_a_run_that_failed_on_its_own_is_never_started_again_under_its_key(world: World) -> None:
    """One key is one run: only what was never let in may be started again."""
    await world.script({"steps": [{"status": 400, "error": {"type": "invalid_request_error"}}]})
    async with world.worker(cached=50):
        first = await world.start(key=world.settings.task_queue)
        assert (await first.result()).status is RunStatus.FAILED
        execution = (await world.client.temporal.get_workflow_handle(first.id).describe()).run_id
        again = await world.start(key=world.settings.task_queue)
        assert (await again.result()).status is RunStatus.FAILED
    assert (await world.client.temporal.get_workflow_handle(again.id).describe()).run_id == execution
