"""Can whoever has seen the provider's bill book it, once and exactly, and is a ledger that was tampered with found?"""

import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from activities import audit
from durable_agents.domain.accounts import NOTHING, Amount
from durable_agents.domain.identifiers import TenantId
from starter.cli import ledger_commands
from starter.cli.exit_codes import ExitCode
from starter.cli.main import main
from tests.support.ledgers import Books, open_books
from tests.support.unknowns import leave_alone, places, send
from tests.support.world import TestDatabase

CALL = Amount(2_500_000, 10)
RUN = "run:acme:k"


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


Cli = Callable[..., Answer]


@pytest.fixture
def cli(database: TestDatabase, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command on the test's database, in a thread: it has an event loop of its own."""
    monkeypatch.setenv("DATABASE_URL", database.app)
    monkeypatch.setenv("DURABLE_AGENTS_IDENTITY", "finance")

    def run(*arguments: str) -> Answer:
        with ThreadPoolExecutor(1) as pool:
            code = pool.submit(main, ("ledger", *arguments)).result()
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


@pytest.fixture
async def books(database: TestDatabase) -> AsyncIterator[Books]:
    """The ledger as workers use it."""
    async with open_books(database.app) as found:
        yield found


def booked(cli: Cli, call: int, usd: str, *more: str) -> Any:
    """What `ledger settle` did."""
    answer = cli("settle", RUN, str(call), "1", "--usd", usd, "--reason", "invoice 7", "--json", *more)
    assert answer.code == ExitCode.OK, answer.err
    return json.loads(answer.out)


async def test_what_was_lost_is_listed_and_booked_by_the_bill_once(cli: Cli, books: Books) -> None:
    """Money that may have been billed is held until somebody knows; then it must move exactly, and never twice."""
    assert "0 requests may have been billed, $0.00 is held for them" in cli("unknown").out
    run = await books.open_run(RUN)
    for call in (1, 2, 3, 4):
        await send(books, run, call, CALL, overdue=timedelta(seconds=-60 if call == 4 else 1))
    done = json.loads(cli("reconcile", "--json").out)
    assert (done["flagged"], done["unknown"], done["unknown_micros"], done["differences"]) == (3, 3, 7_500_000, [])
    found = json.loads(cli("unknown", "--json").out)
    assert [(one["run_id"], one["call"], one["attempt"], one["held_micros"], one["held_tokens"]) for one in found] == [
        (RUN, call, 1, *CALL) for call in (1, 2, 3)
    ]
    assert {(one["model"], one["failure"]) for one in found} == {("claude-haiku-5-5", "lost")}
    table = cli("unknown").out
    assert "anthropic claude-haiku-5-5" in table
    assert "3 requests may have been billed, $7.50 is held for them: book each with `ledger settle`" in table
    less, more, none = booked(cli, 1, "0.50"), booked(cli, 2, "4.000001", "--by", "ann"), booked(cli, 3, "0")
    assert (less["cost_micros"], less["overrun_micros"], less["returned_micros"], less["cost_tokens"]) == (
        500_000,
        0,
        2_000_000,
        2,
    )
    assert (more["cost_micros"], more["overrun_micros"], more["returned_micros"]) == (2_500_000, 1_500_001, 0)
    assert (none["cost_micros"], none["overrun_micros"], none["returned_micros"]) == (0, 0, 2_500_000)
    found = await places(books, run)
    assert (found["unknown"], found["rest"], found["held"]) == (NOTHING, NOTHING, CALL)
    assert (found["spent"], found["overrun"]) == (Amount(3_000_000, 12), Amount(1_500_001, 0))
    for call, state in (
        (1, "settled at $0.50"),
        (2, "settled at $4.000001"),
        (3, "has cost nothing"),
        (4, "under way"),
        (5, "none"),
    ):
        twice = cli("settle", RUN, str(call), "1", "--usd", "1", "--reason", "invoice 7")
        assert (twice.code, twice.out, twice.err.count("\n")) == (ExitCode.NOT_FOUND, "", 1)
        assert f"request {call}.1 of {RUN} is not unknown" in twice.err
        assert state in twice.err
    assert await places(books, run) == found
    async with books.database.transaction(TenantId("acme")) as connection:
        assert await audit.verify(connection, TenantId("acme")) is None
        kept = [row["body"] for row in await connection.fetch("select body from audit_entry order by sequence")]
        told = [row["title"] for row in await connection.fetch("select title from notification where kind = 'overrun'")]
    assert [(one["cost_micros"], one["by"], one["reason"]) for one in kept] == [
        (500_000, "finance", "invoice 7"), (4_000_001, "ann", "invoice 7"), (0, "finance", "invoice 7"),
    ]  # fmt: skip
    assert len(told) == 1
    assert cli("check").code == ExitCode.OK


async def test_people_read_what_moved(cli: Cli, books: Books) -> None:
    """Who books money wants to see what became of it, in one line each."""
    run = await books.open_run(RUN)
    await send(books, run, 1, CALL)
    await send(books, run, 2, CALL, overdue=timedelta(seconds=-60))
    await leave_alone(books, run, timedelta(hours=2))
    said = cli("reconcile", "--tenant", "acme").out
    assert "1 requests whose worker is gone" in said
    assert "1 requests, up to $2.50: see `ledger unknown`" in said
    assert json.loads(cli("reconcile", "--tenant", "beta", "--json").out)["unknown"] == 0
    said = cli("settle", "k", "1", "1", "--tenant", "acme", "--usd", "3", "--reason", "invoice 7").out
    assert f"{RUN} call 1.1: booked $2.50 of the $2.50 that were held, and $0.50 beyond it to overrun" in said
    assert "its run has returned $" in said


async def test_what_somebody_changed_by_hand_is_found_for_every_tenant(cli: Cli, books: Books, database: TestDatabase) -> None:
    """Whoever can write to the tables can write himself a higher limit; a nightly job looks at the exit code."""
    assert "checked 0 tenants: accounts, entries and requests agree" in cli("check").out
    for tenant in ("acme", "beta"):
        await send(books, await books.open_run(RUN, tenant=tenant), 1, CALL)
    fine = cli("check")
    assert (fine.code, "checked 2 tenants: accounts, entries and requests agree" in fine.out) == (ExitCode.OK, True)
    admin = await asyncpg.connect(database.admin)
    changes = (
        ("account set drawn_micros = drawn_micros {} 1 where tenant = 'beta' and name='u' and period = 'day'", "beta", "user u"),
        ("account set drawn_tokens = drawn_tokens {} 1 where scope = 'all' and period = 'month'", "*", "everything together"),
        ("envelope set spent_micros = spent_micros {} 1 where tenant = 'acme'", "acme", "the envelope of run:acme:k"),
        ("model_attempt set hold_micros = hold_micros {} 1 where tenant = 'acme'", "acme", "not the sum of its requests"),
    )  # fmt: skip
    for change, tenant, words in changes:
        await admin.execute(f"update {change.format('+')}")
        answer = cli("check", "--json")
        assert answer.code == ExitCode.DIFFERS, change
        assert any(one["tenant"] == tenant and words in one["difference"] for one in json.loads(answer.out)["differences"])
        assert words in cli("check").out
        assert cli("reconcile").code == (ExitCode.OK if tenant == "*" else ExitCode.DIFFERS)
        await admin.execute(f"update {change.format('-')}")
        assert cli("check").code == ExitCode.OK
    await admin.close()


MISTAKES = [
    (("settle", RUN, "1", "1", "--usd", amount, "--reason", "r"), "--usd")
    for amount in ("NaN", "-1", "1e400", "0.0000001", "9223372036854775808", "1000000000.01", "true", "")
] + [
    (("settle", RUN, "1", "1", "--reason", "r"), "Missing option '--usd'"),
    (("settle", RUN, "1", "1", "--usd", "1"), "Missing option '--reason'"),
    (("settle", RUN, "1", "1", "--usd", "1", "--reason", " "), "--reason is one line"),
    (("settle", RUN, "1", "1", "--usd", "1", "--reason", "a\nb"), "--reason is one line"),
    (("settle", RUN, "1", "1", "--usd", "1", "--reason", "a" * 501), "--reason is one line"),
    (("settle", RUN, "1", "1", "--usd", "1", "--reason", "r", "--by", "a\x00"), "--by"),
    (("settle", "no spaces", "1", "1", "--usd", "1", "--reason", "r"), "cannot be a run"),
    (("settle", RUN, "one", "1", "--usd", "1", "--reason", "r"), "CALL"),
    (("settle", RUN, "1", "0", "--usd", "1", "--reason", "r"), "ATTEMPT"),
    (("settle", RUN, "9223372036854775808", "1", "--usd", "1", "--reason", "r"), "CALL"),
    (("reconcile", "--tenant", "a/b"), "is no name of a tenant"),
    (("unknown", "--tenant", "*"), "is no name of a tenant"),
    (("burn",), "No such command 'burn'"),
    ((), "Missing command"),
]


async def test_a_mistake_is_one_line_and_moves_nothing(cli: Cli, books: Books) -> None:
    """Money that moved by a slip of the hand is booked for good: entries are never changed."""
    run = await books.open_run(RUN)
    await send(books, run, 1, CALL)
    cli("reconcile")
    before = await places(books, run)
    for arguments, words in MISTAKES:
        answer = cli(*arguments)
        assert (answer.code, answer.out, answer.err.count("\n")) == (ExitCode.USAGE, "", 1), arguments
        assert words in answer.err
    assert await places(books, run) == before


def test_every_command_explains_itself(cli: Cli) -> None:
    """Somebody reads this with the invoice in the other hand."""
    overview = cli("--help").out
    for command in ledger_commands.app.registered_commands:
        name = command.name or getattr(command.callback, "__name__", "")
        assert f"  {name} " in overview
        assert "--json" in cli(name, "--help").out
