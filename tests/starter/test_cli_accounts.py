"""Can an operator see and change what may be spent, live, so that it holds at once, and does no slip of the hand set a limit?"""

import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from activities import audit
from activities.account_limits import OF_NO_RUN
from activities.ledger import Held
from durable_agents.domain.accounts import Amount, NoRoom, Period, Scope
from durable_agents.domain.identifiers import TenantId
from durable_agents.domain.provider_gates import SYSTEM_TENANT
from starter.cli.exit_codes import ExitCode
from starter.cli.main import main
from tests.support.ledgers import Books, open_books
from tests.support.world import TestDatabase

CALL = Amount(100, 10)


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
            code = pool.submit(main, ("accounts", *arguments)).result()
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


@pytest.fixture
async def books(database: TestDatabase) -> AsyncIterator[Books]:
    """The ledger as workers use it."""
    async with open_books(database.app) as found:
        yield found


def today() -> Any:
    """The command line shows what stands now."""
    return datetime.now(UTC).date()


def listed(cli: Cli, tenant: str = "acme") -> dict[tuple[str, str, str], dict[str, Any]]:
    """The accounts and limits by who and when."""
    answer = cli("--tenant", tenant, "--json")
    assert answer.code == ExitCode.OK
    found = json.loads(answer.out)["accounts"]
    return {(one["scope"], one["name"], one["period"]): one for one in found}


async def audited(books: Books, tenant: str) -> list[dict[str, Any]]:
    """The limit changes in a tenant's log, which must verify."""
    async with books.database.transaction(TenantId(tenant)) as connection:
        assert await audit.verify(connection, TenantId(tenant)) is None
        rows = await connection.fetch("select run_id, body from audit_entry where event = 'limit_changed' order by sequence")
    assert {row["run_id"] for row in rows} <= {OF_NO_RUN}
    return [row["body"] for row in rows]


async def test_a_limit_holds_from_the_next_request_on_and_lowering_it_stops_at_once(cli: Cli, books: Books) -> None:
    """No deployment, no restart: who lowers a limit means now, and not when every run has used up what it drew ahead."""
    run, day = await books.open_run("r"), today()
    assert cli("set", "tenant", "day", "--tenant", "acme", "--usd", "1").code == ExitCode.OK
    assert isinstance(await books.hold(run, "1.1", CALL, day=day), Held)
    lowered = json.loads(cli("set", "tenant", "day", "--tenant", "acme", "--usd", "0.00015", "--json").out)
    assert (lowered["limit_micros"], lowered["called_back_micros"], lowered["called_back_tokens"]) == (150, 300, 30)
    refused = await books.hold(run, "2.1", CALL, day=day)
    assert isinstance(refused, NoRoom)
    assert refused.account.limit_micros == 150
    cleared = cli("clear", "tenant", "day", "--tenant", "acme")
    assert "no limit of its own" in cleared.out
    assert isinstance(await books.hold(run, "2.1", CALL, day=day), Held)
    assert cli("clear", "tenant", "day", "--tenant", "acme").code == ExitCode.NOT_FOUND
    assert [change["micros"] for change in await audited(books, "acme")] == [1_000_000, 150, None]
    for scope, unit in (("user u", "--usd"), ("agent a", "--tokens"), ("all", "--usd")):
        tenant = () if scope == "all" else ("--tenant", "acme")
        assert cli("set", *scope.split(), "month", unit, "0", *tenant).code == ExitCode.OK
        assert isinstance(await books.hold(run, f"{scope} 3.1", CALL, day=day), NoRoom), scope
        assert cli("clear", *scope.split(), "month", *tenant).code == ExitCode.OK
    assert await books.differences() == []


async def test_tokens_and_money_are_limited_apart_and_who_changed_them_is_kept(cli: Cli, books: Books) -> None:
    """What is not named stays as it is; an auditor asks who raised it, and when."""
    assert cli("set", "user", "*", "run", "--tokens", "25", "--tenant", "acme", "--by", "ann").code == ExitCode.OK
    run, day = await books.open_run("r"), today()
    assert isinstance(await books.hold(run, "1.1", CALL, day=day), Held)
    assert isinstance(await books.hold(run, "2.1", CALL, day=day), Held)
    assert isinstance(await books.hold(run, "3.1", CALL, day=day), NoRoom)
    said = cli("set", "user", "*", "run", "--usd", "0.5", "--tenant", "acme").out
    assert "user each of tenant acme a run: at most $0.50 and 25 tokens" in said
    assert cli("set", "all", "month", "--usd", "7", "--by", "cfo").code == ExitCode.OK
    same = {"scope": "user", "name": "*", "period": "run", "tokens": 25}
    assert await audited(books, "acme") == [{**same, "micros": None, "by": "ann"}, {**same, "micros": 500_000, "by": "finance"}]
    of_all = {"scope": "all", "name": "", "period": "month", "micros": 7_000_000, "tokens": None, "by": "cfo"}
    assert await audited(books, SYSTEM_TENANT) == [of_all]
    found = listed(cli)
    assert found["user", "*", "run"]["changed_by"] == "finance"
    assert found["all", "", "month"]["changed_by"] == "cfo"


