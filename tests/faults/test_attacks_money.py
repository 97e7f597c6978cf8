"""Can an attempt that was overtaken change what is held, or what was paid?"""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from temporalio.exceptions import ApplicationError

from activities import attempts
from activities.attempts import Settlement
from activities.heartbeat import STALE_ATTEMPT
from activities.ledger import Payer
from activities.postgres import Database
from durable_agents.domain.accounts import Amount
from durable_agents.domain.identifiers import RunId, TenantId, UserId
from durable_agents.domain.model_calls import ContextSize, ModelCallRequest, PinnedModel
from tests.support.world import TestDatabase

ACME, RUN = TenantId("acme"), RunId("run:acme:k")
PAYER = Payer(ACME, RUN, UserId("u"), "a")
CALL = ModelCallRequest(tenant=ACME, run_id=RUN, call=1, turn=1, model=0, allowance_micros=None)
MODEL = PinnedModel(provider="anthropic", model="m", max_tokens=10, timeout=timedelta(seconds=1), price=None)
FIRST, SECOND, HOLD = 1000, 2000, Amount(70, 7)


@pytest.fixture
async def opened(database: TestDatabase) -> AsyncIterator[Database]:
    """A database with one admitted run."""
    found = await Database.open(database.app)
    async with found.transaction(ACME) as connection:
        await connection.execute(
            "insert into run (tenant, run_id, first_execution, request_digest, agent, agent_version, user_id, terms)"
            " values ($1, $2, 'first', 'd', 'a', 'v', 'u', '{}')", ACME, RUN,
        )  # fmt: skip
    yield found
    await found.close()


async def test_an_overtaken_attempt_neither_settles_nor_opens_another(opened: Database) -> None:
    """Its request may have been billed and another one is on its way: what is held for it stays held."""
    async with opened.transaction(ACME) as connection:
        await attempts.dispatch(connection, CALL, PAYER, 1, FIRST, MODEL, HOLD, None)
    async with opened.transaction(ACME) as connection:
        before = await attempts.abandon_open(connection, CALL, PAYER, SECOND)
        assert (before.tries, before.unknown_micros) == (1, HOLD.micros)
        await attempts.dispatch(connection, CALL, PAYER, 2, SECOND, MODEL, HOLD, None)
    for state in ("settled", "released", "unknown"):
        with pytest.raises(ApplicationError) as refused:
            async with opened.transaction(ACME) as connection:
                await attempts.settle(connection, CALL, PAYER, 1, HOLD, Settlement(state))
        assert refused.value.type == STALE_ATTEMPT
    with pytest.raises(ApplicationError) as refused:
        async with opened.transaction(ACME) as connection:
            await attempts.abandon_open(connection, CALL, PAYER, FIRST)
    assert refused.value.type == STALE_ATTEMPT
    async with opened.transaction(ACME) as connection:
        rows = await connection.fetch("select state, hold_micros, cost_micros from model_attempt order by attempt")
    assert [tuple(row) for row in rows] == [("unknown", HOLD.micros, 0), ("dispatched", HOLD.micros, 0)]


def test_what_one_model_counted_bounds_nothing_for_another() -> None:
    """Tokens are a model's own: after a switch only the bytes are certain, and a hold below them is no ceiling."""
    size = ContextSize().plus(1000).counted(0, 50)
    assert size.bound(0) < 1000 <= size.bound(1)
    again = size.plus(10).counted(1, 2000)
    assert again.bound(1) >= 2000
    assert 1010 <= again.bound(0) < 2000 + 1010
