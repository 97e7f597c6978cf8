"""How do the frozen histories come about? `python -m tests.replay.record` records the ones that are missing, from real runs.

A history is what a run that was started by some release looks like to every later one. So none is ever overwritten: a change
of the workflows that matters gets a new scenario here, under a new name. `--fresh` records all of them anew; it is for the
time before the first release, and refuses when there is one.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import JsonValue
from temporalio.testing import WorkflowEnvironment

from durable_agents import AgentClient, ApprovalDecision, Budget, RunHandle, RunStatus
from durable_agents.data_converter import DATA_CONVERTER
from durable_agents.domain.identifiers import UserId
from starter.demo import shop as shop_app
from starter.demo import stand_in_model
from starter.demo.loopback import serve
from starter.embedded.servers import EmbeddedServers, Endpoints
from starter.embedded.temporal import SEARCH_ATTRIBUTES, find_temporal
from tests.support.scripts import Call, refund, tell, turns
from tests.support.signing import add_key
from tests.support.waiting import eventually, pending
from tests.support.world import World, fresh_database, open_world, prepare_template, replayer, settings_for
from tests.workflows.conftest import SkippingWorld

ROOT = Path(__file__).parents[2]
HISTORIES = Path(__file__).parent / "histories"
KIND = "AgentRun"
BUSY: JsonValue = {"status": 529, "error": {"type": "overloaded_error"}}
BAD: JsonValue = {"status": 400, "error": {"type": "invalid_request_error"}}

Scenario = Callable[[World], Awaitable[RunHandle]]
SCENARIOS: dict[str, Scenario] = {}
"""What happened → how to make it happen."""


def scenario(happened: str) -> Callable[[Scenario], Scenario]:
    """Name what happens in a run."""

    def name(play: Scenario) -> Scenario:
        SCENARIOS[happened] = play
        return play

    return name


@scenario("completed_with_tools")
async def _(world: World) -> RunHandle:
    both: list[Call] = [("lookup_order", {"order": "A-1001"}), ("echo", {"text": "twice", "times": 2})]
    await world.script(turns(both, refund("50.00"), "done"))
    async with world.worker():
        return await ended(await world.start({"order": "A-1001"}), RunStatus.COMPLETED)


@scenario("approved_by_signature_after_forged_ones")
async def _(world: World) -> RunHandle:
    await world.script(turns(tell("SIGNED"), "done"))
    ann, mallory = await add_key(world, "ann"), await add_key(world, "mallory")
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        await run.approve(approval, by="ann")
        await run.approve(approval, by="ann", key=mallory)
        await run.approve(approval, by="ann", key=ann)
        return await ended(run, RunStatus.COMPLETED)


@scenario("approved_after_wrong_decisions")
async def _(world: World) -> RunHandle:
    await world.script(turns(refund(), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        signal = world.client.temporal.get_workflow_handle(run.id).signal
        await run.approve(approval.id, by="requester")
        await signal("submit_approval", "approve it")
        await signal("submit_aproval", {"approval_id": approval.id})
        await run.approve(approval.id, by="ann", reason="checked")
        return await ended(run, RunStatus.COMPLETED)


@scenario("approved_by_update_after_a_raise")
async def _(world: World) -> RunHandle:
    await world.script(turns(refund(), "done"))
    async with world.worker():
        run = await world.start(budget=Budget(turns=1))
        (approval,) = await pending(run)
        await run.raise_budget(Budget(turns=5), by="ann")
        await run.decide_now(ApprovalDecision(approval_id=approval.id, decision="approve", by=UserId("bob")))
        return await ended(run, RunStatus.COMPLETED)


@scenario("approved_while_no_worker_ran")
async def _(world: World) -> RunHandle:
    await world.script(turns(tell("QUICK"), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
    await run.approve(approval.id, by="ann")

    async def passed() -> bool:
        return datetime.now(UTC) > approval.deadline + timedelta(seconds=0.2)

    await eventually(passed)
    async with world.worker():
        return await ended(run, RunStatus.COMPLETED)


@scenario("denied_and_told")
async def _(world: World) -> RunHandle:
    await world.script(turns(refund(), "I could not."))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        await run.deny(approval.id, by="bob", reason="too much")
        return await ended(run, RunStatus.COMPLETED)


@scenario("denied_and_ended")
async def _(world: World) -> RunHandle:
    await world.script(turns(tell("END"), "never said"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        await run.deny(approval.id, by="ann", reason="no")
        return await ended(run, RunStatus.DENIED)


@scenario("expired_after_escalation")
async def _(world: World) -> RunHandle:
    assert isinstance(world, SkippingWorld)
    await world.script(turns(refund(), "Nobody answered."))
    async with world.worker():
        run = await world.start()
        await pending(run)
        await world.pass_time(run, timedelta(hours=25))
        return await ended(run, RunStatus.COMPLETED)


@scenario("outcome_unknown_resolved")
async def _(world: World) -> RunHandle:
    await world.fault(path="/messages", after_effect="500", times=1)
    await world.script(turns(tell(), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        await run.approve(approval.id, by="ann", reason="the customer has it")
        return await ended(run, RunStatus.COMPLETED)


@scenario("continued_as_new_by_a_flood")
async def _(world: World) -> RunHandle:
    await world.script(turns(refund(), "done"))
    async with world.worker(cached=100):
        run = await world.start()
        (approval,) = await pending(run)
        handle = world.client.temporal.get_workflow_handle(run.id)
        first = (await handle.describe()).run_id
        for _ in range(16):
            await asyncio.gather(*(handle.signal("junk", n) for n in range(100)))

        async def continued() -> bool:
            return (await handle.describe()).run_id != first

        await eventually(continued)
        await run.approve(approval.id, by="ann")
        return await ended(run, RunStatus.COMPLETED)


@scenario("budget_exhausted")
async def _(world: World) -> RunHandle:
    await world.script({"repeat_tool": {"name": "echo", "arguments": {"text": "{n}"}, "times": 50, "then_text": "done"}})
    async with world.worker():
        return await ended(await world.start(budget=Budget(turns=3)), RunStatus.BUDGET_EXHAUSTED)


@scenario("cancelled_while_waiting")
async def _(world: World) -> RunHandle:
    await world.script(turns(refund(), "never said"))
    async with world.worker():
        run = await world.start()
        await pending(run)
        await run.cancel(reason="no longer needed", by="ann")
        return await ended(run, RunStatus.CANCELLED)


@scenario("cancelled_by_temporal")
async def _(world: World) -> RunHandle:
    await world.script(turns(refund(), "never said"))
    async with world.worker():
        run = await world.start()
        await pending(run)
        await world.client.temporal.get_workflow_handle(run.id).cancel()
        return await ended(run, RunStatus.CANCELLED)


@scenario("fell_back_to_the_second_model")
async def _(world: World) -> RunHandle:
    await world.script({"steps": [BUSY, BUSY, BUSY, {"text": "done"}], "per": "global"})
    async with world.worker():
        return await ended(await world.start(), RunStatus.DEGRADED)


@scenario("told_about_its_mistakes")
async def _(world: World) -> RunHandle:
    steps: JsonValue = [{"text": "sure!"}, {"text": '{"total": "x"}'}, {"text": '{"total": 3}'}]
    await world.script({"steps": steps, "per": "global"})
    async with world.worker():
        return await ended(await world.start({"order": "A-1001"}, agent="strict"), RunStatus.COMPLETED)


@scenario("stopped_in_a_loop")
async def _(world: World) -> RunHandle:
    await world.script({"repeat_tool": {"name": "echo", "arguments": {"text": "again"}, "times": 50, "then_text": "done"}})
    async with world.worker():
        return await ended(await world.start(), RunStatus.FAILED)


@scenario("routed_to_another_model")
async def _(world: World) -> RunHandle:
    await world.script(turns(("echo", {"text": "hello"}), "done"))
    async with world.worker():
        return await ended(await world.start(agent="router"), RunStatus.COMPLETED)


@scenario("fell_back_to_a_fixed_text")
async def _(world: World) -> RunHandle:
    await world.script({"steps": [{"text": "I will not", "stop_reason": "refusal"}], "per": "turn"})
    async with world.worker():
        return await ended(await world.start(agent="router"), RunStatus.DEGRADED)


@scenario("taken_over_by_a_human")
async def _(world: World) -> RunHandle:
    await world.script({"steps": [BAD], "per": "turn"})
    async with world.worker():
        run = await world.start(agent="router")
        (question,) = await pending(run)
        await run.approve(question.id, by="ann", reason="I call the customer")
        return await ended(run, RunStatus.HANDED_OFF)


@scenario("another_agent_stood_in")
async def _(world: World) -> RunHandle:
    await world.script({"steps": [BAD, {"text": "done by the other"}], "per": "global"})
    async with world.worker():
        run = await world.start({"order": "A-1001"}, agent="substitute", budget=Budget(cost_usd="0.80"))
        return await ended(run, RunStatus.DEGRADED)


@scenario("answered_as_an_earlier_run_was")
async def _(world: World) -> RunHandle:
    await world.script({"steps": [{"text": "42"}, *[BAD] * 9], "per": "global"})
    async with world.worker():
        await ended(await world.start({"q": 1}, agent="memory"), RunStatus.COMPLETED)
        return await ended(await world.start({"q": 1}, agent="memory"), RunStatus.DEGRADED)


@scenario("refused_at_admission")
async def _(world: World) -> RunHandle:
    async with world.worker():
        return await ended(await world.start(agent="nobody"), RunStatus.FAILED)


ON_THE_SKIPPING_SERVER = {"expired_after_escalation"}


async def ended(run: RunHandle, status: RunStatus) -> RunHandle:
    """The run, once it has ended as it should."""
    result = await run.result()
    assert result.status is status, result
    return run


def path_of(happened: str) -> Path:
    """Where the history of a scenario lies."""
    return HISTORIES / KIND / f"{happened}.json"


async def record(wanted: list[str]) -> None:
    """Play the scenarios on real servers and write down their histories, each in the place of an older one."""
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedServers(Path(folder), headless=True) as endpoints, skipping_server() as skipping:
            assert endpoints.urls is not None
            await prepare_template(endpoints.urls)
            for happened in wanted:
                moved = skipping if happened in ON_THE_SKIPPING_SERVER else None
                async with stage(endpoints, moved, Path(folder)) as world:
                    run = await SCENARIOS[happened](world)
                    history = await world.history(run)
                    await replayer().replay_workflow(history)
                    path_of(happened).unlink(missing_ok=True)
                    write(path_of(happened), history.to_json())
                sys.stdout.write(f"recorded {happened}\n")


@asynccontextmanager
async def skipping_server() -> AsyncIterator[WorkflowEnvironment]:
    """A server whose clock can be moved; it moves only when told to."""
    attributes = [part for name, kind in SEARCH_ATTRIBUTES.items() for part in ("--search-attribute", f"{name}={kind}")]
    async with await WorkflowEnvironment.start_time_skipping_v2(
        dev_server_existing_path=str(find_temporal()),
        dev_server_log_level="error",
        dev_server_extra_args=["--dynamic-config-value", "frontend.WorkflowTimeSkippingEnabled=true", *attributes],
        data_converter=DATA_CONVERTER,
    ) as environment:
        with environment.with_time_skipping_disabled():
            yield environment


@asynccontextmanager
async def stage(endpoints: Endpoints, skipping: WorkflowEnvironment | None, folder: Path) -> AsyncIterator[World]:
    """A database, a shop and a model of its own for one scenario."""
    assert endpoints.urls is not None
    queue = f"q-{uuid.uuid4().hex[:8]}"
    if skipping is None:
        client = await AgentClient.connect(endpoints.temporal_address, task_queue=queue, identity="recorder")
    else:
        client = AgentClient(skipping.client, task_queue=queue, identity="recorder")
    async with (
        fresh_database(endpoints.urls) as database,
        serve(stand_in_model.create_app()) as model_url,
        serve(shop_app.create_app(folder / f"{queue}.sqlite3")) as shop_url,
    ):
        os.environ["SHOP_URL"] = shop_url
        settings = settings_for(database.app, queue, model_url)
        async with open_world(endpoints, database, client, settings, model_url, shop_url) as world:
            yield world if skipping is None else SkippingWorld(**vars(world), environment=skipping)


def write(path: Path, history: str) -> None:
    """Write a history down, without what is peculiar to this machine."""
    assert not path.exists(), f"{path} is there already: histories are never overwritten"
    peculiar = {
        str(ROOT): "checkout",
        sys.prefix: "venv",
        sys.base_prefix: "python",
        f"{os.getpid()}@{socket.gethostname()}": "worker",
    }
    for here, everywhere in peculiar.items():
        history = history.replace(here, everywhere)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(json.loads(history), indent=1, ensure_ascii=False) + "\n")


def released() -> bool:
    """Is there a release, whose runs later code must still understand?"""
    tags = subprocess.run(["git", "tag", "--list", "v*"], cwd=ROOT, capture_output=True, text=True, check=True)
    return bool(tags.stdout.strip())


def main() -> int:
    """Record what is missing, or everything."""
    parser = argparse.ArgumentParser(prog="python -m tests.replay.record", description="Record histories of real runs.")
    parser.add_argument("--fresh", action="store_true", help="record all of them anew; refused once there is a release")
    asked = parser.parse_args()
    if asked.fresh and released():
        sys.stderr.write("error: there is a release, its histories stay: add a scenario under a new name instead\n")
        return 2
    wanted = [happened for happened in SCENARIOS if asked.fresh or not path_of(happened).exists()]
    if wanted:
        asyncio.run(record(wanted))
    sys.stdout.write(f"{len(wanted)} recorded, {len(SCENARIOS) - len(wanted)} stay as they are\n")
    return 0


if __name__ == "__main__":
    code = main()
    threading.Event().wait(0.2)  # the SDK's threads abort the interpreter now and then when it ends at once
    sys.exit(code)
