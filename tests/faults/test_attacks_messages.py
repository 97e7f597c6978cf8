"""Can a message of any form stop a run, or a decision count that should not?

Whoever may write to the namespace may send any signal with any bytes; the run must outlive all of it, and its consent with it.
"""

from datetime import UTC, datetime, timedelta

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.client import WorkflowUpdateFailedError
from temporalio.common import RawValue

from durable_agents import Approval, RunStatus
from durable_agents.domain.approvals import ApprovalKind, approval_digest, approval_id
from durable_agents.domain.identifiers import RunId, call_path
from tests.support.scripts import refund, tell, turns
from tests.support.waiting import eventually, pending
from tests.support.world import World

pytestmark = pytest.mark.timeout(60)


def unreadable(data: bytes = b"\xff") -> RawValue:
    """A payload in an encoding that no converter knows."""
    return RawValue(Payload(metadata={"encoding": b"nobody/knows"}, data=data))


async def passed(approval: Approval) -> None:
    """Until the deadline has passed, by the clock."""

    async def probe() -> bool:
        return datetime.now(UTC) > approval.deadline + timedelta(seconds=0.2)

    await eventually(probe)


@pytest.mark.parametrize("arguments", [[], [1, 2], [unreadable()]], ids=["none", "two", "unreadable"])
async def test_a_signal_with_any_number_of_arguments_wedges_nothing(world: World, arguments: list[object]) -> None:
    """The Temporal CLI sends a signal without input when none is named: a handler that raises would fail every task for ever."""
    await world.script(turns(refund(), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        signal = world.client.temporal.get_workflow_handle(run.id).signal
        await signal("submit_approval", args=arguments)

        async def rejected() -> bool:
            return (await run.status()).rejected_count == 1

        await eventually(rejected, within=8)
        await run.approve(approval.id, by="ann")
        assert (await run.result()).status is RunStatus.COMPLETED
    await world.replay(run)


@pytest.mark.parametrize("arguments", [[], [1, 2], [unreadable()]], ids=["none", "two", "unreadable"])
async def test_a_cancel_with_any_number_of_arguments_cancels(world: World, arguments: list[object]) -> None:
    """`temporal workflow signal --name request_cancel` has no input: stopping must never fail on its wording."""
    await world.script(turns(refund(), "never said"))
    async with world.worker():
        run = await world.start()
        await pending(run)
        await world.client.temporal.get_workflow_handle(run.id).signal("request_cancel", args=arguments)

        async def asked() -> bool:
            return (await run.status()).cancel_requested is not None

        await eventually(asked, within=8)
        assert (await run.result()).status is RunStatus.CANCELLED
    await world.replay(run)


async def test_an_unreadable_signal_does_not_hide_a_decision_that_came_in_time(world: World) -> None:
    """The history is searched for when a decision arrived; what else lies in it must not stop the search, for ever."""
    await world.script(turns(tell("QUICK"), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
    handle = world.client.temporal.get_workflow_handle(run.id)
    for arguments in ([], [1, 2], [unreadable()], [unreadable(b"")]):
        await handle.signal("submit_approval", args=arguments)
    await run.approve(approval.id, by="ann")
    await passed(approval)
    async with world.worker():
        result = await run.result()
    assert result.status is RunStatus.COMPLETED, result
    assert (await world.shop_counts())["messages"] == 1
    await world.replay(run)


async def test_a_late_decision_does_not_count_because_the_same_words_were_refused_before(world: World) -> None:
    """A decision sent before the question was asked is refused; repeated after the deadline it is late, not early."""
    await world.script(turns(tell("QUICK"), "done"))
    agent = world.resources.catalog.get("clerk")
    assert agent is not None
    bound = approval_digest(
        run=RunId("run:acme:foreseen"), path=call_path(1, 0), kind=ApprovalKind.TOOL_CALL, tool="tell_customer",
        arguments={"order": "A-1001", "text": "QUICK"}, policy_digest=agent.pinned.policy_digest,
    )  # fmt: skip
    run = await world.start(key="foreseen")
    await run.approve(approval_id(bound), by="ann")
    async with world.worker():
        (approval,) = await pending(run)
        assert approval.id == approval_id(bound)
        assert "no approval" in (await run.status()).rejected_messages[-1].reason
    await passed(approval)
    await run.approve(approval.id, by="ann")
    async with world.worker():
        result = await run.result()
    assert result.status is RunStatus.EXPIRED
    assert (await world.shop_counts())["messages"] == 0
    await world.replay(run)


async def test_an_approval_that_arrives_after_the_cancel_does_nothing(world: World) -> None:
    """Who has cancelled, and was told so, must not see the effect happen afterwards."""
    await world.script(turns(refund(), "never said"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
    await run.cancel(by="bob")
    await run.approve(approval.id, by="ann")
    async with world.worker():
        result = await run.result()
    assert result.status is RunStatus.CANCELLED
    assert (await world.shop_counts())["refund_requests"] == 0
    await world.replay(run)


@pytest.mark.parametrize("update", ["decide_approval", "raise_budget", "no_such_update"])
@pytest.mark.parametrize(
    "arguments", [[], [1, 2], [None], [{"x": 1}], [unreadable()]], ids=["none", "two", "null", "x", "unreadable"]
)
async def test_an_update_with_any_arguments_is_refused(world: World, update: str, arguments: list[object]) -> None:
    """It is refused without a trace, and the run goes on."""
    await world.script(turns(refund(), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        with pytest.raises(WorkflowUpdateFailedError):
            await world.client.temporal.get_workflow_handle(run.id).execute_update(update, args=arguments)
        await run.deny(approval.id, by="ann")
        assert (await run.result()).status is RunStatus.COMPLETED
