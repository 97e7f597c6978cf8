"""Does a run go its whole way for real?"""

import asyncio

from durable_agents import Budget, RunStatus
from tests.support.world import World


async def test_a_run_calls_tools_and_ends_with_its_output(world: World) -> None:
    """The thinnest real path: everything else stands on it."""
    await world.script(
        {
            "steps": [
                {"text": "Looking.", "tool_calls": [{"name": "lookup_order", "arguments": {"order": "A-1001"}}]},
                {"tool_calls": [{"name": "issue_refund", "arguments": {"order": "A-1001", "amount": "50.00"}}]},
                {"text": "All done."},
            ],
            "per": "turn",
        }
    )
    async with world.worker():
        run = await world.start({"order": "A-1001"}, budget=Budget(cost_usd="0.50"))
        async with asyncio.timeout(30):
            result = await run.result()
    assert (result.status, result.output, result.turns) == (RunStatus.COMPLETED, "All done.", 3), result
    assert (await world.shop_counts())["refunds"] == 1
    assert result.spend.model_calls == 3
    assert result.spend.tool_calls == 2
    assert result.spend.cost_micros > 0
    await world.replay(run)
