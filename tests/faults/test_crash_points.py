"""Whatever moment a worker dies in: is every effect made once, and no recorded answer paid twice?

A real worker process kills itself with SIGKILL at each point between "before the model is called" and "after the tool's effect is
recorded"; another takes over. What happened is counted outside: at the shop and at the stand-in model.
"""

import asyncio
import signal
import uuid
from dataclasses import dataclass, replace

import pytest
from pydantic import JsonValue

from durable_agents import AgentClient, RunHandle, RunResult, RunStatus
from durable_agents.domain.approvals import ApprovalKind
from starter.demo import stand_in_model
from starter.demo.loopback import serve
from tests.support.crashers import Crashers, open_crashers
from tests.support.waiting import eventually
from tests.support.world import World, settings_for
from worker import build_worker, open_providers

AT_ONCE = 5
AMOUNTS = [250, 80, 120, 250]  # within what the shop's orders cost; above 100 a human is asked
ADMISSION = ["before_admission", "after_admission"]
MODEL = ["before_model_dispatch", "after_model_dispatch", "after_model_reply", "while_recording_answer", "after_answer_recorded"]
TOOL = ["after_tool_dispatch", "before_effect", "after_effect", "while_settling", "after_effect_recorded"]
REFUND, MESSAGE = 2, 3  # the order went out first: these are the second and third call that is made
POINTS = [
    *ADMISSION,
    *(f"{point}#2" for point in MODEL),
    *(f"{point}#{REFUND}" for point in TOOL),
    *(f"{point}#{MESSAGE}" for point in TOOL),
    "before_finish",
    "after_finish",
]
LOST_ANSWER = {"after_model_reply#2", "while_recording_answer#2"}
MAYBE_SENT = {f"{point}#{MESSAGE}" for point in ("after_tool_dispatch", "before_effect", "after_effect", "while_settling")}


@dataclass(frozen=True)
class Outcome:
    """What became of one run whose worker died."""

    point: str
    order: str
    amount: str
    result: RunResult
    requests: list[dict[str, JsonValue]]
    asked_about_outcome: bool


@pytest.mark.timeout(170)
async def test_a_worker_killed_at_any_point_leaves_one_effect_and_pays_no_recorded_answer_twice(world: World) -> None:
    """The promise itself: never lost, never twice. 19 points, real SIGKILLs, counted at the shop and at the model."""
    gate = asyncio.Semaphore(AT_ONCE)
    async with open_crashers() as crashers, asyncio.TaskGroup() as group:
        runs = [group.create_task(_crash(world, crashers, gate, point, index)) for index, point in enumerate(POINTS)]
    outcomes = [run.result() for run in runs]
    records = (await world.http.get(f"{world.shop_url}/records")).json()
    for outcome in outcomes:
        refunds = [refund for refund in records["refunds"] if refund["order"] == outcome.order]
        messages = [message for message in records["messages"] if message["order"] == outcome.order]
        expected_messages = 0 if outcome.point in {f"after_tool_dispatch#{MESSAGE}", f"before_effect#{MESSAGE}"} else 1
        assert outcome.result.status is RunStatus.COMPLETED, outcome
        assert [refund["amount"] for refund in refunds] == [outcome.amount], outcome
        assert len(messages) == expected_messages, outcome
        assert outcome.asked_about_outcome == (outcome.point in MAYBE_SENT), outcome
        assert len(outcome.requests) == 4 + (outcome.point in LOST_ANSWER), outcome
    await _ledger_covers_the_bill(world, list(outcomes))


async def _crash(world: World, crashers: Crashers, gate: asyncio.Semaphore, point: str, index: int) -> Outcome:
    order, amount = f"A-{1001 + index}", AMOUNTS[index % len(AMOUNTS)]
    async with gate, serve(stand_in_model.create_app()) as model:
        queue = f"crash-{uuid.uuid4().hex[:8]}"
        client = AgentClient(world.client.temporal, task_queue=queue, identity="tester")
        run = await client.start_new(
            "clerk", {"order": order, "amount": amount}, tenant="acme", user="requester", idempotency_key=queue
        )
        crasher = await crashers.start(world, point, queue, model)
        approving = asyncio.create_task(_decide(world, run, order))
        try:
            try:
                async with asyncio.timeout(60):
                    code = await crasher.wait()
            except TimeoutError:
                code = None
            assert code == -9, f"{point} was never reached ({code}):"
            settings = settings_for(world.database.app, queue, model)
            async with open_providers(settings) as providers:
                resources = replace(world.resources, providers=providers)
                async with build_worker(client.temporal, settings, resources, max_cached_workflows=0), asyncio.timeout(60):
                    result = await run.result()
            await world.replay(run)
        finally:
            approving.cancel()
            crasher.send(signal.SIGKILL)
        asked = bool(await world.rows("select 1 from approval where run_id = $1 and kind = $2", run.id, ApprovalKind.OUTCOME))
        bill = (await world.http.get(f"{model}/bill")).json()
        return Outcome(point, order, f"{amount}.00", result, bill["requests"], asked)


async def _decide(world: World, run: RunHandle, order: str) -> None:
    """Approve the refund; asked whether the message was sent, say what the shop's books say."""
    decided: set[str] = set()

    async def probe() -> bool:
        for approval in await run.pending_approvals():
            if approval.id in decided:
                continue
            decided.add(approval.id)
            records = (await world.http.get(f"{world.shop_url}/records")).json()
            sent = any(message["order"] == order for message in records["messages"])
            if approval.kind is ApprovalKind.TOOL_CALL or sent:
                await run.approve(approval.id, by="ann")
            else:
                await run.deny(approval.id, by="ann", reason="the shop has no such message")
        return False

    await eventually(probe, within=150)


async def _ledger_covers_the_bill(world: World, outcomes: list[Outcome]) -> None:
    """Σ ledger ≥ true bill, and the difference is exactly what is flagged unknown."""
    rows = await world.rows("select state, count(*) as number from model_attempt group by state")
    states = {row["state"]: row["number"] for row in rows}
    answered = sum(len(outcome.requests) for outcome in outcomes)
    lost_before_leaving = sum(outcome.point == "after_model_dispatch#2" for outcome in outcomes)
    assert states["settled"] == 4 * len(outcomes)
    assert states.get("unknown", 0) == answered - states["settled"] + lost_before_leaving
    assert set(states) <= {"settled", "unknown"}
    for outcome in outcomes:
        assert (outcome.result.spend.unknown_micros > 0) == (outcome.point in {*LOST_ANSWER, "after_model_dispatch#2"}), outcome
