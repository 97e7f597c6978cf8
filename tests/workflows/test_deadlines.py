"""Do deadlines of hours and days hold, by the server's clock, whether or not a worker is there?"""

from datetime import UTC, datetime, timedelta

import pytest

from durable_agents import Budget, RunStatus
from tests.support.scripts import refund, tell, turns
from tests.support.waiting import eventually, pending
from tests.support.world import World
from tests.workflows.conftest import SkippingWorld

pytestmark = pytest.mark.timeout(90)


async def test_after_24_hours_without_a_decision_the_answer_is_no(skipping: SkippingWorld) -> None:
    """Default is no: 4 h for the first rung, 20 h for the second, then the call is refused and the model told."""
    await skipping.script(turns(refund(), "Nobody answered."))
    async with skipping.worker():
        run = await skipping.start()
        await pending(run)
        await skipping.pass_time(run, timedelta(hours=25))
        result = await run.result()
    assert (result.status, result.output) == (RunStatus.COMPLETED, "Nobody answered.")
    assert (await skipping.shop_counts())["refund_requests"] == 0
    (row,) = await skipping.rows("select approved, decided_by from approval")
    assert tuple(row) == (False, "deadline")
    await skipping.replay(run)


async def test_an_unanswered_rung_escalates_to_the_next(skipping: SkippingWorld) -> None:
    """After 4 h anybody may decide, before only the named; the deadline moves with the rung."""
    await skipping.script(turns(refund(), "done"))
    async with skipping.worker():
        run = await skipping.start()
        (first,) = await pending(run)
        await run.approve(first.id, by="carol")
        await skipping.pass_time(run, timedelta(hours=5))

        async def escalated() -> bool:
            return (await pending(run))[0].rung == 1

        await eventually(escalated)
        (second,) = await pending(run)
        assert second.id == first.id
        assert timedelta(hours=23, minutes=59) < second.deadline - first.requested_at < timedelta(hours=24, minutes=2)
        await run.approve(second.id, by="carol")
        assert (await run.result()).status is RunStatus.COMPLETED
    assert (await skipping.shop_counts())["refunds"] == 1
    await skipping.replay(run)


async def test_a_decision_in_time_counts_even_if_every_worker_was_down_beyond_the_deadline(world: World) -> None:
    """The human was in time; our outage must not turn a yes into a no. (Time cannot skip while a task waits: 4 s are real.)"""
    await world.script(turns(tell("QUICK"), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
    await run.approve(approval.id, by="ann")
    await _passed(approval.deadline)
    async with world.worker():
        result = await run.result()
    assert result.status is RunStatus.COMPLETED, result
    assert (await world.shop_counts())["messages"] == 1
    await world.replay(run)


async def test_a_decision_after_the_deadline_does_not_count_even_if_no_worker_saw_the_deadline_pass(world: World) -> None:
    """An outage must not lengthen a deadline either: late is judged by the server's clock."""
    await world.script(turns(tell("QUICK"), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
    await _passed(approval.deadline)
    await run.approve(approval.id, by="ann")
    async with world.worker():
        result = await run.result()
        assert "deadline" in (await run.status()).rejected_messages[-1].reason
    assert result.status is RunStatus.EXPIRED
    assert (await world.shop_counts())["messages"] == 0
    await world.replay(run)


async def test_a_decision_an_hour_late_is_refused(skipping: SkippingWorld) -> None:
    """Consent has an end; stale consent is none."""
    await skipping.script(turns(tell("END"), "done"))
    async with skipping.worker():
        run = await skipping.start()
        (approval,) = await pending(run)
        await skipping.pass_time(run, timedelta(hours=25))
        result = await run.result()
    assert result.status is RunStatus.EXPIRED
    assert approval.id not in result.explanation
    assert "nobody decided" in result.explanation
    assert (await skipping.shop_counts())["messages"] == 0


async def test_wall_time_ends_a_run_that_waits(skipping: SkippingWorld) -> None:
    """A run must not outlive its wall time because a human sleeps."""
    await skipping.script(turns(refund(), "never said"))
    async with skipping.worker():
        run = await skipping.start(budget=Budget(wall_time=timedelta(hours=2)))
        await pending(run)
        await skipping.pass_time(run, timedelta(hours=3))
        result = await run.result()
    assert result.status is RunStatus.BUDGET_EXHAUSTED
    assert "wall_time" in result.explanation
    assert (await skipping.shop_counts())["refund_requests"] == 0
    await skipping.replay(run)


async def test_working_time_stands_still_while_a_human_is_awaited(skipping: SkippingWorld) -> None:
    """Ten hours of a human's silence are not ten hours of work."""
    await skipping.script(turns(refund(), "done"))
    async with skipping.worker():
        run = await skipping.start(budget=Budget(working_time=timedelta(minutes=5)))
        await pending(run)
        await skipping.pass_time(run, timedelta(hours=10))
        (approval,) = await pending(run)
        used = await run.budget()
        assert used.wall_seconds > 3.9 * 3600, "as of the last workflow task: the first rung's end"
        assert used.working_seconds < 300
        await run.approve(approval.id, by="ann")
        assert (await run.result()).status is RunStatus.COMPLETED


async def _passed(deadline: datetime) -> None:
    async def probe() -> bool:
        return datetime.now(UTC) > deadline + timedelta(seconds=0.2)

    await eventually(probe)
