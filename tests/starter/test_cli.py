"""Does the command line answer at once, name every mistake in one line, and print data as data?"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from durable_agents.domain.failures import Failure, FailureKind
from durable_agents.domain.identifiers import RunId
from durable_agents.domain.runs import RunResult, RunStatus
from starter.cli.app import app
from starter.cli.endpoints import FILE, RunningServers, announced, running_servers
from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.follow import ENDINGS, exit_code
from starter.cli.inputs import MAX_READ_BYTES
from starter.cli.main import main

ROOT = Path(__file__).parents[2]
NOWHERE = "127.0.0.1:1"


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


Cli = Callable[..., Answer]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Runs a command in a thread, where it may have an event loop of its own; no server is anywhere."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", NOWHERE)
    monkeypatch.setenv("DURABLE_AGENTS_STATE_DIR", str(tmp_path))

    def run(*arguments: str) -> Answer:
        with ThreadPoolExecutor(1) as pool:
            code = pool.submit(main, arguments).result()
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


def starter(*arguments: str, **environment: str) -> Answer:
    """Runs `python -m starter` as people do."""
    ended = subprocess.run(
        [sys.executable, "-m", "starter", *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=60,
    )
    return Answer(ended.returncode, ended.stdout, ended.stderr)


def test_help_is_there_within_half_a_second() -> None:
    """Who asks for help waits for it; a heavy import at the top of one module would triple the time."""

    def seconds() -> float:
        began = time.perf_counter()
        assert starter("--help").code == 0
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 0.5


def test_help_imports_nothing_heavy() -> None:
    """The clock of a busy machine is no proof; what is imported is."""
    heavy = "{'temporalio', 'pydantic', 'rich', 'asyncpg', 'httpx2', 'durable_agents'}"
    code = f"import sys, starter.cli.main as m; m.main(['--help']); print(sorted({heavy} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_every_command_explains_itself(cli: Cli) -> None:
    """A command that is not in the help does not exist for most people."""
    names = [command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands]
    overview = cli("--help").out
    for name in names:
        answer = cli(name, "--help")
        assert answer.code == ExitCode.OK
        assert f"  {name} " in overview
        assert len(answer.out.splitlines()) > 4


MISTAKES = [
    ((), ExitCode.USAGE, "Missing command"),
    (("rum",), ExitCode.USAGE, "No such command 'rum'"),
    (("runs", "--limit", "0"), ExitCode.USAGE, "--limit"),
    (("run",), ExitCode.USAGE, "Missing argument"),
    (("run", "refunds", "--input", "{"), ExitCode.USAGE, "--input is not JSON"),
    (("run", "refunds", "--input", "[1]"), ExitCode.USAGE, "--input is a list, not a JSON object"),
    (("run", "refunds", "--input", '{"amount": NaN}'), ExitCode.USAGE, "NaN is not JSON"),
    (("run", "refunds", "--input", '{"amount": 1e999}'), ExitCode.USAGE, "NaN and Infinity are not JSON"),
    (("run", "refunds", "--input", '{"a": 1, "a": 2}'), ExitCode.USAGE, "a key twice"),
    (("run", "refunds", "--input", "@/nowhere/at/all"), ExitCode.USAGE, "No such file or directory"),
    (("run", "refunds", "--budget", "cost_usd=-1"), ExitCode.USAGE, "greater than or equal to 0"),
    (("run", "refunds", "--budget", "cost_usd=NaN"), ExitCode.USAGE, "cost_usd"),
    (("run", "refunds", "--budget", "cost_usd=1e-9"), ExitCode.USAGE, "finer than a millionth"),
    (("run", "refunds", "--budget", "turns=1.5"), ExitCode.USAGE, "turns is a whole number, not '1.5'"),
    (("run", "refunds", "--budget", "wall_time=24"), ExitCode.USAGE, "wall_time"),
    (("run", "refunds", "--budget", "luck=1"), ExitCode.USAGE, "'luck=1' is no limit"),
    (("run", "refunds", "--key", "no spaces"), ExitCode.USAGE, "idempotency_key: String should match pattern"),
    (("run", "refunds", "--tenant", "a/b"), ExitCode.USAGE, "tenant: String should match pattern"),
    (("run", "refunds", "--user", "\x1b[2Jme"), ExitCode.USAGE, "user: String should match pattern"),
    (("run", "no agent"), ExitCode.USAGE, "agent: String should match pattern"),
    (("budget", "k-1", "--raise", "cost"), ExitCode.USAGE, "--raise: 'cost' is no limit"),
    (("runs", "--status", "happy"), ExitCode.USAGE, "'happy' is no status"),
    (("runs", "--agent", "x' OR '1'='1"), ExitCode.USAGE, "is no name of an agent"),
    (("demo",), ExitCode.USAGE, "use `demo --yes`"),
    (("migrate",), ExitCode.USAGE, "DURABLE_AGENTS_OWNER_DATABASE_URL"),
    (("status", "no spaces"), ExitCode.USAGE, "cannot be a run"),
    (("status", "k-1"), ExitCode.NOT_REACHABLE, f"no Temporal server answers at {NOWHERE}"),
    (("run", "refunds"), ExitCode.NOT_REACHABLE, "python -m starter dev"),
    (("approve", "k-1", "ap-1"), ExitCode.NOT_REACHABLE, NOWHERE),
]


@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES, ids=[" ".join(a)[:40] or "nothing" for a, _, _ in MISTAKES])
def test_a_mistake_is_one_line_with_its_exit_code(cli: Cli, arguments: tuple[str, ...], code: ExitCode, words: str) -> None:
    """A script acts on the number, a person on the line; neither can use a traceback."""
    answer = cli(*arguments)
    assert (answer.code, answer.out) == (code, "")
    assert re.fullmatch(r"error: .+\n", answer.err), answer.err
    assert words in answer.err


def test_a_file_of_three_megabytes_is_refused_by_its_size(cli: Cli, tmp_path: Path) -> None:
    """The server would refuse it with a message about gRPC; what helps is the limit and what to do instead."""
    large = tmp_path / "large.json"
    large.write_text(json.dumps({"text": "x" * 3_000_000}))
    answer = cli("run", "refunds", "--input", f"@{large}")
    assert answer.code == ExitCode.USAGE
    assert "at most 262,144 are taken; pass large things by reference" in answer.err
    huge = tmp_path / "huge.json"
    huge.write_bytes(b" " * (MAX_READ_BYTES + 1))
    assert "pass large things by reference" in cli("run", "refunds", "--input", f"@{huge}").err


def test_an_unknown_setting_stops_every_command() -> None:
    """A typing error in a setting must not silently mean the default."""
    answer = starter("runs", DURABLE_AGENTS_TASKQUEUE="mine")
    assert answer.code == ExitCode.USAGE
    assert answer.err.startswith("error: unknown setting DURABLE_AGENTS_TASKQUEUE: check the spelling")
    assert answer.err.count("\n") == 1


def test_a_traceback_is_there_for_who_asks() -> None:
    """`--debug` is what the line of an unexpected error tells people to add, wherever they add it."""
    answer = starter("status", "k-1", "--debug", TEMPORAL_ADDRESS=NOWHERE)
    assert answer.code == ExitCode.NOT_REACHABLE
    assert "Traceback (most recent call last)" in answer.err
    assert answer.err.splitlines()[-1].startswith("error: no Temporal server answers")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """`agents | head -1` is how people look at things; it must not end in an error line."""
    command = f"{sys.executable} -m starter agents | (exec 0<&-)"
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (ExitCode.OK, "")


def test_the_page_of_exit_codes_is_the_enum() -> None:
    """Scripts are written from the page."""
    page = (ROOT / "docs" / "exit-codes.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (.+) \|$", page, re.MULTILINE)
    assert rows == [(str(code.value), code.name.lower(), code.meaning) for code in ExitCode]


def test_every_end_of_a_run_has_an_exit_code_of_its_own() -> None:
    """A run that was denied must not look like one that completed."""
    assert set(ENDINGS) == {status for status in RunStatus if status.is_end}
    assert len(set(ENDINGS.values())) == len(ENDINGS)


def test_a_run_that_was_not_let_in_has_the_exit_code_of_a_start_that_was_refused() -> None:
    """A script that comes back later needs to know only that one."""
    shed = Failure(kind=FailureKind.SHED, message="m", retry_after=timedelta(seconds=30))
    ended = RunResult(run_id=RunId("run:acme:k"), status=RunStatus.FAILED, failure=shed)
    assert exit_code(ended) is ExitCode.OVERLOADED
    assert exit_code(ended.model_copy(update={"failure": None})) is ExitCode.FAILED


def test_endpoints_are_believed_only_while_their_dev_lives(tmp_path: Path) -> None:
    """A file that a killed `dev` left behind must not send anybody to a port that is somebody else's by now."""
    servers = RunningServers("127.0.0.1:7233", None, {"DATABASE_URL": "postgresql://x"})
    with announced(tmp_path) as announcement:
        assert running_servers(tmp_path) is None
        announcement.write(servers)
        assert running_servers(tmp_path) == servers
        assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
        with pytest.raises(CliError, match="`dev` already runs"), announced(tmp_path):
            pass
        text = (tmp_path / FILE).read_text()
    assert not (tmp_path / FILE).exists()
    (tmp_path / FILE).write_text(text)
    assert running_servers(tmp_path) is None


