"""Does the right model answer, and what follows when none can?"""

import shutil
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from pydantic import JsonValue

from durable_agents import Budget, RunStatus
from durable_agents.domain.approvals import ApprovalKind
from tests.support.scripts import Call, turns
from tests.support.waiting import pending
from tests.support.world import AGENTS, World, settings_for
from worker import open_resources

ECHO: Call = ("echo", {"text": "hello"})
BAD: JsonValue = {"status": 400, "error": {"type": "invalid_request_error"}}


async def wires(world: World) -> list[tuple[str, int]]:
    """Which provider was asked, and what it answered, in order."""
    found = (await world.bill())["requests"]
    assert isinstance(found, list)
    return [(str(entry["wire"]), int(str(entry["status"]))) for entry in found if isinstance(entry, dict)]


async def test_a_route_sends_a_simple_turn_to_the_cheap_model_and_the_result_is_not_degraded(world: World) -> None:
    """Reading a tool's answer aloud needs no great model; a route is the plan, not a fallback."""
    await world.script(turns(ECHO, "done"))
    async with world.worker():
        run = await world.start(agent="router")
        result = await run.result()
    assert result.status is RunStatus.COMPLETED
    assert await wires(world) == [("anthropic", 200), ("openai", 200)]
    rows = await world.rows("select model, hold_micros > 0 as held from model_attempt order by call")
    assert [tuple(row) for row in rows] == [("claude-opus-5-5", True), ("gpt-6-luna", True)]
    await world.replay(run)


async def test_a_routed_model_that_fails_gives_way_to_the_one_that_is_meant(world: World) -> None:
    """The route was a saving; when it fails the agent's own model answers, and nothing is degraded."""
    await world.script(
        {"steps": [{"tool_calls": [{"name": "echo", "arguments": {"text": "x"}}]}, BAD, {"text": "done"}], "per": "global"}
    )
    async with world.worker():
        run = await world.start(agent="router")
        result = await run.result()
    assert result.status is RunStatus.COMPLETED
    assert await wires(world) == [("anthropic", 200), ("openai", 400), ("anthropic", 200)]
    await world.replay(run)


async def test_the_next_model_of_the_chain_is_held_to_its_own_price(world: World, tmp_path: Path) -> None:
    """The budget was enough for the first; the dearer one must not be asked with what is left for the cheap one."""
    shutil.copytree(AGENTS / "clerk", tmp_path / "clerk")
    file = tmp_path / "clerk" / "agent.yaml"
    first, second = (f"max_tokens: 500\n    price: {{input: '{dollars}', output: '{dollars}'}}\n" for dollars in (1, 1000))
    head, one, other = file.read_text().split("max_tokens: 500\n")
    file.write_text(f"{head}{first}{one}{second}{other}")
    await world.script({"steps": [BAD, {"text": "done"}], "per": "global"})
    settings = settings_for(world.database.app, world.settings.task_queue, world.model_url, tmp_path)
    async with open_resources(settings) as resources:
        dear = replace(world, settings=settings, resources=resources)
        async with dear.worker():
            result = await (await dear.start(budget=Budget(cost_usd=Decimal("0.05")))).result()
    assert result.status is RunStatus.BUDGET_EXHAUSTED
    assert result.explanation.startswith("cost_usd: ")
    assert await wires(world) == [("anthropic", 400)]


async def test_a_refusal_ends_with_the_fixed_text_of_the_agents_file(world: World) -> None:
    """Some failures have a good last word; it is marked as degraded and names its reason."""
    await world.script({"steps": [{"text": "I will not", "stop_reason": "refusal"}], "per": "turn"})
    async with world.worker():
        run = await world.start(agent="router")
        result = await run.result()
        timeline = [entry.what for entry in await run.timeline()]
    assert (result.status, result.output) == (RunStatus.DEGRADED, "We will call you back.")
    assert "gives the fixed text" in " ".join(timeline)
    assert "refused" in result.explanation


