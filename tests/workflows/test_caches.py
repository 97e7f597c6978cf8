"""Is an answer given again only where that is right, and does it then cost nothing?"""

from durable_agents import RunStatus
from tests.support.scripts import Call, refund, turns
from tests.support.world import World

REMEMBER: Call = ("remember_order", {"order": "A-1001"})


async def texts(world: World) -> list[str]:
    """What the model read of its calls, run by run."""
    rows = await world.rows("select body::text as body from message where turn = 1 and position = 1 order by created_at")
    return [row["body"] for row in rows]


async def test_a_cached_read_is_made_once_for_the_same_question_of_the_same_user(world: World) -> None:
    """The second run hears the same without asking the shop, which hangs to prove it, and is told where it comes from."""
    await world.script(turns(REMEMBER, "done"))
    async with world.worker():
        first = await (await world.start(user="u-1")).result()
        await world.fault(path="/orders/*", before_effect="500", times=99)
        run = await world.start(user="u-1")
        second = await run.result()
        assert any("from the cache" in entry.what for entry in await run.timeline())
    assert (first.status, second.status) == (RunStatus.COMPLETED, RunStatus.COMPLETED)
    one, two = await texts(world)
    assert "espresso machine" in one
    assert "espresso machine" in two
    tries = await world.rows("select tries from tool_dispatch order by dispatched_at")
    assert [row["tries"] for row in tries] == [1, 0]


async def test_another_user_another_tenant_and_an_expired_answer_ask_again(world: World) -> None:
    """What one may read another may not; and yesterday's answer is yesterday's."""
    await world.script(turns(REMEMBER, "done"))
    async with world.worker():
        await (await world.start(user="u-1")).result()
        await (await world.start(user="u-2")).result()
        await (await world.start(user="u-1", tenant="other")).result()
        await world.rows("update cache_entry set expires_at = now() where tenant = 'acme' returning 1")
        await (await world.start(user="u-1")).result()
    tries = await world.rows("select tries from tool_dispatch")
    assert [row["tries"] for row in tries] == [1, 1, 1, 1]
    (left,) = await world.rows("select count(*) as n from cache_entry where expires_at <= now()")
    assert left["n"] == 0, "expired rows go with the next write"


async def test_a_model_marked_cacheable_is_asked_once_for_exactly_the_same(world: World) -> None:
    """The second run of the same input hears the same, for nothing, and its timeline says from where; another input asks."""
    await world.script(turns(("echo", {"text": "x"}), "done"))
    async with world.worker():
        first = await (await world.start({"q": 1}, agent="cacher")).result()
        run = await world.start({"q": 1}, agent="cacher")
        second = await run.result()
        assert any("from the cache" in entry.what for entry in await run.timeline())
        other = await (await world.start({"q": 2}, agent="cacher")).result()
    assert first.output == second.output == "done"
    assert (first.spend.cost_micros > 0, second.spend.cost_micros, other.spend.cost_micros > 0) == (True, 0, True)
    assert len((await world.bill())["requests"]) == 4  # type: ignore[arg-type]
    await world.replay(run)


async def test_an_answer_that_asks_for_an_effect_is_never_given_again(world: World) -> None:
    """A cached "refund it" would refund again what nobody asked for; and another tenant hears nothing of ours."""
    await world.script(turns(refund("50.00"), "done"))
    async with world.worker():
        for tenant in ("acme", "acme", "other"):
            await (await world.start({"q": 1}, agent="caching-clerk", tenant=tenant)).result()
    kept = await world.rows("select tenant, count(*) as n from cache_entry group by tenant order by tenant")
    requests = (await world.bill())["requests"]
    assert isinstance(requests, list)
    assert len(requests) == 6, "the first turn asked for an effect, and the second follows another answer's ids"
    assert {row["tenant"] for row in kept} <= {"acme", "other"}
