"""Is everything that nobody looks after any more found, is nothing freed that may have been billed, and does it all add up?"""

import asyncio
from collections.abc import AsyncIterator
from datetime import date, timedelta

import asyncpg
import pytest
from temporalio.exceptions import ApplicationError

from activities import account_limits, attempts, audit, ledger, reconciliation
from activities.account_limits import Limit
from activities.attempts import Settlement
from activities.ledger import Held, Payer
from activities.reconciliation import Reconciled, SettledUnknown
from durable_agents.domain.accounts import NOTHING, TRANCHE_CALLS, Amount, NoRoom, Period, Scope
from durable_agents.domain.identifiers import RunId, TenantId
from durable_agents.domain.model_calls import ModelCallRequest
from durable_agents.domain.provider_gates import SYSTEM_TENANT
from tests.support.ledgers import Books, open_books
from tests.support.unknowns import leave_alone, places, send
from tests.support.world import TestDatabase

CALL = Amount(100, 10)
TRANCHE = CALL.times(TRANCHE_CALLS)
ACME = TenantId("acme")


@pytest.fixture
async def books(database: TestDatabase) -> AsyncIterator[Books]:
    """A ledger of its own."""
    async with open_books(database.app) as found:
        yield found


async def settle(books: Books, run: str, call: int, micros: int) -> SettledUnknown | None:
    """Somebody has seen the bill."""
    async with books.database.transaction(ACME) as connection:
        which = (RunId(run), call, 1)
        return await reconciliation.settle_unknown(connection, ACME, which, micros, by="ann", reason="bill 7")


async def unknown(books: Books) -> list[tuple[str, int]]:
    """Which requests may have been billed."""
    async with books.database.transaction(ACME) as connection:
        return [(one.run_id, one.call) for one in await reconciliation.unknown(connection, ACME)]


async def all_differences(books: Books) -> list[str]:
    """As `Books.differences`, with the journal: here there are requests."""
    async with books.database.transaction(ACME) as connection:
        found = [line async for line in reconciliation.differences(connection, ACME)]
    return [*found, "everything"] if await reconciliation.all_differ(books.database) else found


async def test_a_request_whose_worker_is_gone_is_flagged_and_no_number_of_passes_frees_its_money(books: Books) -> None:
    """What may have been billed stays held: a timer that frees it is a ceiling with a hole."""
    run = await books.open_run("r")
    await send(books, run, 1, CALL)
    await send(books, run, 2, CALL, overdue=timedelta(seconds=-60))
    await send(books, run, 1, CALL, run="child")
    first = await reconciliation.reconcile(books.database)
    assert first == Reconciled(flagged=2, unknown=2, unknown_micros=200), "the second one's worker may still settle it"
    found = await places(books, run)
    assert (found["held"], found["unknown"]) == (CALL, CALL.times(2))
    assert await unknown(books) == [("r", 1), ("child", 1)]
    for _ in range(3):
        await leave_alone(books, run, timedelta(hours=2))
        again = await reconciliation.reconcile(books.database)
        assert (again.flagged, again.unknown, again.differences) == (0, 2, ())
    found = await places(books, run)
    assert (found["held"], found["unknown"], found["rest"]) == (CALL, CALL.times(2), NOTHING)
    assert await books.drawn(Scope.TENANT, Period.DAY, day=await _today(books)) == CALL.times(3)
    assert await all_differences(books) == []


async def test_a_worker_that_comes_back_after_the_flag_can_settle_nothing(books: Books) -> None:
    """Its money is no longer its own to move; who has seen the bill decides."""
    run = await books.open_run("r")
    await send(books, run, 1, CALL)
    await reconciliation.reconcile(books.database)
    call = ModelCallRequest(tenant=ACME, run_id=run.run_id, call=1, turn=1, model=0, allowance_micros=None)
    for state in ("settled", "released", "unknown"):
        with pytest.raises(ApplicationError, match="another attempt has taken over"):
            await _come_late(books, call, run, Settlement(state, CALL))
    assert (await places(books, run))["unknown"] == CALL
    assert await all_differences(books) == []


