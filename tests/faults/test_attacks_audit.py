"""Does the audit log say of every effect that it was meant, and what came of it, whatever went wrong in between?"""

from activities import audit
from activities.postgres import Database
from durable_agents import RunStatus
from durable_agents.domain.identifiers import TenantId
from tests.support.scripts import refund, tell, turns
from tests.support.waiting import pending
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
    database = await Database.open(world.database.app)
    async with database.transaction(TenantId("acme")) as connection:
        assert await audit.verify(connection, TenantId("acme")) is None
    await database.close()
