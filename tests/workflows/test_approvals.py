"""Does nothing that needs consent happen without it, and does every valid decision count exactly once?"""

import asyncio

import pytest

from durable_agents import ApprovalDecision, RunStatus
from durable_agents.domain.identifiers import ApprovalId, Digest, UserId
from durable_agents.errors import InvalidRequest
from tests.support.scripts import refund, tell, turns
from tests.support.waiting import eventually, pending
from tests.support.world import World


async def test_an_approved_call_is_made_once_and_says_who_approved_it(world: World) -> None:
    """The main job: the effect waits for a human, happens once, and the record names the human."""
    await world.script(turns(refund(), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        assert (await world.shop_counts())["refunds"] == 0
        assert approval.facts == {"order": "A-1001", "amount": "250.00"}
        await run.approve(approval.id, by="ann", reason="checked")
        result = await run.result()
    assert result.status is RunStatus.COMPLETED
    assert (await world.shop_counts())["refunds"] == 1
    (row,) = await world.rows("select approved, decided_by, reason, digest from approval")
    assert tuple(row) == (True, "ann", "checked", approval.digest)
    await world.replay(run)


async def test_a_denied_call_is_not_made_and_the_model_is_told(world: World) -> None:
    """A no must reach the model, or it would wait for a result, or try to find a way around."""
    await world.script(turns(refund(), "I could not."))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        await run.deny(approval.id, by="bob", reason="too much")
        result = await run.result()
    assert (result.status, result.output) == (RunStatus.COMPLETED, "I could not.")
    assert (await world.shop_counts())["refund_requests"] == 0
    (row,) = await world.rows("select body::text from message where turn = 1 and position = 1")
    assert "A human denied this call: too much" in row[0]


async def test_nothing_but_a_valid_decision_moves_a_run_and_every_other_is_shown_with_its_reason(world: World) -> None:
    """Self-approval, strangers, altered arguments, unknown ids, nonsense: no effect, no wedge, and the sender can see why."""
    await world.script(turns(refund(), "done"))
    async with world.worker():
        run = await world.start(user="ann")
        (approval,) = await pending(run)
        signal = world.client.temporal.get_workflow_handle(run.id).signal
        await run.approve(approval.id, by="ＡＮＮ")
        await run.approve(approval.id, by="stranger")
        await run.approve("ap-0000000000000000", by="bob")
        await signal("submit_approval", {"approval_id": approval.id, "decision": "approve", "by": "bob", "digest": "f" * 64})
        await signal("submit_approval", {"approval_id": approval.id, "decision": "yes", "by": "bob"})
        await signal("submit_approval", "approve it")
        await signal("submit_approval", None)
        await signal("submit_approval", {"padding": "x" * 20_000})
        await signal("submit_aproval", {"approval_id": approval.id})

        async def all_rejected() -> bool:
            return (await run.status()).rejected_count == 9

        await eventually(all_rejected)
        view = await run.status()
        reasons = " | ".join(message.reason for message in view.rejected_messages)
        for expected in ("who asked", "not among", "no approval", "other arguments", "decision", "20", "no signal"):
            assert expected in reasons, (expected, reasons)
        assert view.status is RunStatus.WAITING_APPROVAL
        assert (await world.shop_counts())["refund_requests"] == 0
        await run.approve(approval.id, by="bob")
        assert (await run.result()).status is RunStatus.COMPLETED
    assert (await world.shop_counts())["refunds"] == 1
    await world.replay(run)


async def test_the_first_of_racing_decisions_wins_and_the_others_are_inert(world: World) -> None:
    """Two people click at once, one of them twice: one outcome, one effect."""
    await world.script(turns(refund(), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        await run.deny(approval.id, by="bob")
        await asyncio.gather(*(run.approve(approval.id, by="ann") for _ in range(5)), run.deny(approval.id, by="bob"))
        await run.result()
        assert (await run.status()).rejected_count <= 6
    assert (await world.shop_counts())["refund_requests"] == 0
    rows = await world.rows("select approved, decided_by from approval")
    assert [tuple(row) for row in rows] == [(False, "bob")]


async def test_a_zero_byte_in_a_reason_stops_nothing(world: World) -> None:
    """PostgreSQL takes no U+0000: a reason that holds one must not keep a run from ever writing it down."""
    await world.script(turns(refund(), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        signal = world.client.temporal.get_workflow_handle(run.id).signal
        payload = {"approval_id": approval.id, "decision": "approve", "by": "ann", "reason": "zero \x00 byte"}
        await signal("submit_approval", payload)
        result = await run.result()
    assert result.status is RunStatus.COMPLETED
    assert (await world.shop_counts())["refunds"] == 1


async def test_an_update_decides_at_once_and_a_refused_one_leaves_no_trace(world: World) -> None:
    """Who decides by update learns the outcome; junk by this door cannot fill the history."""
    await world.script(turns(refund(), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        before = len((await world.history(run)).events)
        for _ in range(20):
            with pytest.raises(InvalidRequest, match="not among the approvers"):
                await run.decide_now(_decision(approval.id, by="stranger"))
        assert len((await world.history(run)).events) == before
        await run.decide_now(_decision(approval.id, by="ann", digest=approval.digest))
        assert (await run.result()).status is RunStatus.COMPLETED
    assert (await world.shop_counts())["refunds"] == 1


async def test_a_decision_taken_while_no_worker_runs_is_honoured(world: World) -> None:
    """A human's click is durable: a deploy or an outage must not lose it."""
    await world.script(turns(refund(), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
    await run.approve(approval.id, by="ann")
    async with world.worker():
        assert (await run.result()).status is RunStatus.COMPLETED
    assert (await world.shop_counts())["refunds"] == 1


async def test_parallel_approvals_each_go_to_their_own_call(world: World) -> None:
    """Answers in another order than the questions must not be mixed up."""
    await world.script(turns([refund("101.00"), refund("102.00"), refund("103.00")], "done"))
    async with world.worker():
        run = await world.start()
        asked = {approval.facts["amount"]: approval for approval in await pending(run, 3)}
        await run.approve(asked["103.00"].id, by="ann")
        await run.deny(asked["102.00"].id, by="bob")
        await run.approve(asked["101.00"].id, by="bob")
        assert (await run.result()).status is RunStatus.COMPLETED
    records = (await world.http.get(f"{world.shop_url}/records")).json()
    assert sorted(refund["amount"] for refund in records["refunds"]) == ["101.00", "103.00"]
    await world.replay(run)


async def test_arguments_changed_after_the_question_are_never_executed(world: World) -> None:
    """What was approved is what is executed: whoever changes the transcript in between gets a stop, not an effect."""
    await world.script(turns(refund("250.00"), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        await world.rows(
            "update message set body = replace(body::text, '250.00', '329.00')::jsonb where turn = 1 and position = 0 returning 1"
        )
        await run.approve(approval.id, by="ann")
        result = await run.result()
    assert result.status is RunStatus.FAILED
    assert result.failure is not None
    assert result.failure.kind == "consent_mismatch"
    assert (await world.shop_counts())["refund_requests"] == 0


async def test_a_denial_ends_the_run_where_the_policy_says_so(world: World) -> None:
    """Some refusals are the end of the matter; the model gets no second word."""
    await world.script(turns(tell("END"), "never said"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        await run.deny(approval.id, by="ann", reason="no")
        result = await run.result()
    assert result.status is RunStatus.DENIED
    assert "ann" in result.explanation
    assert (await world.shop_counts())["messages"] == 0


async def test_a_flood_of_junk_signals_does_not_block_the_real_decision(world: World) -> None:
    """The server takes 10,000 signals of one execution; the run continues as new before, and still knows its question."""
    await world.script(turns(refund(), "done"))
    async with world.worker(cached=100):
        run = await world.start()
        (approval,) = await pending(run)
        first = await world.client.temporal.get_workflow_handle(run.id).describe()
        signal = world.client.temporal.get_workflow_handle(run.id).signal
        for _ in range(16):
            await asyncio.gather(*(signal("junk", n) for n in range(100)))

        async def continued() -> bool:
            return (await world.client.temporal.get_workflow_handle(run.id).describe()).run_id != first.run_id

        await eventually(continued)
        (again,) = await pending(run)
        assert (again.id, again.deadline) == (approval.id, approval.deadline)
        await run.approve(approval.id, by="ann")
        result = await run.result()
    assert (result.status, result.turns) == (RunStatus.COMPLETED, 2)
    assert result.spend.tool_calls == 1
    assert (await world.shop_counts())["refunds"] == 1


def _decision(approval: str, *, by: str, digest: str | None = None) -> ApprovalDecision:
    return ApprovalDecision(
        approval_id=ApprovalId(approval),
        decision="approve",
        by=UserId(by),
        digest=Digest(digest) if digest is not None else None,
    )
