"""What does a process do that spends from shared accounts, beside others that do the same at the same time?

Several are started by `spend`, each a process of its own with its own connections. One reads its order as a line of JSON, says
that it is ready, begins when all are, and says what it saw.
"""

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import asyncpg

from activities import attempts, ledger
from activities.ledger import Payer
from activities.postgres import Connection, Database
from durable_agents.domain.accounts import Amount, NoRoom
from durable_agents.domain.identifiers import RunId, TenantId, UserId
from durable_agents.domain.model_calls import ModelCallRequest, PinnedModel

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
MODEL = PinnedModel(provider="anthropic", model="m", max_tokens=100, timeout=timedelta(seconds=15), price=None)
FLOOR = "update floor set used = used + $2 where account = $1 and used + $2 <= most returning used"


@dataclass(frozen=True)
class Order:
    """What one process shall do."""

    database: str
    work: str
    """`spend`: hold, settle and return, a transaction each; `hold`: a hold with its journal row; `floor`: a plain UPDATE."""
    runs: list[list[str]]
    """Tenant, run, user and agent of each."""
    calls: int
    """Of each run."""
    at_once: int
    amount: list[int]
    least: int = 100
    """Percent of its hold that a call costs at least; the rest is chance."""
    days: list[str] = field(default_factory=list)
    seed: int = 0


@dataclass
class Seen:
    """What one process saw, or all together."""

    held: int = 0
    refused: int = 0
    seconds: float = 0
    errors: dict[str, int] = field(default_factory=dict)


async def spend(orders: Sequence[Order], beside: Awaitable[None] | None = None) -> Seen:
    """Run a process for each order, begin when all are ready, and add up; the slowest says how long it took."""
    children = [
        await asyncio.create_subprocess_exec(
            sys.executable, __file__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        for _ in orders
    ]
    other = asyncio.ensure_future(beside) if beside is not None else None
    try:
        for child, order in zip(children, orders, strict=True):
            assert child.stdin is not None
            child.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        for child in children:
            assert child.stdout is not None
            assert await child.stdout.readline() == b"ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write(b"go\n")
        said = [json.loads((await child.communicate())[0]) for child in children]
    finally:
        for child in children:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if other is not None:
            other.cancel()
            await asyncio.wait([other])
    if other is not None and not other.cancelled():
        other.result()
    total, errors = Seen(seconds=max(one["seconds"] for one in said)), Counter[str]()
    for one in said:
        total.held, total.refused = total.held + one["held"], total.refused + one["refused"]
        errors.update(one["errors"])
    total.errors = dict(errors)
    return total


class Spender:
    """One process."""

    def __init__(self, order: Order, database: Database) -> None:
        self.order = order
        self.database = database
        self.seen = Seen()
        self.errors = Counter[str]()
        self.dice = random.Random(order.seed)

    async def run(self) -> Seen:
        """Every run's calls, so many at once; runs take turns."""
        payers = [Payer(TenantId(run[0]), RunId(run[1]), UserId(run[2]), run[3]) for run in self.order.runs]
        waiting = [(payer, call) for call in range(1, self.order.calls + 1) for payer in payers]
        if self.order.work == "spend":
            self.dice.shuffle(waiting)
        waiting.reverse()
        work: Callable[[Payer, int], Awaitable[None]] = getattr(self, self.order.work)

        async def one_after_another() -> None:
            while waiting:
                try:
                    await work(*waiting.pop())
                except asyncpg.PostgresError as error:
                    self.errors[type(error).__name__] += 1

        begun = time.monotonic()
        await asyncio.gather(*(one_after_another() for _ in range(self.order.at_once)))
        self.seen.seconds = time.monotonic() - begun
        self.seen.errors = dict(self.errors)
        return self.seen

    async def hold(self, payer: Payer, call: int) -> None:
        """Begin, hold, journal row, commit."""
        request = ModelCallRequest(
            tenant=payer.tenant, run_id=payer.run_id, call=call, turn=call, model=0, allowance_micros=None
        )  # fmt: skip
        async with self.database.transaction(payer.tenant) as connection:
            opened = await attempts.dispatch(connection, request, payer, 1, 1, MODEL, Amount(*self.order.amount), None)
        self.count(is_held=not isinstance(opened, NoRoom))

    async def spend(self, payer: Payer, call: int) -> None:
        """Hold; then what it cost; then, as at a run's end, what is left goes back."""
        day = date.fromisoformat(self.dice.choice(self.order.days))
        amount, transfer = Amount(*self.order.amount), f"{call}.1"
        share = self.dice.randint(self.order.least, 100)
        held = await self.patiently(payer, lambda c: ledger.hold(c, payer, transfer, day, amount, None))
        self.count(is_held=not isinstance(held, NoRoom))
        if isinstance(held, NoRoom):
            return
        cost = Amount(amount.micros * share // 100, amount.tokens * share // 100)
        await self.patiently(payer, lambda c: ledger.settle(c, payer, transfer, day, amount, cost))
        if share < 100:
            await self.patiently(payer, lambda c: ledger.give_back(c, payer.tenant, payer.run_id, "end"))

    async def patiently(self, payer: Payer, step: Callable[[Connection], Awaitable[T]]) -> T:
        """A transaction; one that waited for a lock for too long on a busy machine is made again, as Temporal would."""
        while True:
            with contextlib.suppress(asyncpg.LockNotAvailableError):
                async with self.database.transaction(payer.tenant) as connection:
                    return await step(connection)

    async def floor(self, payer: Payer, _: int) -> None:
        """What the same decision costs with nothing around it: no envelope, no entry, no journal, one limit."""
        async with self.database.transaction(payer.tenant) as connection:
            used = await connection.fetchval(FLOOR, payer.tenant, self.order.amount[0])
        self.count(is_held=used is not None)

    def count(self, *, is_held: bool) -> None:
        """Let through, or refused."""
        self.seen.held, self.seen.refused = self.seen.held + is_held, self.seen.refused + (not is_held)


async def main() -> None:
    """One order."""
    order = Order(**json.loads(sys.stdin.readline()))
    database = await Database.open(order.database, max_size=order.at_once)
    try:
        async with database.transaction(TenantId("acme")) as connection:
            await connection.execute("select 1")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        seen = await Spender(order, database).run()
    finally:
        await database.close()
    sys.stdout.write(json.dumps(asdict(seen)))


if __name__ == "__main__":
    asyncio.run(main())
