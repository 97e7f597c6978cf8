"""Does every way a model can fail lead where the table says, without a wedge and without a needless request?"""

import pytest
from pydantic import JsonValue

from durable_agents import Budget, RunStatus
from tests.support.scripts import turns
from tests.support.world import World

BUSY: JsonValue = {"status": 529, "error": {"type": "overloaded_error"}}


async def requests(world: World) -> list[dict[str, JsonValue]]:
    """What the stand-in was asked."""
    found = (await world.bill())["requests"]
    assert isinstance(found, list)
    return [request for request in found if isinstance(request, dict)]


async def test_a_passing_failure_is_tried_again_and_costs_nothing(world: World) -> None:
    """Two 529 and then an answer: three requests, one of them billed, nothing held."""
    await world.script({"steps": [BUSY, BUSY, {"text": "done"}], "per": "global"})
    async with world.worker():
        run = await world.start()
        result = await run.result()
    assert result.status is RunStatus.COMPLETED
    assert [request["status"] for request in await requests(world)] == [529, 529, 200]
    assert result.spend.unknown_micros == 0
    assert result.spend.model_calls == 1
    states = await world.rows("select state from model_attempt order by attempt")
    assert [row["state"] for row in states] == ["released", "released", "settled"]


@pytest.mark.parametrize(
    "trouble",
    [BUSY, {"status": 429, "error": {"type": "rate_limit_error"}}, {"text": "lost", "bill_then_drop": True}],
    ids=["overloaded", "rate_limited", "dropped"],
)
async def test_a_failure_that_is_tried_again_leaves_no_traceback_in_the_log(
    world: World, caplog: pytest.LogCaptureFixture, trouble: JsonValue
) -> None:
    """In an outage that would be 40 lines a try and worker, which bury what an operator must see; the attempt's row has it."""
    await world.script({"steps": [trouble, {"text": "done"}], "per": "global"})
    with caplog.at_level("INFO"):
        async with world.worker():
            result = await (await world.start()).result()
    assert result.status is RunStatus.COMPLETED
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []
    (row,) = await world.rows("select failure from model_attempt where attempt = 1")
    assert row["failure"] is not None


async def test_after_three_tries_the_next_model_of_the_chain_answers_and_the_result_says_degraded(world: World) -> None:
    """A fallback is an answer, but not the one that was meant; who reads the result must know."""
    await world.script({"steps": [BUSY, BUSY, BUSY, {"text": "done"}], "per": "global"})
    async with world.worker():
        run = await world.start()
        result = await run.result()
    assert result.status is RunStatus.DEGRADED
    assert "gpt-6-luna" in result.explanation
    assert [request["wire"] for request in await requests(world)] == ["anthropic", "anthropic", "anthropic", "openai"]
    await world.replay(run)


