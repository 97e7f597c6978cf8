"""Is what no run asks for looked after: lost requests, idle money, and people who must hear of it?"""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
import uvicorn
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from temporalio.client import ScheduleHandle
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.notifiers import LogNotifier, NotifierError, notifier_of
from activities.upkeep import UpkeepActivities
from durable_agents.activity_contracts import UpkeepReport, UpkeepRound
from durable_agents.domain.accounts import Amount, Period, Scope
from tests.support.audit_logs import almighty, honest, write_log
from tests.support.ledgers import TODAY, open_books
from tests.support.waiting import eventually
from tests.support.world import World
from worker import schedule_upkeep
from workflows.upkeep import Upkeep


class Webhook:
    """Somebody who is told things, over real HTTP."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.refuses = 0
        self.port = 0

    async def hear(self, request: Request) -> Response:
        """One message."""
        if self.refuses:
            self.refuses -= 1
            return Response(status_code=503)
        self.told.append((await request.json())["title"])
        return Response()

    @property
    def url(self) -> SecretStr:
        """As the setting has it."""
        return SecretStr(f"json://localhost:{self.port}/hear")


@pytest.fixture
async def webhook() -> AsyncIterator[Webhook]:
    """A webhook on a port of its own."""
    hook = Webhook()
    app = Starlette(routes=[Route("/hear", hook.hear, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    async with _serving(server) as hook.port:
        yield hook


@contextlib.asynccontextmanager
async def _serving(server: uvicorn.Server) -> AsyncIterator[int]:
    task = asyncio.create_task(server.serve())

    async def started() -> bool:
        return server.started

    await eventually(started)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def run_upkeep(world: World) -> UpkeepReport:
    """One round."""
    report: UpkeepReport = await world.client.temporal.execute_workflow(
        Upkeep.run, id=f"upkeep-{uuid.uuid4().hex[:8]}", task_queue=world.settings.task_queue
    )
    return report


async def test_a_round_flags_what_is_lost_returns_what_lies_idle_and_tells_people_once(world: World, webhook: Webhook) -> None:
    """A worker that died with its run must not hold money in silence; a second round has nothing left to say."""
    world.resources = replace(world.resources, notifier=notifier_of([webhook.url]))
    async with open_books(world.database.app) as books:
        run = await books.open_run("r")
        await books.limit(Scope.TENANT, Period.MONTH, micros=200)
        await books.hold(run, "1.1", Amount(100, 10), day=TODAY)
        async with books.database.transaction(run.tenant) as connection:
            await connection.execute(
                "insert into model_attempt (tenant, run_id, call, attempt, fence, provider, model, state, hold_micros,"
                " hold_tokens, dispatched_at, gives_up_at) values ('acme', 'r', 1, 1, 1, 'p', 'm', 'dispatched', 100, 10,"
                " '2026-11-20 10:00+00', '2026-11-20 10:05+00')"
            )
        webhook.refuses = 1
        async with world.worker():
            first, second = await run_upkeep(world), await run_upkeep(world)
        held = await books.drawn(Scope.TENANT, Period.MONTH)
    assert (first.ledgers.flagged, first.ledgers.unknown, first.ledgers.unknown_micros) == (1, 1, 100)
    assert (first.ledgers.differences, second.ledgers.flagged, second.ledgers.unknown) == (0, 0, 1)
    assert held == Amount(100, 10), "no timer frees what may have been billed"
    assert sorted(webhook.told) == [
        "tenant acme: 1 requests may have been billed, up to $0.0001",
        "the tenant in 2026-11 has reached 50 % of its limit",
    ]
    assert second.notifications.delivered == 0
    (row,) = await world.rows(
        "select sum(tries) as tries, count(*) filter (where delivered_at is null) as open from notification"
    )
    assert tuple(row) == (1, 0)


async def test_a_round_anchors_the_audit_logs_and_tells_people_of_one_that_was_changed(world: World, tmp_path: Path) -> None:
    """An anchor that somebody must remember to write is not there when it is needed; nor is an alarm that waits for an audit."""
    file = tmp_path / "anchors.jsonl"
    world.settings = world.settings.model_copy(update={"audit_anchors": file})
    async with almighty(world.database) as owner, world.worker():
        await write_log(owner, "acme", honest("acme", 20))
        first, second = await run_upkeep(world), await run_upkeep(world)
        await write_log(owner, "acme", honest("acme", 12))
        third = await run_upkeep(world)
        told = await world.rows("select title, body from notification where kind = 'audit'")
    assert [(one.anchors.anchored, one.anchors.broken) for one in (first, second, third)] == [(1, 0), (0, 0), (0, 1)]
    (line,) = file.read_text().splitlines()
    assert json.loads(line)["sequence"] == 20
    assert [row["title"] for row in told] == ["tenant acme: the audit log was changed"]
    assert "saw entry 20: its tail was cut off" in told[0]["body"]


async def test_anchors_that_cannot_be_written_stop_no_round_and_are_told(world: World, tmp_path: Path) -> None:
    """Whoever unmounts the disk must not switch off the alarms with it."""
    (tmp_path / "file").touch()
    world.settings = world.settings.model_copy(update={"audit_anchors": tmp_path / "file" / "anchors.jsonl"})
    async with world.worker():
        report = await run_upkeep(world)
    assert (report.anchors.anchored, report.notifications.delivered) == (0, 1)
    (row,) = await world.rows("select title, body from notification")
    assert row["title"] == "the audit logs are not anchored"
    assert "cannot be written" in row["body"]


async def test_every_worker_makes_sure_of_the_schedule_and_leaves_an_operators_changes_alone(world: World) -> None:
    """Nobody has to remember to set it up, and nobody's pause is undone by a deploy."""
    queue = world.settings.task_queue
    handle: ScheduleHandle = world.client.temporal.get_schedule_handle(f"upkeep-{queue}")
    await schedule_upkeep(world.client.temporal, queue)
    try:
        await handle.pause(note="maintenance")
        await schedule_upkeep(world.client.temporal, queue)
        described = await handle.describe()
        assert described.schedule.state.paused
        async with world.worker():
            await handle.trigger()

            async def done() -> bool:
                found = await handle.describe()
                return bool(found.info.recent_actions) and not found.info.running_actions

            await eventually(done)
    finally:
        await handle.delete()


