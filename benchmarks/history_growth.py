"""How large is the history of a run, and does it grow linearly with its turns?

`python benchmarks/history_growth.py [turns …]` runs an agent whose every turn calls a tool with a 1 KB result, on real servers
of its own, and prints events and bytes per number of turns.
"""

import asyncio
import sys
import tempfile
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from durable_agents import AgentClient
from starter.demo import stand_in_model
from starter.demo.loopback import serve
from starter.embedded.servers import EmbeddedServers
from tests.support.world import World, fresh_database, open_world, prepare_template, settings_for

ROUNDS = 400  # of two to three characters each: results of about 1 KB, every turn another one
DEFAULT_TURNS = (10, 20, 40, 80)


async def measure(world: World, turns: int) -> tuple[int, int, float]:
    """Events, bytes of history as the server counts them, and seconds of one run."""
    arguments = {"text": "{n}|", "times": ROUNDS}
    await world.script({"repeat_tool": {"name": "echo", "arguments": arguments, "times": turns, "then_text": "done"}})
    begun = time.monotonic()
    run = await world.start({"n": turns})
    result = await run.result()
    seconds = time.monotonic() - begun
    assert result.turns == turns + 1, result
    description = await world.client.temporal.get_workflow_handle(run.id).describe()
    size = description.raw_description.workflow_execution_info.history_size_bytes
    return description.history_length, size, seconds


async def main(counts: list[int]) -> None:
    """Print one line per number of turns."""
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedServers(Path(folder), headless=True) as endpoints, serve(stand_in_model.create_app()) as model:
            assert endpoints.urls is not None
            await prepare_template(endpoints.urls)
            async with fresh_database(endpoints.urls) as database:
                queue = f"bench-{uuid.uuid4().hex[:6]}"
                client = await AgentClient.connect(endpoints.temporal_address, task_queue=queue)
                settings = settings_for(database.app, queue, model)
                async with (
                    open_world(endpoints, database, client, settings, model, "http://127.0.0.1:1") as world,
                    world.worker(cached=1000),
                ):
                    print("turns  events  history bytes  bytes/turn  seconds")
                    for turns in counts:
                        events, size, seconds = await measure(world, turns)
                        print(f"{turns:5}  {events:6}  {size:13,}  {size / turns:10,.0f}  {seconds:7.1f}")


if __name__ == "__main__":
    asyncio.run(main([int(argument) for argument in sys.argv[1:]] or list(DEFAULT_TURNS)))
    time.sleep(0.1)  # the SDK's threads abort the interpreter now and then when it ends at once
