"""Can a start that was never meant harm a run that is under way, or get around its own admission?"""

import asyncio
import json
import uuid
from datetime import UTC, datetime

import pytest
from pydantic import JsonValue
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue

from durable_agents import RunHandle, RunStatus
from tests.support.scripts import refund, turns
from tests.support.waiting import pending
from tests.support.world import World

pytestmark = pytest.mark.timeout(60)
UNREADABLE = RawValue(Payload(metadata={"encoding": b"nobody/knows"}, data=b"x"))


async def start_raw(world: World, workflow_id: str, payload: dict[str, JsonValue]) -> RunHandle:
    """Start as Temporal's own tools do, with any workflow id and any input."""
    await world.client.temporal.start_workflow("AgentRun", payload, id=workflow_id, task_queue=world.settings.task_queue)
    return world.client.get(workflow_id)


async def test_a_second_start_of_a_key_under_another_workflow_id_leaves_the_first_runs_record_alone(world: World) -> None:
    """The Web UI lets anybody choose a workflow id; the refused double must not end the real run's row, nor its audit."""
    await world.script(turns(refund(), "done"))
    async with world.worker():
        run = await world.start(key=(key := uuid.uuid4().hex))
        (approval,) = await pending(run)
        payload: dict[str, JsonValue] = {"agent": "clerk", "user": "x", "tenant": "acme", "idempotency_key": key}
        double = await (await start_raw(world, "elsewhere", payload)).result()
        assert double.status is RunStatus.FAILED
        (row,) = await world.rows("select status, ended_at from run")
        assert tuple(row) == ("running", None)
        await run.approve(approval.id, by="ann")
        assert (await run.result()).status is RunStatus.COMPLETED
    (row,) = await world.rows("select status from run")
    assert row["status"] == "completed"
    ended = await world.rows("select body ->> 'status' as status from audit_entry where event = 'run_ended'")
    assert [entry["status"] for entry in ended] == ["completed"]


async def test_nobody_but_the_run_itself_can_bring_a_state_along(world: World) -> None:
    """A start that carries `admitted` would skip admission, with a budget and decisions of its own making."""
    await world.script(turns("done"))
    async with world.worker():
        await (await world.start()).result()
        (row,) = await world.rows("select terms::text as terms from run")
        terms = json.loads(row["terms"])
        terms["budget"] = {}
        payload: dict[str, JsonValue] = {
            "agent": "clerk", "user": "x", "tenant": "acme", "idempotency_key": "forged",
            "carried": {"started_at": datetime.now(UTC).isoformat(), "admitted": terms},
        }  # fmt: skip
        result = await (await start_raw(world, "run:acme:forged", payload)).result()
    assert result.failure is not None
    assert result.failure.kind == "invalid_input"
    assert len((await world.bill())["requests"]) == 1  # type: ignore[arg-type]


async def test_an_input_that_does_not_fit_is_refused_in_one_short_line_however_large_it_is(world: World) -> None:
    """A message that quotes 200 KB of input, three times over, is larger than what the server takes of a failure."""
    async with world.worker():
        given: dict[str, JsonValue] = {f"{place}": "x" * 80_000 for place in ("a", "b", "order")}
        result = await (await world.start({**given, "order": ["x" * 80_000]}, agent="strict")).result()
    assert result.failure is not None
    assert result.failure.kind == "invalid_input"
    assert len(result.explanation) < 1000


@pytest.mark.parametrize(
    "given",
    [[], [{"agent": "clerk"}], [{"nonsense": 1}], ["clerk"], [None], [1, 2], [UNREADABLE]],
    ids=["none", "incomplete", "unknown-field", "text", "null", "two", "unreadable"],
)
async def test_a_start_that_makes_no_sense_ends_as_failed(world: World, given: list[object]) -> None:
    """People start workflows by hand: one that cannot be read must fail and say why, not sit there RUNNING for ever."""
    async with world.worker():
        handle = await world.client.temporal.start_workflow(
            "AgentRun", args=given, id=f"run:acme:{uuid.uuid4().hex}", task_queue=world.settings.task_queue
        )
        async with asyncio.timeout(10):
            result = await world.client.get(handle.id).result()
    assert result.status is RunStatus.FAILED
    assert result.failure is not None
    assert result.failure.kind == "invalid_input", result
    assert "\n" not in result.explanation
    assert len(result.explanation) < 1000


async def test_a_key_that_temporal_has_forgotten_is_still_used_up(world: World) -> None:
    """After its retention the server lets the id begin again; the database remembers, so nothing is done or paid twice."""
    await world.script(turns(refund("50.00"), "done"))
    key = uuid.uuid4().hex
    payload: dict[str, JsonValue] = {"agent": "clerk", "user": "requester", "tenant": "acme", "idempotency_key": key}
    async with world.worker():
        first = await (await world.start(key=key)).result()
        # Temporal's own tools begin an id again as soon as it has ended: what the run meets is what it would after the retention.
        again = await (await start_raw(world, first.run_id, payload)).result()
    assert first.status is RunStatus.COMPLETED
    assert again.failure is not None, again
    assert again.failure.kind == "key_reused"
    assert (await world.shop_counts())["refunds"] == 1
    assert len((await world.bill())["requests"]) == 2  # type: ignore[arg-type]
    (row,) = await world.rows("select status from run")
    assert row["status"] == "completed"
