"""Does a run act on what an approver signed and on nothing else, and is no decision lost with its message?"""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from activities.sent_decisions import SentDecisions
from durable_agents import Approval, ApprovalDecision, RunHandle, RunStatus
from durable_agents.domain.identifiers import UserId
from durable_agents.domain.signatures import signed
from durable_agents.errors import InvalidRequest, NotFound
from tests.support.scripts import refund, tell, turns
from tests.support.signing import add_key, revoke_key
from tests.support.waiting import eventually, pending
from tests.support.world import World
from tests.workflows.conftest import SkippingWorld

pytestmark = pytest.mark.timeout(120)


async def rejected(run: RunHandle, count: int) -> str:
    """The reasons of the rejected messages, once there are so many."""

    async def enough() -> bool:
        return (await run.status()).rejected_count >= count

    await eventually(enough)
    return " | ".join(message.reason for message in (await run.status()).rejected_messages)


async def passed(approval: Approval) -> None:
    """Until the deadline has passed, by the clock."""

    async def probe() -> bool:
        return datetime.now(UTC) > approval.deadline + timedelta(seconds=0.2)

    await eventually(probe)


def said(approval: Approval, by: str = "ann", **more: Any) -> ApprovalDecision:
    """Somebody's yes."""
    return ApprovalDecision(approval_id=approval.id, decision="approve", by=UserId(by), **more)


async def test_only_a_signed_decision_of_an_approver_moves_a_run_that_wants_one(world: World) -> None:
    """Unsigned, self-made, another's, for another run, revoked: shown with the reason, and nothing happens. Then the real one."""
    await world.script(turns(tell("SIGNED"), "done"))
    ann, mallory, old = await add_key(world, "ann"), await add_key(world, "mallory"), await add_key(world, "ann")
    async with world.worker():
        run, other = await world.start(), await world.start()
        (approval,), (elsewhere,) = await pending(run), await pending(other)
        assert approval.ladder.signed
        await revoke_key(world, old)
        await run.approve(approval, by="ann")
        await run.approve(approval, by="ann", key=mallory)
        await run.approve(approval, by="ann", key=old)
        await run.approve(approval, by="mallory", key=mallory)
        bound = await other.bound_to(approval)
        stolen = signed(said(approval), bound, ann, nonce="0" * 32, expires_at=datetime.now(UTC) + timedelta(hours=1))
        await world.client.temporal.get_workflow_handle(run.id).signal("submit_approval", stolen)
        reasons = await rejected(run, 5)
        for expected in ("not signed", "is not ann's", "is revoked", "not among", "does not fit"):
            assert expected in reasons, (expected, reasons)
        assert (await world.shop_counts())["messages"] == 0
        await run.approve(approval.id, by="ann", reason="checked", key=ann)
        assert (await run.result()).status is RunStatus.COMPLETED
        await other.deny(elsewhere, by="ann", key=ann)
        assert (await other.result()).status is RunStatus.COMPLETED
    assert (await world.shop_counts())["messages"] == 1
    rows = await world.rows("select run_id, key_id, approval_id from used_nonce order by used_at")
    assert [tuple(row) for row in rows] == [(run.id, ann.key, approval.id), (other.id, ann.key, elsewhere.id)]
    await world.replay(run)
    await world.replay(other)


async def test_a_signature_that_is_there_is_checked_also_where_none_is_needed(world: World) -> None:
    """A wrong signature is somebody's attempt; it must not pass as an unsigned decision."""
    await world.script(turns(refund(), "done"))
    ann, mallory = await add_key(world, "ann"), await add_key(world, "mallory")
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        await run.approve(approval, by="ann", key=mallory)
        assert "is not ann's" in await rejected(run, 1)
        await run.deny(approval, by="ann", key=ann)
        assert (await run.result()).status is RunStatus.COMPLETED
    assert (await world.shop_counts())["refund_requests"] == 0
    await world.replay(run)


async def test_the_first_valid_decision_wins_also_against_one_that_needs_no_verifying(world: World) -> None:
    """A signed yes that is being verified must not be overtaken by an unsigned no that came after it."""
    await world.script(turns(refund(), "done"))
    ann = await add_key(world, "ann")
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
    await run.approve(approval, by="ann", key=ann)  # no worker runs: both lie there when one comes
    await run.deny(approval, by="bob")
    async with world.worker():
        assert (await run.result()).status is RunStatus.COMPLETED
        assert "settled already" in (await run.status()).rejected_messages[-1].reason
    assert (await world.shop_counts())["refunds"] == 1
    await world.replay(run)


