"""Do the commands do what they say against a real server, database and worker, and leave nothing behind?"""

import asyncio
import json
import os
import signal
import sys
import uuid
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from starter.cli.exit_codes import ExitCode
from starter.cli.main import main
from tests.support.scripts import refund, turns
from tests.support.world import World

ROOT = Path(__file__).parents[2]
STARTER = (sys.executable, "-m", "starter")
REFUND = turns(refund("250.00"), "Done.")


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one document on stdout."""
        return json.loads(self.out)


Cli = Callable[..., Awaitable[Answer]]


@pytest.fixture
def cli(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Runs a command on the servers of the test."""
    for name, value in environment_of(world, tmp_path).items():
        monkeypatch.setenv(name, value)

    async def run(*arguments: str) -> Answer:
        code = await asyncio.to_thread(main, arguments)
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


@pytest.fixture
def tenant() -> str:
    """A tenant of the test's own: the server is shared."""
    return f"t-{uuid.uuid4().hex[:8]}"


def environment_of(world: World, state: Path) -> dict[str, str]:
    """What a command needs to find the servers of the test and no others."""
    return {
        "TEMPORAL_ADDRESS": world.endpoints.temporal_address,
        "DURABLE_AGENTS_TASK_QUEUE": world.settings.task_queue,
        "DURABLE_AGENTS_STATE_DIR": str(state),
        "DURABLE_AGENTS_IDENTITY": "tester",
    }


@asynccontextmanager
async def started(
    *arguments: str, environment: Mapping[str, str], stdin: int = asyncio.subprocess.DEVNULL
) -> AsyncIterator[Process]:
    """A command in a process of its own; it is gone at the end."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("TEMPORAL_", "DURABLE_AGENTS_"))}
    process = await asyncio.create_subprocess_exec(
        *STARTER,
        *arguments,
        cwd=ROOT,
        env={**bare, **environment},
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # as in a terminal: Ctrl-C goes to all of its group, and not to the tests
        preexec_fn=_hears_signals,
    )
    try:
        yield process
    finally:
        if process.returncode is None:  # a test failed; what it started must not outlive it
            process.terminate()
        await process.communicate()


def _hears_signals() -> None:
    """A terminal's commands do; whatever started the tests in the background may have told them not to."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


async def line_with(process: Process, words: str) -> str:
    """Reads what a command prints until a line holds `words`."""
    assert process.stdout is not None
    seen = []
    async with asyncio.timeout(45):
        async for raw in process.stdout:
            seen.append(raw.decode())
            if words in seen[-1]:
                return seen[-1]
    rest = await process.stderr.read() if process.stderr else b""
    raise AssertionError(f"no line with {words!r} in {''.join(seen)} {rest.decode()}")


async def until_waiting(cli: Cli, tenant: str) -> str:
    """The id of the one approval the run waits for."""
    async with asyncio.timeout(30):
        while True:
            found = (await cli("pending", "k-1", "--tenant", tenant, "--json")).json()
            if found:
                return str(found[0]["approval"]["id"])


async def waiting_run(world: World, cli: Cli, tenant: str) -> str:
    """Starts a refund that needs consent; returns the approval's id."""
    await world.script(REFUND)
    await world.start({"order": "A-1001"}, key="k-1", tenant=tenant)
    return await until_waiting(cli, tenant)


async def test_a_run_is_followed_to_its_approval_and_on_to_its_end(world: World, cli: Cli, tenant: str, tmp_path: Path) -> None:
    """The path of every newcomer: start, see what is asked and how to answer it, answer, see the end."""
    await world.script(REFUND)
    asked = ("run", "clerk", "--input", '{"order": "A-1001"}', "--tenant", tenant, "--key", "k-1", "--user", "u-7")
    async with world.worker(), started(*asked, environment=environment_of(world, tmp_path)) as following:
        command = (await line_with(following, " -m starter approve ")).split()
        assert command[-2:-1] == [f"run:{tenant}:k-1"]
        everywhere = await cli("pending", "--tenant", tenant)
        assert f"approval {command[-1]} of run:{tenant}:k-1 waits for a human" in everywhere.out
        assert "nothing waits" in (await cli("pending", "--tenant", "other")).out
        answer = await cli("approve", command[-2], command[-1], "--by", "ann", "--reason", "seen")
        assert (answer.code, answer.out.splitlines()[0]) == (ExitCode.OK, f"approved {command[-1]} of run:{tenant}:k-1")
        assert "it is unsigned" in answer.out
        await line_with(following, "approved by ann: seen")
        await line_with(following, "ended: completed")
        assert await following.wait() == ExitCode.OK
    assert (await world.shop_counts())["refunds"] == 1


async def test_a_decision_that_does_not_count_says_why(world: World, cli: Cli, tenant: str) -> None:
    """Exit code 6 and a reason; a script that goes on as if it had been approved would be wrong."""
    async with world.worker():
        approval = await waiting_run(world, cli, tenant)
        refused = {
            ("approve", "k-1", "ap-0000", "--by", "ann"): "no approval of that id",
            ("approve", "k-1", approval, "--by", "requester"): "who asked for the run cannot approve it",
            ("approve", "k-1", approval, "--by", "eve"): "eve is not among the approvers",
        }
        for command, reason in refused.items():
            answer = await cli(*command, "--tenant", tenant)
            assert (answer.code, answer.out) == (ExitCode.REFUSED, "")
            assert answer.err.startswith(f"error: run:{tenant}:k-1 refused it (")
            assert reason in answer.err
        assert (await cli("deny", "k-1", "--tenant", tenant, "--by", "ann")).code == ExitCode.OK
        assert (await cli("watch", "k-1", "--tenant", tenant)).code == ExitCode.OK
        late = await cli("approve", "k-1", approval, "--tenant", tenant, "--by", "ann")
        assert (late.code, late.err) == (
            ExitCode.REFUSED,
            f"error: run:{tenant}:k-1 has ended (completed): it takes no more messages\n",
        )
        missing = await cli("approve", "k-9", "ap-1", "--tenant", tenant)
        assert missing.code == ExitCode.NOT_FOUND
    assert (await world.shop_counts())["refunds"] == 0


