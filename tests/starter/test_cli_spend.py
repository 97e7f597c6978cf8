"""Does `spend` say exactly what the tables hold, by whatever it is grouped, and can nobody's name break a report?"""

import csv
import io
import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any

import asyncpg
import pytest

from durable_agents.domain.spending import Dimension
from starter.cli import spend_commands
from starter.cli.exit_codes import ExitCode
from starter.cli.main import main
from tests.support.world import TestDatabase

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
TOOLS = ["lookup_order", "issue_refund", "tell_customer"]
FORMULA = '=HYPERLINK("http://evil")'
USERS = ["ann", "bob@example.com", FORMULA, "+1", "-2", "@me"]
AMOUNTS = ("cost_micros", "unknown_micros", "overrun_micros", "calls", "input_tokens", "cached_input_tokens", "output_tokens")


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
            code = pool.submit(main, ("spend", *arguments)).result()
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


@dataclass(frozen=True)
class Rows:
    """Rows to be written, as a worker would have left them."""

    runs: list[tuple[Any, ...]]
    calls: list[tuple[Any, ...]]
    attempts: list[tuple[Any, ...]]

    async def write(self, database: TestDatabase) -> None:
        """Write all of them at once."""
        connection = await asyncpg.connect(database.admin)
        try:
            await connection.executemany(
                "insert into run (tenant, run_id, first_execution, request_digest, agent, agent_version, user_id, terms, status,"
                " ended_at) values ($1, $2, 'x', 'x', $3, $4, $5, '{}', $6, $7)",
                self.runs,
            )
            await connection.executemany(
                "insert into model_call (tenant, run_id, call, turn, model, outcome) values ($1, $2, $3, $4, 0, $5)", self.calls
            )
            await connection.executemany(
                "insert into model_attempt (tenant, run_id, call, attempt, fence, provider, model, state, hold_micros,"
                " cost_micros, overrun_micros, dispatched_at) values ($1, $2, $3, $4, 0, $5, $6, $7, $8, $9, $10, $11)",
                self.attempts,
            )
        finally:
            await connection.close()


def outcome(tools: list[str], usage: dict[str, int] | None) -> str:
    """An answer as the journal has it; without usage a failure."""
    if usage is None:
        return json.dumps({"kind": "failure", "failure": {"kind": "refused", "message": "no"}})
    calls = [{"index": index, "tool": tool, "arguments": {}} for index, tool in enumerate(tools)]
    return json.dumps({"kind": "answer", "stop": "done", "text": "", "calls": calls, "usage": usage})