async def _come_late(books: Books, call: ModelCallRequest, run: Payer, settlement: Settlement) -> None:
    async with books.database.transaction(ACME) as connection:
        await attempts.settle(connection, call, run, 1, CALL, settlement)


async def test_what_a_run_leaves_lying_goes_back_after_an_hour_and_that_of_yesterday_at_once(books: Books) -> None:
    """A run that waits for a human for days must not keep money from others meanwhile; it draws again when it goes on."""
    run, old = await books.open_run("r"), await books.open_run("old")
    today, yesterday = await _today(books), (await _today(books)) - timedelta(days=1)
    await books.hold(run, "1.1", CALL, day=today)
    await books.settle(run, "1.1", CALL, CALL, day=today)
    await books.hold(old, "1.1", CALL, day=yesterday)
    await books.settle(old, "1.1", CALL, Amount(40, 4), day=yesterday)
    rest_of_old = TRANCHE.minus(Amount(40, 4))
    done = await reconciliation.reconcile(books.database)
    assert (done.returned_micros, done.returned_tokens) == rest_of_old
    assert (await places(books, run))["rest"] == TRANCHE.minus(CALL), "it was used a moment ago"
    await leave_alone(books, run, timedelta(minutes=59))
    assert (await reconciliation.reconcile(books.database)).returned_micros == 0
    await leave_alone(books, run, timedelta(minutes=61))
    assert (await reconciliation.reconcile(books.database)).returned_micros == TRANCHE.micros - CALL.micros
    assert await books.drawn(Scope.USER, Period.DAY, name="u", day=today) == CALL
    assert await books.drawn(Scope.USER, Period.DAY, name="u", day=yesterday) == Amount(40, 4)
    assert isinstance(await books.hold(run, "2.1", CALL, day=today), Held)
    assert await books.drawn(Scope.USER, Period.DAY, name="u", day=today) == CALL.plus(TRANCHE)
    assert await books.differences() == []