async def test_a_signed_decision_in_time_counts_even_if_every_worker_was_down_beyond_the_deadline(world: World) -> None:
    """First it is verified, then the history says when it came."""
    await world.script(turns(tell("SIGNED QUICK"), "done"))
    ann, mallory = await add_key(world, "ann"), await add_key(world, "mallory")
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
    await run.approve(approval, by="ann", key=mallory)  # must not take the real one's place
    await run.approve(approval, by="ann", key=ann)
    await passed(approval)
    async with world.worker():
        result = await run.result()
    assert result.status is RunStatus.COMPLETED, result
    assert (await world.shop_counts())["messages"] == 1
    await world.replay(run)


async def test_a_key_revoked_before_the_effect_takes_its_decision_along(world: World) -> None:
    """The executor asks again: a key that was stolen and revoked in between must not act any more."""
    await world.script(turns(tell("SIGNED"), "I could not."))
    ann = await add_key(world, "ann")
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        await _approve_and_revoke(world, run, approval, ann)
        result = await run.result()
    assert (result.status, result.output) == (RunStatus.COMPLETED, "I could not.")
    assert (await world.shop_counts())["messages"] == 0
    (row,) = await world.rows("select body->>'refused' from audit_entry where event = 'consent_refused'")
    assert "is revoked" in row[0]
    await world.replay(run)


async def _approve_and_revoke(world: World, run: RunHandle, approval: Approval, key: Any) -> None:
    """Hold the executor at the run's dispatch rows while the decision is verified, and revoke the key meanwhile."""
    connection = await asyncpg.connect(world.database.admin)
    try:
        async with connection.transaction():
            await connection.execute("lock table tool_dispatch in exclusive mode")
            await run.approve(approval, by="ann", key=key)

            async def counted() -> bool:
                return not await run.pending_approvals()

            await eventually(counted)
            await connection.execute("update approver_key set revoked_by = 'admin', revoked_at = now()")
    finally:
        await connection.close()


async def test_a_decision_whose_message_was_lost_is_found_at_the_deadline(world: World) -> None:
    """It was written down first: what got lost on the way to the run has lost nothing."""
    await world.script(turns([tell("QUICK"), tell("SIGNED QUICK")], "done"))
    ann, mallory = await add_key(world, "ann"), await add_key(world, "mallory")
    kept = SentDecisions(world.resources.database)
    async with world.worker():
        run = await world.start()
        plain, strict = sorted(await pending(run, 2), key=lambda one: one.ladder.signed)
        bound, soon = await run.bound_to(strict), datetime.now(UTC) + timedelta(hours=1)
        forged = signed(said(strict), bound, mallory, nonce="1" * 32, expires_at=soon)
        real = signed(said(strict), bound, ann, nonce="2" * 32, expires_at=soon)
        for decision in (said(plain, "requester"), said(plain), said(strict), forged, real):
            assert await kept.keep(run.tenant, run.id, decision)
        result = await run.result()
        reasons = await rejected(run, 3)
    assert result.status is RunStatus.COMPLETED, result
    assert (await world.shop_counts())["messages"] == 2
    assert all(expected in reasons for expected in ("who asked", "not signed", "is not ann's")), reasons
    await world.replay(run)


async def test_a_decision_that_was_written_down_too_late_does_not_count(world: World) -> None:
    """The database's clock judges it, as the server's judges a message."""
    await world.script(turns(tell("QUICK"), "done"))
    kept = SentDecisions(world.resources.database)
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
    await passed(approval)
    await kept.keep(run.tenant, run.id, said(approval))
    async with world.worker():
        assert (await run.result()).status is RunStatus.EXPIRED
        assert (await run.status()).rejected_count == 0, "it is not even read"
    assert (await world.shop_counts())["messages"] == 0
    await world.replay(run)


