"""Do all workers together keep to what was seen of a provider, and what does a run pay for waiting? Nothing."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from pydantic import JsonValue
from temporalio.api.enums.v1 import PendingActivityState

from activities import provider_gates, provider_limits
from activities.agents import AgentCatalog
from activities.postgres import Database
from durable_agents import RunHandle, RunStatus
from durable_agents.domain.failures import Failure, FailureKind
from durable_agents.domain.identifiers import TenantId
from durable_agents.domain.provider_gates import (
    SYSTEM_TENANT,
    TOLERATED_FAILURES,
    Asking,
    BreakerState,
    GateId,
    Reason,
    Wait,
    fingerprint,
)
from tests.support.scripts import turns
from tests.support.waiting import eventually
from tests.support.world import AGENTS, TestDatabase, World
from worker import build_worker

GATE = GateId("anthropic", "claude-haiku-5-5", fingerprint("test-key"))
ACME, RIVAL = TenantId("acme"), TenantId("rival")
DOWN = Failure(kind=FailureKind.OVERLOADED, message="529")


class Fleet:
    """Workers at one gate: each call is a transaction on one of twenty connections."""

    def __init__(self, shared: Database, admin: str) -> None:
        self._shared = shared
        self._admin = admin

    async def ask(self, caller: str = "a", *, tokens: int = 1, tenant: TenantId = ACME, last_try: bool = False) -> Wait | None:
        """One call at the gate."""
        async with self._shared.transaction(tenant) as connection:
            asking = Asking(caller, tokens, last_try=last_try, timeout=timedelta(seconds=30))
            return await provider_gates.ask(connection, tenant, GATE, asking)

    async def fail(self, caller: str = "a", *, tenant: TenantId = ACME, retry_after: timedelta | None = None) -> None:
        """One request that failed."""
        async with self._shared.transaction(tenant) as connection:
            await provider_gates.failed(connection, tenant, GATE, caller, DOWN, retry_after)

    async def answer(self, caller: str, *, taken: int = 0, used: int = 0, sent: timedelta = timedelta(0)) -> None:
        """One request that was answered, so long after it was `sent`."""
        async with self._shared.transaction(ACME) as connection:
            sent_at = await connection.fetchval("select clock_timestamp() - $1::interval", sent)
            await provider_gates.answered(connection, ACME, GATE, caller, sent_at, taken=taken, used=used)

    async def limit(self, requests: int | None = None, tokens: int | None = None) -> None:
        """An operator's word."""
        async with self._shared.transaction(SYSTEM_TENANT) as connection:
            await provider_limits.set_limits(connection, GATE.provider, GATE.model, requests, tokens)

    async def state(self) -> BreakerState:
        """The breaker's."""
        async with self._shared.transaction(SYSTEM_TENANT) as connection:
            sight = await provider_gates.look(connection, GATE)
            return sight.gate.state(sight.now)

    async def open(self) -> None:
        """Failures enough to open the breaker, and the time of its first probe come."""
        for _ in range(TOLERATED_FAILURES + 1):
            await self.ask()
            await self.fail()
        assert await self.state() is BreakerState.OPEN

    async def administer(self, statement: str) -> None:
        """Move a time instead of waiting for it."""
        admin = await asyncpg.connect(self._admin)
        try:
            await admin.execute(statement)
        finally:
            await admin.close()


@pytest.fixture
async def fleet(database: TestDatabase) -> AsyncIterator[Fleet]:
    """Twenty connections of the application's role."""
    shared = await Database.open(database.app, max_size=20)
    yield Fleet(shared, database.admin)
    await shared.close()


async def test_twenty_connections_never_exceed_the_limit_in_any_window(fleet: Fleet) -> None:
    """A tenth of the limit at once and nine tenths evenly: in a minute never more than the limit, whoever asks how often."""
    limit, admitted, begun = 1200, list[float](), time.monotonic()
    await fleet.limit(requests=limit)

    async def hammer(n: int) -> None:
        while time.monotonic() - begun < 2:
            if await fleet.ask(str(n)) is None:
                admitted.append(time.monotonic())

    await asyncio.gather(*(hammer(n) for n in range(20)))
    burst, per_second = limit * 0.1, limit * 0.9 / 60
    admitted.sort()
    slack = 3  # what a commit takes to come back to this clock, in requests
    for first in range(len(admitted)):
        for last in range(first, len(admitted)):
            most = burst + per_second * (admitted[last] - admitted[first]) + slack
            assert last - first + 1 <= most
    assert len(admitted) >= burst + per_second


