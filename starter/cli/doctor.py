"""What keeps this machine from running agents, and what puts it right?

Every check is one line. Nothing is changed, and a check whose ground is missing says so instead of failing a second time.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.service import RPCError

from activities.postgres import Database, DatabaseError
from durable_agents.errors import NotReachable
from durable_agents.search_attributes import AGENT_NAME, AGENT_STATUS, PENDING_APPROVALS, TENANT
from durable_agents.settings import Settings, SettingsError, read_settings
from starter.cli.agent_list import find_agents, problem_of
from starter.cli.connection import connect
from starter.cli.database import database_url, without_password
from starter.cli.exit_codes import ExitCode
from starter.cli.options import Session
from starter.cli.screen import Screen


@dataclass(frozen=True)
class Check:
    """One line: `good` is None when there was nothing to look at."""

    what: str
    good: bool | None
    found: str
    remedy: str = ""


async def doctor(session: Session) -> ExitCode:
    """Look at everything, print one line each; exit code 1 if something is wrong."""
    checks = [_python(), *await _everything_else(session)]
    screen = Screen(as_json=session.as_json)
    for check in checks:
        mark, style = {True: ("ok", "green"), False: ("WRONG", "red"), None: ("-", "dim")}[check.good]
        screen.line(f"{mark:5}  {check.what}: {check.found}" + (f": {check.remedy}" if check.remedy else ""), style)
    screen.document([vars(check) for check in checks])
    return ExitCode.UNEXPECTED if any(check.good is False for check in checks) else ExitCode.OK


def _python() -> Check:
    version = sys.version.split()[0]
    return Check("Python", sys.version_info >= (3, 11), version, "" if sys.version_info >= (3, 11) else "use 3.11 or newer")


async def _everything_else(session: Session) -> list[Check]:
    try:
        settings = read_settings()
    except SettingsError as error:
        return [Check("settings", good=False, found=str(error))]
    checks = [Check("settings", good=True, found="every DURABLE_AGENTS_* name is known")]
    return [*checks, *await _temporal(session, settings), await _database(settings), _agents(settings), _models(settings)]


async def _temporal(session: Session, settings: Settings) -> list[Check]:
    try:
        client = (await connect(session)).client.temporal
    except NotReachable as error:
        return [Check("Temporal", good=False, found=str(error))]
    reached = Check("Temporal", good=True, found=f"answers at {client.service_client.config.target_host}, {client.namespace}")
    looks: list[Callable[[Client, Settings], Awaitable[Check]]] = [_search_attributes, _worker]
    return [reached, *await asyncio.gather(*(_asked(look, client, settings) for look in looks))]


async def _asked(look: Callable[[Client, Settings], Awaitable[Check]], client: Client, settings: Settings) -> Check:
    try:
        return await look(client, settings)
    except RPCError as error:
        return Check(look.__name__.strip("_").replace("_", " "), good=False, found=f"the server does not say ({error})")


async def _search_attributes(client: Client, _: Settings) -> Check:
    answer = await client.operator_service.list_search_attributes(ListSearchAttributesRequest(namespace=client.namespace))
    wanted = [key.name for key in (AGENT_NAME, TENANT, AGENT_STATUS, PENDING_APPROVALS)]
    missing = [name for name in wanted if name not in answer.custom_attributes]
    if not missing:
        return Check("search attributes", good=True, found=f"{len(wanted)} registered")
    kind = "KeywordList" if missing[0] == PENDING_APPROVALS.name else "Keyword"
    remedy = f"temporal operator search-attribute create --name {missing[0]} --type {kind}"
    return Check("search attributes", good=False, found=f"{', '.join(missing)} missing", remedy=f"run `{remedy}`")


async def _worker(client: Client, settings: Settings) -> Check:
    request = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=settings.task_queue),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
    )
    pollers = (await client.workflow_service.describe_task_queue(request)).pollers
    if pollers:
        return Check("worker", good=True, found=f"{len(pollers)} polling {settings.task_queue} ({pollers[0].identity})")
    remedy = "start one with `python worker.py`, or `python -m starter dev`"
    return Check("worker", good=False, found=f"none polls {settings.task_queue}", remedy=remedy)


async def _database(settings: Settings) -> Check:
    url = database_url(settings)
    if url is None:
        return Check("database", good=None, found="DATABASE_URL is not set here, so it was not looked at")
    try:
        database = await Database.open(url, max_size=1)
    except DatabaseError as error:
        return Check("database", good=False, found=str(error))
    await database.close()
    return Check("database", good=True, found=f"{without_password(url)}: schema up to date, role bound by row-level security")


def _agents(settings: Settings) -> Check:
    problem = problem_of(settings.agent_folders)
    names = ", ".join(agent.name for agent in find_agents(settings.agent_folders)) or "none"
    return Check("agents", good=not problem, found=problem or f"{names} in {settings.agents_path}")


def _models(settings: Settings) -> Check:
    """Only whether there are keys: to ask a provider would cost money, and the worker may have others."""
    keys = {"ANTHROPIC_API_KEY": settings.anthropic_api_key, "OPENAI_API_KEY": settings.openai_api_key}
    there = [name for name, key in keys.items() if key is not None]
    if there:
        return Check("model keys", good=True, found=", ".join(there))
    return Check("model keys", good=None, found="none set here", remedy=f"a worker needs {' or '.join(keys)}; `demo` needs none")