async def test_the_list_shows_what_is_drawn_of_every_account_and_of_everything_beside_them(cli: Cli, books: Books) -> None:
    """Who is about to be stopped is seen before; whose limit it is, too."""
    assert "has drawn nothing yet" in cli("--tenant", "acme").out
    for words in (
        ("user", "*", "day", "--usd", "0.0005"),
        ("user", "vip", "day", "--usd", "2"),
        ("tenant", "month", "--tokens", "400"),
    ):
        assert cli("set", *words, "--tenant", "acme").code == ExitCode.OK
    for user in ("u", "vip"):
        await books.hold(await books.open_run(f"r-{user}", user=user), "1.1", CALL, day=today())
    await books.hold(await books.open_run("s", tenant="rival", user="spy"), "1.1", CALL, day=today())
    found = listed(cli)
    assert not [name for _, name, _ in found if name == "spy"]
    own = found["user", "u", "day"]
    assert (own["limit_micros"], own["limit_of"], own["drawn_micros"], own["used_percent"]) == (500, "*", 100, 20)
    vip = found["user", "vip", "day"]
    assert (vip["limit_micros"], vip["limit_of"], vip["drawn_micros"], vip["used_percent"]) == (2_000_000, "vip", 100, 0)
    month = found["tenant", "", "month"]
    assert (month["limit_tokens"], month["drawn_tokens"], month["used_percent"], month["limit_micros"]) == (400, 20, 5, None)
    everything = found["all", "", "day"]
    assert (everything["drawn_micros"], everything["used_percent"]) == (600, None)
    assert found["user", "*", "day"]["drawn_micros"] is None
    table = cli("--tenant", "acme").out
    assert "$0.0005 (of each)" in table
    assert "20 %" in table
    other = listed(cli, "rival")
    assert other["all", "", "day"] == everything
    assert ("user", "spy", "day") in other


USD = ["NaN", "nan", "inf", "Infinity", "-1", "-0", "1e400", "1e3", "1E-9", "0.0000001", "9223372036854775808", "true", "True",
       "", " 5", "1000000000.01", "+5", "1_000", "1,5", "$5", "5.", ".5", "٥", "５", "1/3", "0x1", "9" * 5000]  # fmt: skip
TOKENS = ["NaN", "-1", "1.0", "1e3", "1e400", "9223372036854775808", "1000000000000001", "true", "", "1_000", "٥", "9" * 5000]


def test_what_is_no_amount_sets_no_limit(cli: Cli) -> None:
    """A limit that was read as something else than was meant is worse than none: everybody believes in it."""
    for option, texts in (("--usd", USD), ("--tokens", TOKENS)):
        for text in texts:
            answer = cli("set", "tenant", "day", "--tenant", "acme", option, text)
            assert (answer.code, answer.out, answer.err.count("\n")) == (ExitCode.USAGE, "", 1), text
            assert option in answer.err, text
            assert len(answer.err) < 250
    both = cli("set", "tenant", "day", "--tenant", "acme", "--usd", "5", "--tokens", "-1")
    assert both.code == ExitCode.USAGE
    assert listed(cli) == {}
    for option, most in (("--usd", "1000000000"), ("--tokens", "1000000000000000")):
        assert cli("set", "tenant", "day", "--tenant", "acme", option, most).code == ExitCode.OK


MISTAKES = [
    (("set", "tenant", "day"), "add --usd or --tokens"),
    (("set", "team", "day", "--usd", "1"), "'team' is no scope: use user, agent, tenant, all"),
    (("set", "user", "day", "--usd", "1"), "write user NAME PERIOD, with '*' in quotes"),
    (("set", "user", "README.md", "docs", "tests", "day", "--usd", "1"), "5 words for an account: write user NAME PERIOD"),
    (("set", "tenant", "acme", "day", "--usd", "1"), "write tenant PERIOD, without a name"),
    (("set", "tenant", "week", "--usd", "1"), "'week' is no period: use run, day, month"),
    (("set", "all", "day", "--usd", "1", "--tenant", "acme"), "leave out --tenant"),
    (("set", "user", "a b", "day", "--usd", "1"), "is no name of a user"),
    (("set", "user", "a\x1b[2Jb", "day", "--usd", "1"), "is no name of a user"),
    (("set", "agent", "a/b", "day", "--usd", "1"), "is no name of an agent"),
    (("set", "tenant", "day", "--usd", "1", "--tenant", "*"), "is no name of a tenant"),
    (("set", "tenant", "day", "--usd", "1", "--by", "a\nb"), "--by"),
    (("set", "tenant", "day", "--usd", "1", "--by", ""), "--by"),
    (("clear", "tenant"), "write tenant PERIOD"),
    (("clear",), "Missing argument"),
    (("--tenant", "a/b"), "is no name of a tenant"),
    (("--tenant", "acme", "set", "tenant", "day", "--usd", "1"), "options stand behind the command"),
    (("raise",), "No such command 'raise'"),
]


def test_a_mistake_is_one_line_and_sets_nothing(cli: Cli) -> None:
    """A limit on a user who cannot exist limits nobody, and nobody would notice."""
    for arguments, words in MISTAKES:
        answer = cli(*arguments)
        assert (answer.code, answer.out, answer.err.count("\n")) == (ExitCode.USAGE, "", 1), arguments
        assert words in answer.err
    assert listed(cli) == listed(cli, "default") == {}


def test_without_a_database_there_is_a_remedy(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Two different troubles, two exit codes."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    assert (cli().code, "DATABASE_URL" in cli().err) == (ExitCode.NOT_REACHABLE, True)
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv("DURABLE_AGENTS_STATE_DIR", str(tmp_path))
    assert (cli().code, "start `dev`" in cli().err) == (ExitCode.USAGE, True)


def test_every_scope_and_period_is_explained(cli: Cli) -> None:
    """Somebody reads this while the money runs out."""
    for command in ("set", "clear"):
        said = cli(command, "--help").out
        assert all(word in said for word in (*Scope, *Period, "'*'", "--tenant", "--by"))
        assert f"  {command} " in cli("--help").out
