"""Does the audit log say of every effect that it was meant, and what came of it, whatever went wrong in between?"""

import json
from typing import Any

from activities import audit
from activities.postgres import Database
from durable_agents import Budget, RunStatus
from durable_agents.domain.audit import REJECTIONS_KEPT
from durable_agents.domain.identifiers import TenantId
from tests.support.scripts import refund, tell, turns
from tests.support.waiting import eventually, pending
from tests.support.world import World


async def test_every_effect_has_its_intent_before_and_its_outcome_after(world: World) -> None:
    """Held against the shop's own books: each key that reached it stands in the log, every try of it, in an unbroken chain."""
    await world.fault(path="/refunds", after_effect="drop", times=1)
    await world.script(turns([refund("250.00"), refund("60.00"), tell()], "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        await run.approve(approval.id, by="ann")
        assert (await run.result()).status is RunStatus.COMPLETED
    entries = await world.rows("select event, body ->> 'key' as key, body ->> 'path' as path from audit_entry order by sequence")
    log = [(entry["event"], entry["key"]) for entry in entries]
    reached: dict[str, int] = (await world.http.get(f"{world.shop_url}/records")).json()["refund_requests"]
    assert sorted(reached.values()) == [1, 2]
    for key, requests in reached.items():
        assert log.count(("tool_dispatched", key)) == requests, "one intent a try"
        assert log.count(("tool_settled", key)) == 1
        assert log.index(("tool_dispatched", key)) < log.index(("tool_settled", key))
    paths = {event: [e["path"] for e in entries if e["event"] == event] for event in ("tool_dispatched", "tool_settled")}
    assert set(paths["tool_dispatched"]) == set(paths["tool_settled"]) == {"1.0", "1.1", "1.2"}
    events = [entry["event"] for entry in entries]
    assert [events.count(name) for name in ("run_admitted", "approval_asked", "approval_decided", "run_ended")] == [1, 1, 1, 1]
    assert events.count("model_called") == 2
    await require_whole(world)


async def require_whole(world: World) -> None:
    """The tenant's chain has no break."""
    database = await Database.open(world.database.app)
    async with database.transaction(TenantId("acme"), snapshot=True) as connection:
        assert await audit.verify(connection, TenantId("acme")) is None
    await database.close()


async def logged(world: World, *events: str) -> list[tuple[str, dict[str, Any]]]:
    """These events of the log, in its order, with their bodies."""
    rows = await world.rows("select event, body from audit_entry where event = any($1) order by sequence", list(events))
    return [(row["event"], json.loads(row["body"])) for row in rows]


async def test_what_only_the_run_knows_is_logged_once_with_who_and_why(world: World) -> None:
    """A decision that did not count, a raised budget, a cancel: no activity sees them, and an auditor asks for them first."""
    await world.script(turns([refund("250.00"), refund("251.00")], "never said"))
    async with world.worker():
        run = await world.start(budget=Budget(turns=5))
        first, second = await pending(run, 2)
        handle = world.client.temporal.get_workflow_handle(run.id)
        await run.approve(first.id, by="requester", reason="it is my own")
        await run.raise_budget(Budget(turns=9), by="finance", reason="a hard case")

        async def refused() -> bool:
            return (await run.status()).rejected_count == 1

        await eventually(refused)
        await run.approve(first.id, by="ann", reason="checked")

        async def made() -> bool:
            return len(await logged(world, "tool_settled")) == 1

        await eventually(made)
        (_, rejected), (_, raised) = await logged(world, "decision_rejected", "budget_raised")
        assert second.id in [one.id for one in await run.pending_approvals()], "written down while the run lives"
        await handle.signal("request_cancel", {"by": "boss", "reason": "enough"})
        assert (await run.result()).status is RunStatus.CANCELLED
    assert rejected["reason"] == "who asked for the run cannot approve it"
    assert "by requester" in rejected["excerpt"]
    assert (raised["by"], raised["reason"], raised["before"], raised["after"]) == (
        "finance", "a hard case", {"turns": 5}, {"turns": 9},
    )  # fmt: skip
    events = await logged(world, "decision_rejected", "budget_raised", "cancel_requested", "approval_decided", "run_ended")
    assert [event for event, _ in events] == [
        "decision_rejected", "budget_raised", "approval_decided", "cancel_requested", "run_ended",
    ]  # fmt: skip
    by_event = dict(events)
    assert (by_event["approval_decided"]["by"], by_event["approval_decided"]["reason"]) == ("ann", "checked")
    assert (by_event["cancel_requested"]["by"], by_event["cancel_requested"]["reason"]) == ("boss", "enough")
    assert by_event["run_ended"]["notes"] == 3
    await require_whole(world)
    await world.replay(run)


async def test_a_flood_of_junk_is_counted_and_crowds_nothing_out_of_the_log(world: World) -> None:
    """Whoever can send signals must neither fill the log nor hide in it what an auditor looks for."""
    await world.script(turns(refund("250.00"), "never said"))
    async with world.worker():
        run = await world.start()
        await pending(run)
        handle = world.client.temporal.get_workflow_handle(run.id)
        for number in range(REJECTIONS_KEPT + 5):
            await handle.signal("submit_aproval", number)

        async def seen() -> bool:
            return (await run.status()).rejected_count == REJECTIONS_KEPT + 5

        await eventually(seen)
        await handle.signal("request_cancel", {"by": "boss", "reason": "\x00 \u202e" * 100})
        assert (await run.result()).status is RunStatus.CANCELLED
    events = await logged(world, "decision_rejected", "cancel_requested", "run_ended")
    assert [event for event, _ in events] == ["decision_rejected"] * REJECTIONS_KEPT + ["cancel_requested", "run_ended"]
    assert events[-1][1]["notes"] == REJECTIONS_KEPT + 6
    await require_whole(world)


async def test_a_call_that_the_policy_denies_is_logged_with_its_rule(world: World) -> None:
    """A denial is what the policy is for; that it held must be shown, and by which policy."""
    await world.script(turns(("forbidden", {"text": "x"}), "done"))
    async with world.worker():
        run = await world.start()
        assert (await run.result()).status is RunStatus.COMPLETED
    ((_, admitted), (_, settled)) = await logged(world, "run_admitted", "tool_settled", "tool_dispatched")
    assert (settled["result"], bool(settled["rule"]), len(admitted["policy"])) == ("refused", True, 64)


async def test_a_model_call_that_failed_or_was_refused_is_logged_with_what_it_may_have_cost(world: World) -> None:
    """Money that may have been spent on nothing is what an auditor looks for; that none was allowed shows that the limit held."""
    await world.script({"steps": [{"status": 401}]})
    async with world.worker():
        failed = await world.start()
        assert (await failed.result()).status is RunStatus.FAILED
        await world.change("insert into account_limit values ('acme', 'tenant', '', 'day', 0, 0, 'finance')")
        refused = await world.start()
        assert (await refused.result()).status is RunStatus.BUDGET_EXHAUSTED
    calls = await logged(world, "model_called", "model_refused")
    (first, of_first), (last, of_last) = calls[0], calls[-1]
    assert (first, of_first["outcome"], of_first["unknown_micros"]) == ("model_called", "unauthorized", 0)
    assert (last, of_last["outcome"], of_last["tries"]) == ("model_refused", "account_limit", 0)
    await require_whole(world)