async def test_what_was_written_down_and_delivered_is_one_decision(world: World) -> None:
    """Doubles are inert: a refused one is shown once, an accepted one acts once."""
    await world.script(turns(tell("QUICK"), "done"))
    world.client.decisions = SentDecisions(world.resources.database)
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        await run.approve(approval, by="requester")
        result = await run.result()
        assert (await run.status()).rejected_count == 1
    assert result.status is RunStatus.EXPIRED
    assert len(await world.rows("select 1 from sent_decision")) == 1
    assert not await world.client.decisions.keep(run.tenant, run.id[:-1], said(approval))  # type: ignore[arg-type]
    await world.replay(run)


async def test_a_signed_decision_by_update_is_sent_to_the_signal(world: World) -> None:
    """An update is answered at once, and who signed is not known at once."""
    await world.script(turns(refund(), "done"))
    ann = await add_key(world, "ann")
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        bound = await run.bound_to(approval)
        one = signed(said(approval), bound, ann, nonce="0" * 32, expires_at=datetime.now(UTC) + timedelta(hours=1))
        with pytest.raises(InvalidRequest, match="submit_approval"):
            await run.decide_now(one)
        with pytest.raises(NotFound, match="does not wait"):
            await run.approve("ap-0000000000000000", by="ann", key=ann)
        await run.approve(approval.id, by="ann", key=ann)
        assert (await run.result()).status is RunStatus.COMPLETED


async def test_signatures_that_wait_to_be_verified_survive_a_flood_and_the_next_execution(world: World) -> None:
    """The run continues as new while somebody floods it with forged decisions; the real one still counts."""
    await world.script(turns(tell("SIGNED"), "done"))
    ann, mallory = await add_key(world, "ann"), await add_key(world, "mallory")
    async with world.worker(cached=100):
        run = await world.start()
        (approval,) = await pending(run)
        handle = world.client.temporal.get_workflow_handle(run.id)
        first = (await handle.describe()).run_id
        bound, soon = await run.bound_to(approval), datetime.now(UTC) + timedelta(hours=1)
        forged = [signed(said(approval), bound, mallory, nonce=f"{n:032x}", expires_at=soon) for n in range(1600)]
        for start in range(0, 1600, 100):
            await asyncio.gather(*(handle.signal("submit_approval", one) for one in forged[start : start + 100]))

        async def continued() -> bool:
            return (await handle.describe()).run_id != first

        await eventually(continued)
        assert (await world.shop_counts())["messages"] == 0
        await run.approve(approval, by="ann", key=ann)
        result = await run.result()
        view = await run.status()
    assert result.status is RunStatus.COMPLETED, result
    assert view.rejected_count == 1600
    assert (await world.shop_counts())["messages"] == 1


@pytest.mark.parametrize("wanted", ["SIGNED", None], ids=["signed", "unsigned"])
async def test_races_of_approve_against_deny_end_in_one_outcome_and_at_most_one_effect(world: World, wanted: str | None) -> None:
    """16 runs at once, each with six decisions at once: what is recorded, what was done and what was said are one."""
    await world.script(turns(tell(wanted) if wanted else refund(), "done"))
    keys = {"ann": await add_key(world, "ann"), "bob": await add_key(world, "bob")}
    async with world.worker(cached=100):
        runs = [await world.start() for _ in range(16)]

        async def race(run: RunHandle) -> None:
            (approval,) = await pending(run)
            sends = [
                (run.approve if n % 2 else run.deny)(
                    approval, by=by, key=keys[by] if wanted or n % 3 == 0 else None, reason=f"{n}"
                )
                for n, by in enumerate(["ann", "bob"] * 3)
            ]
            random.Random(run.id).shuffle(sends)
            await asyncio.gather(*sends)
            await run.result()

        await asyncio.gather(*(race(run) for run in runs))
        views = [await run.status() for run in runs]
    assert all(view.rejected_count <= 5 for view in views)
    rows = await world.rows("select run_id, approved from approval")
    assert len(rows) == len(runs)
    assert all(row["approved"] is not None for row in rows)
    counts = await world.shop_counts()
    done = counts["messages"] if wanted else counts["refund_requests"]
    assert done == sum(row["approved"] for row in rows)


