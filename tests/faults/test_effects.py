"""Does every effect class keep its promise when the service behind a tool fails after, or before, it acted?"""

import signal
from pathlib import Path

import pytest

from durable_agents import RunStatus
from durable_agents.domain.approvals import ApprovalKind
from starter.embedded.processes import free_ports
from tests.support.crashers import open_crashers
from tests.support.scripts import refund, tell, turns
from tests.support.waiting import eventually, pending
from tests.support.world import World

pytestmark = pytest.mark.timeout(90)


async def test_an_idempotent_call_whose_reply_was_lost_runs_again_with_the_same_key(world: World) -> None:
    """The shop acted and the reply was lost: the second try must be recognised by its key."""
    await world.fault(path="/refunds", after_effect="drop", times=1)
    await world.script(turns(refund("50.00"), "done"))
    async with world.worker():
        run = await world.start()
        result = await run.result()
    records = (await world.http.get(f"{world.shop_url}/records")).json()
    assert result.status is RunStatus.COMPLETED
    assert records["counts"]["refunds"] == 1
    assert list(records["refund_requests"].values()) == [2]
    await world.replay(run)


async def test_a_reconcilable_call_is_asked_about_before_it_is_made_again(world: World) -> None:
    """Who can ask need not repeat: one request at the shop, found again by its key."""
    await world.fault(path="/refunds", after_effect="500", times=1)
    await world.script(turns(refund("50.00", tool="refund_and_check"), "done"))
    async with world.worker():
        run = await world.start()
        result = await run.result()
    counts = await world.shop_counts()
    assert result.status is RunStatus.COMPLETED
    assert (counts["refunds"], counts["refund_requests"]) == (1, 1)


@pytest.mark.parametrize(("approve", "told"), [(True, "it happened"), (False, "it did not happen")])
async def test_an_at_most_once_call_in_doubt_is_never_repeated_but_asked_about(world: World, approve: bool, told: str) -> None:
    """Nobody knows whether the mail went out: no second mail, a human finds out, the model hears what."""
    await world.fault(path="/messages", after_effect="500", times=1)
    await world.script(turns(tell(), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        assert approval.kind is ApprovalKind.OUTCOME
        await (run.approve if approve else run.deny)(approval.id, by="ann", reason="looked it up")
        result = await run.result()
    assert result.status is RunStatus.COMPLETED
    assert (await world.shop_counts())["messages"] == 1
    (row,) = await world.rows("select body::text from message where turn = 1 and position = 1")
    assert told in row[0]
    await world.replay(run)


async def test_a_call_that_certainly_never_arrived_is_tried_again_and_then_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed shop did nothing, four times: the model is told so, and nobody is bothered."""
    monkeypatch.setenv("SHOP_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    await world.script(turns(tell(), "done"))
    async with world.worker():
        run = await world.start()
        result = await run.result()
    assert result.status is RunStatus.COMPLETED
    assert [tuple(row) for row in await world.rows("select state, tries from tool_dispatch")] == [("settled", 4)]
    (row,) = await world.rows("select body::text from message where turn = 1 and position = 1")
    assert "none of the tries did anything" in row[0]


async def test_a_tool_that_says_no_is_not_tried_again(world: World) -> None:
    """An order that does not exist will not exist the second time: one request, and the model hears why."""
    await world.script(turns(("issue_refund", {"order": "A-9999", "amount": "1.00"}), "done"))
    async with world.worker():
        run = await world.start()
        result = await run.result()
    assert result.status is RunStatus.COMPLETED
    (row,) = await world.rows("select body::text from message where turn = 1 and position = 1")
    assert "The tool failed: 404" in row[0]
    assert [tuple(r) for r in await world.rows("select state, tries from tool_dispatch")] == [("settled", 1)]


async def test_a_worker_that_froze_and_came_back_can_neither_act_nor_settle(world: World, model_url: str) -> None:
    """The server gave its attempt to another; the message must not go out once more when it wakes up."""
    await world.script(turns(tell(), "done"))
    run = await world.start()
    async with open_crashers() as crashers:
        frozen = await crashers.start(world, "after_tool_dispatch#1", world.settings.task_queue, model_url, "SIGSTOP")
        stat = Path(f"/proc/{frozen.pid}/stat")

        async def is_frozen() -> bool:
            return _process_state(stat) == "T"

        await eventually(is_frozen)
        async with world.worker():
            (approval,) = await pending(run)
            assert approval.kind is ApprovalKind.OUTCOME
            await run.deny(approval.id, by="ann", reason="nothing was sent")
            result = await run.result()
            frozen.send(signal.SIGCONT)
            frozen.send(signal.SIGTERM)
            assert await frozen.wait() == 0
    assert result.status is RunStatus.COMPLETED
    assert (await world.shop_counts())["messages"] == 0
    (row,) = await world.rows("select state, outcome ->> 'result' as result from tool_dispatch")
    assert tuple(row) == ("settled", "error")


def _process_state(stat: Path) -> str:
    return stat.read_text().rpartition(")")[2].split()[0]
