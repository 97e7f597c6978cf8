"""What does a test need to run agents for real: servers, database, shop, model, worker, client?"""

import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx2
from pydantic import JsonValue
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from activities.postgres import migrate
from durable_agents import AgentClient, Budget, RunHandle
from durable_agents.data_converter import DATA_CONVERTER
from durable_agents.settings import Settings
from starter.embedded.postgres_files import PostgresUrls
from starter.embedded.servers import Endpoints
from worker import WORKFLOWS, Resources, Workers, build_worker, open_resources, sandbox

AGENTS = Path(__file__).parent / "agents"
TEMPLATE = "durable_agents"


@dataclass(frozen=True)
class TestDatabase:
    """A database of its own for one test, in each role."""

    __test__ = False
    admin: str
    owner: str
    app: str
    auditor: str


def at(url: str, database: str) -> str:
    """The same server and role, another database."""
    return f"{url.rpartition('/')[0]}/{database}"


@contextlib.asynccontextmanager
async def fresh_database(urls: PostgresUrls) -> AsyncIterator[TestDatabase]:
    """A migrated database, dropped at the end."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    await _administer(urls, f"create database {name} template {TEMPLATE} strategy wal_log owner durable_agents_owner")
    try:
        yield TestDatabase(*(at(url, name) for url in (urls.admin, urls.owner, urls.app, urls.auditor)))
    finally:
        await _administer(urls, f"drop database {name} with (force)")


async def _administer(urls: PostgresUrls, statement: str) -> None:
    """One connection a statement: the test may kill the server in between."""
    admin = await asyncpg.connect(urls.admin)
    try:
        await admin.execute(statement)
    finally:
        await admin.close()


async def prepare_template(urls: PostgresUrls) -> None:
    """Migrate the database that the others are copies of."""
    await migrate(urls.owner)


def settings_for(database: str, task_queue: str, model: str, agents: Path = AGENTS) -> Settings:
    """Settings of a worker that asks the stand-in model at `model`."""
    values: dict[str, JsonValue] = {
        "DATABASE_URL": database,
        "ANTHROPIC_API_KEY": "test-key",
        "ANTHROPIC_BASE_URL": model,
        "OPENAI_API_KEY": "test-key",
        "OPENAI_BASE_URL": f"{model}/v1",
        "task_queue": task_queue,
        "agents_path": str(agents),
        "graceful_shutdown": "1s",
    }
    return Settings.model_validate(values)


@dataclass
class World:
    """Everything of one test."""

    endpoints: Endpoints
    database: TestDatabase
    client: AgentClient
    settings: Settings
    resources: Resources
    model_url: str
    shop_url: str
    http: httpx2.AsyncClient

    def worker(self, *, cached: int = 0) -> Workers:
        """A worker that replays every run from its history at each task, so that nothing hides in a cache."""
        return build_worker(self.client.temporal, self.settings, self.resources, max_cached_workflows=cached)

    async def script(self, script: JsonValue) -> None:
        """What the stand-in model answers from now on."""
        response = await self.http.post(f"{self.model_url}/script", json=script)
        response.raise_for_status()

    async def fault(self, **fault: JsonValue) -> None:
        """What the shop does wrong from now on."""
        response = await self.http.post(f"{self.shop_url}/faults", json=fault)
        response.raise_for_status()

    async def bill(self) -> dict[str, JsonValue]:
        """What the stand-in model was asked and would bill."""
        bill: dict[str, JsonValue] = (await self.http.get(f"{self.model_url}/bill")).json()
        return bill

    async def shop_counts(self) -> dict[str, int]:
        """What the shop has done."""
        counts: dict[str, int] = (await self.http.get(f"{self.shop_url}/records")).json()["counts"]
        return counts

    async def rows(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Rows as the administrator sees them, all tenants."""
        connection = await asyncpg.connect(self.database.admin)
        try:
            return list(await connection.fetch(query, *arguments))
        finally:
            await connection.close()

    async def change(self, statement: str, *arguments: object) -> None:
        """Move a time, or make a state, instead of waiting for it."""
        connection = await asyncpg.connect(self.database.admin)
        try:
            await connection.execute(statement, *arguments)
        finally:
            await connection.close()

    async def start(
        self,
        input: dict[str, JsonValue] | None = None,  # noqa: A002 - the field's name
        *,
        agent: str = "clerk",
        key: str | None = None,
        budget: Budget | None = None,
        user: str = "requester",
        tenant: str = "acme",
    ) -> RunHandle:
        """Start a run of the test agent."""
        return await self.client.start_new(agent, input or {}, tenant=tenant, user=user, idempotency_key=key, budget=budget)

    async def history(self, run: RunHandle) -> WorkflowHistory:
        """The whole history of a run's last execution."""
        return await self.client.temporal.get_workflow_handle(run.id).fetch_history()

    async def replay(self, run: RunHandle) -> None:
        """The run's own history must replay; else a worker that comes back could not go on."""
        await replayer().replay_workflow(await self.history(run))


def replayer() -> Replayer:
    """A replayer set up as workers are."""
    return Replayer(workflows=WORKFLOWS, data_converter=DATA_CONVERTER, workflow_runner=sandbox())


@contextlib.asynccontextmanager
async def open_world(
    endpoints: Endpoints, database: TestDatabase, client: AgentClient, settings: Settings, model_url: str, shop_url: str
) -> AsyncIterator[World]:
    """Resources of a worker and a client, closed at the end."""
    async with open_resources(settings) as resources, httpx2.AsyncClient(timeout=10) as http:
        yield World(endpoints, database, client, settings, resources, model_url, shop_url, http)


async def require_no_wedged_run(client: AgentClient, queue: str) -> None:
    """No test may leave a run RUNNING whose workflow task fails again and again: every failure has an end."""
    async for execution in client.temporal.list_workflows(f"TaskQueue = '{queue}' AND ExecutionStatus = 'Running'"):
        handle = client.temporal.get_workflow_handle(execution.id, run_id=execution.run_id)
        task = (await handle.describe()).raw_description.pending_workflow_task
        assert task.attempt <= 1, f"{execution.id} is wedged: its workflow task is at attempt {task.attempt}"
