"""How does a person start runs, look at them, change their budget and cancel them?"""

import getpass
import shlex
import uuid
from dataclasses import dataclass

from pydantic import ValidationError

from durable_agents.client import RunHandle
from durable_agents.domain.runs import RunRequest, RunResult, RunStatus
from durable_agents.domain.tools import describe_errors
from durable_agents.errors import InvalidRequest, NotFound
from durable_agents.settings import read_settings
from starter.cli.connection import Connection, connect, connect_to_run
from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.follow import Follower, exit_code
from starter.cli.inputs import read_budget, read_input
from starter.cli.options import Session
from starter.cli.plain_text import say
from starter.cli.screen import Screen
from starter.cli.views import show_budget, show_result, show_status


@dataclass(frozen=True)
class Start:
    """What `run` was asked for, as it was typed."""

    agent: str
    input: str
    tenant: str
    user: str | None
    key: str | None
    budget: str | None
    priority: str
    wait: bool


async def start(session: Session, asked: Start) -> ExitCode:
    """Start a run, or find the one of this key, and follow it if wanted."""
    request = _request(asked)
    connection = await connect(session)
    handle = await connection.client.start(request)
    screen = Screen(as_json=session.as_json)
    url = connection.run_url(handle.id)
    screen.line(f"started {handle.id}" + (f", see {url}" if url else ""), "bold")
    if asked.wait:
        return await _follow(session, connection, handle)
    again = shlex.join(["python", "-m", "starter", "watch", handle.id])
    screen.line(f"follow it with {again}")
    screen.document({"run_id": handle.id, "url": url})
    return ExitCode.OK


def _request(asked: Start) -> RunRequest:
    """What was typed, checked before anything is connected to."""
    try:
        return RunRequest(
            agent=asked.agent,
            input=read_input(asked.input),
            tenant=asked.tenant,
            user=asked.user or read_settings().identity or getpass.getuser(),
            idempotency_key=asked.key or uuid.uuid4().hex,
            budget=read_budget(asked.budget),
            priority=asked.priority,  # whatever was typed: the model refuses what it does not know
        )
    except ValidationError as error:
        raise CliError(f"{describe_errors(error)}: correct it, nothing was started") from None


async def watch(session: Session, run: str, tenant: str) -> ExitCode:
    """Follow a run until it ends."""
    return await _follow(session, *await connect_to_run(session, run, tenant))


async def _follow(session: Session, connection: Connection, handle: RunHandle) -> ExitCode:
    screen = Screen(as_json=session.as_json)
    result = await Follower(screen, handle, connection.address).until_end()
    show_result(screen, result)
    screen.document(result)
    return _ending(result)


def _ending(result: RunResult) -> ExitCode:
    if result.status is RunStatus.FAILED and result.failure is not None:
        say(f"error: {result.run_id} failed ({result.failure.kind}): {result.failure.message}")
    return exit_code(result)


async def status(session: Session, run: str, tenant: str) -> ExitCode:
    """Say where a run stands."""
    connection, handle = await connect_to_run(session, run, tenant)
    view = await handle.status()
    screen = Screen(as_json=session.as_json)
    show_status(screen, view, connection.run_url(view.run_id))
    screen.document(view)
    return ExitCode.OK


async def cancel(session: Session, run: str, tenant: str, *, reason: str, by: str | None) -> ExitCode:
    """Ask a run to stop at the next safe point."""
    _, handle = await connect_to_run(session, run, tenant)
    try:
        await handle.cancel(reason=reason, by=by)
    except NotFound as error:
        raise await ended_or_unknown(handle, error) from None
    screen = Screen(as_json=session.as_json)
    screen.line(f"asked {handle.id} to stop: it ends at the next safe point, no effect is cut in half")
    screen.document({"run_id": handle.id, "cancel_requested": True})
    return ExitCode.OK


async def budget(session: Session, run: str, tenant: str, *, raise_to: str | None, reason: str, by: str | None) -> ExitCode:
    """Show a run's budget, raised before if wanted."""
    limits = read_budget(raise_to, "--raise")
    _, handle = await connect_to_run(session, run, tenant)
    try:
        view = await (handle.budget() if limits is None else handle.raise_budget(limits, reason=reason, by=by))
    except InvalidRequest as error:
        raise CliError(f"{handle.id} refused: {error}", ExitCode.REFUSED) from error
    screen = Screen(as_json=session.as_json)
    show_budget(screen, handle.id, view)
    screen.document(view)
    return ExitCode.OK


async def ended_or_unknown(handle: RunHandle, error: NotFound) -> CliError | NotFound:
    """A closed run and no run at all look the same to a message; this tells them apart."""
    try:
        view = await handle.status()
    except NotFound:
        return error
    return CliError(f"{handle.id} has ended ({view.status}): it takes no more messages", ExitCode.REFUSED)