async def test_both_buckets_or_none(fleet: Fleet) -> None:
    """A request that has no tokens left must not use up the requests of others while it asks again and again."""
    await fleet.limit(requests=60, tokens=1000)
    assert await fleet.ask(tokens=100) is None
    for _ in range(20):
        wait = await fleet.ask(tokens=100)
        assert wait is not None
        assert wait.reason is Reason.LIMIT
        assert timedelta(seconds=5) < wait.length < timedelta(seconds=7)
    await fleet.limit(tokens=1_000_000)
    assert [await fleet.ask(tokens=1) for _ in range(5)] == [None] * 5  # of six at once


async def test_a_call_larger_than_the_burst_goes_alone_and_is_paid_off(fleet: Fleet) -> None:
    """Refused for ever would be worse than late."""
    await fleet.limit(tokens=1000)
    assert await fleet.ask(tokens=500) is None
    wait = await fleet.ask(tokens=500)
    assert wait is not None
    assert timedelta(seconds=30) < wait.length < timedelta(seconds=35)


async def test_what_an_answer_did_not_use_is_there_for_others(fleet: Fleet) -> None:
    """Most answers are far shorter than they may be; a limit that counts them in full is used by a fraction."""
    await fleet.limit(tokens=1000)
    assert await fleet.ask("a", tokens=500) is None
    before = await fleet.ask("b", tokens=500)
    await fleet.answer("a", taken=500, used=50)
    after = await fleet.ask("b", tokens=500)
    assert before is not None
    assert after is not None
    assert timedelta(seconds=29) < before.length - after.length < timedelta(seconds=31)  # 450 tokens at 900 a minute: 30 s


async def test_no_bucket_gets_larger_by_what_is_given_back(fleet: Fleet) -> None:
    """A hundred answers that used nothing, while nothing else was sent, must not be saved up for one burst."""
    await fleet.limit(tokens=1000)
    assert await fleet.ask("a", tokens=50) is None
    for _ in range(100):
        await fleet.answer("a", taken=50, used=0)
    assert await fleet.ask("b", tokens=100) is None  # a whole burst
    wait = await fleet.ask("b", tokens=100)
    assert wait is not None
    assert timedelta(seconds=6) < wait.length < timedelta(seconds=7)


@pytest.mark.parametrize("late", [True, False])
async def test_nothing_goes_back_after_a_minute_or_to_another_limit(fleet: Fleet, *, late: bool) -> None:
    """What was taken a minute ago counts no more; what was taken at one limit is another time at another."""
    await fleet.limit(tokens=10_000)
    assert await fleet.ask("a", tokens=5000) is None
    if not late:
        await fleet.limit(tokens=1000)
    before = await fleet.ask("b", tokens=5000)
    await fleet.answer("a", taken=5000, used=0, sent=timedelta(seconds=61 if late else 1))
    after = await fleet.ask("b", tokens=5000)
    assert before is not None
    assert after is not None
    assert before.length - after.length < timedelta(seconds=2)


async def test_fifty_at_once_make_exactly_one_probe(fleet: Fleet) -> None:
    """Whoever reads the row in the same millisecond sees the same gate; one of them may go."""
    await fleet.open()
    assert all([await fleet.ask(str(n)) for n in range(10)]), "an open breaker lets nothing through"
    for _ in range(2):
        await fleet.administer("update provider_gate set open_until = clock_timestamp(), probe = null, probe_until = null")
        asked = await asyncio.gather(*(fleet.ask(str(n)) for n in range(50)))
        assert asked.count(None) == 1
        assert {wait.reason for wait in asked if wait is not None} == {Reason.PROBING}
        assert await fleet.state() is BreakerState.HALF_OPEN


