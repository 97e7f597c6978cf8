"""Can a run spend what its accounts do not have, or lose what it has held?"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import date, timedelta

import asyncpg
import pytest

from activities import attempts, ledger
from activities.attempts import Settlement
from activities.ledger import Held
from activities.postgres import Database
from durable_agents.domain.accounts import NOTHING, TRANCHE_CALLS, Amount, NoRoom, Period, Scope
from durable_agents.domain.identifiers import TenantId
from durable_agents.domain.model_calls import ModelCallRequest
from tests.support.ledgers import TODAY, Books, open_books
from tests.support.world import TestDatabase

CALL = Amount(100, 10)


@pytest.fixture
async def books(database: TestDatabase) -> AsyncIterator[Books]:
    """A ledger of its own."""
    async with open_books(database.app) as found:
        yield found


async def test_a_run_draws_a_tranche_and_its_next_calls_leave_the_accounts_alone(books: Books) -> None:
    """Accounts are shared by everybody: a write for each call would make all runs queue for one row."""
    run = await books.open_run("r")
    for call in range(TRANCHE_CALLS):
        held = await books.hold(run, f"{call}.1", CALL)
        assert isinstance(held, Held)
        assert held.rest_micros == (TRANCHE_CALLS - 1 - call) * CALL.micros
        for scope, name in ((Scope.USER, "u"), (Scope.AGENT, "a"), (Scope.TENANT, ""), (Scope.ALL, "")):
            for period in (Period.DAY, Period.MONTH):
                assert await books.drawn(scope, period, name=name) == CALL.times(TRANCHE_CALLS)
    async with books.database.transaction(TenantId("acme")) as connection:
        assert await connection.fetchval("select count(*) from ledger_entry where kind = 'draw'") == 1
    assert await books.differences() == []


async def test_what_a_run_did_not_use_goes_back_at_its_end(books: Books) -> None:
    """A reservation that leaks blocks users who have paid."""
    run = await books.open_run("r")
    await books.hold(run, "1.1", CALL)
    await books.settle(run, "1.1", CALL, Amount(30, 3))
    async with books.database.transaction(run.tenant) as connection:
        assert await ledger.give_back(connection, run.tenant, run.run_id, "end") == Amount(370, 37)
        assert await ledger.give_back(connection, run.tenant, run.run_id, "end") == NOTHING
    assert await books.drawn(Scope.ALL, Period.MONTH) == Amount(30, 3)
    assert await books.differences() == []


async def test_every_limit_of_every_account_holds_to_the_last_unit(books: Books) -> None:
    """All or nothing: what one account has no room for is drawn from none."""
    combinations = itertools.product(Scope, Period, ("micros", "tokens"))
    for number, (scope, period, unit) in enumerate(combinations):
        tenant, day = f"t{number}", date(2026 + number, 1, 1)
        name = {Scope.USER: "u", Scope.AGENT: "a"}.get(scope, "")
        await books.limit(scope, period, name=name, tenant=tenant, **{unit: 2 * getattr(CALL, unit) + 1})
        run = await books.open_run("r", tenant=tenant)
        answers = [await books.hold(run, f"{call}.1", CALL, day=day) for call in range(3)]
        assert [isinstance(answer, Held) for answer in answers] == [True, True, False], (scope, period, unit)
        assert isinstance(answers[2], NoRoom)
        assert answers[2].account.name[:3] == (scope, name, period)
        assert answers[2].explanation.startswith(str(answers[2].account.name))
        assert await books.drawn(Scope.TENANT, Period.DAY, tenant=tenant, day=day) == CALL.times(2)
        assert await books.differences(tenant) == []
        other = await books.open_run("other", tenant=tenant, user="v", agent="b")
        shared = scope in (Scope.TENANT, Scope.ALL) and period is not Period.RUN
        assert isinstance(await books.hold(other, "1.1", CALL, day=day), NoRoom if shared else Held)
        await books.clear(scope, period, name=name, tenant=tenant)


async def test_a_limit_of_nothing_means_nothing(books: Books) -> None:
    """Zero is a number: whoever writes it has decided."""
    await books.limit(Scope.TENANT, Period.DAY, micros=0)
    refused = await books.hold(await books.open_run("r"), "1.1", CALL)
    assert isinstance(refused, NoRoom)
    assert isinstance(await books.hold(await books.open_run("free"), "1.1", Amount(0, 5)), Held)


async def test_who_has_no_limit_of_their_own_has_that_of_each(books: Books) -> None:
    """One line for all users, another for the one who may more."""
    await books.limit(Scope.USER, Period.DAY, micros=100, name="*")
    await books.limit(Scope.USER, Period.DAY, micros=300, name="vip")
    plain, vip = await books.open_run("r"), await books.open_run("s", user="vip")
    assert isinstance(await books.hold(plain, "1.1", CALL), Held)
    assert isinstance(await books.hold(plain, "2.1", CALL), NoRoom)
    assert [isinstance(await books.hold(vip, f"{call}.1", CALL), Held) for call in range(4)] == [True, True, True, False]


async def test_lowering_a_limit_stops_the_next_call_of_a_run_that_has_drawn_ahead(books: Books) -> None:
    """Who lowers a limit means now, and not when every tranche is used up."""
    run = await books.open_run("r")
    await books.limit(Scope.TENANT, Period.DAY, micros=100_000)
    assert isinstance(await books.hold(run, "1.1", CALL), Held)
    await books.limit(Scope.TENANT, Period.DAY, micros=50)
    assert isinstance(await books.hold(run, "2.1", CALL), NoRoom)
    assert await books.drawn(Scope.TENANT, Period.DAY) == CALL
    await books.limit(Scope.TENANT, Period.DAY, micros=200)
    assert isinstance(await books.hold(run, "2.1", CALL), Held)


async def test_a_call_is_charged_to_the_day_and_month_in_which_it_left(books: Books) -> None:
    """Also when it comes back after midnight: the window it left in has answered for it."""
    run, last = await books.open_run("r"), date(2026, 11, 30)
    await books.hold(run, "1.1", CALL, day=last)
    await books.hold(run, "2.1", CALL, day=last + timedelta(days=1))
    await books.settle(run, "1.1", CALL, Amount(70, 7), day=last)
    async with books.database.transaction(run.tenant) as connection:
        await ledger.give_back(connection, run.tenant, run.run_id, "end")
    assert await books.drawn(Scope.USER, Period.DAY, name="u", day=last) == Amount(70, 7)
    assert await books.drawn(Scope.USER, Period.MONTH, name="u", day=last) == Amount(70, 7)
    assert await books.drawn(Scope.USER, Period.MONTH, name="u", day=date(2026, 12, 1)) == CALL
    assert await books.differences() == []


async def test_an_answer_after_midnight_is_settled_in_the_day_its_request_left(books: Books, database: TestDatabase) -> None:
    """Settled by the clock of its answer, the hold of yesterday would stay for ever and today would pay from nothing."""
    run = await books.open_run("r")
    call = ModelCallRequest(tenant=run.tenant, run_id=run.run_id, call=1, turn=1, model=0, allowance_micros=None)
    admin = await asyncpg.connect(database.admin)
    yesterday = await admin.fetchval(f"select {ledger.UTC_TODAY} - 1")
    await books.hold(run, "1.1", CALL, day=yesterday)
    await admin.execute(
        "insert into model_attempt (tenant, run_id, call, attempt, fence, provider, model, state, hold_micros, hold_tokens,"
        " dispatched_at) values ('acme', 'r', 1, 1, 1, 'p', 'm', 'dispatched', 100, 10, now() - interval '1 day')"
    )
    await admin.close()
    async with books.database.transaction(run.tenant) as connection:
        assert await attempts.settle(connection, call, run, 1, CALL, Settlement("settled", Amount(40, 4)))
        rows = await connection.fetch("select day, held_micros, spent_micros from envelope")
    assert [tuple(row) for row in rows] == [(yesterday, 0, 40)]
    assert await books.differences() == []


async def test_a_limit_a_run_counts_all_its_days(books: Books) -> None:
    """A run that waits overnight for consent is the same run in the morning."""
    run = await books.open_run("r")
    await books.limit(Scope.USER, Period.RUN, micros=250, name="u")
    days = [TODAY, TODAY, TODAY + timedelta(days=1)]
    answers = [await books.hold(run, f"{call}.1", CALL, day=day) for call, day in enumerate(days)]
    assert [isinstance(answer, Held) for answer in answers] == [True, True, False]


async def test_the_same_movement_twice_moves_once(books: Books) -> None:
    """The answer to a COMMIT can be lost; who asks again must be told what is written, and pay nothing more."""
    run = await books.open_run("r")
    for _ in range(2):
        assert isinstance(await books.hold(run, "1.1", CALL), Held)
    for _ in range(2):
        await books.settle(run, "1.1", CALL, Amount(60, 6))
    async with books.database.transaction(run.tenant) as connection:
        await ledger.release(connection, run, "1.1", TODAY, CALL)
        await ledger.lose(connection, run, "1.1", TODAY, CALL)
        row = await connection.fetchrow("select held_micros, spent_micros, unknown_micros, rest_micros from envelope")
    assert row is not None
    assert tuple(row) == (0, 60, 0, 340)
    assert await books.differences() == []


async def test_a_settlement_of_the_whole_hold_moves_once_although_another_call_holds_as_much(books: Books) -> None:
    """It leaves no entry of a rest behind: only that of what was spent says that it is done."""
    run = await books.open_run("r")
    for transfer in ("1.1", "2.1"):
        await books.hold(run, transfer, CALL)
    for _ in range(2):
        await books.settle(run, "1.1", CALL, CALL)
    async with books.database.transaction(run.tenant) as connection:
        row = await connection.fetchrow("select held_micros, spent_micros from envelope")
    assert row is not None
    assert tuple(row) == (100, 100)


async def test_what_a_provider_bills_beyond_the_hold_is_overrun_and_somebody_is_told(books: Books) -> None:
    """It is no reason to break the ceiling of what we decide, and no reason to keep quiet."""
    run = await books.open_run("r")
    await books.limit(Scope.TENANT, Period.DAY, micros=100)
    await books.hold(run, "1.1", CALL)
    assert await books.settle(run, "1.1", CALL, Amount(130, 9)) == Amount(30, 0)
    assert await books.drawn(Scope.TENANT, Period.DAY) == CALL
    async with books.database.transaction(run.tenant) as connection:
        told = await connection.fetch("select kind, title from notification where kind = 'overrun'")
        assert await connection.fetchval("select overrun_micros from envelope") == 30
    assert [row["kind"] for row in told] == ["overrun"]
    assert await books.differences() == []


async def test_people_are_told_at_half_at_four_fifths_and_at_the_limit_once_each(books: Books) -> None:
    """An alert that comes with every call is one that nobody reads."""
    run = await books.open_run("r")
    await books.limit(Scope.USER, Period.DAY, micros=1000, name="u")
    for call in range(14):
        await books.hold(run, f"{call}.1", CALL)
    async with books.database.transaction(run.tenant) as connection:
        told = [row["title"] for row in await connection.fetch("select title from notification order by created_at, id")]
    assert sorted(told) == sorted(f"user u on 2026-11-20 has reached {percent} % of its limit" for percent in (50, 80, 100))


async def test_the_database_itself_refuses_a_draw_beyond_a_limit(books: Books, database: TestDatabase) -> None:
    """Code has bugs, and another version of it may be at work: the ceiling is a property of the table."""
    run = await books.open_run("r")
    await books.limit(Scope.TENANT, Period.DAY, micros=150)
    await books.hold(run, "1.1", CALL)
    forged = "update account set drawn_micros = drawn_micros + 51 where scope = 'tenant' and period = 'day'"
    with pytest.raises(asyncpg.CheckViolationError, match="limit of tenant"):
        async with books.database.transaction(run.tenant) as connection:
            await connection.execute(forged)
    for broken in ("rest_micros = -1", "held_micros = held_micros - 101", "spent_tokens = -1"):
        with pytest.raises(asyncpg.CheckViolationError):
            async with books.database.transaction(run.tenant) as connection:
                await connection.execute(f"update envelope set {broken}")


async def test_what_somebody_changes_by_hand_is_found(books: Books, database: TestDatabase) -> None:
    """Counters are for speed; the entries are the truth, and both are compared."""
    run = await books.open_run("r")
    await books.hold(run, "1.1", CALL)
    assert await books.differences() == []
    changes = (
        ("update account set drawn_micros = drawn_micros {} 1 where scope = 'user' and period = 'month'", "an account"),
        ("update account set drawn_tokens = drawn_tokens {} 1 where scope = 'all'", "everything"),
        ("update envelope set spent_micros = spent_micros {} 1", "an envelope"),
        ("update envelope set rest_micros = rest_micros {} 1", "an envelope and its accounts"),
        ("update ledger_entry set micros = micros {} 1 where kind = 'draw'", "an entry"),
    )
    admin = await asyncpg.connect(database.admin)
    for change, what in changes:
        await admin.execute(change.format("+"))
        assert await books.differences() != [], what
        await admin.execute(change.format("-"))
        assert await books.differences() == [], what
    await admin.execute("delete from ledger_entry where kind = 'hold'")
    assert await books.differences() == ["the envelope of r on 2026-11-20 is not the sum of its entries"]
    await admin.close()


async def test_near_a_limit_a_run_draws_no_more_than_it_needs(books: Books) -> None:
    """What one run keeps for later would be missing to another now."""
    await books.limit(Scope.ALL, Period.DAY, micros=1000)
    runs = [await books.open_run(f"r{number}", user=f"u{number}") for number in range(12)]
    answers = await asyncio.gather(*(books.hold(run, "1.1", CALL) for run in runs))
    assert sum(isinstance(answer, Held) for answer in answers) == 10
    assert await books.drawn(Scope.ALL, Period.DAY) == CALL.times(10)


async def test_a_run_draws_no_more_than_its_own_budget_has(books: Books) -> None:
    """A run of ten cents must not keep forty from the others."""
    run = await books.open_run("r")
    held = await books.hold(run, "1.1", CALL, allowance=150)
    assert isinstance(held, Held)
    assert held.rest_micros == 50


async def test_a_stand_in_draws_on_the_envelope_of_the_run_it_stands_in_for(books: Books) -> None:
    """Two envelopes for one piece of work would reserve twice."""
    run = await books.open_run("r")
    await books.hold(run, "1.1", CALL)
    assert ledger.transfer("child", 1, 1, run) == "child 1.1"
    await books.hold(run, "child 1.1", CALL)
    assert await books.drawn(Scope.USER, Period.DAY, name="u") == CALL.times(TRANCHE_CALLS)


async def test_a_tenant_that_draws_is_known_to_the_reconciler(books: Books) -> None:
    """Row-level security hides tenants from each other, and from whoever must look after all of them."""
    for tenant in ("acme", "rival"):
        await books.hold(await books.open_run("r", tenant=tenant), "1.1", CALL)
    async with books.database.transaction(TenantId("*")) as connection:
        names = [row["name"] for row in await connection.fetch("select name from known_tenant order by name")]
    assert names == ["acme", "rival"]
    assert isinstance(books.database, Database)
