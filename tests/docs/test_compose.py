"""Would production get what development was tried with: the same servers, settings, roles, and nothing left open?

There is no container engine here. So the files are read and compared with the code, and what the containers would run is run:
the database job against an empty PostgreSQL, the namespace job against a Temporal server, the health check beside a worker.
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from pydantic import TypeAdapter
from ruamel.yaml import YAML
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client

from activities.postgres import MIGRATIONS, Database
from durable_agents.domain.durations import Duration
from durable_agents.settings import PREFIX, TASK_QUEUE, Settings, read_settings
from starter.embedded.postgres import EmbeddedPostgres
from starter.embedded.postgres_binaries import find_postgres
from starter.embedded.postgres_files import PostgresUrls
from starter.embedded.roles import APP_ROLE, AUDITOR_ROLE, DATABASE, OWNER_ROLE
from starter.embedded.servers import Endpoints
from starter.embedded.temporal import DYNAMIC_CONFIG, SEARCH_ATTRIBUTES, find_temporal
from starter.production.worker_health import silent_sides
from tests.support.waiting import eventually
from tests.support.world import World

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = YAML(typ="safe").load(ROOT / "docker-compose.yml")
SERVICES: dict[str, Any] = COMPOSE["services"]
JOBS = {"temporal-schema", "temporal-namespace", "agents-schema"}
DYNAMIC_CONFIG_FILE = DEPLOY / "dynamicconfig" / "agents.yaml"

ABSENT = {
    "DURABLE_AGENTS_STATE_DIR": "only the embedded servers keep state on a disk",
    "DURABLE_AGENTS_IDENTITY": "who decides is a matter of whoever decides; a worker decides nothing",
    "DURABLE_AGENTS_SIGNING_KEY": "a worker that could sign would need nobody's consent",
    "DURABLE_AGENTS_OWNER_DATABASE_URL": "a worker that had it could switch row-level security off",
}
"""What `Settings` reads and the worker is deliberately not given."""

_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\})")
_SECRET = re.compile(r"PASSWORD|PWD|SECRET|TOKEN|API_KEY")
AWKWARD = "p@s/s:w%2Frd#'\" $x"
"""A password of characters that mean something in URLs, SQL and shells."""


def strings(value: object) -> Iterator[str]:
    """Every text in a document, keys too."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif value is not None:
        yield str(value)


def variables(text: str) -> Iterator[re.Match[str]]:
    """The variables that Compose would fill in."""
    return (match for match in _VARIABLE.finditer(text) if match["name"])


def filled_in(text: str, given: dict[str, str]) -> str:
    """The text as Compose would hand it on."""

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name is None:
            return "$"
        return given[name] if match["kind"] == "?" else given.get(name) or match["rest"]

    return _VARIABLE.sub(fill, text)


def environment_of(service: str, given: dict[str, str]) -> dict[str, str]:
    """A container's environment; a name without a value is handed through when it is given."""
    declared: dict[str, object] = SERVICES[service]["environment"]
    handed = {name: given[name] for name, value in declared.items() if value is None and name in given}
    return handed | {name: filled_in(str(value), given) for name, value in declared.items() if value is not None}


def example() -> dict[str, str]:
    """deploy/.env.example, with the lines that are commented out."""
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    return {match[1]: match[2] for line in lines if (match := re.fullmatch(r"#?([A-Z_]+)=(.*)", line))}


def seconds(text: str) -> float:
    """A length of time as Compose and the settings write it."""
    value: timedelta = TypeAdapter[timedelta](Duration).validate_python(text)
    return value.total_seconds()


def bare_environment() -> dict[str, str]:
    """What any subprocess needs of this process's environment, and nothing that a person or a test has set."""
    return {
        name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "TMPDIR"} or name.startswith("COVERAGE")
    }


# --- what is written ------------------------------------------------------------------------------------------------------------