def test_doctor_names_what_is_wrong_and_goes_on(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who repairs one thing after the other wants to see all of them at once."""
    broken = tmp_path / "agents" / "odd"
    broken.mkdir(parents=True)
    (broken / "agent.yaml").write_text("name: odd\nmodels: []\n")
    monkeypatch.setenv("DURABLE_AGENTS_AGENTS_PATH", str(broken.parent))
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    answer = cli("doctor")
    assert answer.code == ExitCode.UNEXPECTED
    wrong = [line for line in answer.out.splitlines() if line.startswith("WRONG")]
    assert [line.split()[1].rstrip(":") for line in wrong] == ["Temporal", "database", "agents"]
    assert "agent.yaml:" in wrong[2]
    checks = json.loads(cli("doctor", "--json").out)
    assert [check["what"] for check in checks if check["good"] is False] == ["Temporal", "database", "agents"]


def test_agents_are_listed_with_what_is_wrong_with_them(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One broken agent must not hide the others, and its file and line are what its author needs."""
    broken = tmp_path / "odd"
    broken.mkdir()
    (broken / "agent.yaml").write_text("name: odd\ndescription: x\nmodels: 7\n")
    monkeypatch.setenv("DURABLE_AGENTS_AGENTS_PATH", f"{ROOT / 'agents'}:{tmp_path}")
    answer = cli("agents", "--json")
    listed = {agent["name"]: agent for agent in json.loads(answer.out)}
    assert answer.code == ExitCode.USAGE
    assert listed["refunds"]["problem"] == ""
    assert "agent.yaml:3" in listed["odd"]["problem"]
    monkeypatch.setenv("DURABLE_AGENTS_AGENTS_PATH", str(ROOT / "agents"))
    assert cli("agents").code == ExitCode.OK
