"""Is unimportant work refused early, with a hint, when there is too much to do, while important work goes on?"""

from datetime import timedelta

import pytest

from durable_agents import AgentClient, RunStatus
from durable_agents.errors import Overloaded
from durable_agents.load_shedding import LONGEST_WAIT, SHORTEST_WAIT, retry_hint
from tests.support.scripts import turns
from tests.support.waiting import eventually
from tests.support.world import World


async def test_low_priority_is_refused_with_a_hint_while_the_backlog_is_long_and_taken_when_it_is_gone(world: World) -> None:
    """Ten runs wait and no worker is there: a low one is told when to come back, a high one is taken."""
    await world.script(turns("done"))
    client = AgentClient(world.client.temporal, task_queue=world.settings.task_queue, identity="t", shed_backlog=5)
    waiting = [await client.start_new("clerk", {}, tenant="acme", user="u", priority="normal") for _ in range(10)]

    async def refused() -> timedelta | None:
        try:
            await client.start_new("clerk", {}, tenant="acme", user="u", priority="low")
        except Overloaded as error:
            return error.retry_after
        return None

    hint = await eventually(refused)
    assert SHORTEST_WAIT <= hint <= LONGEST_WAIT
    important = await client.start_new("clerk", {}, tenant="acme", user="u", priority="high")
    async with world.worker(cached=50):
        for run in (important, *waiting):
            assert (await run.result()).status is RunStatus.COMPLETED

        async def taken() -> bool:
            try:
                run = await client.start_new("clerk", {}, tenant="acme", user="u", priority="low")
            except Overloaded:
                return False
            return (await run.result()).status is RunStatus.COMPLETED

        assert await eventually(taken)


@pytest.mark.parametrize(
    ("waiting", "rate", "hint"),
    [
        (100, 1.0, None),
        (101, 100.0, SHORTEST_WAIT),
        (160, 1.0, timedelta(seconds=60)),
        (10**6, 1.0, LONGEST_WAIT),
        (200, 0.0, LONGEST_WAIT),
    ],
)
def test_the_hint_follows_from_backlog_and_rate(waiting: int, rate: float, hint: timedelta | None) -> None:
    """At the bound nobody is refused; beyond it the hint is when the backlog should be gone, within bounds."""
    assert retry_hint(waiting, rate, 100) == hint