async def test_a_good_probe_closes_it_for_all_and_others_answers_do_not(fleet: Fleet) -> None:
    """An answer to a request from before the outage comes in the middle of it."""
    await fleet.open()
    await fleet.administer("update provider_gate set open_until = clock_timestamp()")
    assert await fleet.ask("probe") is None
    await fleet.answer("other")
    assert await fleet.state() is BreakerState.HALF_OPEN
    await fleet.answer("probe")
    assert await fleet.state() is BreakerState.CLOSED
    assert await fleet.ask("other", tenant=RIVAL) is None


async def test_a_dead_probes_lease_ends(fleet: Fleet) -> None:
    """A worker that was killed in the middle of its probe reports nothing, ever."""
    await fleet.open()
    await fleet.administer("update provider_gate set open_until = clock_timestamp()")
    assert await fleet.ask("dead") is None
    assert await fleet.ask("other") is not None
    await fleet.administer("update provider_gate set probe_until = clock_timestamp()")
    assert await fleet.ask("other") is None


async def test_a_probe_that_a_limit_holds_back_is_no_probe(fleet: Fleet) -> None:
    """It would block the breaker for its whole lease without having been sent."""
    await fleet.open()
    await fleet.limit(tokens=10)
    await fleet.administer("update provider_gate set open_until = clock_timestamp(), tokens_due = now() + interval '1 hour'")
    wait = await fleet.ask("held")
    assert wait is not None
    assert wait.reason is Reason.LIMIT
    assert await fleet.state() is BreakerState.OPEN


async def test_a_pause_that_one_worker_saw_holds_all_of_them(fleet: Fleet) -> None:
    """Retry-After is about the key; two hundred runs need not each find out."""
    assert await fleet.ask("a") is None
    await fleet.fail("a", retry_after=timedelta(seconds=30))
    for tenant in (ACME, RIVAL):
        wait = await fleet.ask("b", tenant=tenant)
        assert wait is not None
        assert wait.reason is Reason.PAUSED
        assert timedelta(seconds=29) < wait.length <= timedelta(seconds=30)