async def test_without_a_url_the_workers_log_says_it(caplog: pytest.LogCaptureFixture) -> None:
    """An alert that goes nowhere is worse than none: somebody believes in it."""
    notifier = notifier_of([])
    assert isinstance(notifier, LogNotifier)
    await notifier.tell("the title", "the body")
    assert "the title: the body" in caplog.text


def test_a_url_that_leads_nowhere_is_refused_at_start_without_its_secret() -> None:
    """The first alert is no moment to find out, and a token is nothing for a log."""
    with pytest.raises(NotifierError) as refused:
        notifier_of([SecretStr("json://localhost/x"), SecretStr("nosuch://token-123@host")])
    assert "notification URL 2" in str(refused.value)
    assert "token-123" not in json.dumps(str(refused.value))


async def test_one_tenants_trouble_keeps_nobody_elses_ledger_from_being_gone_over(world: World, webhook: Webhook) -> None:
    """A row that somebody holds must not silence every alert of every tenant."""
    activities = UpkeepActivities(world.resources.database, notifier_of([webhook.url]))
    environment = ActivityEnvironment()
    round_ = UpkeepRound(at=datetime(2026, 11, 20, tzinfo=UTC))
    async with open_books(world.database.app) as books:
        for tenant in ("acme", "rival"):
            run = await books.open_run("r", tenant=tenant)
            await books.hold(run, "1.1", Amount(100, 10), day=TODAY - timedelta(days=2))
        holder = await asyncpg.connect(world.database.admin)
        async with holder.transaction():
            await holder.execute("select 1 from envelope where tenant = 'acme' for update")
            with pytest.raises(ApplicationError, match="tenant acme"):
                await environment.run(activities.reconcile_ledgers, round_)
        await holder.close()
        drawn = [await books.drawn(Scope.TENANT, Period.MONTH, tenant=tenant) for tenant in ("acme", "rival")]
        report = await environment.run(activities.reconcile_ledgers, round_)
    assert drawn == [Amount(400, 40), Amount(100, 10)], "the rest of the other tenant was returned"
    assert report.returned_micros == 300
