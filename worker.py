"""How is a worker put together? `python worker.py` runs one until SIGTERM or Ctrl-C.

The composition root: settings → resources → activities → sandbox → Workers. Nobody imports it but tests.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any

from pydantic import SecretStr
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
)
from temporalio.common import WorkerDeploymentVersion
from temporalio.service import RPCError
from temporalio.worker import Worker, WorkerDeploymentConfig
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxMatcher, SandboxRestrictions

from activities.agent_files import AgentFileError
from activities.agents import AgentCatalog
from activities.approvals import ApprovalActivities
from activities.model_calls import ModelActivities
from activities.notifiers import Notifier, NotifierError, notifier_of
from activities.postgres import Database, DatabaseError
from activities.providers.anthropic import AnthropicProvider
from activities.providers.interface import ModelProvider
from activities.providers.openai import OpenAIProvider
from activities.runs import RunActivities
from activities.tool_calls import ToolActivities
from activities.upkeep import UpkeepActivities
from durable_agents.client import AgentClient
from durable_agents.domain.model_calls import Provider
from durable_agents.domain.provider_gates import fingerprint
from durable_agents.domain.task_queues import PROVIDERS, provider_queue
from durable_agents.errors import NotReachable
from durable_agents.settings import Settings, SettingsError, read_settings
from workflows.agent_run import AgentRun
from workflows.upkeep import Upkeep

WORKFLOWS = [AgentRun, Upkeep]
OUT_OF_BOUNDS = (
    "activities",
    "starter",
    "worker",
    "anthropic",
    "openai",
    "apprise",
    "asyncpg",
    "cryptography",
    "httpx2",
    "ruamel",
    "genai_prices",
)
"""What a workflow may never import: I/O of ours and of others."""
UPKEEP_EVERY = timedelta(minutes=5)
"""How often the ledgers are gone over and people are told; the schedule can be changed in the Web UI."""
STICKY_TIMEOUT = timedelta(seconds=2)
"""How long a workflow task waits for the worker that knows the run before any other takes it: part of the 8 s after a kill."""


@dataclass(frozen=True)
class Resources:
    """What activities need from outside, opened once per worker."""

    database: Database
    catalog: AgentCatalog
    providers: dict[Provider, ModelProvider]
    notifier: Notifier


def sandbox() -> SandboxedWorkflowRunner:
    """Workflow modules are re-imported per run and watched; the pure kernel is passed through; I/O is refused."""
    children = {name: SandboxMatcher(match_self=True) for name in OUT_OF_BOUNDS}
    restrictions = SandboxRestrictions.default.with_passthrough_modules("durable_agents")
    return SandboxedWorkflowRunner(
        restrictions=SandboxRestrictions(
            passthrough_modules=restrictions.passthrough_modules,
            invalid_modules=SandboxMatcher(children=children),
            invalid_module_members=restrictions.invalid_module_members,
        )
    )


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Open database, agents and provider clients; close them at the end."""
    if settings.database_url is None:
        raise DatabaseError("DATABASE_URL is not set: give the durable_agents_app role's URL, or use `python -m starter dev`")
    catalog = AgentCatalog.load(settings.agent_folders)
    notifier = notifier_of(settings.notified)
    async with open_providers(settings) as providers:
        database = await Database.open(settings.database_url.get_secret_value())
        try:
            yield Resources(database, catalog, providers, notifier)
        finally:
            await database.close()


@asynccontextmanager
async def open_providers(settings: Settings) -> AsyncIterator[dict[Provider, ModelProvider]]:
    """A client for each provider there is a key for, closed at the end."""
    providers: dict[Provider, ModelProvider] = {}
    if settings.anthropic_api_key is not None:
        providers["anthropic"] = AnthropicProvider(settings.anthropic_api_key.get_secret_value(), settings.anthropic_base_url)
    if settings.openai_api_key is not None:
        providers["openai"] = OpenAIProvider(settings.openai_api_key.get_secret_value(), settings.openai_base_url)
    try:
        yield providers
    finally:
        await asyncio.gather(*(provider.close() for provider in providers.values()))


def key_fingerprints(settings: Settings) -> dict[Provider, str]:
    """What each provider's key is known by where workers share what they have seen of it."""
    keys: dict[Provider, SecretStr | None] = {"anthropic": settings.anthropic_api_key, "openai": settings.openai_api_key}
    return {provider: fingerprint(key.get_secret_value()) for provider, key in keys.items() if key is not None}


def takes_unsigned(catalog: AgentCatalog) -> list[str]:
    """The agents with a ladder on which unsigned decisions count."""
    agents = {name: catalog.get(name) for name in catalog.names()}
    return [
        name
        for name, agent in agents.items()
        if agent is not None and any(not ladder.signed for ladder in agent.pinned.policy.ladders.values())
    ]