async def test_without_a_worker_decisions_are_kept_and_looks_say_that_nobody_answers(
    world: World, cli: Cli, tenant: str, tmp_path: Path
) -> None:
    """The office decides while the machines are down; nothing of it may be lost, and nobody may be told it had an effect."""
    async with world.worker():
        approval = await waiting_run(world, cli, tenant)
    here = environment_of(world, tmp_path)
    async with (
        started("status", "k-1", "--tenant", tenant, environment=here) as looking,
        started("budget", "k-1", "--tenant", tenant, "--raise", "turns=900", environment=here) as raising,
    ):
        answer = await cli("approve", "k-1", "--tenant", tenant, "--by", "ann", "--json")
        _, said = await looking.communicate()
        _, refused = await raising.communicate()
    assert answer.code == ExitCode.OK
    said_of_it = {"approval_id": approval, "decision": "approve", "outcome": "stored", "signed_with": None}
    assert answer.json() == {"run_id": f"run:{tenant}:k-1", **said_of_it}
    assert (looking.returncode, raising.returncode) == (ExitCode.NO_WORKER, ExitCode.NO_WORKER)
    assert refused.decode().startswith("error: no worker")
    assert said.decode().startswith(f"error: no worker answers for run:{tenant}:k-1")
    asked = ("runs", "--tenant", tenant, "--agent", "clerk", "--status", "waiting_approval", "--json")
    listed = (await cli(*asked)).json()
    assert [(run["run"], run["waiting"]) for run in listed] == [(f"run:{tenant}:k-1", 1)]
    async with world.worker():
        assert (await cli("watch", "k-1", "--tenant", tenant, "--json")).code == ExitCode.OK
    assert (await world.shop_counts())["refunds"] == 1


async def test_a_key_is_one_run_and_never_another(world: World, cli: Cli, tenant: str) -> None:
    """The same command twice is one run; the same key for something else is a mistake that must not pass."""
    ask = ("run", "clerk", "--tenant", tenant, "--key", "k-1", "--no-wait", "--json", "--input")
    first, again = await cli(*ask, '{"order": "A-1001"}'), await cli(*ask, '{"order": "A-1001"}')
    assert (first.code, first.json()) == (ExitCode.OK, again.json())
    other = await cli(*ask, '{"order": "A-1002"}')
    assert (other.code, other.out) == (ExitCode.KEY_REUSED, "")
    assert "use another idempotency key" in other.err


async def test_a_run_can_be_cancelled_and_its_budget_raised(world: World, cli: Cli, tenant: str) -> None:
    """What a person does to a run that goes on must have an effect, and a refusal a reason."""
    async with world.worker():
        await waiting_run(world, cli, tenant)
        lower = await cli("budget", "k-1", "--tenant", tenant, "--raise", "cost_usd=1.00")
        assert lower.code == ExitCode.REFUSED
        assert "cost_usd" in lower.err
        raised = await cli("budget", "k-1", "--tenant", tenant, "--raise", "cost_usd=9.00,turns=300", "--json")
        assert raised.json()["budget"]["cost_usd"] == "9.00"
        assert "$9.00" in (await cli("budget", "k-1", "--tenant", tenant)).out
        assert "waiting_approval" in (await cli("status", "k-1", "--tenant", tenant)).out
        assert (await cli("cancel", "k-1", "--tenant", tenant, "--reason", "enough")).code == ExitCode.OK
        assert (await cli("watch", "k-1", "--tenant", tenant)).code == ExitCode.CANCELLED
        assert (await cli("cancel", "k-1", "--tenant", tenant)).code == ExitCode.REFUSED
        assert (await cli("cancel", "k-9", "--tenant", tenant)).code == ExitCode.NOT_FOUND


async def test_a_failed_run_is_an_exit_code_and_one_line(world: World, cli: Cli, tenant: str) -> None:
    """The agent's name was mistyped: the worker decides, and the person reads which name it does not know."""
    async with world.worker():
        answer = await cli("run", "clrek", "--tenant", tenant)
    assert answer.code == ExitCode.FAILED
    assert answer.err.count("\n") == 1
    assert "clrek" in answer.err


async def test_ctrl_c_leaves_the_run_alone(world: World, cli: Cli, tenant: str, tmp_path: Path) -> None:
    """Who stops looking has not stopped the run, and is told so."""
    asked = ("run", "clerk", "--tenant", tenant, "--key", "k-1")
    async with started(*asked, environment=environment_of(world, tmp_path)) as following:
        await line_with(following, f"started run:{tenant}:k-1")
        os.killpg(following.pid, signal.SIGINT)
        assert await following.wait() == ExitCode.INTERRUPTED
        assert following.stderr is not None
        assert (await following.stderr.read()).decode().startswith("error: interrupted: runs go on")
    listed = (await cli("runs", "--tenant", tenant, "--json")).json()
    assert {"run": f"run:{tenant}:k-1", "ended": None}.items() <= dict(listed[0]).items()