def generated(seed: int, tenant: str, runs: int = 60) -> Rows:
    """Runs of several agents, users and days, with lost, refused, retried and open requests."""
    dice = random.Random(seed)
    rows = Rows([], [], [])
    for number in range(runs):
        run, status = f"run:{tenant}:k-{number}", dice.choice(["completed", "completed", "degraded", "failed", "running"])
        ended = None if status == "running" else NOON
        agent = dice.choice(["clerk", "writer"])
        rows.runs.append((tenant, run, agent, agent[0] * 64, dice.choice(USERS), status, ended))
        for call in range(1, dice.randint(1, 12)):
            model = dice.choice([("anthropic", "claude-haiku-5-5"), ("openai", "gpt-6-luna")])
            at = NOON - timedelta(hours=dice.randint(0, 24 * 6))
            ends = [
                *dice.choices(["unknown", "released"], k=dice.randint(0, 2)),
                dice.choice(["settled", "settled", "dispatched"]),
            ]
            for attempt, state in enumerate(ends, 1):
                hold = dice.randint(1, 10**6)
                cost, overrun = (dice.randint(0, hold), dice.choice([0, 0, 0, 77])) if state == "settled" else (0, 0)
                rows.attempts.append((tenant, run, call, attempt, *model, state, hold, cost, overrun, at))
            if ends[-1] == "settled":
                usage = {"input_tokens": dice.randint(0, 9999), "output_tokens": dice.randint(0, 999)}
                usage |= dice.choice([{}, {"cached_input_tokens": 5}])
                asked = dice.choices(TOOLS, k=dice.randint(0, 3))
                rows.calls.append((tenant, run, call, (call + 1) // 2, outcome(asked, dice.choice([usage, usage, None]))))
    return rows


async def sums(database: TestDatabase, where: str = "true") -> dict[str, int]:
    """What the journal itself adds up to."""
    connection = await asyncpg.connect(database.admin)
    try:
        money = await connection.fetchrow(
            "select sum(cost_micros) as cost_micros, sum(overrun_micros) as overrun_micros, count(*) as calls,"
            " sum(case when state in ('unknown', 'dispatched') then hold_micros else 0 end) as unknown_micros"
            f" from model_attempt where {where}"
        )
        tokens = await connection.fetchrow(
            "select sum((outcome -> 'usage' ->> 'input_tokens')::int) as input_tokens,"
            " sum((outcome -> 'usage' ->> 'cached_input_tokens')::int) as cached_input_tokens,"
            " sum((outcome -> 'usage' ->> 'output_tokens')::int) as output_tokens from model_call"
        )
    finally:
        await connection.close()
    assert money is not None
    assert tokens is not None
    return {name: int(value or 0) for row in (money, tokens) for name, value in row.items()}


async def test_every_grouping_adds_up_to_the_journal_to_the_micro_dollar(cli: Cli, database: TestDatabase) -> None:
    """A report that loses a request, or counts one twice, is worse than none; a join is how it happens."""
    await generated(1, "acme").write(database)
    await generated(2, "beta").write(database)
    truth = await sums(database)
    assert all(truth.values())
    for by in [*combinations(Dimension, 1), *combinations(Dimension, 2), tuple(Dimension)]:
        answer = cli("--by", ",".join(by), "--tenant", "acme", "--tenant", "beta", "--json")
        told = json.loads(answer.out)
        added = {name: sum(group[name] for group in told["groups"]) for name in AMOUNTS}
        assert added == truth, by
        assert {name: told["total"][name] for name in AMOUNTS} == truth, by
        assert all(set(group) >= set(by) for group in told["groups"])


async def test_csv_reads_back_as_the_same_numbers_and_no_cell_is_a_formula(cli: Cli, database: TestDatabase) -> None:
    """The file is opened in a spreadsheet by somebody with rights; a user's name must not run there."""
    await generated(3, "acme").write(database)
    answer = cli("--by", "user,tool", "--tenant", "acme", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(answer.out)))
    truth = await sums(database)
    assert {name: sum(int(row[name]) for row in rows) for name in AMOUNTS} == truth
    assert {row["user"] for row in rows} == {"ann", "bob@example.com", f"'{FORMULA}", "'+1", "'-2", "'@me"}
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]
    assert answer.err.startswith("total $"), "the sum is for people: a column of the file stays free of it"


async def test_a_top_list_and_the_total_below_the_table_leave_nothing_out(cli: Cli, database: TestDatabase) -> None:
    """People add up what they see; the rest must be seen."""
    await generated(4, "acme").write(database)
    truth = await sums(database)
    told = json.loads(cli("--by", "run", "--top", "3", "--tenant", "acme", "--json").out)
    assert len(told["groups"]) == 4
    assert told["groups"][3]["run"] == "(others)"
    assert {name: sum(group[name] for group in told["groups"]) for name in AMOUNTS} == truth
    table = cli("--by", "run", "--top", "3", "--tenant", "acme").out
    assert "(others)" in table
    assert f"{truth['calls']:,} requests" in table


async def test_a_range_takes_its_beginning_and_leaves_its_end(cli: Cli, database: TestDatabase) -> None:
    """Two months side by side must hold each request once: it belongs to the day on which it left, in UTC."""
    await generated(5, "acme").write(database)
    whole = json.loads(cli("--by", "day", "--tenant", "acme", "--json").out)
    days = [group["day"] for group in whole["groups"]]
    assert days == sorted(days)
    cut = ("2026-11-18", "2026-11-18T15:00:00", "2026-11-18T15:00:00+02:00")
    for moment in cut:
        halves = [json.loads(cli(side, moment, "--tenant", "acme", "--json").out)["total"] for side in ("--since", "--until")]
        assert all(half["cost_micros"] for half in halves)
        for name in AMOUNTS:
            assert halves[0][name] + halves[1][name] == whole["total"][name]
    exact = await sums(database, "dispatched_at >= '2026-11-18T13:00Z'")
    assert json.loads(cli("--since", cut[2], "--tenant", "acme", "--json").out)["total"]["cost_micros"] == exact["cost_micros"]


