"""What does a run do as its budget runs out: near the limit, at it, and when a human grants more?"""

from datetime import timedelta

import httpx2
import pytest
from pydantic import JsonValue

from activities import account_limits
from activities.account_limits import Limit
from activities.postgres import Database
from durable_agents import Budget, RunHandle, RunStatus
from durable_agents.domain.accounts import Period, Scope
from durable_agents.domain.approvals import ApprovalKind
from durable_agents.domain.identifiers import TenantId
from tests.support.scripts import Call, refund, turns
from tests.support.waiting import pending
from tests.support.world import World
from tests.workflows.conftest import SkippingWorld

ECHO: Call = ("echo", {"text": "x"})
SEARCH: Call = ("search", {"words": "x"})


async def models(world: World) -> list[str]:
    """Which model was asked, in order."""
    return [row["model"] for row in await world.rows("select model from model_attempt order by call, attempt")]


async def limit(world: World, scope: Scope, micros: int, *, name: str = "") -> None:
    """Set a limit of a day as an operator does."""
    database, home = await Database.open(world.database.app), account_limits.home(TenantId("acme"), scope)
    async with database.transaction(home) as connection:
        await account_limits.set_limit(connection, home, Limit(scope, name, Period.DAY, micros, None), "finance")
    await account_limits.call_back(database, TenantId("acme"), scope, name)
    await database.close()


async def test_near_its_limit_a_run_goes_on_with_less_and_says_so(world: World) -> None:
    """A cheaper model, without the dear tool, with a shorter memory: an answer that is worth less beats none, if one is told."""
    calls: list[JsonValue] = [{"tool_calls": [{"name": "echo", "arguments": {"text": f"x{n}"}}]} for n in range(7)]
    await world.script({"steps": [*calls, {"text": "done"}], "per": "global"})
    async with world.worker():
        run = await world.start(agent="saver", budget=Budget(input_tokens=5000))
        result = await run.result()
        timeline = [entry.what for entry in await run.timeline()]
    asked = await models(world)
    assert result.status is RunStatus.DEGRADED, result
    assert "the budget ran low: another model, without search, with the last 2 turns in mind" in result.explanation
    assert asked[0] == "claude-haiku-5-5"
    assert asked[-1] == "gpt-6-luna"
    assert asked == sorted(asked), "once near the limit, it stays with less to its end"
    assert sum("goes on with less" in line for line in timeline) == 1
    rows = await world.rows(
        "select a.model, hold_tokens, (c.outcome -> 'usage' ->> 'input_tokens')::int as counted from model_attempt a"
        " join model_call c using (tenant, run_id, call) order by call"
    )
    assert all(row["counted"] < row["hold_tokens"] for row in rows)
    cheap = [row["counted"] for row in rows if row["model"] == "gpt-6-luna"]
    assert max(cheap) < min(cheap) * 1.5, "what the model reads grows no more"
    await world.replay(run)


async def test_a_tool_that_is_too_dear_near_the_limit_is_refused_and_the_model_is_told(world: World) -> None:
    """The model may remember the tool from before: what is not offered is not done either."""
    await world.script(turns(ECHO, SEARCH, "done"))
    async with world.worker():
        run = await world.start(agent="saver", budget=Budget(input_tokens=2800))
        result = await run.result()
        timeline = [entry.what for entry in await run.timeline()]
    assert result.status is RunStatus.DEGRADED, result
    (row,) = await world.rows("select outcome from tool_dispatch where tool = 'search'")
    assert row["outcome"] is not None
    assert "search: refused (the budget runs low)" in timeline


async def test_at_its_limit_a_run_parks_and_goes_on_with_what_a_human_grants(world: World) -> None:
    """What stops at the limit has cost money already; a word from who pays must be enough to go on where it stands."""
    await world.script(turns(ECHO, ECHO, ECHO, "done"))
    async with world.worker():
        run = await world.start(agent="saver", budget=Budget(model_calls=2))
        (first,) = await pending(run)
        assert first.kind is ApprovalKind.TOP_UP
        assert "model_calls: 2 of 2 used" in first.title
        assert first.facts["an approval"] == "raises cost_usd +1.00, model_calls +2"
        assert (await run.status()).status is RunStatus.WAITING_APPROVAL
        await run.approve(first.id, by="ann", reason="go on")
        result = await run.result()
        assert (await run.budget()).budget.model_calls == 4
    assert result.status is RunStatus.COMPLETED
    assert result.spend.model_calls == 4
    (decided,) = await world.rows("select kind, decided_by, approved from approval")
    assert tuple(decided) == ("top_up", "ann", True)
    (audited,) = await world.rows("select body from audit_entry where event = 'approval_decided'")
    assert '"ann"' in audited["body"]
    await world.replay(run)


