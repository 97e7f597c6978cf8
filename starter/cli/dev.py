"""What does `dev` keep running, in which order does it start, and in which does it stop?

Servers, migrations, then a worker; the worker ends first and may finish what it does. A worker that dies is replaced.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta

from pydantic import JsonValue

from durable_agents.settings import Settings, read_settings
from starter.children import WORKER, WORKER_READY, Child, ChildEndedError, Program
from starter.cli.database import OWNER_URL, migrate_as, without_password
from starter.cli.endpoints import RunningServers, announced
from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.options import Session
from starter.cli.screen import Screen
from starter.cli.stopping import Stop, stopped_by_signals
from starter.demo.stand_ins import open_stand_ins
from starter.embedded.servers import EmbeddedServers, Endpoints, reset
from starter.embedded.state import prepare_state_folder

SHORTEST_PAUSE, LONGEST_PAUSE = timedelta(seconds=1), timedelta(seconds=30)
STEADY = timedelta(seconds=60)
"""A worker that lived so long died of something new: it is replaced at once."""


@dataclass(frozen=True)
class Ports:
    """Fixed ports of the embedded servers; None is the usual one, or any free one."""

    temporal: int | None
    ui: int | None
    postgres: int | None


async def dev(session: Session, ports: Ports, *, afresh: bool, stand_in: bool) -> ExitCode:
    """Run the servers and a worker until Ctrl-C or SIGTERM."""
    settings = read_settings()
    screen = Screen(as_json=session.as_json)
    prepare_state_folder(settings.state_dir)
    with announced(settings.state_dir) as announcement, stopped_by_signals() as stop:
        if afresh:
            reset(settings.state_dir)
            screen.line(f"deleted what the embedded servers kept in {settings.state_dir}")
        servers = _servers(settings, ports)
        endpoints = await stop.before(servers.start())
        if endpoints is None:
            return ExitCode.OK
        try:
            await _migrate(screen, endpoints, settings)
            announcement.write(RunningServers(endpoints.temporal_address, endpoints.temporal_ui, dict(endpoints.environment)))
            _show(screen, endpoints, settings)
            async with AsyncExitStack() as stack:
                more = await _stand_ins(stack, screen, settings) if stand_in else {}
                program = worker_program({**os.environ, **endpoints.environment, **more}, _heard(screen))
                keeper = WorkerKeeper(program, screen.line, stop, settings.graceful_shutdown)
                await keeper.run(lambda: screen.document(_addresses(endpoints, settings)))
        finally:
            screen.line("stopping the servers")
            await servers.stop()
    return ExitCode.OK


def _servers(settings: Settings, ports: Ports) -> EmbeddedServers:
    own = settings.database_url
    return EmbeddedServers(
        settings.state_dir,
        temporal_address=settings.temporal_address,
        database_url=own.get_secret_value() if own else None,
        temporal_port=ports.temporal,
        ui_port=ports.ui,
        postgres_port=ports.postgres,
    )


async def _stand_ins(stack: AsyncExitStack, screen: Screen, settings: Settings) -> dict[str, str]:
    """A shop, and without a key a model, for the refunds agent."""
    found = await open_stand_ins(stack, settings, settings.state_dir)
    screen.facts([("shop", found.shop), ("model", found.model), *_wires(found.environment)])
    return found.environment


def _wires(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    url = environment.get("ANTHROPIC_BASE_URL")
    return [] if url is None else [("script it", f"POST {url}/script")]


async def _migrate(screen: Screen, endpoints: Endpoints, settings: Settings) -> None:
    stated = settings.owner_database_url
    owner = endpoints.environment.get(OWNER_URL) or (stated.get_secret_value() if stated else None)
    if owner is None:
        screen.line(f"the schema is left as it is: {OWNER_URL} is not set", "yellow")
    elif applied := await migrate_as(owner):
        screen.line(f"applied {', '.join(applied)}")


def worker_program(environment: Mapping[str, str], hear: Callable[[str], None]) -> Program:
    """A worker. It never gets the owner's password: with it, it could switch row-level security off."""
    bound = {name: value for name, value in environment.items() if name != OWNER_URL}
    return Program("worker", WORKER, bound, WORKER_READY, hear)


def _heard(screen: Screen) -> Callable[[str], None]:
    return lambda line: screen.line(f"worker | {line}", "dim")


def _addresses(endpoints: Endpoints, settings: Settings) -> dict[str, JsonValue]:
    return {
        "temporal": endpoints.temporal_address,
        "web": endpoints.temporal_ui,
        "database": without_password(endpoints.environment["DATABASE_URL"]),
        "state": str(settings.state_dir),
    }


def _show(screen: Screen, endpoints: Endpoints, settings: Settings) -> None:
    shown = _addresses(endpoints, settings)
    screen.facts((name, str(value)) for name, value in shown.items() if value is not None)


class WorkerKeeper:
    """Keeps one worker running until a stop is asked for.

    Args:
        program: the worker.
        say: tells a person what happened.
        stop: the end.
        grace: how long a worker may finish what it does.
    """

    def __init__(self, program: Program, say: Callable[[str, str], None], stop: Stop, grace: timedelta) -> None:
        self._program, self._say, self._stop, self._grace = program, say, stop, grace
        self._pause = SHORTEST_PAUSE

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start a worker and replace it when it dies; `on_ready` is called once, when the first is ready.

        Raises:
            CliError: the first worker did not start: that would not get better by itself.
        """
        try:
            worker = await self._stop.before(Child.start(self._program))
        except ChildEndedError as error:
            raise CliError(f"{error}: put that right, then start again; `doctor` helps", ExitCode.NO_WORKER) from error
        if worker is not None:
            self._say("up; Ctrl-C stops everything", "bold green")
            on_ready()
        while worker is not None:
            worker = await self._replaced(worker)

    async def _replaced(self, worker: Child) -> Child | None:
        """The worker's successor once it died, or None once it was stopped."""
        started = asyncio.get_running_loop().time()
        code = await self._stop.before(worker.ended())
        if code is None:
            self._say(f"stopping worker {worker.pid}: it finishes what it does; Ctrl-C again ends it now", "")
            await worker.stop(self._grace, self._stop.hurry)
            return None
        if asyncio.get_running_loop().time() - started > STEADY.total_seconds():
            self._pause = SHORTEST_PAUSE
        self._say(f"worker {worker.pid} died ({_how(code)}): starting another; no run is lost", "yellow")
        return await self._another()

    async def _another(self) -> Child | None:
        while not self._stop.asked.is_set():
            try:
                return await self._stop.before(Child.start(self._program))
            except ChildEndedError as error:
                self._say(f"{error}: next try in {self._pause.total_seconds():.0f} s", "yellow")
            await self._stop.before(asyncio.sleep(self._pause.total_seconds()))
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return None


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
