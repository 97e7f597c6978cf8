"""Can an operator see and change what is sent to the providers, live, and without knowing a table?"""

import getpass
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from activities import audit, provider_gates
from activities.postgres import Database
from durable_agents.domain.failures import Failure, FailureKind
from durable_agents.domain.identifiers import TenantId
from durable_agents.domain.provider_gates import SYSTEM_TENANT, Asking, GateId, Reason, Wait
from starter.cli import limit_commands
from starter.cli.exit_codes import ExitCode
from starter.cli.main import main
from tests.support.world import TestDatabase

MODEL = ("anthropic", "claude-haiku-5-5")
GATE = GateId(*MODEL, "0123456789ab")
ACME = TenantId("acme")


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

    def run(*arguments: str) -> Answer:
        with ThreadPoolExecutor(1) as pool:
            code = pool.submit(main, ("limits", *arguments)).result()
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


async def ask(database: TestDatabase) -> Wait | None:
    """A worker's call at the gate, now."""
    shared = await Database.open(database.app, max_size=1)
    try:
        async with shared.transaction(ACME) as connection:
            wait = await provider_gates.ask(connection, ACME, GATE, Asking("c", 10, last_try=False, timeout=timedelta(seconds=9)))
            if wait is not None:
                await provider_gates.turned_away(connection, ACME, GATE)
            return wait
    finally:
        await shared.close()


def listed(cli: Cli) -> Any:
    """The gates as JSON."""
    answer = cli("--json")
    assert answer.code == ExitCode.OK
    return json.loads(answer.out)


async def test_limits_hold_from_the_next_request_on(cli: Cli, database: TestDatabase) -> None:
    """No deployment, no restart: the incident is now."""
    assert listed(cli) == []
    assert "no limit is set" in cli().out
    assert cli("set", *MODEL, "--requests-per-minute", "1").code == ExitCode.OK
    (gate,) = listed(cli)
    assert (gate["key"], gate["requests_per_minute"], gate["tokens_per_minute"]) == (None, 1, None)
    assert await ask(database) is None
    wait = await ask(database)
    assert wait is not None
    assert wait.reason is Reason.LIMIT
    (gate,) = listed(cli)
    assert (gate["key"], gate["breaker"], gate["waiting"]) == (GATE.key, "closed", True)
    assert json.loads(cli("set", *MODEL, "--tokens-per-minute", "5000", "--json").out)["tokens_per_minute"] == 5000
    assert [gate["requests_per_minute"] for gate in listed(cli)] == [1]
    assert cli("clear", *MODEL).code == ExitCode.OK
    assert await ask(database) is None
    assert cli("clear", *MODEL).code == ExitCode.NOT_FOUND


async def test_a_breaker_is_opened_and_closed_by_hand(cli: Cli, database: TestDatabase) -> None:
    """A provider that answers nonsense looks healthy to every machine."""
    assert await ask(database) is None
    assert cli("open", *MODEL).code == ExitCode.OK
    wait = await ask(database)
    assert wait is not None
    assert wait.reason is Reason.FORCED
    assert [gate["breaker"] for gate in listed(cli)] == ["forced_open"]
    table = cli().out
    assert "forced_open" in table
    assert "yes" in table
    assert json.loads(cli("close", *MODEL, "--json").out)["forced_open"] is False
    assert [gate["breaker"] for gate in listed(cli)] == ["closed"]
    assert await ask(database) is None


async def test_closing_by_hand_forgets_failures_and_pauses(cli: Cli, database: TestDatabase) -> None:
    """A pause of ten minutes by a broken header is waited out by nobody who can see that it is broken."""
    await ask(database)
    shared = await Database.open(database.app, max_size=1)
    async with shared.transaction(ACME) as connection:
        failure = Failure(kind=FailureKind.RATE_LIMITED, message="429")
        await provider_gates.failed(connection, ACME, GATE, "c", failure, timedelta(minutes=10))
    await shared.close()
    assert [gate["paused_until"] is not None for gate in listed(cli)] == [True]
    assert await ask(database) is not None
    cli("close", *MODEL)
    assert [gate["paused_until"] for gate in listed(cli)] == [None]
    assert await ask(database) is None


async def test_who_changed_a_limit_stands_in_the_audit_log_of_what_is_above_tenants(cli: Cli, database: TestDatabase) -> None:
    """A breaker opened by hand stops every tenant's runs; afterwards somebody asks who did it."""
    for command in (("set", *MODEL, "--tokens-per-minute", "5"), ("clear", *MODEL), ("open", *MODEL), ("close", *MODEL)):
        assert cli(*command).code == ExitCode.OK
    shared = await Database.open(database.app, max_size=1)
    async with shared.transaction(SYSTEM_TENANT) as connection:
        bodies = [row["body"] for row in await connection.fetch("select body from audit_entry order by sequence")]
        assert await audit.verify(connection, SYSTEM_TENANT) is None
    await shared.close()
    assert [body.get("forced_open") for body in bodies] == [None, None, True, False]
    assert (bodies[0]["tokens_per_minute"], bodies[1]["cleared"], {body["by"] for body in bodies}) == (
        5,
        True,
        {getpass.getuser()},
    )


MISTAKES = [
    (("set", *MODEL), ExitCode.USAGE, "add --requests-per-minute or --tokens-per-minute"),
    (("set", *MODEL, "--requests-per-minute", "0"), ExitCode.USAGE, "--requests-per-minute"),
    (("set", "antropic", "m", "--requests-per-minute", "1"), ExitCode.USAGE, "use anthropic or openai"),
    (("open", "anthropic", "a\x1b[2Jb"), ExitCode.USAGE, "is no model's id"),
    (("clear", "anthropic"), ExitCode.USAGE, "Missing argument"),
    (("shut",), ExitCode.USAGE, "No such command 'shut'"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES, ids=[" ".join(a)[:30] for a, _, _ in MISTAKES])
def test_a_mistake_is_one_line_with_its_exit_code(cli: Cli, arguments: tuple[str, ...], code: ExitCode, words: str) -> None:
    """A limit on a model that does not exist limits nothing, and nobody would notice."""
    answer = cli(*arguments)
    assert (answer.code, answer.out, answer.err.count("\n")) == (code, "", 1)
    assert words in answer.err


def test_without_a_database_there_is_a_remedy(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Two different troubles, two exit codes."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    assert (cli().code, "DATABASE_URL" in cli().err) == (ExitCode.NOT_REACHABLE, True)
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv("DURABLE_AGENTS_STATE_DIR", str(tmp_path))
    assert (cli().code, "start `dev`" in cli().err) == (ExitCode.USAGE, True)


def test_every_command_explains_itself(cli: Cli) -> None:
    """Somebody reads this at three in the morning."""
    overview = cli("--help").out
    for command in limit_commands.app.registered_commands:
        name = command.name or getattr(command.callback, "__name__", "")
        assert f"  {name} " in overview
        assert "PROVIDER" in cli(name, "--help").out
