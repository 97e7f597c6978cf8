"""Can the business see, try and change what agents may do, live, and does no slip of the hand open or close a door?"""

import json
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from activities import audit, policies
from activities.agent_files import policy_text, read_policy_file
from activities.agents import load_agent
from activities.permissions import evaluate
from activities.policies import InForce
from activities.postgres import Database
from durable_agents.domain.canonical import digest
from durable_agents.domain.identifiers import Micros, RunId, TenantId, UserId
from durable_agents.domain.permissions import FACTS, Call, Policy, decide
from durable_agents.domain.tool_calls import ToolCallRequest
from starter.cli.exit_codes import ExitCode
from starter.cli.main import main
from tests.support.world import AGENTS, TestDatabase

ACME = TenantId("acme")
LOOSE = "rules:\n  - allow: '*'\n"
STRICT = """\
groups:
  finance: [ann, bob]
roles:
  payers: ["@finance"]
rules:
  - allow: issue_refund
    role: payers
    when: args.amount <= 1000.0
  - {ask: issue_refund, ladder: l, reason: not from finance}
  - allow: echo
ladders:
  l:
    rungs: [{approvers: ["@finance"], within: 90m}]
"""


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


class Cli:
    """Runs `policy` on the test's database, in a thread: it has an event loop of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self._capsys = capsys
        self._folder = folder

    def __call__(self, *arguments: str) -> Answer:
        """What a command says."""
        with ThreadPoolExecutor(1) as pool:
            code = pool.submit(main, ("policy", *arguments)).result()
        said = self._capsys.readouterr()
        return Answer(code, said.out, said.err)

    def acme(self, *arguments: str) -> Answer:
        """Of tenant acme."""
        return self(*arguments, "--tenant", "acme")

    def file(self, text: str, name: str = "new.yaml") -> str:
        """A policy's file."""
        path = self._folder / name
        path.write_text(text)
        return str(path)

    def put(self, text: str, *more: str) -> Any:
        """Put a policy for the clerk; what was said as JSON."""
        answer = self.acme("put", self.file(text), "clerk", "--reason", "a test", "--json", *more)
        assert answer.code == ExitCode.OK, answer.err
        return json.loads(answer.out)