async def test_when_the_chain_is_at_its_end_a_human_takes_over(world: World) -> None:
    """Nobody of the chain can: the run waits for a person, and ends as handed over to them, on the record."""
    await world.script({"steps": [BAD], "per": "turn"})
    async with world.worker():
        run = await world.start(agent="router")
        (question,) = await pending(run)
        assert question.kind is ApprovalKind.TAKE_OVER
        await run.approve(question.id, by="ann", reason="I call the customer")
        result = await run.result()
    assert result.status is RunStatus.HANDED_OFF
    assert "taken over by ann: I call the customer" in result.explanation
    (row,) = await world.rows("select kind, approved, decided_by from approval")
    assert tuple(row) == ("take_over", True, "ann")
    assert len(await world.rows("select 1 from audit_entry where event = 'approval_decided'")) == 1
    await world.replay(run)


async def test_a_human_who_does_not_take_over_leaves_a_typed_failure(world: World) -> None:
    """A no is a no; the failure that led there is the result."""
    await world.script({"steps": [BAD], "per": "turn"})
    async with world.worker():
        run = await world.start(agent="router")
        (question,) = await pending(run)
        await run.deny(question.id, by="ann")
        result = await run.result()
    assert result.status is RunStatus.FAILED
    assert result.failure is not None
    assert result.failure.kind == "bad_request"


async def test_another_agent_stands_in_with_the_same_input_and_the_money_that_is_left(world: World) -> None:
    """The first agent's provider says no; the other does the work as a run of its own, within the first one's budget."""
    await world.script({"steps": [BAD, {"text": "done by the other"}], "per": "global"})
    async with world.worker():
        run = await world.start({"order": "A-1001"}, agent="substitute", budget=Budget(cost_usd="0.80"))
        result = await run.result()
    assert (result.status, result.output) == (RunStatus.DEGRADED, "done by the other")
    assert "done by agent clerk" in result.explanation
    (child,) = await world.rows("select run_id, terms -> 'budget' ->> 'cost_usd' as limit from run where agent = 'clerk'")
    assert Decimal(child["limit"]) <= Decimal("0.80")
    inputs = await world.rows("select distinct digest from message where turn = 0 and position = 0")
    assert len(inputs) == 1, "the other agent got the same input"
    (row,) = await world.rows("select sum(cost_micros) as cost from model_attempt")
    assert row["cost"] == result.spend.cost_micros
    await world.replay(run)


async def test_nobody_but_the_run_itself_can_take_its_input(world: World) -> None:
    """Who starts a run by hand must not be able to read another's input by naming it."""
    await world.script(turns("done"))
    async with world.worker():
        await (await world.start({"secret": "s"})).result()
        payload = {"agent": "clerk", "user": "thief", "tenant": "acme", "idempotency_key": "t", "stands_in_for": "run:acme:x"}
        handle = await world.client.temporal.start_workflow(
            "AgentRun", payload, id="run:acme:t", task_queue=world.settings.task_queue
        )
        result = await world.client.get(handle.id).result()
    assert result.status is RunStatus.FAILED
    assert result.failure is not None
    assert result.failure.kind == "invalid_input"


async def test_an_earlier_answer_is_given_for_the_same_question_of_the_same_user_only(world: World) -> None:
    """When the provider is away yesterday's answer to the very same question may do; anything else is not known."""
    await world.script({"steps": [{"text": "42"}, *[BAD] * 9], "per": "global"})
    async with world.worker():
        first = await (await world.start({"q": 1}, agent="memory", user="u-1")).result()
        again = await (await world.start({"q": 1}, agent="memory", user="u-1")).result()
        other_user = await (await world.start({"q": 1}, agent="memory", user="u-2")).result()
        other_question = await (await world.start({"q": 2}, agent="memory", user="u-1")).result()
    assert (first.status, first.output) == (RunStatus.COMPLETED, "42")
    assert (again.status, again.output) == (RunStatus.DEGRADED, "42")
    assert first.run_id in again.explanation
    assert [other_user.output, other_question.output] == ["I do not know."] * 2