def images() -> dict[str, str]:
    """Every image that is pulled or built from."""
    found = {name: filled_in(service["image"], example()) for name, service in SERVICES.items()}
    bases = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return found | {f"Dockerfile, stage {number}": base for number, base in enumerate(bases)}


@pytest.mark.parametrize(("user", "image"), images().items(), ids=images().keys())
def test_every_image_is_pinned_to_a_release(user: str, image: str) -> None:
    """A moving tag deploys what nobody has tried, and no two machines the same."""
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+(\.\d+)?(-[\w.-]+)?", image), f"{user} uses {image}"


def test_both_stages_of_the_image_stand_on_the_same_python() -> None:
    """The second stage runs a virtual environment that the first one made."""
    assert len({image for user, image in images().items() if user.startswith("Dockerfile")}) == 1


def test_production_runs_the_servers_that_development_runs() -> None:
    """What was tried against one release of Temporal, or one major of PostgreSQL, was not tried against another."""
    said = subprocess.run([find_temporal(), "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"Server ([\d.]+), UI ([\d.]+)", said)
    assert release is not None
    assert images()["temporal"] == f"temporalio/server:{release[1]}"
    assert images()["temporal-schema"] == images()["temporal-namespace"] == f"temporalio/admin-tools:{release[1]}"
    assert images()["temporal-ui"] == f"temporalio/ui:{release[2]}"
    assert images()["agents-database"].startswith(f"postgres:{find_postgres().major}.")


def test_the_worker_is_given_every_setting_that_it_reads() -> None:
    """A setting that cannot be set in production is found out at night."""
    read = {str(field.validation_alias or PREFIX + name.upper()) for name, field in Settings.model_fields.items()}
    declared = set(SERVICES["worker"]["environment"])
    assert set(ABSENT) <= read
    assert read - declared - set(ABSENT) == set()
    assert not declared & set(ABSENT)


def test_the_worker_starts_with_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown or unreadable setting ends a worker at its start, so nothing may be written here that the code refuses."""
    for name in set(os.environ) & ({*SERVICES["worker"]["environment"]} | {n for n in os.environ if n.startswith(PREFIX)}):
        monkeypatch.delenv(name)
    given = example() | {"AGENTS_APP_PASSWORD": "app", "ANTHROPIC_API_KEY": "key"}
    given = {name: value for name, value in given.items() if value}
    for name, value in environment_of("worker", given).items():
        monkeypatch.setenv(name, value)
    settings = read_settings()
    assert settings.anthropic_api_key is not None
    assert settings.openai_api_key is None, "an empty key would be taken for a key"
    assert settings.task_queue == TASK_QUEUE
    defaults = Settings.model_fields
    assert settings.graceful_shutdown == defaults["graceful_shutdown"].default
    assert settings.worker_concurrency == defaults["worker_concurrency"].default


def test_the_worker_is_given_what_the_agents_settings_refer_to() -> None:
    """A tool whose address is not handed into the container fails at its first call, not at the start."""
    needed = set()
    for path in sorted((ROOT / "agents").glob("*/agent.yaml")):
        settings = YAML(typ="safe").load(path).get("settings") or {}
        needed |= {value["env"] for value in settings.values() if isinstance(value, dict)}
    assert needed, "the refunds agent refers to its shop"
    assert needed <= set(SERVICES["worker"]["environment"])


def test_every_variable_of_the_compose_file_is_explained_in_the_example_with_the_same_default() -> None:
    """Who fills in deploy/.env must see everything there is to fill in, and what happens if it is left alone."""
    matches = [match for text in strings(COMPOSE) for match in variables(text)]
    defaults = {match["name"]: match["rest"] for match in matches if match["kind"] == "-"}
    required = {match["name"] for match in matches if match["kind"] == "?"}
    handed = {name for service in SERVICES.values() for name, value in service.get("environment", {}).items() if value is None}
    assert all(match["kind"] for match in matches), "a variable without a default is empty when it is forgotten"
    assert example() == defaults | dict.fromkeys(required | handed, "")
    commented = re.findall(r"^#([A-Z_]+)=", (DEPLOY / ".env.example").read_text(), re.MULTILINE)
    assert set(commented) == handed, "an optional name that is there, but empty, is handed on as empty"


def passwords_written_out(document: dict[str, Any]) -> list[str]:
    """Secrets that stand in a compose file instead of being asked for."""
    found = [text for text in strings(document) if re.search(r"://[^/@\s]*:[^/@\s]+@", text)]
    for service in document["services"].values():
        for name, value in service.get("environment", {}).items():
            if _SECRET.search(name) and value is not None and not re.fullmatch(r"\$\{\w+:\?[^}]+\}", str(value)):
                found.append(name)
    return found


def test_no_password_is_written_out_or_has_a_default() -> None:
    """A default password is the one that stays."""
    assert passwords_written_out(COMPOSE) == []


@pytest.mark.parametrize(
    "environment",
    [
        {"POSTGRES_PASSWORD": "temporal"},
        {"POSTGRES_PWD": "${PASSWORD:-temporal}"},
        {"ANTHROPIC_API_KEY": "${KEY}"},
        {"DATABASE_URL": "postgresql://app:secret@database/agents"},
    ],
)
def test_a_password_that_is_written_out_would_be_found(environment: dict[str, str]) -> None:
    """The check above is worth something only if it sees each way to leave a password behind."""
    assert passwords_written_out({"services": {"worker": {"environment": environment}}})


def test_nothing_listens_beyond_this_machine() -> None:
    """Temporal and its Web UI know no users: whoever reaches them may approve anything."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert all(COMPOSE["networks"][name] == {"internal": True} for name in ("temporal-store", "agents-store"))
    for database, store in (("temporal-database", "temporal-store"), ("agents-database", "agents-store")):
        assert SERVICES[database]["networks"] == [store]


def test_each_job_ends_before_what_needs_it_starts() -> None:
    """A worker that starts before its schema, or a server before its own, fails in ways nobody has tried."""
    awaited = {
        name: {on for on, how in service.get("depends_on", {}).items() if how["condition"] == "service_completed_successfully"}
        for name, service in SERVICES.items()
    }
    assert awaited["worker"] == {"temporal-namespace", "agents-schema"}
    assert awaited["temporal"] == {"temporal-schema"}
    assert set().union(*awaited.values()) == JOBS


def test_what_runs_is_restarted_and_watched_and_what_is_done_stays_done() -> None:
    """A service without a health check is up as long as its process exists; a job that restarts for ever is never done."""
    for name, service in SERVICES.items():
        if name in JOBS:
            assert service["restart"] == "on-failure:5", name
        else:
            assert service["restart"] == "unless-stopped", name
            assert "healthcheck" in service or "build" in service, name
    assert re.search(r"^HEALTHCHECK .*starter\.production\.worker_health", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def test_a_stopping_worker_is_given_longer_than_it_takes_to_stop() -> None:
    """Whoever kills a worker that is letting its calls finish makes outcomes unknown that need not be."""
    worker = SERVICES["worker"]
    takes = seconds(worker["environment"]["DURABLE_AGENTS_GRACEFUL_SHUTDOWN"])
    assert seconds(worker["stop_grace_period"]) >= takes + 20, "closing the pool takes up to 10 s after the last call"


def test_the_image_runs_as_nobody_and_gets_its_signals_itself() -> None:
    """A shell in front of the worker swallows SIGTERM, and after the grace period everything is killed."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    users = [line.split()[1].partition(":")[0] for line in lines if line.startswith("USER ")]
    assert users
    assert int(users[-1]) > 0
    commands = [line for line in lines if line.startswith("CMD ")]
    assert [json.loads(line.removeprefix("CMD ")) for line in commands] == [["python", "worker.py"]]
    assert any("--require-hashes -r /tmp/worker.lock" in line for line in lines)


def test_the_image_holds_the_application_and_not_the_secrets_beside_it() -> None:
    """A file that .dockerignore does not let through breaks the build; one that it should not is in every copy of the image."""
    copied = re.findall(r"^COPY (?!--from)(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == set(copied)
    assert "**/.env" in rules
    assert {"durable_agents", "workflows", "activities", "starter", "agents", "worker.py"} <= set(copied)


def test_the_server_gets_the_dynamic_configuration_that_was_tried() -> None:
    """A difference between the two is a difference between what was tested and what runs; each has its reason beside it."""
    entries = YAML(typ="safe").load(DYNAMIC_CONFIG_FILE)
    assert all(list(values[0]) == ["value"] and len(values) == 1 for values in entries.values())
    production = {name: values[0]["value"] for name, values in entries.items()}
    explained = re.findall(
        r"^# Differs from development \((.+?)\): .{5,}(?:\n#.*)*\n([\w.]+):$", DYNAMIC_CONFIG_FILE.read_text(), re.MULTILINE
    )
    assert production | {name: json.loads(value) for value, name in explained} == dict(DYNAMIC_CONFIG)
    assert all(production[name] != json.loads(value) for value, name in explained)


def test_the_server_finds_that_configuration() -> None:
    """The server starts without a file it does not find, with defaults that were never tried."""
    server = SERVICES["temporal"]
    source, target, mode = server["volumes"][0].split(":")
    path = Path(server["environment"]["DYNAMIC_CONFIG_FILE_PATH"])
    assert (ROOT / source / path.relative_to(target)) == DYNAMIC_CONFIG_FILE
    assert mode == "ro"
    assert int(server["environment"]["NUM_HISTORY_SHARDS"]) == 512, "cannot be changed after the first start"


# --- what is run ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PostgresUrls]:
    """A PostgreSQL of its own, because roles belong to a whole server."""
    embedded = EmbeddedPostgres(tmp_path_factory.mktemp("production"))
    try:
        yield await embedded.start()
    finally:
        await embedded.stop()


@pytest.fixture
async def empty_server(server: PostgresUrls) -> PostgresUrls:
    """The server as its image leaves it: an administrator and nothing else."""
    admin = await asyncpg.connect(server.admin)
    try:
        await admin.execute(f"drop database if exists {DATABASE} with (force)")
        for role in (OWNER_ROLE, APP_ROLE, AUDITOR_ROLE):
            await admin.execute(f"drop role if exists {role}")
    finally:
        await admin.close()
    return server


def job_environment(urls: PostgresUrls, **given: str) -> dict[str, str]:
    """What Compose gives the database job, for this server instead of the service's name."""
    parts = urlsplit(urls.admin)
    passwords = {
        "AGENTS_ADMIN_PASSWORD": parts.password or "",
        "AGENTS_OWNER_PASSWORD": "owner" + AWKWARD,
        "AGENTS_APP_PASSWORD": "app" + AWKWARD,
        "AGENTS_AUDITOR_PASSWORD": "auditor" + AWKWARD,
    }
    found = environment_of("agents-schema", passwords | given)
    return {name: value.replace("agents-database:5432", f"127.0.0.1:{parts.port}") for name, value in found.items()}


def run_job(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The command of the service `agents-schema`, in this Python."""
    command: list[str] = SERVICES["agents-schema"]["command"]
    assert command[0] == "python"
    return subprocess.run(
        [sys.executable, *command[1:]],
        cwd=ROOT,
        env=bare_environment() | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def state_of(urls: PostgresUrls) -> dict[str, list[tuple[object, ...]]]:
    """Roles and schema, for comparison."""
    questions = {
        "roles": "select rolname, rolsuper, rolbypassrls, rolcanlogin from pg_roles where rolname like 'durable%' order by 1",
        "migrations": "select * from schema_migration order by 1",
        "tables": "select tablename, tableowner, rowsecurity from pg_tables where schemaname = 'public' order by 1",
        "grants": "select grantee, table_name, privilege_type from information_schema.role_table_grants order by 1, 2, 3",
    }
    admin = await asyncpg.connect(urls.admin.rpartition("/")[0] + f"/{DATABASE}")
    try:
        return {what: [tuple(row) for row in await admin.fetch(question)] for what, question in questions.items()}
    finally:
        await admin.close()


async def test_the_database_job_makes_what_a_worker_needs_and_a_second_run_changes_nothing(
    empty_server: PostgresUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each release it runs again, on a database that is in use."""
    environment = job_environment(empty_server)
    files = sorted(path.name for path in MIGRATIONS.glob("*.sql"))

    first = run_job(environment)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == f"roles ready; applied {', '.join(files)}\n"
    made = await state_of(empty_server)
    assert made["roles"] == [(role, False, False, True) for role in (APP_ROLE, AUDITOR_ROLE, OWNER_ROLE)]
    assert [row[1] for row in made["migrations"]] == files

    again = run_job(environment)
    assert (again.returncode, again.stdout, again.stderr) == (0, "roles ready; the schema is up to date\n", "")
    assert await state_of(empty_server) == made

    worker = environment_of("worker", {"AGENTS_APP_PASSWORD": environment["APP_PASSWORD"]})
    monkeypatch.setenv("PGPASSWORD", worker["PGPASSWORD"])
    port = urlsplit(empty_server.admin).port
    database = await Database.open(worker["DATABASE_URL"].replace("agents-database:5432", f"127.0.0.1:{port}"))
    await database.close()


async def test_a_changed_password_takes_effect_and_the_old_one_is_worth_nothing(empty_server: PostgresUrls) -> None:
    """A password that leaked is changed in deploy/.env, and the job is run again."""
    assert run_job(job_environment(empty_server)).returncode == 0
    assert run_job(job_environment(empty_server, AGENTS_APP_PASSWORD="changed")).returncode == 0
    port = urlsplit(empty_server.admin).port
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(host="127.0.0.1", port=port, user=APP_ROLE, password="app" + AWKWARD, database=DATABASE)
    connection = await asyncpg.connect(host="127.0.0.1", port=port, user=APP_ROLE, password="changed", database=DATABASE)
    await connection.close()


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"APP_PASSWORD": ""}, 2, "APP_PASSWORD not set"),
        ({"APP_PASSWORD": "owner" + AWKWARD}, 2, "are equal"),
        ({"PGPASSWORD": "wrong"}, 3, "check ADMIN_DATABASE_URL"),
        ({"ADMIN_DATABASE_URL": "postgresql://postgres@127.0.0.1:1/postgres"}, 3, "check ADMIN_DATABASE_URL"),
        ({"ADMIN_DATABASE_URL": "not a url"}, 3, "check ADMIN_DATABASE_URL"),
    ],
)
def test_what_keeps_the_database_job_from_its_work_is_one_line_without_a_password(
    server: PostgresUrls, change: dict[str, str], code: int, says: str
) -> None:
    """Its output is in the log of whoever deploys: cause and remedy belong there, passwords do not."""
    ended = run_job(job_environment(server) | change)
    assert ended.returncode == code
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert says in ended.stderr
    assert AWKWARD not in ended.stderr


