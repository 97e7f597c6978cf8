"""What does a test of reconciliation need: requests whose worker is gone, with their rows in the journal and in the ledger?"""

from datetime import date, timedelta

from activities import ledger
from activities.ledger import Held, Payer
from durable_agents.domain.accounts import Amount
from tests.support.ledgers import Books

OVERDUE = timedelta(seconds=1)


async def send(books: Books, payer: Payer, call: int, hold: Amount, *, overdue: timedelta = OVERDUE, run: str = "") -> date:
    """A request has left, and for so long its worker has been beyond its time; the day to which it is charged.

    `run` is another run than the one that pays: it stands in for that one.
    """
    async with books.database.transaction(payer.tenant) as connection:
        day = await ledger.today(connection)
        if run:
            await connection.execute(
                "insert into run (tenant, run_id, first_execution, request_digest, agent, agent_version, user_id, terms, payer)"
                " values ($1, $2, 'first', 'd', 'other', 'v', $3, '{}', $4) on conflict do nothing",
                payer.tenant, run, payer.user, payer.run_id,
            )  # fmt: skip
        transfer = ledger.transfer(run or payer.run_id, call, 1, payer)
        assert isinstance(await ledger.hold(connection, payer, transfer, day, hold, None), Held)
        await connection.execute(
            "insert into model_attempt (tenant, run_id, call, attempt, fence, provider, model, state, hold_micros, hold_tokens,"
            " gives_up_at)"
            " values ($1, $2, $3, 1, 1, 'anthropic', 'claude-haiku-5-5', 'dispatched', $4, $5, now() - $6::interval)",
            payer.tenant, run or payer.run_id, call, *hold, overdue,
        )  # fmt: skip
    return day


async def places(books: Books, payer: Payer) -> dict[str, Amount]:
    """Where the run's money is, all days together."""
    names = ("rest", "held", "unknown", "spent", "overrun")
    sums = ", ".join(f"coalesce(sum({name}_{unit}), 0)::bigint" for name in names for unit in ("micros", "tokens"))
    async with books.database.transaction(payer.tenant) as connection:
        row = await connection.fetchrow(f"select {sums} from envelope where run_id = $1", payer.run_id)
    assert row is not None
    values = list(row)
    return {name: Amount(*values[2 * n : 2 * n + 2]) for n, name in enumerate(names)}


async def leave_alone(books: Books, payer: Payer, ago: timedelta) -> None:
    """Nothing has moved in the run's envelopes for so long."""
    async with books.database.transaction(payer.tenant) as connection:
        await connection.execute(
            "update envelope set touched_at = now() - $2::interval where run_id = $1", payer.run_id, ago
        )  # fmt: skip