@pytest.mark.parametrize("micros", [0, 1, 37, 100, 173])
async def test_settling_what_was_unknown_moves_exactly_and_once(books: Books, micros: int) -> None:
    """Finance books what the bill says; what came free is there for others at once, what is beyond is told."""
    run = await books.open_run("r")
    day = await send(books, run, 1, CALL)
    await send(books, run, 2, CALL)
    assert await settle(books, "r", 1, micros) is None, "it is under way"
    await reconciliation.reconcile(books.database)
    settled = await settle(books, "r", 1, micros)
    tokens = -(-10 * min(micros, 100) // 100)
    cost, overrun = Amount(min(micros, 100), tokens), max(0, micros - 100)
    free = TRANCHE.minus(CALL).minus(cost)
    assert settled == SettledUnknown(CALL, cost, overrun, free)
    assert await settle(books, "r", 1, micros) is None, "it is settled"
    assert await settle(books, "r", 9, micros) is None, "there is none"
    expected = {"rest": NOTHING, "held": NOTHING, "unknown": CALL, "spent": cost, "overrun": Amount(overrun, 0)}
    assert await places(books, run) == expected
    for scope, name in ((Scope.USER, "u"), (Scope.AGENT, "a"), (Scope.TENANT, ""), (Scope.ALL, "")):
        assert await books.drawn(scope, Period.DAY, name=name, day=day) == CALL.plus(cost)
    assert await unknown(books) == [("r", 2)]
    assert await all_differences(books) == []
    async with books.database.transaction(ACME) as connection:
        row = await connection.fetchrow("select state, cost_micros, overrun_micros, tokens from model_attempt where call = 1")
        told = await connection.fetchval("select count(*) from notification where kind = 'overrun'")
        kept = [entry["body"] for entry in await connection.fetch("select body from audit_entry")]
        assert await audit.verify(connection, ACME) is None
    assert row is not None
    assert tuple(row) == ("settled" if micros else "released", *cost._replace(tokens=overrun), tokens)
    assert told == (1 if overrun else 0)
    assert kept == [{"call": 1, "attempt": 1, "cost_micros": micros, "by": "ann", "reason": "bill 7"}]


async def test_a_request_of_a_model_without_a_price_settles_with_its_tokens_or_with_none(books: Books) -> None:
    """Where nothing was held in money there is no share of it to go by, and no division by nothing either."""
    free = Amount(0, 10)
    run = await books.open_run("r")
    for call in (1, 2):
        await send(books, run, call, free)
    await reconciliation.reconcile(books.database)
    not_billed, billed = await settle(books, "r", 1, 0), await settle(books, "r", 2, 5)
    assert not_billed is not None
    assert billed is not None
    assert (not_billed.cost, billed.cost, billed.overrun_micros) == (NOTHING, Amount(0, 10), 5)
    async with books.database.transaction(ACME) as connection:
        rows = await connection.fetch("select tokens from model_attempt order by call")
    assert [row["tokens"] for row in rows] == [0, 10]
    assert (await places(books, run))["spent"] == Amount(0, 10)


async def test_every_tenant_is_visited_and_a_stand_ins_request_is_its_payers(books: Books) -> None:
    """Row-level security hides tenants from each other; one that is forgotten keeps its money held for ever."""
    for tenant in ("acme", "beta", "rival"):
        run = await books.open_run("r", tenant=tenant)
        await send(books, run, 1, CALL, run="child")
        await leave_alone(books, run, timedelta(hours=2))
    done = await reconciliation.reconcile(books.database)
    assert (done.flagged, done.unknown, done.unknown_micros) == (3, 3, 300)
    assert (done.returned_micros, done.differences) == (0, ()), "flagging has touched the envelopes"
    for tenant in ("acme", "beta", "rival"):
        assert (await places(books, await books.open_run("r", tenant=tenant)))["unknown"] == CALL
        assert await books.differences(tenant) == []


async def test_two_that_reconcile_at_once_do_the_work_once(books: Books) -> None:
    """The schedule and an operator meet; neither may fail, nor do anything twice."""
    runs = [await books.open_run(f"r{number}") for number in range(8)]
    for call in range(1, 5):
        for run in runs:
            await send(books, run, call, CALL)
    passes = await asyncio.gather(*(reconciliation.reconcile(books.database) for _ in range(6)))
    assert sum(done.flagged for done in passes) == 32
    assert len(await unknown(books)) == 32
    assert await all_differences(books) == []


async def test_a_lowered_limit_waits_for_the_draws_that_have_not_seen_it(books: Books) -> None:
    """A draw that commits while finance lowers the limit would keep a tranche beyond it; at once means that one too."""
    run, day = await books.open_run("r"), await _today(books)
    await books.hold(await books.open_run("first"), "1.1", CALL, day=day)  # the accounts are there
    async with books.database.transaction(ACME) as connection:
        assert isinstance(await ledger.hold(connection, run, "1.1", day, CALL, None), Held)
        lowering = asyncio.create_task(books.limit(Scope.TENANT, Period.DAY, micros=1))
        await _until_somebody_waits_for_a_lock(books)
    await lowering
    assert (await places(books, run))["rest"] == NOTHING
    assert isinstance(await books.hold(run, "2.1", CALL, day=day), NoRoom)


async def test_a_check_finds_nothing_while_everybody_draws(books: Books) -> None:
    """A check that is right only at night, while nothing runs, is soon read by nobody."""
    runs = [await books.open_run("r", tenant=f"t{number}") for number in range(6)]

    async def work(run: Payer) -> None:
        for call in range(30):
            await books.hold(run, f"{call}.1", CALL)
            async with books.database.transaction(run.tenant) as connection:
                await ledger.give_back(connection, run.tenant, run.run_id, "end")

    working = asyncio.gather(*map(work, runs))
    checks = 0
    while not working.done():
        for run in runs:
            assert await books.differences(run.tenant) == []
        checks += 1
    await working
    assert checks >= 2


async def test_a_pass_checks_the_days_on_which_something_moves_and_a_check_all_of_them(
    books: Books, database: TestDatabase
) -> None:
    """Summing up years every few minutes ends at the time a statement may take, and with it everything else a pass does."""
    run, today = await books.open_run("r"), await _today(books)
    days = {"old": today - timedelta(days=40), "new": today}
    admin = await asyncpg.connect(database.admin)
    for name, day in days.items():
        await books.hold(run, f"{name} 1.1", CALL, day=day)
        await books.settle(run, f"{name} 1.1", CALL, CALL, day=day)
        await admin.execute(
            "insert into model_attempt (tenant, run_id, call, attempt, fence, provider, model, state, hold_micros, cost_micros,"
            " dispatched_at) values ('acme', 'r', $1, 1, 1, 'anthropic', 'm', 'settled', 100, 100, $2::date::timestamp + '12 h')",
            1 if name == "old" else 2, day,
        )  # fmt: skip
    tables = {
        "envelope": "update envelope set spent_micros = spent_micros {} 1 where day = $1",
        "account": "update account set drawn_micros = drawn_micros {} 1 where starts = $1 and scope = 'user'",
        "model_attempt": "update model_attempt set overrun_micros = overrun_micros {} 1 where"
        " (dispatched_at at time zone 'utc')::date = $1",
    }
    for table, change in tables.items():
        for name, day in days.items():
            await admin.execute(change.format("+"), day)
            assert await all_differences(books) != [], (table, name)
            assert bool((await reconciliation.reconcile(books.database)).differences) == (name == "new"), (table, name)
            await admin.execute(change.format("-"), day)
    await admin.close()
    assert await all_differences(books) == []


async def test_changes_of_limits_stand_in_the_log_with_them_or_not_at_all(books: Books) -> None:
    """Who raised the limit, and when: asked after the invoice."""
    for tenant, scope, name in ((ACME, Scope.USER, "u"), (SYSTEM_TENANT, Scope.ALL, "")):
        async with books.database.transaction(tenant) as connection:
            wanted = Limit(scope, name, Period.DAY, 5, None)
            assert await account_limits.set_limit(connection, ACME, wanted, "ann") == wanted
        with pytest.raises(asyncpg.CheckViolationError):
            await _set_and_break(books, tenant, wanted)
        async with books.database.transaction(tenant) as connection:
            assert await account_limits.clear_limit(connection, ACME, scope, name, Period.DAY, "bob")
            assert not await account_limits.clear_limit(connection, ACME, scope, name, Period.DAY, "bob")
            rows = await connection.fetch("select event, body from audit_entry order by sequence")
            assert await audit.verify(connection, tenant) is None
        assert {row["event"] for row in rows} == {"limit_changed"}
        assert [(row["body"]["micros"], row["body"]["by"]) for row in rows] == [(5, "ann"), (None, "bob")]


async def _set_and_break(books: Books, tenant: TenantId, limit: Limit) -> None:
    async with books.database.transaction(tenant) as connection:
        await account_limits.set_limit(connection, ACME, limit, "eve")
        await connection.execute("update account_limit set micros = -1")


async def _today(books: Books) -> date:
    async with books.database.transaction(ACME) as connection:
        return await ledger.today(connection)


async def _until_somebody_waits_for_a_lock(books: Books) -> None:
    async with asyncio.timeout(10):
        async with books.database.transaction(SYSTEM_TENANT) as connection:
            while not await connection.fetchval("select count(*) from pg_locks where not granted"):
                await connection.execute("select pg_stat_clear_snapshot()")
