"""What does a test of the ledger need: runs that may draw, movements in transactions of their own, and one look at everything?"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date

from activities import account_limits, ledger, reconciliation
from activities.account_limits import Limit
from activities.ledger import Held, Payer
from activities.postgres import Database
from durable_agents.domain.accounts import Amount, NoRoom, Period, Scope
from durable_agents.domain.identifiers import RunId, TenantId, UserId

TODAY = date(2026, 11, 20)


class Books:
    """The ledger as a worker uses it: each movement is a transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def open_run(self, run: str, *, tenant: str = "acme", user: str = "u", agent: str = "a") -> Payer:
        """A run that may draw."""
        async with self.database.transaction(TenantId(tenant)) as connection:
            await connection.execute(
                "insert into run (tenant, run_id, first_execution, request_digest, agent, agent_version, user_id, terms)"
                " values ($1, $2, 'first', 'd', $3, 'v', $4, '{}') on conflict do nothing", tenant, run, agent, user,
            )  # fmt: skip
        return Payer(TenantId(tenant), RunId(run), UserId(user), agent)

    async def limit(
        self,
        scope: Scope,
        period: Period,
        micros: int | None = None,
        tokens: int | None = None,
        *,
        name: str = "",
        tenant: str = "acme",
    ) -> None:
        """Set a limit, and call back what lies idle."""
        home = account_limits.home(TenantId(tenant), scope)
        async with self.database.transaction(home) as connection:
            await account_limits.set_limit(connection, home, Limit(scope, name, period, micros, tokens), "finance")
        await account_limits.call_back(self.database, TenantId(tenant), scope, name)

    async def clear(self, scope: Scope, period: Period, *, name: str = "", tenant: str = "acme") -> bool:
        """Remove a limit."""
        home = account_limits.home(TenantId(tenant), scope)
        async with self.database.transaction(home) as connection:
            return await account_limits.clear_limit(connection, home, scope, name, period, "finance")

    async def hold(
        self, payer: Payer, transfer: str, amount: Amount, *, day: date = TODAY, allowance: int | None = None
    ) -> Held | NoRoom:
        """Hold, and commit."""
        async with self.database.transaction(payer.tenant) as connection:
            return await ledger.hold(connection, payer, transfer, day, amount, allowance)

    async def settle(self, payer: Payer, transfer: str, held: Amount, spent: Amount, *, day: date = TODAY) -> Amount:
        """Settle, and commit."""
        async with self.database.transaction(payer.tenant) as connection:
            return await ledger.settle(connection, payer, transfer, day, held, spent)

    async def drawn(self, scope: Scope, period: Period, *, name: str = "", tenant: str = "acme", day: date = TODAY) -> Amount:
        """What is drawn of an account now."""
        home = account_limits.home(TenantId(tenant), scope)
        async with self.database.transaction(home) as connection:
            for standing in await account_limits.standings(connection, home, day):
                if (standing.limit.scope, standing.limit.name, standing.limit.period) == (scope, name, period):
                    return standing.drawn
        return Amount(0, 0)

    async def differences(self, tenant: str = "acme") -> list[str]:
        """Where counters, entries and journal disagree, leaving out the journal: there are no requests here."""
        async with self.database.transaction(TenantId(tenant)) as connection:
            found = [line async for line in reconciliation.differences(connection, TenantId(tenant))]
        lines = [line for line in found if "requests" not in line]
        return [*lines, "everything together"] if await reconciliation.all_differ(self.database) else lines


@asynccontextmanager
async def open_books(url: str) -> AsyncIterator[Books]:
    """The ledger of a database."""
    database = await Database.open(url)
    try:
        yield Books(database)
    finally:
        await database.close()
