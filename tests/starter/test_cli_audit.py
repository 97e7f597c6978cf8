"""Can an auditor read, check, anchor and take away the log, with the role that may only read, and see what was changed in it?"""

import io
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from activities.postgres import OwnConnection
from durable_agents.domain.audit import Entry
from starter.cli import audit_commands
from starter.cli.exit_codes import ExitCode
from starter.cli.main import main
from tests.support.audit_logs import almighty, chain, honest, write_log
from tests.support.world import TestDatabase

NINE = 9


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


Cli = Callable[..., Answer]


@pytest.fixture
def cli(database: TestDatabase, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command as the auditor, in a thread: it has an event loop of its own."""
    monkeypatch.setenv("DATABASE_URL", database.auditor)

    def run(*arguments: str) -> Answer:
        with ThreadPoolExecutor(1) as pool:
            code = pool.submit(main, ("audit", *arguments)).result()
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


@pytest.fixture
async def owner(database: TestDatabase) -> AsyncIterator[OwnConnection]:
    """Whoever owns the database, and two tenants with a log each."""
    async with almighty(database) as connection:
        await write_log(connection, "acme", honest("acme", 40))
        await write_log(connection, "rival", honest("rival", 8))
        yield connection


def names(folder: Path) -> list[str]:
    """What lies in a folder, hidden files too."""
    return sorted(file.name for file in folder.iterdir())


def breaks(answer: Answer) -> dict[str, list[tuple[int, str]]]:
    """What `verify --json` found, by tenant."""
    assert answer.code in (ExitCode.OK, ExitCode.DIFFERS)
    found = json.loads(answer.out)
    assert found["unbroken"] == (answer.code == ExitCode.OK)
    return {log["tenant"]: [(one["entry"], one["why"]) for one in log["problems"]] for log in found["logs"] if log["breaks"]}


def lines(answer: Answer) -> list[dict[str, Any]]:
    """JSON lines."""
    assert answer.code == ExitCode.OK, answer
    return [json.loads(line) for line in answer.out.splitlines()]


async def test_entries_are_shown_by_run_event_and_time(cli: Cli, owner: OwnConnection, database: TestDatabase) -> None:
    """An auditor asks about one run, one kind of event, one day; and a log of millions must not scroll by."""
    everything = lines(cli("show", "--tenant", "acme", "--json"))
    assert [one["sequence"] for one in everything] == list(range(1, 41))
    assert everything[0]["body"]["user"] == "zoë@example.com"
    of_run = lines(cli("show", "--run", "run:acme:order-000001", "--json"))
    assert [one["sequence"] for one in of_run] == list(range(9, 17))
    assert of_run == lines(cli("show", "--tenant", "acme", "--run", "order-000001", "--json"))
    some = lines(cli("show", "--tenant", "acme", "--event", "model_called", "--event", "tool_settled", "--limit", "3", "--json"))
    assert [one["event"] for one in some] == ["tool_settled", "model_called", "tool_settled"]
    assert [one["sequence"] for one in some] == [36, 38, 40]
    assert lines(cli("show", "--tenant", "acme", "--until", "2026-11-20T11:59", "--json")) == []
    assert len(lines(cli("show", "--tenant", "acme", "--since", "2026-11-20T11:59", "--until", "2026-11-21", "--json"))) == 40
    table = cli("show", "--tenant", "acme", "--limit", "2").out
    assert "tool_settled" in table
    assert "2 entries of tenant acme, the newest 2" in table


async def test_nothing_in_an_entry_reaches_the_terminal_as_a_command(cli: Cli, owner: OwnConnection) -> None:
    """Reasons and excerpts are anybody's words; who reads the log reads them on a terminal."""
    evil = "\x1b[2J\u202e| forged"
    await write_log(owner, "acme", chain("acme", iter([("run:acme:" + evil, evil, {"reason": evil})])))
    for answer in (cli("show", "--tenant", "acme"), cli("show", "--tenant", "acme", "--json")):
        assert answer.code == ExitCode.OK
        assert "\x1b" not in answer.out
        assert "\u202e" not in answer.out


async def test_an_honest_log_verifies_with_either_role(
    cli: Cli, owner: OwnConnection, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tenant's, and a tenant that is asked for alone; without anchors the command says what it cannot see."""
    for url in (database.auditor, database.app):
        monkeypatch.setenv("DATABASE_URL", url)
        answer = cli("verify")
        assert answer.code == ExitCode.OK
        assert "verified 48 entries of 3 logs: unbroken" in answer.out
        assert "no anchors to compare with" in answer.out
    assert "verified 8 entries of 1 logs" in cli("verify", "--tenant", "rival").out


def _edited(entry: Entry) -> Entry:
    return entry._replace(body={**entry.body, "forged": True})


def _recomputed() -> list[Entry]:
    return list(chain("acme", ((e.run, e.event, _edited(e).body if e.sequence == 5 else e.body) for e in honest("acme", 40))))


TAMPERING: dict[str, tuple[str, int, str]] = {
    "edit": ("update audit_entry set body = body || '{\"x\": 1}' where sequence = 5 and tenant = 'acme'", 5, "it was changed"),
    "delete": ("delete from audit_entry where sequence between 5 and 7 and tenant = 'acme'", 8, "entries 5 to 7 are missing"),
    "insert": (
        """insert into audit_entry select tenant, 41, hash, md5('x'), at_micros, run_id, event, body from audit_entry
        where sequence = 40 and tenant = 'acme'""",
        41,
        "was changed",
    ),
    "reorder": (
        """update audit_entry e set body = o.body, event = o.event from audit_entry o
        where e.tenant = 'acme' and o.tenant = 'acme' and e.sequence in (4, 5) and o.sequence = 9 - e.sequence""",
        4,
        "it was changed",
    ),
    "cut the tail": (
        """delete from audit_entry where sequence > 30 and tenant = 'acme'; update audit_head h set sequence = 30, hash = e.hash
        from audit_entry e where h.tenant = 'acme' and e.tenant = 'acme' and e.sequence = 30""",
        30,
        "its tail was cut off",
    ),
    "delete all": ("delete from audit_entry; delete from audit_head; delete from known_tenant", 0, "the log is empty"),
    "recompute": ("", 40, "the log was computed anew"),
}


async def test_all_seven_kinds_of_tampering_are_found_with_anchors(cli: Cli, owner: OwnConnection, tmp_path: Path) -> None:
    """By somebody who owns the database; an anchored log can be neither computed anew nor made to vanish."""
    file = tmp_path / "anchors.jsonl"
    assert cli("anchor", "--anchors", str(file)).code == ExitCode.OK
    for name, (commands, entry, why) in TAMPERING.items():
        await write_log(owner, "acme", honest("acme", 40))
        await write_log(owner, "rival", honest("rival", 8))
        assert breaks(cli("verify", "--anchors", str(file), "--json")) == {}, f"before {name}"
        if name == "recompute":
            await write_log(owner, "acme", iter(_recomputed()))
        else:
            await owner.execute(commands)
        found = breaks(cli("verify", "--anchors", str(file), "--json"))
        assert any(where == entry and why in said for where, said in found["acme"]), (name, found)
        blind = breaks(cli("verify", "--json"))
        assert bool(blind) == (name not in ("cut the tail", "delete all", "recompute")), f"{name}: the page says so"
        assert cli("verify", "--anchors", str(file)).code == NINE
        if name in ("cut the tail", "delete all", "recompute"):
            refused = cli("anchor", "--anchors", str(file))
            assert (refused.code, why in refused.out) == (ExitCode.DIFFERS, True)
            assert "0 anchors appended" in refused.out, "what was changed gets no anchor"


async def test_anchors_follow_each_other_and_only_what_moved_is_anchored(cli: Cli, owner: OwnConnection, tmp_path: Path) -> None:
    """A file that grows with the clock is one that somebody deletes; and a torn append must not end it."""
    file = tmp_path / "new" / "anchors.jsonl"
    first = json.loads(cli("anchor", "--anchors", str(file), "--json").out)
    assert [(one["tenant"], one["sequence"]) for one in first["appended"]] == [("acme", 40), ("rival", 8)]
    assert json.loads(cli("anchor", "--anchors", str(file), "--json").out)["appended"] == []
    with file.open("a") as torn:
        torn.write('{"number": 3, "at_mic')
    await write_log(owner, "rival", honest("rival", 16))
    (moved,) = json.loads(cli("anchor", "--anchors", str(file), "--json").out)["appended"]
    assert (moved["number"], moved["tenant"], moved["sequence"], moved["previous"]) == (
        3, "rival", 16, first["appended"][-1]["hash"],
    )  # fmt: skip
    answer = cli("verify", "--anchors", str(file))
    assert "3 of 3 anchors met: unbroken" in answer.out
    text = file.read_text()
    file.write_text(text.replace('"sequence":8', '"sequence":7'))
    assert "was changed" in cli("verify", "--anchors", str(file)).out
    refused = cli("anchor", "--anchors", str(file))
    assert (refused.code, refused.err.count("\n")) == (ExitCode.USAGE, 1)
    assert "keep it as evidence" in refused.err


async def test_an_export_is_verified_without_a_database(
    cli: Cli, owner: OwnConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the house: whoever gets it needs nothing but the file, the anchors and this command."""
    file, anchors = tmp_path / "log.jsonl", tmp_path / "anchors.jsonl"
    assert cli("anchor", "--anchors", str(anchors)).code == ExitCode.OK
    assert cli("export", "--to", str(file)).code == ExitCode.OK
    streamed = cli("export", "--tenant", "acme")
    assert streamed.out.count("\n") == 43
    assert "exported 40 entries of 1 logs to stdout" in streamed.err
    assert names(tmp_path) == ["anchors.jsonl", "log.jsonl"], "nothing is left beside it"
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    assert "verified 48 entries of 3 logs, 2 of 2 anchors met: unbroken" in cli(
        "verify", "--file", str(file), "--anchors", str(anchors)
    ).out  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO(streamed.out))
    assert "verified 40 entries of 1 logs: unbroken" in cli("verify", "--file", "-").out
    text = file.read_text()
    for number, change in enumerate(
        (text.replace("issue_refund", "issue_refunds", 1), text[:-30], text.replace('"acme"', '"x"'))
    ):
        changed = tmp_path / f"{number}.jsonl"
        changed.write_text(change)
        answer = cli("verify", "--file", str(changed))
        assert (answer.code, answer.err) == (ExitCode.DIFFERS, "")
        assert "breaks" in answer.out


async def test_a_full_disk_leaves_the_old_export(cli: Cli, owner: OwnConnection, tmp_path: Path) -> None:
    """Half an export that looks like a whole one is worse than none."""
    file = tmp_path / "log.jsonl"
    file.write_text("the old one")
    await owner.execute("alter table audit_entry rename to gone")
    assert cli("export", "--to", str(file)).code != ExitCode.OK
    assert file.read_text() == "the old one"
    assert names(tmp_path) == ["log.jsonl"]


async def test_ten_thousand_honest_rows_raise_no_alarm(cli: Cli, owner: OwnConnection) -> None:
    """The smaller edition of benchmarks/audit_speed.py: every batch begins where the last one ended."""
    await write_log(owner, "acme", honest("acme", 10_001))
    assert "verified 10,009 entries of 3 logs: unbroken" in cli("verify").out


MISTAKES = [
    (("show", "--tenant", "a b"), "is no name of a tenant"),
    (("show", "--since", "yesterday"), "is no moment"),
    (("show", "--since", "1h", "--until", "2h"), "nothing lies between"),
    (("show", "--event", "a b"), "is no name of an event"),
    (("show", "--run", "a b"), "cannot be a run"),
    (("show", "--limit", "0"), "--limit"),
    (("verify", "--anchors", "gone/anchors.jsonl"), "check the path of the anchors"),
    (("verify", "--file", "gone.jsonl"), "check the path"),
    (("anchor",), "set DURABLE_AGENTS_AUDIT_ANCHORS"),
    (("anchor", "--anchors", "pyproject.toml/x"), "may be appended to"),
    (("anchor", "--anchors", "README.md"), "is no file of anchors"),
    (("export", "--to", "gone/export.jsonl"), "check the path"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[" ".join(arguments)[:40] for arguments, _ in MISTAKES])
def test_a_mistake_is_one_line_with_its_remedy(cli: Cli, arguments: tuple[str, ...], words: str) -> None:
    """A check that was mistyped must not look like one that passed."""
    answer = cli(*arguments)
    assert (answer.code, answer.out, answer.err.count("\n")) == (ExitCode.USAGE, "", 1)
    assert words in answer.err


def test_every_command_explains_itself(cli: Cli) -> None:
    """An auditor comes once a year."""
    overview = cli("--help").out
    for command in audit_commands.app.registered_commands:
        name = command.name or getattr(command.callback, "__name__", "")
        assert f"  {name} " in overview
        assert "--" in cli(name, "--help").out
