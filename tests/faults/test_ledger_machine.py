"""Do the ledger's invariants hold whatever happens to it, in whatever order?

Held, settled, released, lost, doubled, late, refunded, called back, limits changed, crashed before and after COMMIT: a random
walk over the real database beside a model that only adds and subtracts.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, TypeVar

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from activities import ledger
from activities.ledger import Held, Payer
from durable_agents.domain.accounts import NOTHING, Amount, NoRoom, Period, Scope
from starter.embedded.servers import Endpoints
from tests.support.ledgers import TODAY, Books, open_books
from tests.support.world import TestDatabase, fresh_database

STEPS, WALKS = 50, int(os.environ.get("LEDGER_WALKS", "20"))
"""`LEDGER_WALKS=250` are more than ten thousand steps."""
RUNS = (
    ("r1", "acme", "ann", "refunds"),
    ("r2", "acme", "bob", "refunds"),
    ("r3", "acme", "ann", "mail"),
    ("r4", "rival", "ann", "mail"),
)
PLACES = ("rest", "held", "unknown", "spent", "overrun")
LOOKED = "select run_id, {} from run left join envelope using (tenant, run_id) group by run_id".format(
    ", ".join(f"coalesce(sum({place}_{unit}), 0)::bigint as {place}_{unit}" for place in PLACES for unit in ("micros", "tokens"))
)
DRAWN = "select * from account where drawn_micros > 0 or drawn_tokens > 0 order by tenant, scope, name, period, starts"
EMPTIED = "truncate run, account, account_limit, envelope, ledger_entry, known_tenant, notification cascade"

T = TypeVar("T")
Look = dict[str, dict[str, Amount]]
runs = st.integers(0, len(RUNS) - 1)
amounts = st.builds(Amount, st.integers(0, 60), st.integers(0, 60))
which = st.integers(0, 10**6)


class CrashError(Exception):
    """The worker dies before its COMMIT."""


@dataclass
class Open:
    """A request under way, as the model knows it."""

    run: int
    transfer: str
    day: date
    held: Amount
    place: str = "held"


class LedgerMachine(RuleBasedStateMachine):
    """One walk over an empty ledger."""

    runner: asyncio.Runner
    books: Books
    admin: "asyncpg.Connection[asyncpg.Record]"
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.day = TODAY
        self.open: list[Open] = []
        self.over: list[Open] = []
        self.spent, self.overrun = [NOTHING] * len(RUNS), [NOTHING] * len(RUNS)
        self.calls = 0
        self.payers: list[Payer] = []

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the one loop that has the connections."""
        return self.runner.run(work)

    @initialize()
    def begin(self) -> None:
        """Runs of two tenants, two agents, two users."""
        self.wait(self.admin.execute(EMPTIED))
        for run, tenant, user, agent in RUNS:
            self.payers.append(self.wait(self.books.open_run(run, tenant=tenant, user=user, agent=agent)))

    @rule(run=runs, amount=amounts, doubled=st.booleans(), crash=st.booleans())
    def hold(self, run: int, amount: Amount, *, doubled: bool, crash: bool) -> None:
        """A request is about to leave; the worker may die before COMMIT, or ask again after it."""
        self.calls += 1
        request, payer = Open(run, f"{self.calls}.1", self.day, amount), self.payers[run]
        before = self.wait(self.drawn())
        if crash:
            with pytest.raises(CrashError):
                self.wait(self.crashing(request))
            assert self.wait(self.drawn()) == before
        answer = self.wait(self.books.hold(payer, request.transfer, amount, day=self.day))
        if isinstance(answer, NoRoom):
            assert not answer.account.room_for(answer.needed), "refused although there was room"
            assert self.wait(self.drawn()) == before, "a refused draw has moved something"
            return
        self.open.append(request)
        if doubled:
            assert isinstance(self.wait(self.books.hold(payer, request.transfer, amount, day=self.day)), Held)

    @precondition(lambda self: self.open)
    @rule(number=which, spent=amounts, doubled=st.booleans())
    def settle(self, number: int, spent: Amount, *, doubled: bool) -> None:
        """The provider has answered, perhaps late, perhaps more than it may."""
        request = self.take(number)
        for _ in range(2 if doubled else 1):
            self.move(request, ledger.settle, spent, place=request.place)
        within = Amount(min(spent.micros, request.held.micros), min(spent.tokens, request.held.tokens))
        self.spent[request.run] = self.spent[request.run].plus(within)
        self.overrun[request.run] = self.overrun[request.run].plus(spent.minus(within))

    @precondition(lambda self: self.open)
    @rule(number=which)
    def release(self, number: int) -> None:
        """The request has cost nothing, or what was lost turns out not to have been billed."""
        request = self.take(number)
        self.move(request, ledger.release, place=request.place)

    @precondition(lambda self: any(one.place == "held" for one in self.open))
    @rule(number=which)
    def lose(self, number: int) -> None:
        """The worker is gone; nobody knows."""
        held = [one for one in self.open if one.place == "held"]
        request = held[number % len(held)]
        self.move(request, ledger.lose)
        request.place = "unknown"

    @precondition(lambda self: self.over)
    @rule(number=which, spent=amounts)
    def come_too_late(self, number: int, spent: Amount) -> None:
        """What is over stays as it is, whoever comes back."""
        request = self.over[number % len(self.over)]
        self.move(request, ledger.settle, spent)
        self.move(request, ledger.release)
        self.move(request, ledger.lose)

    @rule(run=runs)
    def give_back(self, run: int) -> None:
        """A run ends, or waits."""
        payer = self.payers[run]

        async def work() -> None:
            async with self.books.database.transaction(payer.tenant) as connection:
                await ledger.give_back(connection, payer.tenant, payer.run_id, "end")

        self.wait(work())

    @rule(scope=st.sampled_from(Scope), period=st.sampled_from(Period), most=st.integers(0, 400))
    def set_limit(self, scope: Scope, period: Period, most: int) -> None:
        """Finance changes its mind, in either direction."""
        name = "*" if scope in (Scope.USER, Scope.AGENT) else ""
        self.wait(self.books.limit(scope, period, micros=most, tokens=most * 2, name=name))

    @rule(days=st.integers(1, 20))
    def pass_midnight(self, days: int) -> None:
        """Another day, perhaps another month."""
        self.day += timedelta(days=days)

    @invariant()
    def every_amount_is_where_the_model_has_it(self) -> None:
        """Nothing is lost, nothing is doubled, and nothing is held that nobody holds."""
        type(self).steps += 1
        booked = self.wait(self.looked()) if self.payers else {}
        for run, payer in enumerate(self.payers):
            found = booked[payer.run_id]
            for place in ("held", "unknown"):
                of_model = [one.held for one in self.open if one.run == run and one.place == place]
                assert found[place] == Amount(sum(a.micros for a in of_model), sum(a.tokens for a in of_model))
            assert (found["spent"], found["overrun"]) == (self.spent[run], self.overrun[run])

    def teardown(self) -> None:
        """Counters are the sums of their entries, account by account."""
        for tenant in ("acme", "rival"):
            assert self.wait(self.books.differences(tenant)) == []

    def take(self, number: int) -> Open:
        """A request that is over from now on."""
        request = self.open.pop(number % len(self.open))
        self.over.append(request)
        return request

    def move(self, request: Open, movement: Callable[..., Awaitable[Any]], *spent: Amount, **place: str) -> None:
        """Settle, release or lose, and commit."""
        payer = self.payers[request.run]

        async def work() -> None:
            async with self.books.database.transaction(payer.tenant) as connection:
                await movement(connection, payer, request.transfer, request.day, request.held, *spent, **place)

        self.wait(work())

    async def crashing(self, request: Open) -> None:
        """Everything but the COMMIT."""
        payer = self.payers[request.run]
        async with self.books.database.transaction(payer.tenant) as connection:
            await ledger.hold(connection, payer, request.transfer, request.day, request.held, None)
            raise CrashError

    async def drawn(self) -> list[tuple[Any, ...]]:
        """All accounts."""
        return [tuple(row) for row in await self.admin.fetch(DRAWN)]

    async def looked(self) -> Look:
        """Where every run's money is."""
        return {
            row["run_id"]: {place: Amount(row[f"{place}_micros"], row[f"{place}_tokens"]) for place in PLACES}
            for row in await self.admin.fetch(LOOKED)
        }


def test_the_ledger_holds_whatever_happens_in_whatever_order(endpoints: Endpoints) -> None:
    """The ceiling is only as good as the one sequence of events nobody has thought of."""
    assert endpoints.urls is not None
    with asyncio.Runner() as runner:
        context = fresh_database(endpoints.urls)
        database: TestDatabase = runner.run(context.__aenter__())
        opening = open_books(database.app)
        machine = LedgerMachine
        machine.runner, machine.books = runner, runner.run(opening.__aenter__())
        machine.admin = runner.run(connected(database.admin))
        try:
            walk = settings(max_examples=WALKS, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck))
            run_state_machine_as_test(machine, settings=walk)
            assert machine.steps >= WALKS * STEPS / 2
        finally:
            runner.run(machine.admin.close())
            runner.run(opening.__aexit__(None, None, None))
            runner.run(context.__aexit__(None, None, None))


async def connected(url: str) -> "asyncpg.Connection[asyncpg.Record]":
    """The administrator sees all tenants."""
    return await asyncpg.connect(url)
