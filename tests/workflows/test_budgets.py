"""Does a run ever use more than it may, and does it say so when it stops?"""

from datetime import timedelta

import pytest
from pydantic import JsonValue

from durable_agents import Budget, RunStatus
from durable_agents.errors import InvalidRequest
from tests.support.scripts import refund, turns
from tests.support.waiting import pending
from tests.support.world import World

ECHO = ("echo", {"text": "again"})


@pytest.mark.parametrize(
    ("budget", "limit", "model_calls"),
    [
        (Budget(cost_usd="0"), "cost_usd", 0),
        (Budget(cost_usd="0.00001"), "cost_usd", 0),
        (Budget(model_calls=2), "model_calls", 2),
        (Budget(turns=3), "turns", 3),
        (Budget(tool_calls=1), "tool_calls", 2),
        (Budget(input_tokens=10), "input_tokens", 0),
        (Budget(output_tokens=499), "output_tokens", 0),
        (Budget(wall_time=timedelta(0)), "wall_time", 0),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
async def test_a_run_stops_before_the_step_that_would_pass_a_limit(
    world: World, budget: Budget, limit: str, model_calls: int
) -> None:
    """A ceiling, not a brake: the request that could pass the limit never leaves; the end names the limit."""
    await world.script({"repeat_tool": {"name": "echo", "arguments": {"text": "{n}"}, "times": 50, "then_text": "done"}})
    async with world.worker():
        run = await world.start(budget=budget)
        result = await run.result()
    assert result.status is RunStatus.BUDGET_EXHAUSTED
    assert limit in result.explanation
    assert len((await world.bill())["requests"]) == model_calls  # type: ignore[arg-type]
    assert result.spend.model_calls == model_calls
    await world.replay(run)


async def test_spend_never_passes_the_money_limit_and_the_partial_result_is_kept(world: World) -> None:
    """Whatever the loop does, spent plus held stays within the limit, to the micro-dollar, against the true bill."""
    limit = Budget(cost_usd="0.003")
    await world.script({"repeat_tool": {"name": "echo", "arguments": {"text": "{n}"}, "times": 99, "then_text": "done"}})
    async with world.worker():
        run = await world.start(budget=limit)
        result = await run.result()
    assert result.status is RunStatus.BUDGET_EXHAUSTED
    assert 0 < result.spend.committed_micros <= 3000
    assert result.turns > 3
    (row,) = await world.rows("select sum(cost_micros) as cost, max(hold_micros) as hold from model_attempt")
    assert row["cost"] == result.spend.cost_micros
    assert row["cost"] + row["hold"] > 3000 - row["hold"], "it stopped while there was room for more"


async def test_a_raise_lets_a_running_run_go_on(world: World) -> None:
    """Somebody tops it up while it waits; the new limit holds for the very next step."""
    await world.script(turns(refund(), "done"))
    async with world.worker():
        run = await world.start(budget=Budget(turns=1))
        (approval,) = await pending(run)
        view = await run.raise_budget(Budget(turns=5), reason="more work than thought", by="ann")
        assert view.budget.turns == 5
        await run.approve(approval.id, by="ann")
        result = await run.result()
        assert any("budget raised by ann" in entry.what for entry in await run.timeline())
    assert result.status is RunStatus.COMPLETED


async def test_a_raise_that_raises_nothing_is_refused_with_the_limit(world: World) -> None:
    """Lowering a limit by the raise's door would be a surprise; so would be a raise of what is unlimited."""
    await world.script(turns(refund(), "done"))
    async with world.worker():
        run = await world.start(budget=Budget(turns=3))
        await pending(run)
        for budget in (Budget(turns=3), Budget(turns=2), Budget(output_tokens=10**6)):
            with pytest.raises(InvalidRequest, match="would not be raised"):
                await run.raise_budget(budget)
        await run.cancel()
        await run.result()


async def test_absurd_usage_is_charged_at_the_maximum(world: World) -> None:
    """A provider that says nonsense about its usage must not run for free."""
    step: JsonValue = {"text": "done", "usage": "missing"}
    await world.script({"steps": [step], "per": "turn"})
    async with world.worker():
        run = await world.start(budget=Budget(cost_usd="1.00"))
        result = await run.result()
    (row,) = await world.rows("select state, cost_micros, hold_micros from model_attempt")
    assert result.status is RunStatus.COMPLETED
    assert (row["state"], row["cost_micros"]) == ("settled", row["hold_micros"])
    assert result.spend.cost_micros == row["hold_micros"] > 0


async def test_what_a_provider_counts_beyond_the_maximum_is_booked_as_overrun(world: World) -> None:
    """A bill above its own ceiling is an alarm, never a silent pass, and never hides inside the spend."""
    step: JsonValue = {"text": "done", "usage": {"input_tokens": 900_000, "output_tokens": 400}}
    await world.script({"steps": [step], "per": "turn"})
    async with world.worker():
        run = await world.start(budget=Budget(cost_usd="1.00"))
        result = await run.result()
    (row,) = await world.rows("select cost_micros, hold_micros, overrun_micros from model_attempt")
    assert row["cost_micros"] == row["hold_micros"]
    assert row["overrun_micros"] == result.spend.overrun_micros > 0


async def test_the_bound_on_input_holds_and_is_tight(world: World) -> None:
    """The hold covers what the provider counts, in every turn, without holding many times as much."""
    await world.script(
        {"repeat_tool": {"name": "echo", "arguments": {"text": "abc{n}", "times": 250}, "times": 8, "then_text": "done"}}
    )
    async with world.worker():
        run = await world.start()
        await run.result()
    rows = await world.rows("select cost_micros, hold_micros, overrun_micros from model_attempt order by call")
    assert all(row["overrun_micros"] == 0 and row["cost_micros"] <= row["hold_micros"] for row in rows)
    assert rows[-1]["hold_micros"] < 4 * rows[-1]["cost_micros"] + 500, "max_tokens included"


async def test_a_text_that_grows_when_a_tokenizer_reads_it_is_held_at_its_longest(world: World) -> None:
    """One letter of 3 bytes is 15 tokens for a tokenizer that reads NFKC: whoever writes tool results could overspend any run."""
    call: JsonValue = {"name": "echo", "arguments": {"text": "\ufdfa", "times": 1000}}
    steps: list[JsonValue] = [
        {"tool_calls": [call], "usage": {"input_tokens": 1000, "output_tokens": 50}},
        {"text": "done", "usage": {"input_tokens": 1000 + 50 + 15 * 1000, "output_tokens": 5}},
    ]
    await world.script({"steps": steps, "per": "turn"})
    async with world.worker():
        result = await (await world.start()).result()
    assert (result.status, result.spend.overrun_micros) == (RunStatus.COMPLETED, 0)
    rows = await world.rows("select cost_micros, hold_micros from model_attempt where call = 2")
    assert [row["cost_micros"] <= row["hold_micros"] for row in rows] == [True]