@pytest.fixture
def cli(database: TestDatabase, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """The command line."""
    monkeypatch.setenv("DATABASE_URL", database.app)
    monkeypatch.setenv("DURABLE_AGENTS_IDENTITY", "boss")
    return Cli(capsys, tmp_path)


@pytest.fixture
async def own(database: TestDatabase) -> AsyncIterator[Database]:
    """The database as workers use it."""
    opened = await Database.open(database.app, max_size=2)
    yield opened
    await opened.close()


async def admit(own: Database, tenant: str = "acme", agent: str = "clerk", run: str = "r") -> None:
    """A run of an agent, as admission writes it down."""
    loaded = load_agent(AGENTS / agent)
    async with own.transaction(TenantId(tenant)) as connection:
        pinned = loaded.pinned.model_dump(mode="json")
        await connection.execute(
            "insert into agent_version values ($1, $2, $3) on conflict do nothing", tenant, loaded.version, pinned
        )
        await connection.execute(
            "insert into run (tenant, run_id, first_execution, request_digest, agent, agent_version, user_id, terms)"
            " values ($1, $2, 'x', 'd', $3, $4, 'u', '{}')",
            tenant, run, agent, loaded.version,
        )  # fmt: skip


async def record(own: Database, index: int, tool: str, user: str, **arguments: Any) -> None:
    """A decision of the executor, by the clerk's own policy."""
    pinned = load_agent(AGENTS / "clerk").pinned
    call = Call(
        tool=tool, risk="write", resource="", arguments=arguments, user=UserId(user), tenant="acme", agent="clerk",
        spent_micros=Micros(250_000), calls=index, now=datetime(2026, 11, 20, 12, tzinfo=UTC),
    )  # fmt: skip
    request = ToolCallRequest(tenant=ACME, run_id=RunId("r"), turn=1, index=index)
    verdict = decide(pinned.policy, pinned.policy_digest, call, evaluate)
    async with own.transaction(ACME) as connection:
        await policies.record(connection, request, InForce(0, pinned.policy_digest, pinned.policy), call, verdict)


async def holds(own: Database, tenant: str = "acme") -> tuple[int, Policy | None]:
    """The version and policy that the executor would read now."""
    async with own.transaction(TenantId(tenant)) as connection:
        force = await policies.in_force(connection, TenantId(tenant), load_agent(AGENTS / "clerk").pinned)
    return force.version, force.policy


async def changes(own: Database, tenant: str = "acme") -> list[dict[str, Any]]:
    """The policy changes in the tenant's log, which must verify."""
    async with own.transaction(TenantId(tenant)) as connection:
        assert await audit.verify(connection, TenantId(tenant)) is None
        rows = await connection.fetch("select body from audit_entry where event = 'policy_changed' order by sequence")
    return [row["body"] for row in rows]


async def test_a_put_holds_from_the_next_decision_on_and_who_did_it_is_kept(cli: Cli, own: Database) -> None:
    """No deploy, no restart; and an auditor finds who, what and why, also of going back."""
    await admit(own)
    assert (await holds(own))[0] == 0
    strict, loose = read_policy_file(Path(cli.file(STRICT))), Policy.model_validate({"rules": [{"allow": "*"}]})
    assert cli.put(STRICT, "--by", "ann") | {"digest": ""} == {
        "tenant": "acme", "agent": "clerk", "version": 1, "digest": "", "changed": True, "notes": [],
    }  # fmt: skip
    assert await holds(own) == (1, strict)
    assert cli.put(LOOSE)["version"] == 2
    assert await holds(own) == (2, loose)
    assert cli.acme("use", "1", "clerk", "--reason", "too loose").code == ExitCode.OK
    assert await holds(own) == (3, strict)
    assert cli.acme("use", "0", "clerk", "--reason", "as deployed").code == ExitCode.OK
    assert await holds(own) == (4, load_agent(AGENTS / "clerk").pinned.policy)
    assert (await holds(own, "rival"))[0] == 0
    one, two = (digest(policy.document()) for policy in (strict, loose))
    bodies = await changes(own)
    assert [(body["by"], body["reason"], body["version"], body["version_before"]) for body in bodies] == [
        ("ann", "a test", 1, 0), ("boss", "a test", 2, 1), ("boss", "too loose", 3, 2), ("boss", "as deployed", 4, 3),
    ]  # fmt: skip
    assert [(body["digest_before"], body["digest"]) for body in bodies] == [(None, one), (one, two), (two, one), (one, None)]
    assert {body["agent"] for body in bodies} == {"clerk"}
    listed = cli.acme("history", "clerk")
    assert "version 4 is in force" in listed.out
    assert "too loose" in listed.out
    assert [one["in_force"] for one in json.loads(cli.acme("history", "clerk", "--json").out)] == [True, False, False, False]
    assert json.loads(cli("history", "clerk", "--tenant", "rival", "--json").out) == []


async def test_putting_the_same_again_changes_nothing(cli: Cli, own: Database) -> None:
    """A script that puts at each deploy must not void the approvals that wait; spelling is no change."""
    await admit(own)
    assert cli.put(STRICT)["changed"]
    again = cli.put("# the same\n" + STRICT.replace("90m", "5400s").replace("[ann, bob]", '["ann", "bob"]'))
    assert (again["version"], again["changed"]) == (1, False)
    assert cli.put(STRICT.replace("1000.0", "1000.5"))["version"] == 2
    assert len(await changes(own)) == 2


async def test_what_was_put_can_be_read_edited_and_compared(cli: Cli, own: Database) -> None:
    """Who changes a rule starts from what holds, and looks at the difference before."""
    await admit(own)
    before = cli.acme("get", "clerk")
    assert "# policy of clerk, tenant acme: version 0, in force" in before.out
    assert read_policy_file(Path(cli.file(before.out))) == load_agent(AGENTS / "clerk").pinned.policy
    cli.put(STRICT)
    shown = cli.acme("get", "clerk")
    assert "version 1, in force" in shown.out
    assert "put by boss" in shown.out
    assert "within: 90m" in shown.out
    assert cli.put(shown.out)["changed"] is False
    assert "not in force, version 1 is" in cli.acme("get", "clerk", "--version", "0").out
    looser = cli.file(STRICT.replace("1000.0", "2000.0"))
    said = cli.acme("diff", "clerk", "now", looser).out.splitlines()
    assert [line for line in said if re.match(r"[+-] ", line)] == [
        "-  when: args.amount <= 1000.0", "+  when: args.amount <= 2000.0",
    ]  # fmt: skip
    assert "version 1 and version 1 say the same" in cli.acme("diff", "clerk", "1").out
    assert "+- allow: echo" in cli.acme("diff", "clerk", "0", "1").out
    assert cli.acme("get", "clerk", "--version", "7").code == ExitCode.NOT_FOUND
    assert cli.acme("diff", "clerk", "7").code == ExitCode.NOT_FOUND
    assert cli.acme("get", "stranger").code == ExitCode.NOT_FOUND


async def test_a_policy_is_tried_on_what_was_decided(cli: Cli, own: Database) -> None:
    """What would have come out otherwise last week will surprise people next week: it is seen before it holds."""
    await admit(own)
    await record(own, 0, "issue_refund", "ann", order="A-1", amount=50.0)
    await record(own, 1, "issue_refund", "ann", order="A-1", amount=500.0)
    await record(own, 2, "issue_refund", "eve", order="A-1", amount=50.0)
    await record(own, 3, "tell_customer", "eve", order="A-1", text="\x00 hello")
    await record(own, 4, "echo", "eve", text="x")
    await record(own, 5, "forbidden", "eve", text="x" * 40_000)
    answer = cli.acme("test", cli.file(STRICT), "clerk", "--json")
    assert answer.code == ExitCode.UNEXPECTED
    said = json.loads(answer.out)
    assert (said["decisions"], said["not_tried"]) == (6, 1)
    assert {one["call"]: (one["was"], one["would_be"], one["because"]) for one in said["changes"]} == {
        "1.1": ("ask", "allow", "rule 0"),
        "1.2": ("allow", "ask", "not from finance"),
        "1.3": ("allow", "deny", "no rule allows it"),
    }
    people = cli.acme("test", cli.file(STRICT), "clerk", "--since", "2026-01-01").out
    assert "6 decisions since 2026-01-01 00:00:00 UTC: 1 allow → ask, 1 allow → deny, 1 ask → allow" in people
    assert "1 of them cannot be tried" in people
    assert "only the newest 2 were tried" in cli.acme("test", cli.file(STRICT), "clerk", "--limit", "2").out
    same = cli.acme("test", cli.file(cli.acme("get", "clerk").out), "clerk")
    assert same.code == ExitCode.OK
    assert "6 decisions since" in same.out
    assert "none would come out otherwise" in same.out
    assert json.loads(cli.acme("test", cli.file(STRICT), "clerk", "--since", "2099-01-01", "--json").out)["decisions"] == 0
    assert (await holds(own))[0] == 0
    assert await changes(own) == []


async def test_conditions_are_tried_on_the_facts_of_then(cli: Cli, own: Database) -> None:
    """Amounts to the last digit, money and time as they were: a rehearsal on other facts says nothing of the performance."""
    await admit(own)
    await record(own, 0, "issue_refund", "ann", order="A-1", amount=1e17)
    then = "now == timestamp('2026-11-20T12:00:00Z') && spent == 0.25 && calls == 0 && args.amount + 1.0 > 1.0"
    text = f"rules:\n  - {{ask: '*', ladder: l, when: \"{then}\"}}\nladders: {{l: {{rungs: [{{within: 1h}}]}}}}\n"
    answer = cli.acme("test", cli.file(text), "clerk", "--json")
    assert (answer.code, json.loads(answer.out)["changes"]) == (ExitCode.OK, [])


MISTAKES = [
    ("rules:\n  - allow: [", "new.yaml:"),
    ("rules:\n  - allow: echo\n    if: x\n", "new.yaml:3: rules.0.if: Extra inputs"),
    ("rules:\n  - allow: echo\n    when: amount > 1\n", "new.yaml:3: rules.0.when: condition 'amount > 1'"),
    ("rules:\n  - allow: echo\n    role: x\n", "new.yaml:3: rules.0.role: there is no role 'x'"),
    ("roles:\n  x:\n    - '@y'\nrules: []\n", "new.yaml:3: roles.x.0: there is no group '@y'"),
    ("rules:\n  - ask: echo\n    ladder: x\n", "new.yaml:3: rules.0.ladder: there is no ladder 'x'"),
    (
        "rules:\n  - allow: echo\n  - allow: isue_refund\n",
        "new.yaml:3: rules.1.allow: agent clerk has no tool 'isue_refund' (it has: lookup",
    ),
    ('rules:\n  - {allow: echo, reason: "a\\0b"}\n', "cannot be stored"),
    ('rules:\n  - {allow: echo, reason: "' + "x" * 300_000 + '"}\n', "more than 256 KiB"),
    ("", "must be a mapping"),
]


async def test_a_mistake_is_one_line_with_its_place_and_puts_nothing(cli: Cli, own: Database) -> None:
    """A typo must neither open nor close a door: what was meant for a tool that nobody has would hold for nobody."""
    await admit(own)
    for text, words in MISTAKES:
        for command in (("put", "clerk", "--reason", "r"), ("check", "clerk"), ("test", "clerk")):
            answer = cli.acme(command[0], cli.file(text), *command[1:])
            assert (answer.code, answer.out, answer.err.count("\n")) == (ExitCode.USAGE, "", 1), (command, text[:80])
            assert words in answer.err, answer.err
            assert len(answer.err) < 700
    for arguments, words in (
        (("put", cli.file(STRICT), "clerk"), "Missing option '--reason'"),
        (("put", cli.file(STRICT), "clerk", "--reason", " "), "--reason is empty"),
        (("put", cli.file(STRICT), "cl/erk", "--reason", "r"), "no name of an agent"),
        (("put", cli.file(STRICT), "clerk", "--reason", "r", "--by", "a\nb"), "--by"),
        (("put", "nowhere.yaml", "clerk", "--reason", "r"), "nowhere.yaml: cannot be read"),
        (("put", str(Path(cli.file(STRICT)).parent), "clerk", "--reason", "r"), "cannot be read"),
        (("test", cli.file(STRICT), "clerk", "--since", "yesterday"), "--since 'yesterday' is no moment"),
        (("use", "-1", "clerk", "--reason", "r"), "-1"),
    ):
        answer = cli.acme(*arguments)
        assert (answer.code, answer.out, answer.err.count("\n")) == (ExitCode.USAGE, "", 1), arguments
        assert words in answer.err, answer.err
    assert cli.acme("use", "5", "clerk", "--reason", "r").code == ExitCode.NOT_FOUND
    assert (await holds(own))[0] == 0
    assert await changes(own) == []


async def test_a_policy_without_the_ladders_its_agent_needs_is_refused(cli: Cli, own: Database) -> None:
    """The agent's file sends people to a ladder by name: without it no run of the agent would be admitted any more."""
    await admit(own, agent="router")
    answer = cli.acme("put", cli.file("ladders: {}\nrules: [{allow: echo}]\n"), "router", "--reason", "r")
    assert answer.code == ExitCode.USAGE
    assert "new.yaml:1: ladders: agent router needs a ladder 'operators'" in answer.err


async def test_locking_everybody_out_and_what_could_not_be_checked_are_said(cli: Cli, own: Database) -> None:
    """Both may be meant, in an emergency or before the first run; neither may go unnoticed."""
    unknown = cli.put("rules: [{allow: anything}]")
    assert unknown["notes"] == ["agent clerk has never run for tenant acme: whether its tools and ladders exist was not checked"]
    await admit(own)
    locked = cli.put("rules: [{deny: '*'}, {allow: echo}]")
    assert (locked["version"], locked["changed"]) == (2, True)
    assert "locks everybody out" in locked["notes"][0]
    assert "note: this locks everybody out" in cli.acme("check", cli.file("rules: []"), "clerk").out
    assert cli.put("rules: [{allow: echo}]")["notes"] == []


def test_a_file_is_checked_without_a_database(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the repository where the business keeps its policies there is none."""
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv("DURABLE_AGENTS_STATE_DIR", str(tmp_path))
    assert "3 rules, 1 ladders" in cli("check", cli.file(STRICT)).out
    assert cli("check", cli.file("rules: 5")).code == ExitCode.USAGE
    assert (cli("history", "clerk").code, "start `dev`" in cli("history", "clerk").err) == (ExitCode.USAGE, True)


def test_what_is_printed_reads_back_as_the_same_policy(tmp_path: Path) -> None:
    """`get`, edit, `put`: nothing may change that nobody touched."""
    odd: dict[str, Any] = {
        "groups": {"on": ["no", "0x10", "1"], "g: #": ["~"]},
        "roles": {"null": ["@on", "*"]},
        "rules": [
            {"allow": "*", "when": "args.text == \"'\\\\n\" && tool != 'x: y # z'", "reason": "two\nlines, ü, " + "x" * 300},
            {"deny": "- a", "role": "null", "agent": "?*", "resource": "order:{}"},
            {"ask": "true", "ladder": "1"},
        ],
        "ladders": {
            "1": {"rungs": [{"within": "P2DT1S"}, {"approvers": [], "within": "PT0.5S"}, {"within": "300d"}], "on_denial": "end"},
        },
    }  # fmt: skip
    made = Policy.model_validate(odd)
    file = tmp_path / "p.yaml"
    file.write_text(policy_text(made))
    assert read_policy_file(file) == made
    assert read_policy_file(AGENTS / "clerk" / "policy.yaml") == load_agent(AGENTS / "clerk").pinned.policy


def test_the_page_says_what_conditions_see_and_its_example_is_a_policy_of_the_agent_we_ship(tmp_path: Path) -> None:
    """People copy the example, and write conditions by the table."""
    root = AGENTS.parents[2]
    page = (root / "docs" / "policies.md").read_text(encoding="utf8")
    assert [name for name in FACTS if f"`{name}`" not in page] == []
    file = tmp_path / "refunds-policy.yaml"
    file.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    example, agent = read_policy_file(file), load_agent(root / "agents" / "refunds").pinned
    assert agent.misfits(example) == []
    assert agent.offered(example, UserId("ann")) == agent.tools


def test_every_command_is_explained(cli: Cli) -> None:
    """Somebody reads this while a door stands open."""
    said = cli("--help").out
    for command in ("get", "put", "use", "diff", "test", "history", "check"):
        assert f"  {command} " in said
        assert "--tenant" in cli(command, "--help").out