async def test_what_cannot_succeed_is_not_tried_again(world: World) -> None:
    """A spend limit under a 429 and a bad request: one request each, then the next model, then a typed end."""
    limit: JsonValue = {
        "status": 429,
        "error": {"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}},
    }
    bad: JsonValue = {"status": 400, "error": {"type": "invalid_request_error"}}
    await world.script({"steps": [bad, limit], "per": "global"})
    async with world.worker():
        run = await world.start()
        result = await run.result()
    assert result.status is RunStatus.FAILED
    assert result.failure is not None
    assert [request["wire"] for request in await requests(world)][:2] == ["anthropic", "openai"]


async def test_an_answer_that_may_have_been_billed_stays_held(world: World) -> None:
    """Billed and not received: the ledger keeps the maximum for it, so it is never below the true bill."""
    await world.script({"steps": [{"text": "lost", "bill_then_drop": True}, {"text": "done"}], "per": "global"})
    async with world.worker():
        run = await world.start(budget=Budget(cost_usd="1.00"))
        result = await run.result()
    assert result.status is RunStatus.COMPLETED
    rows = await world.rows("select state, hold_micros, cost_micros from model_attempt order by attempt")
    assert [row["state"] for row in rows] == ["unknown", "settled"]
    assert result.spend.unknown_micros == rows[0]["hold_micros"] > 0


async def test_no_further_try_leaves_when_the_money_would_not_cover_both(world: World) -> None:
    """Each physical try is covered: with money for one maximum only, an unknown outcome ends the tries."""
    await world.script({"steps": [{"text": "lost", "bill_then_drop": True}], "per": "turn"})
    async with world.worker():
        probe = await world.start(budget=Budget(cost_usd="5.00"))
        await probe.result()
        (hold,) = await world.rows("select max(hold_micros) as hold from model_attempt where provider = 'anthropic'")
        await world.http.delete(f"{world.model_url}/bill")
        limit = f"{(hold['hold'] * 3 // 2) / 1_000_000:.6f}"
        run = await world.start(budget=Budget(cost_usd=limit))
        result = await run.result()
    assert result.status is RunStatus.BUDGET_EXHAUSTED
    assert len(await requests(world)) == 1
    assert result.spend.committed_micros <= Budget(cost_usd=limit).cost_micros  # type: ignore[operator]


async def test_a_cut_off_answer_is_never_acted_upon(world: World) -> None:
    """Half a tool call must not run; the model is told, at most twice, and answers shorter."""
    cut: JsonValue = {
        "text": "let me",
        "tool_calls": [{"name": "issue_refund", "arguments": {"order": "A-1001", "amount": "10.00"}}],
        "stop_reason": "max_tokens",
    }
    await world.script({"steps": [cut, {"text": "short"}], "per": "global"})
    async with world.worker():
        run = await world.start()
        result = await run.result()
    assert (result.status, result.output) == (RunStatus.COMPLETED, "short")
    assert (await world.shop_counts())["refund_requests"] == 0
    assert result.spend.model_calls == 2
    (told,) = await world.rows("select body::text from message where position >= 1000")
    assert "cut off" in told[0]


async def test_unknown_tools_and_bad_arguments_go_back_to_the_model(world: World) -> None:
    """A hallucinated name or type is the model's to mend, not the run's to die of; nothing is executed."""
    await world.script(
        turns(
            [
                ("refund_everything", {}),
                ("issue_refund", {"order": "A-1001"}),
                ("issue_refund", {"order": "A-1001", "amount": "NaN"}),
            ],
            "sorry",
        )
    )
    async with world.worker():
        run = await world.start()
        result = await run.result()
    assert result.status is RunStatus.COMPLETED
    rows = await world.rows("select body::text from message where turn = 1 and position between 1 and 9 order by position")
    assert "There is no tool 'refund_everything'" in rows[0][0]
    assert "amount: Field required" in rows[1][0]
    assert "Invalid arguments" in rows[2][0]
    assert (await world.shop_counts())["refund_requests"] == 0


async def test_what_no_rule_allows_is_denied_and_an_erroring_rule_denies(world: World) -> None:
    """Default is no; a deny rule with a condition decides before the looser rule below it."""
    await world.script(turns([("forbidden", {"text": "now"}), ("forbidden", {"text": "please"})], "done"))
    async with world.worker():
        run = await world.start()
        await run.result()
    rows = await world.rows("select outcome ->> 'result' as result from tool_dispatch order by index")
    assert [row["result"] for row in rows] == ["refused", "ok"]
    texts = await world.rows("select body::text from message where turn = 1 and position > 0 order by position")
    assert "it is forbidden" in texts[0][0]
    assert "please" in texts[1][0]


async def test_large_results_and_hostile_text_do_not_wedge_a_run(world: World) -> None:
    """100 KB of result and U+0000 in it go through storage, model and back; the history holds a preview."""
    await world.script(turns(("echo", {"text": "x\x00y", "times": 40_000}), "done"))
    async with world.worker():
        run = await world.start({"note": "zero \x00 and \ud800"})
        result = await run.result()
        size = sum(event.ByteSize() for event in (await world.history(run)).events)
    assert result.status is RunStatus.COMPLETED
    assert size < 20_000
    (row,) = await world.rows("select length(body) as length from artifact")
    assert row["length"] > 100_000
    await world.replay(run)


async def test_garbage_from_a_provider_is_a_typed_failure(world: World) -> None:
    """A proxy's page or half a JSON is no answer: the chain is gone through and the end says what it was."""
    await world.script({"steps": [{"raw": "<html>busy</html>", "content_type": "text/html"}], "per": "turn"})
    async with world.worker():
        run = await world.start()
        result = await run.result()
    assert result.status is RunStatus.FAILED
    assert result.failure is not None
    assert result.failure.kind == "bad_response"
    assert len(await requests(world)) == 6
