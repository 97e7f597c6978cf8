"""Are people told that somebody waits for them: when they are asked, again, when it is their turn, and when it is over?"""

from datetime import timedelta

import pytest
from pydantic import ValidationError

from activities.sent_decisions import SentDecisions
from durable_agents import ApprovalDecision, RunStatus
from durable_agents.domain.approvals import Rung
from durable_agents.domain.identifiers import UserId
from tests.support.scripts import tell, turns
from tests.support.waiting import eventually, pending
from tests.support.world import World
from tests.workflows.conftest import SkippingWorld

pytestmark = pytest.mark.timeout(90)
CALL = "tell_customer order=A-1001 text=REMIND"


async def told(world: World) -> list[str]:
    """The titles of what people are told of approvals, oldest first."""
    return [
        row["title"] for row in await world.rows("select title from notification where kind = 'approval' order by created_at")
    ]


async def test_people_are_told_when_asked_reminded_asked_next_and_when_it_is_over(skipping: SkippingWorld) -> None:
    """Each once, in this order, whether or not anybody looks at the command line."""
    await skipping.script(turns(tell("REMIND"), "Nobody answered."))
    async with skipping.worker():
        run = await skipping.start()
        await pending(run)
        assert await told(skipping) == [f"Decide: {CALL}"]
        await skipping.pass_time(run, timedelta(hours=25))
        assert (await run.result()).status is RunStatus.COMPLETED
    assert await told(skipping) == [
        f"Decide: {CALL}",
        f"Still to decide: {CALL}",
        f"Nobody decided, so you are asked: {CALL}",
        f"Still to decide: {CALL}",
        f"Nobody decided in time: {CALL}",
    ]
    rows = await skipping.rows("select body from notification where kind = 'approval' order by created_at")
    assert [name for row in rows for name in ("ann", "bob") if f"Asked: {name}," in row["body"]] == ["ann", "ann", "bob", "bob"]
    assert f"`python -m starter pending {run.id}`" in rows[0]["body"]
    await skipping.replay(run)


async def test_a_lost_decision_is_found_at_the_reminder(world: World) -> None:
    """Nobody need wait for the deadline, nor be reminded of what they have done."""
    await world.script(turns(tell("REMIND QUICK"), "done"))
    kept = SentDecisions(world.resources.database)
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        await kept.keep(run.tenant, run.id, ApprovalDecision(approval_id=approval.id, decision="approve", by=UserId("ann")))
        assert (await run.result()).status is RunStatus.COMPLETED
    assert (await world.shop_counts())["messages"] == 1
    assert await told(world) == [f"Decide: {CALL} QUICK", f"Approved by ann: {CALL} QUICK"]
    await world.replay(run)


async def test_a_reminder_does_not_move_the_deadline_and_comes_once(world: World) -> None:
    """It asks again; it does not ask anew."""
    await world.script(turns(tell("REMIND QUICK"), "done"))
    async with world.worker():
        run = await world.start()
        (before,) = await pending(run)

        async def again() -> bool:
            return len(await told(world)) > 1

        await eventually(again)
        (after,) = await pending(run)
        assert (after.deadline, after.rung) == (before.deadline, before.rung)
        await run.deny(after, by="bob")
        await run.result()
    assert await told(world) == [f"Decide: {CALL} QUICK", f"Still to decide: {CALL} QUICK", f"Denied by bob: {CALL} QUICK"]
    await world.replay(run)


@pytest.mark.parametrize("remind", ["0s", "1h", "2h"])
def test_a_reminder_that_would_come_too_late_is_refused_when_it_is_read(remind: str) -> None:
    """It would never be sent, and nobody would notice."""
    with pytest.raises(ValidationError):
        Rung.model_validate({"within": "1h", "remind": remind})