async def test_filters_narrow_and_runs_are_counted_once(cli: Cli, database: TestDatabase) -> None:
    """A run that asked two models is one run; counted twice, its task costs half."""
    rows = generated(6, "acme")
    await rows.write(database)
    asked = {attempt[1] for attempt in rows.attempts}
    done = {run for _, run, _, _, _, status, _ in rows.runs if status in ("completed", "degraded")} & asked
    told = json.loads(cli("--by", "model", "--tenant", "acme", "--json").out)["total"]
    assert (told["runs"], told["completed"]) == (len(asked), len(done))
    assert told["per_completed_micros"] == -(-(told["cost_micros"] + told["overrun_micros"]) // len(done))
    (run,) = (one for one in sorted(asked)[:1])
    one = json.loads(cli("--by", "run", "--run", run.rpartition(":")[2], "--tenant", "acme", "--json").out)
    assert [group["run"] for group in one["groups"]] == [run]
    clerks = json.loads(cli("--by", "agent", "--agent", "clerk", "--tenant", "acme", "--json").out)["groups"]
    assert [group["agent"] for group in clerks] == ["clerk"]
    ann = json.loads(cli("--by", "user", "--user", "ann", "--tenant", "acme", "--json").out)["groups"]
    assert [group["user"] for group in ann] == ["ann"]


async def test_a_tool_is_charged_with_what_asked_for_it_under_one_name_for_several(cli: Cli, database: TestDatabase) -> None:
    """Splitting a call's cost between its tools would need fractions, and charging each in full would count it twice."""
    asked = [["b", "a"], ["a", "b", "a"], ["a"], [], None, "open"]
    rows = Rows([("acme", "run:acme:k", "clerk", "v", "ann", "completed", NOON)], [], [])
    for call, tools in enumerate(asked, 1):
        rows.attempts.append(("acme", "run:acme:k", call, 1, "anthropic", "m", "settled", 10, call, 0, NOON))
        if tools != "open":
            usage = {"input_tokens": 1, "output_tokens": 1}
            rows.calls.append(
                ("acme", "run:acme:k", call, call, outcome(list(tools or []), usage if tools is not None else None))
            )
    await rows.write(database)
    groups = json.loads(cli("--by", "tool", "--tenant", "acme", "--json").out)["groups"]
    assert {group["tool"]: group["cost_micros"] for group in groups} == {"a+b": 3, "a": 3, "(answer)": 4, "(no answer)": 11}


async def test_a_tenant_is_never_shown_anothers_spending(
    cli: Cli, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a customer spends is the customer's; the auditor's role reads the same, and no more."""
    await generated(7, "acme").write(database)
    nothing = json.loads(cli("--json").out)
    assert (nothing["groups"], nothing["total"]["cost_micros"]) == ([], 0)
    assert "total $0.00 in 0 requests" in cli("--tenant", "beta").out
    mine = cli("--tenant", "acme", "--json").out
    monkeypatch.setenv("DATABASE_URL", database.auditor)
    assert cli("--tenant", "acme", "--json").out == mine


async def test_a_run_that_stood_in_is_paid_for_but_no_task_of_its_own(cli: Cli, database: TestDatabase) -> None:
    """Two completed runs for one task would halve what the task cost."""
    for agent in ("clerk", "substitute"):
        await ended(agent, 1, 500).write(database)
    connection = await asyncpg.connect(database.admin)
    await connection.execute("update run set payer = 'run:acme:clerk-1' where run_id = 'run:acme:substitute-1'")
    await connection.close()
    told = json.loads(cli("--tenant", "acme", "--json").out)
    assert (told["total"]["runs"], told["total"]["completed"], told["total"]["per_completed_micros"]) == (2, 1, 1000)
    assert {group["agent"]: group["completed"] for group in told["groups"]} == {"clerk": 1, "substitute": 0}


async def test_every_tenant_that_the_ledger_knows_can_be_added_up(cli: Cli, database: TestDatabase) -> None:
    """Finance pays one invoice for all of them; a list that somebody must keep would lack the newest."""
    await generated(8, "acme").write(database)
    await generated(9, "beta").write(database)
    connection = await asyncpg.connect(database.admin)
    await connection.executemany("insert into known_tenant values ('*', $1)", [("acme",), ("beta",)])
    await connection.close()
    told = json.loads(cli("--all-tenants", "--by", "tenant", "--json").out)
    assert {group["tenant"] for group in told["groups"]} == {"acme", "beta"}
    assert {name: told["total"][name] for name in AMOUNTS} == await sums(database)
    assert "runs are above" in cli("anomalies", "--all-tenants").out


def ended(agent: str, number: int, cost: int, status: str = "completed") -> Rows:
    """One run with one request of so much."""
    run, over = f"run:acme:{agent}-{number}", None if status == "running" else NOON - timedelta(minutes=number)
    usage = {"input_tokens": cost, "output_tokens": 0}
    return Rows(
        [("acme", run, agent, "v", "ann", status, over)],
        [("acme", run, 1, 1, outcome([], usage))],
        [("acme", run, 1, 1, "anthropic", "m", "settled", cost, cost, 0, NOON)],
    )


async def test_a_run_far_above_its_agents_norm_is_listed_even_before_it_ends(cli: Cli, database: TestDatabase) -> None:
    """The loop that burns the night's money is found while it burns; a dear agent's usual run is no alarm."""
    for number in range(25):
        await ended("clerk", number, 10_000 + number).write(database)
        await ended("writer", number, 900_000).write(database)
    await ended("clerk", 90, 60_500, "running").write(database)
    await ended("clerk", 91, 50_000, "failed").write(database)
    await ended("young", 1, 10**9).write(database)
    (found,) = json.loads(cli("anomalies", "--tenant", "acme", "--json").out)
    assert (found["run"], found["status"], found["user"]) == ("run:acme:clerk-90", "running", "ann")
    assert (found["cost_micros"], found["usual_cost_micros"], found["times_cost"]) == (60_500, 10_012, "6.0")
    assert found["far_above_in"] == "cost+tokens"
    table = cli("anomalies", "--tenant", "acme").out
    assert "run:acme:clerk-90" in table
    assert "1 of 53 runs are above 5 times their agent's median; nothing is usual yet for young" in table
    listed = [row["run"] for row in json.loads(cli("anomalies", "--tenant", "acme", "--factor", "4", "--json").out)]
    assert listed == ["run:acme:clerk-90", "run:acme:clerk-91"]
    dear = json.loads(cli("anomalies", "--tenant", "acme", "--at-least", "1.00", "--json").out)
    assert [row["far_above_in"] for row in dear] == ["tokens"]
    (row,) = csv.DictReader(io.StringIO(cli("anomalies", "--tenant", "acme", "--format", "csv").out))
    assert (row["run"], row["cost_micros"]) == ("run:acme:clerk-90", "60500")
    assert "0 of 0 runs" in cli("anomalies", "--tenant", "acme", "--until", "2026-11-01").out


MISTAKES = [
    (("--by", "luck"), "'luck' is nothing to group by: use tenant, user"),
    (("--by", "user,user"), "'user' stands there twice"),
    (("--since", "yesterday"), "--since 'yesterday' is no moment: give a date"),
    (("--since", "999999d"), "is no moment"),
    (("--since", "2026-13-01"), "is no moment"),
    (("--since", "2026-11-20", "--until", "2026-11-20"), "is not before --until"),
    (("--tenant", "a/b"), "is no name of a tenant"),
    (("--agent", "x y"), "is no name of an agent"),
    (("--user", "a\x00b"), "is nobody"),
    (("--run", "no spaces"), "cannot be a run"),
    (("--run", "k", "--tenant", "a", "--tenant", "b"), "is a key of which tenant"),
    (("--top", "0"), "--top"),
    (("--format", "xml"), "use table, csv, json"),
    (("--format", "csv", "--json"), "contradict each other"),
    (("--tenant", "acme", "--all-tenants"), "contradict each other"),
    (("--run", "k", "--all-tenants"), "is a key of which tenant"),
    (("--all-tenants", "anomalies"), "stand behind it"),
    (("--tenant", "acme", "anomalies"), "stand behind it"),
    (("anomalies", "--factor", "1"), "--factor"),
    (("anomalies", "--at-least", "NaN"), "is no amount of dollars"),
    (("anomalies", "--at-least", "-1"), "is no amount of dollars"),
    (("anomalies", "--at-least", "0.0000001"), "at most six decimals"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[" ".join(a)[:30] for a, _ in MISTAKES])
def test_a_mistake_is_one_line_with_its_exit_code(cli: Cli, arguments: tuple[str, ...], words: str) -> None:
    """A report on something else than was meant is believed."""
    answer = cli(*arguments)
    assert (answer.code, answer.out, answer.err.count("\n")) == (ExitCode.USAGE, "", 1)
    assert words in answer.err


def test_without_a_database_there_is_a_remedy(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Two different troubles, two exit codes."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    assert (cli().code, "DATABASE_URL" in cli().err) == (ExitCode.NOT_REACHABLE, True)
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv("DURABLE_AGENTS_STATE_DIR", str(tmp_path))
    assert (cli().code, "start `dev`" in cli().err) == (ExitCode.USAGE, True)


def test_the_help_names_every_dimension_and_command(cli: Cli) -> None:
    """What is not in the help is not there for most people."""
    overview = " ".join(cli("--help").out.split())
    assert all(dimension in overview for dimension in Dimension)
    names = [command.name or getattr(command.callback, "__name__", "") for command in spend_commands.app.registered_commands]
    assert [name for name in names if f"  {name} " not in cli("--help").out] == []
    assert "--factor" in cli("anomalies", "--help").out