class Workers:
    """What one process polls: the main queue, and one queue for the model calls of each provider. Used like a single `Worker`."""

    def __init__(self, main: Worker, providers: Sequence[Worker]) -> None:
        self.main = main
        self._all = (main, *providers)
        self._running: asyncio.Task[None] | None = None
        self._leaving = False

    async def run(self) -> None:
        """Poll until `shutdown`. An error that ends one of them stops all of them, and comes out of here."""
        runs = [asyncio.create_task(worker.run()) for worker in self._all]
        try:
            await asyncio.wait(runs, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            await self.shutdown()
            ended = await asyncio.gather(*runs, return_exceptions=True)
        for error in ended:
            if error is not None:
                raise error

    async def shutdown(self) -> None:
        """Take no more work, let running activities finish side by side, and wait until all have stopped."""
        await asyncio.gather(*(worker.shutdown() for worker in self._all))

    async def __aenter__(self) -> "Workers":
        """Start polling. An error that ends a worker cancels the caller's block and takes the place of that cancellation."""
        caller = asyncio.current_task()
        assert caller is not None

        def ended(run: asyncio.Task[None]) -> None:
            if not self._leaving and not run.cancelled() and run.exception() is not None:
                caller.cancel()

        self._running = asyncio.create_task(self.run())
        self._running.add_done_callback(ended)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop, and wait until all have stopped."""
        assert self._running is not None
        self._leaving = True
        await self.shutdown()
        await asyncio.wait([self._running])
        failure = None if self._running.cancelled() else self._running.exception()
        if failure is not None and (kind is None or issubclass(kind, asyncio.CancelledError)):
            raise failure


def build_worker(temporal: Client, settings: Settings, resources: Resources, *, max_cached_workflows: int = 1000) -> Workers:
    """Workers with every workflow and activity of this project.

    Each provider's queue is polled also without a key for it: its calls then end as `no_key`, where a queue that nobody polls
    would let them wait for ever. Model calls that were scheduled on the main queue, before there were others, are still made.
    """
    keys = key_fingerprints(settings)
    runs = RunActivities(resources.database, resources.catalog, resources.providers, keys)
    models = ModelActivities(resources.database, resources.providers, keys)
    tools = ToolActivities(resources.database, resources.catalog)
    approvals = ApprovalActivities(temporal, resources.database)
    upkeep = UpkeepActivities(resources.database, resources.notifier, settings.audit_anchors)
    everything: list[Callable[..., Any]] = [
        runs.admit_run,
        models.call_model,
        tools.run_tool,
        approvals.find_arrival,
        approvals.verify_decisions,
        approvals.find_sent_decisions,
        approvals.tell_approvers,
        runs.find_earlier_answer,
        runs.record_decision,
        runs.finish_run,
        upkeep.reconcile_ledgers,
        upkeep.anchor_audit,
        upkeep.deliver_notifications,
    ]
    build = WorkerDeploymentConfig(
        version=WorkerDeploymentVersion("durable-agents", settings.build_id), use_worker_versioning=False
    )
    main = Worker(
        temporal,
        task_queue=settings.task_queue,
        workflows=WORKFLOWS,
        activities=everything,
        workflow_runner=sandbox(),
        max_cached_workflows=max_cached_workflows,
        max_concurrent_activities=settings.worker_concurrency,
        sticky_queue_schedule_to_start_timeout=STICKY_TIMEOUT,
        graceful_shutdown_timeout=settings.graceful_shutdown,
        deployment_config=build,
    )
    providers = [
        Worker(
            temporal,
            task_queue=provider_queue(settings.task_queue, provider),
            activities=[models.call_model],
            max_concurrent_activities=settings.worker_concurrency,
            graceful_shutdown_timeout=settings.graceful_shutdown,
            deployment_config=build,
        )
        for provider in PROVIDERS
    ]
    return Workers(main, providers)


async def schedule_upkeep(temporal: Client, task_queue: str) -> None:
    """Make sure of the schedule that looks after the ledgers. One that is there stays as its operator has left it."""
    action = ScheduleActionStartWorkflow(
        Upkeep.run, id=f"upkeep-{task_queue}", task_queue=task_queue, static_summary="ledgers and notifications"
    )
    schedule = Schedule(
        action=action,
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=UPKEEP_EVERY)]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=UPKEEP_EVERY),
    )
    try:
        await temporal.create_schedule(f"upkeep-{task_queue}", schedule)
    except ScheduleAlreadyRunningError:
        return
    except RPCError as error:
        logging.getLogger(__name__).warning("the upkeep schedule was not made: %s", error)


async def run_worker(settings: Settings, stop: asyncio.Event) -> None:
    """Work until `stop` is set; running activities are let finish."""
    client = await AgentClient.connect(task_queue=settings.task_queue)
    async with open_resources(settings) as resources, build_worker(client.temporal, settings, resources):
        await schedule_upkeep(client.temporal, settings.task_queue)
        if unsigned := takes_unsigned(resources.catalog):
            sys.stdout.write(
                f"warning: decisions about {', '.join(unsigned)} count unsigned: whoever may write to the Temporal namespace"
                " can decide in anybody's name (`signed: true` in policy.yaml; docs/consent.md)\n"
            )
        agents = ", ".join(resources.catalog.names()) or "none"
        sys.stdout.write(f"worker ready: task queue {settings.task_queue}, agents: {agents}, pid {os.getpid()}\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> int:
    """Run a worker in this process. Exit code 0 after a stop, 3 when something it needs is not there, 2 for bad settings."""
    try:
        settings = read_settings()
        logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line per request to a provider is noise
        asyncio.run(_until_signalled(settings))
    except (SettingsError, AgentFileError, NotifierError) as error:
        return _complain(error, 2)
    except (DatabaseError, NotReachable) as error:
        return _complain(error, 3)
    return 0


async def _until_signalled(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run_worker(settings, stop)


def _complain(error: Exception, code: int) -> int:
    sys.stderr.write(f"error: {error}\n")
    return code


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    time.sleep(0.1)  # the SDK's threads abort the interpreter now and then when it ends at once (temporalio/sdk-python 300)
    sys.exit(exit_code)
