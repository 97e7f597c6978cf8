"""Does a run that goes in circles, or a model that repeats its mistake, come to an end with the evidence?"""

from durable_agents import RunStatus
from durable_agents.domain.approvals import ApprovalKind
from tests.support.scripts import Call, turns
from tests.support.waiting import pending
from tests.support.world import World

AGAIN: Call = ("echo", {"text": "again"})


async def test_identical_rounds_are_warned_about_and_then_stopped(world: World) -> None:
    """Three identical calls and the model is told, five and the run ends: a night's loop costs five calls."""
    await world.script({"repeat_tool": {"name": "echo", "arguments": {"text": "again"}, "times": 50, "then_text": "done"}})
    async with world.worker():
        run = await world.start()
        result = await run.result()
    assert result.status is RunStatus.FAILED
    assert result.failure is not None
    assert result.failure.kind == "loop"
    assert "5 identical rounds" in result.explanation
    assert result.turns == 5
    told = await world.rows("select body::text from message where position >= 1000 order by turn")
    assert "same calls with the same results" in told[0][0]
    await world.replay(run)


async def test_a_model_that_heeds_the_warning_goes_on(world: World) -> None:
    """The warning is for the model: one that changes its way is not punished for the past."""
    await world.script(turns(AGAIN, AGAIN, AGAIN, ("echo", {"text": "else"}), "done"))
    async with world.worker():
        run = await world.start()
        assert (await run.result()).status is RunStatus.COMPLETED
    await world.replay(run)


async def test_the_same_mistake_twice_is_the_next_models_turn(world: World) -> None:
    """Telling a model the same thing a third time is money for nothing; the next of the chain may do better."""
    await world.script(turns(("nonsense", {}), ("nonsense", {}), "done"))
    async with world.worker():
        run = await world.start()
        result = await run.result()
    assert result.status is RunStatus.DEGRADED
    assert result.spend.model_calls == 3
    await world.replay(run)


async def test_a_chain_that_only_makes_mistakes_ends_typed(world: World) -> None:
    """Every model of the chain invents the same tool: the run ends and names the mistake."""
    await world.script(turns(*[("nonsense", {})] * 4))
    async with world.worker():
        run = await world.start()
        result = await run.result()
    assert result.status is RunStatus.FAILED
    assert result.failure is not None
    assert result.failure.kind == "too_many_repairs"
    assert "unknown tool: nonsense" in result.explanation


async def test_a_run_far_longer_than_usual_is_told_and_then_stopped(world: World) -> None:
    """Ten runs took two turns each; one that varies its calls endlessly is told at fifteen and stopped at thirty."""
    async with world.worker(cached=50):
        await world.script(turns(AGAIN, "done"))
        for run in [await world.start() for _ in range(10)]:
            assert (await run.result()).turns == 2
        await world.script({"repeat_tool": {"name": "echo", "arguments": {"text": "{n}"}, "times": 99, "then_text": "done"}})
        run = await world.start()
        result = await run.result()
    assert result.failure is not None
    assert (result.failure.kind, result.turns) == ("loop", 30)
    assert "where 2 are usual" in result.explanation
    told = await world.rows("select turn from message where position >= 1000 and body::text like '%Come to an end soon%'")
    assert [row["turn"] for row in told] == [15]
    await world.replay(run)


async def test_mistakes_go_from_model_to_model_to_a_human_and_then_to_a_typed_end(world: World) -> None:
    """The whole way down, in its order: told, next model, told, a person; and a person who says no leaves the mistake's name."""
    await world.script(turns(*[("nonsense", {})] * 4))
    async with world.worker():
        run = await world.start(agent="router")
        (question,) = await pending(run)
        assert question.kind is ApprovalKind.TAKE_OVER
        models = await world.rows("select model from model_attempt order by call")
        assert [row["model"] for row in models] == ["claude-opus-5-5", "claude-opus-5-5", "gpt-6-luna", "gpt-6-luna"]
        await run.deny(question.id, by="ann")
        result = await run.result()
    assert result.status is RunStatus.FAILED
    assert result.failure is not None
    assert result.failure.kind == "too_many_repairs"
    assert "unknown tool: nonsense" in result.explanation
    await world.replay(run)