async def test_a_workers_clock_does_not_matter(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker whose clock is an hour ahead would else end every pause."""
    assert await fleet.ask("a") is None
    await fleet.fail("a", retry_after=timedelta(seconds=30))
    real = time.time
    for off in (3600, -3600):
        monkeypatch.setattr(time, "time", lambda off=off: real() + off)
        wait = await fleet.ask("b")
        assert wait is not None
        assert timedelta(seconds=28) < wait.length <= timedelta(seconds=30)


async def test_after_a_recovery_requests_leave_at_a_pace(fleet: Fleet) -> None:
    """Two hundred who waited must not come at once."""
    await fleet.administer("update provider_gate set load = 0")
    await fleet.ask()
    await fleet.administer(
        "update provider_gate set recovering_since = clock_timestamp() - interval '1 minute', steady_per_second = 10,"
        " pace_due = 'epoch'"
    )
    asked = await asyncio.gather(*(fleet.ask(str(n)) for n in range(40)))
    assert 12 <= asked.count(None) <= 16  # a second's burst of 12, and what flows while they ask
    assert {wait.reason for wait in asked if wait is not None} == {Reason.RECOVERING}


async def test_the_gate_leaves_the_transaction_to_its_tenant(fleet: Fleet, database: TestDatabase) -> None:
    """What comes after it in the same transaction is the tenant's again; a frozen worker lets go of the gate."""
    shared = await Database.open(database.app, max_size=1)
    try:
        async with shared.transaction(ACME) as connection:
            asking = Asking("a", 1, last_try=False, timeout=timedelta(seconds=1))
            await provider_gates.ask(connection, ACME, GATE, asking)
            assert await connection.fetchval("select current_setting('app.tenant')") == "acme"
            assert await connection.fetchval("select count(*) from provider_gate") == 0
            assert await connection.fetchval("show idle_in_transaction_session_timeout") == "5s"
        async with shared.transaction(ACME) as connection:
            assert await connection.fetchval("show idle_in_transaction_session_timeout") == "0"
    finally:
        await shared.close()


async def force(world: World, *, is_open: bool) -> None:
    """An operator opens or closes the breaker of the agent's first model."""
    async with world.resources.database.transaction(SYSTEM_TENANT) as connection:
        await provider_limits.force(connection, GATE.provider, GATE.model, is_open=is_open)


async def waits_in_the_server(world: World, run: RunHandle) -> bool:
    """Is its call between two attempts, with no worker at it?"""
    description = await world.client.temporal.get_workflow_handle(run.id).describe()
    pending = description.raw_description.pending_activities
    return any(
        one.last_failure.application_failure_info.type == provider_gates.PROVIDER_BUSY
        and one.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
        for one in pending
    )


async def test_waiting_at_the_gate_uses_no_try_and_holds_no_money(world: World) -> None:
    """The run waits in the server and its slot is free; when the gate opens, it has all of its tries."""
    await world.script(turns("done"))
    await force(world, is_open=True)
    async with world.worker():
        run = await world.start()

        async def waits() -> bool:
            return await waits_in_the_server(world, run)

        await eventually(waits)
        assert await world.rows("select 1 from model_attempt") == []
        (gate,) = await world.rows("select key, turned_away_at from provider_gate")
        assert (gate["key"], gate["turned_away_at"] is not None) == (GATE.key, True)
        await force(world, is_open=False)
        result = await run.result()
    assert result.status is RunStatus.COMPLETED
    assert [row["attempt"] for row in await world.rows("select attempt from model_attempt")] == [1]
    await world.replay(run)


async def test_a_call_out_of_its_agents_patience_falls_back(world: World, tmp_path: Path) -> None:
    """Patience with a provider ends before a person's patience with the run does: the agent's file says when."""
    folder = Path(shutil.copytree(AGENTS / "clerk", tmp_path / "agents" / "clerk"))
    text = (folder / "agent.yaml").read_text()
    (folder / "agent.yaml").write_text(text + "patience: 1s\n")
    resources = replace(world.resources, catalog=AgentCatalog.load([folder.parent]))
    await world.script(turns("done"))
    await force(world, is_open=True)
    async with build_worker(world.client.temporal, world.settings, resources, max_cached_workflows=0):
        run = await world.start()
        result = await run.result()
    assert result.status is RunStatus.DEGRADED
    attempts = await world.rows("select provider from model_attempt")
    assert [row["provider"] for row in attempts] == ["openai"]
    (failure,) = await world.rows("select outcome -> 'failure' ->> 'message' as said from model_call where model = 0")
    assert "at the gate of anthropic claude-haiku-5-5: an operator has opened" in failure["said"]
    await world.replay(run)


async def test_a_call_counts_against_the_limit_of_tokens_by_what_it_used(world: World) -> None:
    """What it may use at most is several times as much: the bound of its input in bytes, and its longest answer."""
    await world.script(turns("done"))
    async with world.resources.database.transaction(SYSTEM_TENANT) as connection:
        await provider_limits.set_limits(connection, GATE.provider, GATE.model, None, 100)
    async with world.worker():
        result = await (await world.start()).result()
    assert result.status is RunStatus.COMPLETED
    (row,) = await world.rows("select tokens_due - dispatched_at as counted from provider_gate, model_attempt")
    used = result.spend.input_tokens + result.spend.output_tokens
    assert abs(row["counted"] - timedelta(minutes=used / 90)) < timedelta(seconds=1)


async def test_a_pause_longer_than_patience_sends_every_run_to_its_next_model(world: World) -> None:
    """The run that met it, and one of another tenant that only hears of it: one request to the provider in all."""
    pause: JsonValue = {"status": 429, "error": {"type": "rate_limit_error"}, "headers": {"retry-after": "600"}}
    await world.script({"steps": [pause, {"text": "one"}, {"text": "two"}], "per": "global"})
    async with world.worker():
        first = await (await world.start()).result()
        second = await (await world.start(tenant="rival")).result()
    assert [first.status, second.status] == [RunStatus.DEGRADED, RunStatus.DEGRADED]
    asked = await world.rows("select provider from model_attempt order by dispatched_at")
    assert [row["provider"] for row in asked] == ["anthropic", "openai", "openai"]