async def test_ten_parallel_requests_answered_in_any_order_each_reach_their_own_call(world: World) -> None:
    """The answers to ten requests of one tool must not be mixed up, whoever is faster."""
    amounts = [f"{101 + n}.00" for n in range(10)]
    await world.script(turns([refund(amount) for amount in amounts], "done"))
    ann, order = await add_key(world, "ann"), random.Random(7)
    async with world.worker():
        run = await world.start()
        approvals = list(await pending(run, 10))
        order.shuffle(approvals)
        approved = {one.facts["amount"] for one in approvals if order.random() < 0.5}
        await asyncio.gather(*(
            (run.approve if one.facts["amount"] in approved else run.deny)(
                one, by=order.choice(["ann", "bob"]), reason=one.facts["amount"]
            )
            if order.random() < 0.5
            else (run.approve if one.facts["amount"] in approved else run.deny)(
                one, by="ann", key=ann, reason=one.facts["amount"]
            )
            for one in approvals
        ))  # fmt: skip
        assert (await run.result()).status is RunStatus.COMPLETED
    records = (await world.http.get(f"{world.shop_url}/records")).json()
    assert 0 < len(approved) < 10
    assert sorted(one["amount"] for one in records["refunds"]) == sorted(approved)
    rows = await world.rows("select request->'facts'->>'amount', reason, approved from approval")
    assert all((reason, yes) == (amount, amount in approved) for amount, reason, yes in rows)
    await world.replay(run)


async def test_a_signed_ladder_escalates_and_expires_like_any(skipping: SkippingWorld) -> None:
    """Who signs and until when are two questions."""
    await skipping.script(turns(tell("SIGNED"), "Nobody answered."))
    async with skipping.worker():
        run = await skipping.start()
        (approval,) = await pending(run)
        await run.approve(approval, by="ann")
        await skipping.pass_time(run, timedelta(hours=5))
        result = await run.result()
    assert (result.status, result.output) == (RunStatus.COMPLETED, "Nobody answered.")
    assert (await skipping.shop_counts())["messages"] == 0
    await skipping.replay(run)


async def test_two_people_must_approve_where_the_rung_says_so(world: World) -> None:
    """One of them under two names is one; the effect waits for the second, and the record names both."""
    await world.script(turns(tell("TWO"), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        for by in ("ann", "ANN", "requester"):
            await run.approve(approval, by=by)
        assert "has approved it already, 1 of 2 have" in await rejected(run, 2)
        ((voice,),) = [one.agreed for one in await run.pending_approvals()]
        assert voice.by == "ann"
        assert (await world.shop_counts())["messages"] == 0
        await run.approve(approval, by="bob")
        assert (await run.result()).status is RunStatus.COMPLETED
    assert (await world.shop_counts())["messages"] == 1
    (row,) = await world.rows("select decided_by from approval")
    assert row["decided_by"] == "ann, bob"
    await world.replay(run)


async def test_two_signed_decisions_in_time_count_even_if_every_worker_was_down_beyond_the_deadline(world: World) -> None:
    """Both are verified, both are found in the history, both are used up."""
    await world.script(turns(tell("TWO SIGNED QUICK"), "done"))
    ann, bob = await add_key(world, "ann"), await add_key(world, "bob")
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
    await run.approve(approval, by="ann", key=ann)
    await run.approve(approval, by="bob", key=bob)
    await passed(approval)
    async with world.worker():
        assert (await run.result()).status is RunStatus.COMPLETED
    assert (await world.shop_counts())["messages"] == 1
    assert {row["key_id"] for row in await world.rows("select key_id from used_nonce")} == {ann.key, bob.key}
    await world.replay(run)


async def test_a_flaw_in_one_of_two_decisions_stops_the_effect(world: World) -> None:
    """The key of the first of two is revoked before the second has spoken."""
    await world.script(turns(tell("TWO SIGNED QUICK"), "I could not."))
    ann, bob = await add_key(world, "ann"), await add_key(world, "bob")
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        await run.approve(approval, by="ann", key=ann)

        async def half() -> bool:
            return any(one.agreed for one in await run.pending_approvals())

        await eventually(half)
        await revoke_key(world, ann)
        await run.approve(approval, by="bob", key=bob)
        assert (await run.result()).output == "I could not."
    assert (await world.shop_counts())["messages"] == 0
    assert await world.rows("select 1 from used_nonce") == []
    await world.replay(run)
