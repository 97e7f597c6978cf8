"""Does an attempt whose connection broke at a COMMIT find out by reading, and pay nothing twice?

Between the real activity and the real server stands a proxy that cuts the connection at one chosen COMMIT.
"""

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from asyncpg import Record
from temporalio.exceptions import ApplicationError

from activities import reconciliation
from activities.storage_errors import STORAGE_UNAVAILABLE
from durable_agents.domain.identifiers import TenantId, run_id
from durable_agents.domain.model_calls import ModelAnswer, ModelFailure, ModelOutcome
from starter.demo.model_script import Reply
from tests.support.model_attempts import Caller, ToldModel, call_of, open_caller, write_agent
from tests.support.proxies import CommitCutter, Cut, commit_cutter
from tests.support.world import TestDatabase

ACME = TenantId("acme")
ANSWER, BUSY, DROPPED, REFUSED = Reply(text="ok"), Reply(status=529), Reply(text="ok", bill_then_drop=True), Reply(status=400)


@dataclass
class Scene:
    """A caller behind the cutter, its model, and what the server itself has."""

    caller: Caller
    cutter: CommitCutter
    model: ToldModel
    admin: "asyncpg.Connection[Record]"
    key: str = ""

    async def attempt(self, fence: int, reply: Reply, *plan: Cut | None) -> ModelOutcome | ApplicationError:
        """One attempt of the run's first call, whose COMMITs meet the plan; the first one admits the run."""
        self.key = self.key if fence > 1 else f"r{len(self.model.told)}"
        if fence == 1:
            await self.caller.admit("anthropic", self.key)
        self.model.told[self.key] = [reply]
        self.cutter.plan[:] = plan
        try:
            return await self.caller.attempt(call_of("acme", run_id(ACME, self.key), 1), fence)
        except ApplicationError as error:
            return error

    async def require(self, *states: str) -> None:
        """These are the run's physical requests, each held once; and counters, entries and journal agree."""
        run = run_id(ACME, self.key)
        assert self.cutter.plan == []
        rows = await self.admin.fetch("select state from model_attempt where run_id = $1 order by attempt", run)
        assert [row["state"] for row in rows] == list(states)
        held = await self.admin.fetchval("select count(*) from ledger_entry where kind = 'hold' and run_id = $1", run)
        assert held == len(self.model.billed_to(self.key)) == len(states)
        async with self.caller.database.transaction(ACME) as connection:
            assert [line async for line in reconciliation.differences(connection, ACME)] == []
        assert not await reconciliation.all_differ(self.caller.database)


@pytest.fixture
async def scene(database: TestDatabase, tmp_path: Path) -> AsyncIterator[Scene]:
    """One worker, one model, one server, and the cutter before the server."""
    write_agent(tmp_path, "anthropic")
    model, admin = ToldModel(), await asyncpg.connect(database.admin)
    async with (
        model.serve() as url,
        commit_cutter(database.app) as (cutter, through),
        open_caller(through, url, tmp_path) as caller,
    ):
        yield Scene(caller, cutter, model, admin)
    await admin.close()


async def test_a_dispatch_whose_commit_was_lost_goes_on_with_its_own_hold(scene: Scene) -> None:
    """Another try would hold the most once more, and flag money as unknown for a request that never left."""
    for cut in Cut:
        outcome = await scene.attempt(1, ANSWER, cut)
        assert isinstance(outcome, ModelAnswer), (cut, outcome)
        assert outcome.unknown_micros == 0
        await scene.require("settled")


async def test_an_answer_whose_commit_was_lost_is_settled_once_and_never_asked_for_again(scene: Scene) -> None:
    """It is in our hands and paid for; thrown away it would be bought a second time."""
    for cut in Cut:
        outcome = await scene.attempt(1, ANSWER, None, cut)
        assert isinstance(outcome, ModelAnswer), (cut, outcome)
        assert await scene.attempt(2, ANSWER) == outcome
        await scene.require("settled")


async def test_a_failure_whose_commit_was_lost_is_told_as_it_was(scene: Scene) -> None:
    """Its own record is no other attempt's: the provider's failure decides when to try again, not the database's."""
    rows = ((BUSY, "overloaded", "released"), (DROPPED, "provider_timeout", "unknown"))
    for cut, (reply, kind, state) in itertools.product(Cut, rows):
        failed = await scene.attempt(1, reply, None, cut)
        assert isinstance(failed, ApplicationError), (cut, failed)
        assert failed.type == kind, cut
        await scene.require(state)
        assert isinstance(await scene.attempt(2, ANSWER), ModelAnswer)
        await scene.require(state, "settled")


async def test_a_final_failure_whose_commit_was_lost_is_the_outcome_of_its_call(scene: Scene) -> None:
    """Whoever asks again is told the same, and nothing is sent for it."""
    for cut in Cut:
        outcome = await scene.attempt(1, REFUSED, None, cut)
        assert isinstance(outcome, ModelFailure), (cut, outcome)
        assert await scene.attempt(2, ANSWER) == outcome
        await scene.require("released")


async def test_a_server_that_stays_away_is_left_to_the_next_attempt_which_reads_what_is_written(scene: Scene) -> None:
    """Two cuts in a row are an outage: Temporal waits for its end, and an answer that was recorded is not bought again."""
    failed = await scene.attempt(1, ANSWER, None, Cut.ANSWERED, Cut.UNHEARD)
    assert isinstance(failed, ApplicationError)
    assert failed.type == STORAGE_UNAVAILABLE
    assert isinstance(await scene.attempt(2, ANSWER), ModelAnswer)
    await scene.require("settled")
