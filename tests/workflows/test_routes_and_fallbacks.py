"""Does the right model answer, and what follows when none can?"""

from pydantic import JsonValue

from durable_agents import RunStatus
from durable_agents.domain.approvals import ApprovalKind
from tests.support.scripts import Call, turns
from tests.support.waiting import pending
from tests.support.world import World

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


async def test_a_refusal_ends_with_the_fixed_text_of_the_agents_file(world: World) -> None:
    """Some failures have a good last word; it is marked as degraded and names its reason."""
    await world.script({"steps": [{"text": "I will not", "stop_reason": "refusal"}], "per": "turn"})
    async with world.worker():
        run = await world.start(agent="router")
        result = await run.result()
    assert (result.status, result.output) == (RunStatus.DEGRADED, "We will call you back.")
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
