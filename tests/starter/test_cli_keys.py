"""Can people make, register and end keys by command, and decide with them, without a private key in anybody else's sight?"""

import asyncio
import json
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from activities import audit
from activities.signatures import KeyFileError, generate, read_key, verify, write_key
from durable_agents import RunStatus
from durable_agents.domain.identifiers import TenantId
from starter.cli.exit_codes import ExitCode
from starter.cli.main import main
from tests.support.scripts import refund, tell, turns
from tests.support.waiting import pending
from tests.support.world import World
from worker import takes_unsigned

pytestmark = pytest.mark.timeout(90)


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


Cli = Callable[..., Awaitable[Answer]]


@pytest.fixture
def cli(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Runs a command against the test's servers, in a thread: it has an event loop of its own, and the worker needs this one."""
    monkeypatch.setenv("DATABASE_URL", world.database.app)
    monkeypatch.setenv("TEMPORAL_ADDRESS", world.endpoints.temporal_address)
    monkeypatch.setenv("DURABLE_AGENTS_IDENTITY", "admin")
    monkeypatch.chdir(tmp_path)

    async def run(*arguments: str) -> Answer:
        code = await asyncio.to_thread(main, arguments)
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


def test_a_private_key_is_for_one_persons_eyes(tmp_path: Path) -> None:
    """A key that others can read signs for others; one that is overwritten is lost."""
    file, key = tmp_path / "ann.key", generate()
    write_key(key, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = read_key(file)
    assert (again.key, again.public) == (key.key, key.public)
    assert verify(key.public, b"yes", again.sign(b"yes"))
    assert not verify(key.public, b"no", again.sign(b"yes"))
    assert not verify("00" * 31, b"yes", again.sign(b"yes"))
    with pytest.raises(KeyFileError, match="is not overwritten"):
        write_key(generate(), file)
    file.chmod(0o640)
    with pytest.raises(KeyFileError, match="read by others"):
        read_key(file)
    (tmp_path / "none").touch(mode=0o600)
    with pytest.raises(KeyFileError, match="holds no Ed25519 key"):
        read_key(tmp_path / "none")
    for nowhere in (tmp_path / "nowhere", tmp_path / "no" / "where"):
        with pytest.raises(KeyFileError, match="cannot be read"):
            read_key(nowhere)
    with pytest.raises(KeyFileError, match="cannot be written"):
        write_key(generate(), tmp_path / "no" / "where")


async def test_a_key_is_made_registered_used_and_ended_by_command(world: World, cli: Cli) -> None:
    """The whole way of an approver, and of somebody who has lost their key."""
    await world.script(turns([tell("SIGNED"), refund()], "done"))
    made = json.loads((await cli("keys", "generate", "ann.key", "--json")).out)
    assert (
        await cli("keys", "list", "--tenant", "acme")
    ).out == "tenant acme has no keys: `keys generate` makes one, `keys add` registers it\n"
    assert (await cli("keys", "add", "ann", made["public_key"], "--tenant", "acme")).code == ExitCode.OK
    assert (await cli("keys", "add", "bob", made["public_key"], "--tenant", "acme")).code == ExitCode.REFUSED
    async with world.worker():
        run = await world.start()
        strict, plain = sorted(await pending(run, 2), key=lambda one: not one.ladder.signed)
        shown = (await cli("pending", run.id)).out
        assert "wanted: only signed decisions count" in shown
        assert "anybody's name" in shown
        unsigned = await cli("approve", run.id, strict.id, "--by", "ann")
        assert (unsigned.code, "signed decisions only" in unsigned.err) == (ExitCode.USAGE, True)
        by_another = await cli("approve", run.id, strict.id, "--by", "bob", "--key", "ann.key")
        assert (by_another.code, "is not bob's" in by_another.err) == (ExitCode.REFUSED, True)
        assert (await cli("approve", run.id, strict.id, "--by", "ann", "--key", "ann.key")).out.startswith(
            f"approved {strict.id}"
        )
        assert "it is unsigned: whoever may write" in (await cli("deny", run.id, plain.id, "--by", "ann")).out
        assert (await run.result()).status is RunStatus.COMPLETED
    assert (await world.shop_counts())["messages"] == 1
    assert len(await world.rows("select 1 from sent_decision")) == 3, "written down first"
    assert (await cli("keys", "revoke", made["key"], "--tenant", "acme")).code == ExitCode.OK
    assert (await cli("keys", "revoke", made["key"], "--tenant", "acme")).code == ExitCode.NOT_FOUND
    (one,) = json.loads((await cli("keys", "list", "--tenant", "acme", "--json")).out)
    assert (one["approver"], one["added_by"], one["revoked_by"]) == ("ann", "admin", "admin")
    async with world.resources.database.transaction(TenantId("acme")) as connection:
        assert await audit.verify(connection, TenantId("acme")) is None
    rows = await world.rows("select event from audit_entry where event like 'key_%' order by sequence")
    assert [row["event"] for row in rows] == ["key_added", "key_revoked"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("add", "ann", "abc"), ExitCode.USAGE, "64 hex digits"),
        (("add", "", "0" * 64), ExitCode.USAGE, "nobody"),
        (("add", "ann", "0" * 64, "--tenant", "a b"), ExitCode.USAGE, "tenant"),
        (("revoke", "k-1"), ExitCode.NOT_FOUND, "keys list"),
        (("generate", "no/where"), ExitCode.USAGE, "cannot be written"),
    ],
)
async def test_a_slip_of_the_hand_registers_nothing(cli: Cli, arguments: tuple[str, ...], code: int, says: str) -> None:
    """A key under a name that nobody has, or that is none, would be one that nobody misses."""
    answer = await cli("keys", *arguments)
    assert (answer.code, says in answer.err) == (code, True), answer
    assert json.loads((await cli("keys", "list", "--json")).out) == []


async def test_a_decision_is_sent_also_when_it_cannot_be_written_down_first(
    world: World, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal alone was enough before there was a table; a database in trouble must not stop a human's no."""
    await world.script(turns(refund(), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        monkeypatch.setenv("DATABASE_URL", world.database.owner)  # a role that is not let in
        answer = await cli("deny", run.id, approval.id, "--by", "ann", "--key", "nowhere.key")
        assert (answer.code, "keys generate" in answer.err) == (ExitCode.USAGE, True)
        answer = await cli("deny", run.id, approval.id, "--by", "ann")
        assert (answer.code, "without being written down first" in answer.out) == (ExitCode.OK, True), answer
        assert (await run.result()).status is RunStatus.COMPLETED
    assert await world.rows("select 1 from sent_decision") == []


async def test_nothing_is_signed_that_nobody_describes(world: World, cli: Cli, tmp_path: Path) -> None:
    """Without a worker the request cannot be seen, and a signature on an id alone would be a blank cheque."""
    await world.script(turns(refund(), "done"))
    write_key(generate(), tmp_path / "ann.key")
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
    answer = await cli("approve", run.id, approval.id, "--by", "ann", "--key", str(tmp_path / "ann.key"))
    assert (answer.code, "start a worker" in answer.err) == (ExitCode.NO_WORKER, True)
    async with world.worker():
        await run.cancel()
        await run.result()


async def test_a_worker_says_where_decisions_count_unsigned(world: World) -> None:
    """An operator must see it without reading every policy."""
    said = takes_unsigned(world.resources.catalog)
    assert "clerk" in said
    assert "strict" not in said, "it has no ladder"