def run_namespace_job(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What the service `temporal-namespace` runs, with the `temporal` command of this machine."""
    shell, script = SERVICES["temporal-namespace"]["entrypoint"]
    source, target, _ = SERVICES["temporal-namespace"]["volumes"][0].split(":")
    path = {"PATH": f"{find_temporal().parent}:{os.environ['PATH']}"}
    return subprocess.run(
        [shell, str(ROOT / source / Path(script).relative_to(target))],
        env=bare_environment() | path | environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


async def test_the_namespace_job_makes_what_runs_need_and_a_second_run_changes_nothing(endpoints: Endpoints) -> None:
    """It runs at every `up`. A search attribute of another type than the code writes refuses every start of a run."""
    given = {"TEMPORAL_NAMESPACE": "production-job", "TEMPORAL_RETENTION": "45d"}
    environment = environment_of("temporal-namespace", given) | {"TEMPORAL_ADDRESS": endpoints.temporal_address}
    declared = dict(pair.split("=") for pair in environment["SEARCH_ATTRIBUTES"].split())
    assert declared == dict(SEARCH_ATTRIBUTES)

    seen = []
    for _ in range(2):
        ended = run_namespace_job(environment)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.count("\n") == 1
        seen.append(await namespace_state(endpoints.temporal_address, "production-job"))
    assert seen[0] == seen[1] == (timedelta(days=45), dict(SEARCH_ATTRIBUTES))


async def namespace_state(address: str, namespace: str) -> tuple[timedelta, dict[str, str]]:
    """Its retention, and its own search attributes with their types."""
    client = await Client.connect(address, namespace=namespace)
    described = await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=namespace))
    listed = await client.operator_service.list_search_attributes(ListSearchAttributesRequest(namespace=namespace))
    types = {name: IndexedValueType.Name(kind) for name, kind in listed.custom_attributes.items() if name in SEARCH_ATTRIBUTES}
    written = {name: kind.removeprefix("INDEXED_VALUE_TYPE_").title().replace("_L", "L") for name, kind in types.items()}
    return described.config.workflow_execution_retention_ttl.ToTimedelta(), written


EVERY_SIDE = ["workflows", "activities", "calls of anthropic", "calls of openai"]


async def test_the_health_check_knows_a_worker_that_polls_from_one_that_does_not(world: World) -> None:
    """An orchestrator restarts what is not healthy: a check that only looks for a process would keep a deaf worker for ever."""
    temporal, queue, host = world.client.temporal, world.settings.task_queue, socket.gethostname()
    assert await silent_sides(temporal, queue, host, datetime.now(UTC)) == EVERY_SIDE

    async def heard() -> bool:
        return not await silent_sides(temporal, queue, host, datetime.now(UTC))

    async with world.worker():
        assert await eventually(heard)
        assert await silent_sides(temporal, queue, "another-host", datetime.now(UTC)) == EVERY_SIDE
        hung_for = timedelta(minutes=3)
        assert await silent_sides(temporal, queue, host, datetime.now(UTC) + hung_for) == EVERY_SIDE
        healthy = health_check(world)
    assert (healthy.returncode, healthy.stdout, healthy.stderr) == (0, "polling\n", "")


async def test_the_health_check_fails_in_one_line_when_nobody_polls_or_the_server_is_gone(world: World) -> None:
    """The line is what `docker inspect` shows of an unhealthy container."""
    nobody = health_check(world)
    queue = world.settings.task_queue
    assert (nobody.returncode, nobody.stdout) == (1, f"no worker of this host polls {queue} for {', '.join(EVERY_SIDE)}\n")
    gone = health_check(world, TEMPORAL_ADDRESS="127.0.0.1:1")
    assert gone.returncode == 1
    assert gone.stdout.startswith("no Temporal server answers at 127.0.0.1:1")
    assert gone.stdout.count("\n") == 1
    assert gone.stderr == ""


def health_check(world: World, **change: str) -> subprocess.CompletedProcess[str]:
    """The image's health check, in this Python."""
    text = (ROOT / "Dockerfile").read_text()
    found = re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", text, re.MULTILINE)
    assert found is not None
    environment = {
        **bare_environment(),
        "TEMPORAL_ADDRESS": world.endpoints.temporal_address,
        "DURABLE_AGENTS_TASK_QUEUE": world.settings.task_queue,
        **change,
    }
    command: list[str] = json.loads(found[1])
    return subprocess.run(
        [sys.executable, *command[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