@pytest.mark.parametrize("answer", ["deny", "silence"])
async def test_without_a_yes_the_run_ends_at_its_limit(skipping: SkippingWorld, answer: str) -> None:
    """Default is no, by the deadline at the latest; waiting has cost nothing."""
    await skipping.script(turns(ECHO, ECHO, "done"))
    async with skipping.worker():
        run = await skipping.start(agent="saver", budget=Budget(model_calls=1))
        (asked,) = await pending(run)
        before = await skipping.rows("select sum(cost_micros) as cost, count(*) as calls from model_attempt")
        if answer == "deny":
            await run.deny(asked.id, by="ann", reason="enough")
        else:
            await skipping.pass_time(run, timedelta(hours=5))
        result = await run.result()
    assert result.status is RunStatus.BUDGET_EXHAUSTED
    assert ("more was denied by ann" if answer == "deny" else "nobody decided in time") in result.explanation
    assert await skipping.rows("select sum(cost_micros) as cost, count(*) as calls from model_attempt") == before
    await skipping.replay(run)


async def test_who_raises_the_budget_by_hand_need_not_answer_the_question(world: World) -> None:
    """The question is moot then; a run that waited on would wait for nothing."""
    await world.script(turns(ECHO, "done"))
    async with world.worker():
        run = await world.start(agent="saver", budget=Budget(model_calls=1))
        await pending(run)
        await run.raise_budget(Budget(model_calls=5), by="boss")
        result = await run.result()
        assert await run.pending_approvals() == ()
    assert result.status is RunStatus.COMPLETED
    await world.replay(run)


async def test_a_cancel_ends_the_wait_for_more(world: World) -> None:
    """Parked is not stuck."""
    await world.script(turns(ECHO, "done"))
    async with world.worker():
        run = await world.start(agent="saver", budget=Budget(model_calls=1))
        await pending(run)
        await run.cancel(by="boss")
        assert (await run.result()).status is RunStatus.CANCELLED


async def test_a_run_parks_at_the_limit_of_an_account_and_goes_on_when_that_is_raised(world: World) -> None:
    """The user's day is over, not the work: it costs nothing while it waits, and goes on where it stood."""
    await world.script(turns(ECHO, "done"))
    await limit(world, Scope.USER, 0, name="requester")
    async with world.worker():
        run = await world.start(agent="saver")
        (first,) = await pending(run)
        assert "user requester on " in first.title
        assert "raise the account's limit" in first.facts["an approval"]
        await run.approve(first.id, by="ann")
        second = await another(run, first.id)
        await limit(world, Scope.USER, 1_000_000, name="requester")
        await run.approve(second, by="ann")
        result = await run.result()
    assert result.status is RunStatus.COMPLETED
    assert result.spend.model_calls == 4, "two were refused before they left"
    assert len(await requests(world)) == 2
    told = await world.rows("select title from notification")
    assert any("has reached 100 % of its limit" in row["title"] for row in told)


async def test_without_anybody_to_ask_the_run_ends_as_budget_exhausted(world: World) -> None:
    """An account's limit is a limit for every agent, whatever its file says."""
    await world.script(turns(ECHO, "done"))
    await limit(world, Scope.TENANT, 10)
    async with world.worker():
        result = await (await world.start(agent="clerk")).result()
    assert result.status is RunStatus.BUDGET_EXHAUSTED
    assert "the tenant on " in result.explanation
    assert await requests(world) == []


async def test_a_run_that_waits_for_a_human_keeps_nothing_from_others(world: World) -> None:
    """It may wait for days: what it has drawn and not used is returned, and drawn again when it goes on."""
    await world.script(turns(refund("250.00"), "done"))
    async with world.worker():
        run = await world.start()
        (asked,) = await pending(run)
        (waiting,) = await world.rows("select rest_micros, spent_micros from envelope")
        assert await world.rows("select 1 from account where drawn_micros <> $1", waiting["spent_micros"]) == []
        await run.approve(asked.id, by="ann")
        assert (await run.result()).status is RunStatus.COMPLETED
    assert (waiting["rest_micros"], waiting["spent_micros"] > 0) == (0, True)


async def test_what_a_run_has_drawn_and_not_used_is_returned_at_its_end(world: World) -> None:
    """The accounts above show what was spent, to the micro-dollar, as soon as nothing runs."""
    await world.script(turns(ECHO, "done"))
    async with world.worker():
        run = await world.start()
        result = await run.result()
    rows = await world.rows("select scope, period, drawn_micros from account")
    assert {row["drawn_micros"] for row in rows} == {result.spend.cost_micros}
    assert {(row["scope"], row["period"]) for row in rows} == {(s, p) for s in Scope for p in ("day", "month")}
    (held,) = await world.rows("select rest_micros, held_micros, unknown_micros, spent_micros from envelope")
    assert tuple(held) == (0, 0, 0, result.spend.cost_micros)


async def another(run: RunHandle, before: str) -> str:
    """The id of the next question."""
    while (found := await pending(run))[0].id == before:
        assert found
    return found[0].id


async def requests(world: World) -> list[JsonValue]:
    """What the provider was asked."""
    found = (await world.bill())["requests"]
    assert isinstance(found, list)
    assert isinstance(world.http, httpx2.AsyncClient)
    return found
