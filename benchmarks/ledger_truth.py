"""After thousands of calls of which a third go wrong, does the ledger still say what the provider bills?

`python benchmarks/ledger_truth.py [--calls 10000] [--at-once 48] [--seed 0]` makes real model calls against the stand-in, over
HTTP and on a PostgreSQL of its own, with four workers' pools: 429, 529, 500, dropped connections after billing, silence until the
timeout, absurd usage, cancels, killed attempts and overtaken ones. Exit code 1 when a claim does not hold.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import asyncpg
from pydantic import JsonValue
from temporalio.exceptions import ApplicationError

from activities import account_limits, ledger, reconciliation
from activities.account_limits import Limit
from activities.postgres import Database
from activities.reconciliation import settle_unknown
from durable_agents.domain.accounts import Period, Scope
from durable_agents.domain.identifiers import RunId, TenantId
from durable_agents.domain.model_calls import ModelAnswer, ModelCallRequest, ModelFailure, ModelOutcome, Provider
from durable_agents.domain.prices import MILLION
from starter.demo.model_script import Reply
from starter.embedded.servers import EmbeddedServers
from tests.support.model_attempts import Caller, ToldModel, call_of, open_caller, write_agent
from tests.support.world import TestDatabase, fresh_database, prepare_template

TENANTS = ("acme", "rival", "third")
PROVIDERS: tuple[Provider, ...] = ("anthropic", "openai")
CALLS = 4
"""Of each run, as long as they are answered."""
WORKERS = 4
TIGHT = 2_500_000
"""What `third` may spend a day, in micro-dollars: its last runs are refused."""
NONSENSE: tuple[dict[str, JsonValue], ...] = (
    {"input_tokens": 1e30, "output_tokens": -1},
    {"input_tokens": "many"},
    {"output_tokens": True},
    {"output_tokens": 2.0**63},
)
FAULTS = {
    "429": 5, "529": 3, "500": 2, "dropped": 4, "silent": 1, "nonsense": 2, "missing": 1, "excess": 2,
    "cancel": 4, "kill": 5, "overtake": 1,
}  # fmt: skip
"""How many of a hundred attempts meet what; the rest are well."""


@dataclass
class Truth:
    """What was done and seen."""

    calls: int
    at_once: int
    seed: int
    model: ToldModel = field(default_factory=ToldModel)
    callers: list[Caller] = field(default_factory=list)
    met: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    runs: dict[str, RunId] = field(default_factory=dict)
    deck: list[str] = field(default_factory=list)
    usual: float = 0.05
    """Seconds that an attempt takes now: kills and cancels come at any moment of it."""

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)  # noqa: S311 - the same faults at every run
        self.left = self.calls

    async def play(self, folder: Path, database: TestDatabase) -> None:
        """Make every call."""
        for provider in PROVIDERS:
            write_agent(folder, provider, timeout="1s")
        async with self.model.serve() as url, contextlib.AsyncExitStack() as stack:
            for _ in range(WORKERS):
                self.callers.append(await stack.enter_async_context(open_caller(database.app, url, folder)))
            async with self.callers[0].database.transaction(TenantId("third")) as connection:
                limit = Limit(Scope.TENANT, "", Period.DAY, TIGHT * self.calls // 10_000, None)
                await account_limits.set_limit(connection, TenantId("third"), limit, "finance")
            await asyncio.gather(*(self._runs(worker) for worker in range(self.at_once)))

    async def _runs(self, worker: int) -> None:
        caller = self.callers[worker % WORKERS]
        while self.left > 0:
            number = len(self.runs)
            key, tenant = f"r{number}", TENANTS[number % len(TENANTS)]
            self.runs[key] = RunId("")
            self.runs[key] = run = await caller.admit(PROVIDERS[number // 3 % 2], key, tenant=tenant, user=f"u{number % 7}")
            for call in range(1, CALLS + 1):
                self.left -= 1
                outcome = await self._call(caller, key, call_of(tenant, run, call, 10 * MILLION))
                if not isinstance(outcome, ModelAnswer):
                    break
            if self.dice.random() < 0.8:  # the others are left lying, as by a run that waits
                await self._give_back(caller, TenantId(tenant), run)

    async def _give_back(self, caller: Caller, tenant: TenantId, run: RunId) -> None:
        while True:
            with contextlib.suppress(asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError):  # Temporal would try again, too
                async with caller.database.transaction(tenant) as connection:
                    await ledger.give_back(connection, tenant, run, "end")
                return

    async def _call(self, caller: Caller, key: str, request: ModelCallRequest) -> ModelOutcome | None:
        """Attempt after attempt, each with a newer fence, as Temporal makes them; None when the call was cancelled."""
        fault = ""
        for fence in range(1, 20):
            # A killed attempt's request may still arrive, and must not be answered with the next one's excess.
            fault = "" if fault == "kill" else self._next_fault()
            self.met[fault or "well"] += 1
            self.model.told[key] = [self._reply(fault)]
            begun = time.monotonic()
            attempt = asyncio.create_task(caller.attempt(request, fence))
            if fault in ("cancel", "kill", "overtake"):
                await asyncio.wait([attempt], timeout=self.dice.random() * 1.5 * self.usual)
            if fault == "overtake":  # the server took it for dead; it is not
                other = self.callers[self.dice.randrange(WORKERS)]
                await asyncio.gather(attempt, other.attempt(request, fence + 100), return_exceptions=True)
                outcome = await self._end(asyncio.create_task(other.attempt(request, fence + 200)))
                self._count(outcome)
                return outcome if not isinstance(outcome, str) else None
            if fault in ("cancel", "kill"):
                attempt.cancel()
            outcome = await self._end(attempt)
            if not fault and not isinstance(outcome, str):
                self.usual += (time.monotonic() - begun - self.usual) / 20
            if not isinstance(outcome, str) or fault == "cancel":
                self._count(outcome)
                return outcome if not isinstance(outcome, str) else None
        raise AssertionError(f"{key} has no end")

    async def _end(self, attempt: asyncio.Task[ModelOutcome]) -> ModelOutcome | str:
        """What an attempt came to, or the type of its error."""
        try:
            return await attempt
        except asyncio.CancelledError:
            return "gone"
        except ApplicationError as error:
            return error.type or "?"

    def _count(self, outcome: ModelOutcome | str) -> None:
        said = outcome.failure.kind if isinstance(outcome, ModelFailure) else "gone" if isinstance(outcome, str) else outcome.kind
        self.ended[str(said)] += 1

    def _next_fault(self) -> str:
        """Dealt from a shuffled hundred, so that none is missing by chance."""
        if not self.deck:
            self.deck = [fault for fault, times in FAULTS.items() for _ in range(times)]
            self.deck += [""] * (100 - len(self.deck))
            self.dice.shuffle(self.deck)
        return self.deck.pop()

    def _reply(self, fault: str) -> Reply:
        if fault.isdecimal():
            return Reply(status=int(fault))
        reply = Reply(text="word " * self.dice.randint(1, 40), bill_then_drop=fault == "dropped", hang=fault == "silent")
        excess: dict[str, JsonValue] = {"input_tokens": self.dice.randint(5_000, 10**6), "output_tokens": 10}
        usage = {"nonsense": self.dice.choice(NONSENSE), "missing": "missing", "excess": excess}.get(fault, {})
        return reply.model_copy(update={"usage": usage})


@dataclass
class Found:
    """What the ledger and the bill say of each other, in micro-dollars."""

    problems: list[str] = field(default_factory=list)
    requests: int = 0
    billed: int = 0
    spent: int = 0
    overrun: int = 0
    unknown: int = 0
    flagged: int = 0
    above: int = 0
    """How far answers that did not say what they cost are charged above the bill."""
    after: int = 0
    """Spent and overrun, once somebody has settled what was unknown by the bill."""

    def line(self) -> str:
        """For people."""
        more = self.spent + self.overrun + self.unknown - self.billed
        return (
            f"{self.requests:,} requests billed {self.billed:,} µ$; the ledger has {self.spent:,} spent,"
            f" {self.overrun:,} overrun, {self.unknown:,} unknown ({self.flagged} requests), {more:,} more than the bill;"
            f" settled by the bill {self.after:,}, {self.above:,} more, for answers that did not say what they cost"
        )


async def compare(truth: Truth, database: TestDatabase) -> Found:
    """Reconcile, hold every run against its bill, settle what is unknown by the bill, and look again."""
    found, lines = Found(), dict[str, list[int]]((key, []) for key in truth.runs)
    for entry, key in zip(truth.model.bill, truth.model.asked_by, strict=True):
        cost = 3 * entry.usage["input_tokens"] + 15 * entry.usage["output_tokens"]  # as PRICE says
        found.requests, found.billed = found.requests + 1, found.billed + cost
        if cost:
            lines[key].append(cost)
    admin, shared = await asyncpg.connect(database.admin), await Database.open(database.app)
    try:
        await _reconcile(admin, shared, found)
        found.spent, found.overrun, found.unknown = await _totals(admin)
        if found.spent + found.overrun + found.unknown < found.billed:
            found.problems.append("the ledger is below the bill")
        rows = await admin.fetch(
            "select tenant, run_id, call, attempt, state, hold_micros, cost_micros + overrun_micros as cost from model_attempt"
            " order by run_id, call, attempt"
        )
        attempts: dict[str, list[asyncpg.Record]] = {run: [] for run in truth.runs.values()}
        for row in rows:
            attempts[row["run_id"]].append(row)
        for key, run in truth.runs.items():
            await _settle_by_bill(shared, found, attempts[run], lines[key])
        await _reconcile(admin, shared, found)
        spent, overrun, unknown = await _totals(admin)
        found.after = spent + overrun
        if unknown or found.after - found.above != found.billed:
            found.problems.append(f"settled by the bill, {found.after} µ$ are spent and {unknown} µ$ unknown")
        found.problems += await _alarms_and_limits(admin)
    finally:
        await shared.close()
        await admin.close()
    return found


async def _settle_by_bill(shared: Database, found: Found, attempts: Sequence[asyncpg.Record], lines: list[int]) -> None:
    """Each line of the bill is one settled request at exactly its price, one charged at its most, or one flagged unknown."""
    left, at_most = sorted(lines, reverse=True), []
    for attempt in (one for one in attempts if one["state"] == "settled"):
        if attempt["cost"] in left:
            left.remove(attempt["cost"])
        else:
            at_most.append(attempt)
    for attempt in sorted(at_most, key=lambda one: one["hold_micros"]):
        line = next((one for one in left if one <= attempt["hold_micros"] == attempt["cost"]), None)
        if line is None:
            found.problems.append(f"{dict(attempt)} is on no bill")
            continue
        left.remove(line)
        found.above += attempt["cost"] - line
    for attempt in (one for one in attempts if one["state"] == "unknown"):
        found.flagged += 1
        cost = left.pop(0) if left else 0
        if cost > attempt["hold_micros"]:
            found.problems.append(f"{dict(attempt)} was billed {cost}")
        tenant, name = TenantId(attempt["tenant"]), (RunId(attempt["run_id"]), attempt["call"], attempt["attempt"])
        async with shared.transaction(tenant) as connection:
            if not await settle_unknown(connection, tenant, name, cost, by="somebody", reason="it is on the bill"):
                found.problems.append(f"{dict(attempt)} could not be settled")
    if left:
        found.problems.append(f"{left} µ$ were billed to {attempts[0]['run_id']} for requests that the ledger does not know")


async def _reconcile(admin: "asyncpg.Connection[asyncpg.Record]", shared: Database, found: Found) -> None:
    """Long after everything: whose request is open is gone, and what lies idle has done so for hours."""
    await admin.execute("update model_attempt set gives_up_at = now() - interval '1 s' where state = 'dispatched'")
    for _ in range(2):  # a run whose request is flagged has been touched by that, and gives back what it kept an hour later
        await admin.execute("update envelope set touched_at = now() - interval '2 h'")
        found.problems += (await reconciliation.reconcile(shared)).differences
    if await reconciliation.all_differ(shared):
        found.problems.append("everything together is not the sum of all tenants")
    if left := await admin.fetchval("select sum(rest_micros + rest_tokens + held_micros + held_tokens) from envelope"):
        found.problems.append(f"{left} µ$ and tokens are still held or kept")


async def _totals(admin: "asyncpg.Connection[asyncpg.Record]") -> tuple[int, int, int]:
    row = await admin.fetchrow(
        "select sum(spent_micros)::bigint, sum(overrun_micros)::bigint, sum(unknown_micros)::bigint from envelope"
    )
    assert row is not None
    return row[0], row[1], row[2]


async def _alarms_and_limits(admin: "asyncpg.Connection[asyncpg.Record]") -> list[str]:
    """Somebody was told of each request beyond its hold, and no account is beyond its limit."""
    beyond = await admin.fetchval("select count(*) from model_attempt where overrun_micros > 0 or tokens > hold_tokens")
    told = await admin.fetchval("select count(*) from notification where kind = 'overrun'")
    over = await admin.fetch(
        "select a.tenant from account a join account_limit l using (tenant, scope, name, period) where drawn_micros > micros"
    )
    problems = [f"{row['tenant']} is beyond its limit" for row in over]
    return problems if beyond == told else [*problems, f"of {beyond} requests beyond their holds {told} were told"]


async def main(given: argparse.Namespace) -> int:
    """One line of what was done, one of what was found, one for each claim that does not hold."""
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedServers(Path(folder), headless=True) as endpoints:
            assert endpoints.urls is not None
            await prepare_template(endpoints.urls)
            async with fresh_database(endpoints.urls) as database:
                truth, begun = Truth(given.calls, given.at_once, given.seed), time.monotonic()
                await truth.play(Path(folder, "agents"), database)
                seconds = time.monotonic() - begun
                found = await compare(truth, database)
    print(f"{given.calls:,} calls in {seconds:.0f} s; attempts {dict(truth.met)}; calls ended {dict(truth.ended)}")
    print(found.line())
    print("\n".join(found.problems) or "counters are the sums of their entries, nothing is below the bill, the rest is flagged")
    return 1 if found.problems else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(asyncio.run(main(parser.parse_args())))
