"""What does all this look like in a minute: a refund that waits for consent, survives `kill -9`, and happens once?

On a state folder of its own, with servers of its own, whatever the environment names: a demo has no business on somebody's
real server. What is shown is counted at the shop, which is another process with its own records, not taken from the agent.
"""

import asyncio
import os
import sys
import uuid
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx2
from pydantic import JsonValue
from temporalio.client import Client

from durable_agents.client import AgentClient, RunHandle
from durable_agents.data_converter import DATA_CONVERTER
from durable_agents.domain.prices import format_usd
from durable_agents.domain.runs import RunResult, RunStatus
from durable_agents.settings import Settings, read_settings
from starter.children import ROOT, Child, ChildEndedError, Program
from starter.cli.connection import Connection
from starter.cli.database import OWNER_URL, migrate_as, without_password
from starter.cli.dev import worker_program
from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.follow import Follower
from starter.cli.screen import Screen
from starter.cli.stopping import stopped_by_signals
from starter.cli.views import show_result
from starter.demo.decision import Decider
from starter.demo.stand_ins import log_to, open_stand_ins, start_child
from starter.embedded.servers import NAMESPACE, EmbeddedServers
from starter.embedded.state import prepare_state_folder

REQUESTER = "demo-requester"
ORDER, AMOUNT = "A-1001", 250
SHOP_LIMIT = timedelta(seconds=60)


async def demo(*, yes: bool) -> ExitCode:
    """Play it; everything that was started is stopped again, whatever happens."""
    if not yes and not sys.stdin.isatty():
        raise CliError("the demo asks a person to decide and nobody is at a terminal: use `demo --yes`")
    settings = read_settings()
    folder = settings.state_dir / "demo"
    prepare_state_folder(folder)
    with stopped_by_signals() as stop:
        try:
            ended = await stop.before(_play(Screen(live=yes), settings, folder, yes=yes))
        except (ChildEndedError, httpx2.HTTPError) as error:
            what = str(error) or f"the shop was not asked within {SHOP_LIMIT.total_seconds():.0f} s"
            raise CliError(
                f"{what}: look into the logs in {folder}, then start the demo again", ExitCode.NOT_REACHABLE
            ) from error
    if ended is None:
        raise CliError("interrupted: everything the demo started is stopped, start it again any time", ExitCode.INTERRUPTED)
    return ended


async def _play(screen: Screen, settings: Settings, folder: Path, *, yes: bool) -> ExitCode:
    async with AsyncExitStack() as stack:
        stage = await _set_up(stack, screen, settings, folder)
        handle = await stage.start_run()
        await stage.kill_worker_in_the_middle(stack, handle)
        decider = Decider(screen, handle, stage.connection.client.identity, yes=yes)
        screen.line("following the run; what happened before the kill is in its history", "bold")
        result = await Follower(screen, handle, stage.connection.address).until_end(decider.decide_what_waits)
        code = await stage.account(result, approved=decider.approved)
        if not yes:
            screen.line("Press Enter to stop the servers", "bold")
            await decider.typed_line()
        screen.line("stopping everything the demo started")
        return code


async def _set_up(stack: AsyncExitStack, screen: Screen, settings: Settings, folder: Path) -> "Stage":
    screen.line("starting a Temporal server, PostgreSQL, a shop and a worker", "bold")
    servers = EmbeddedServers(folder)
    stack.push_async_callback(servers.stop)
    endpoints = await servers.start()
    await migrate_as(endpoints.environment[OWNER_URL])
    _forget_records(folder)
    stand_ins = await open_stand_ins(stack, settings, folder)
    more = {**stand_ins.environment, "DURABLE_AGENTS_AGENTS_PATH": str(ROOT / "agents")}
    program = worker_program({**_own_environment(), **endpoints.environment, **more}, log_to(folder / "worker.log"))
    worker = await start_child(stack, program)
    temporal = await Client.connect(endpoints.temporal_address, namespace=NAMESPACE, data_converter=DATA_CONVERTER)
    client = AgentClient(temporal, task_queue=settings.task_queue, identity=settings.identity or None)
    connection = Connection(client, settings, endpoints.temporal_ui, endpoints.temporal_address)
    screen.facts(
        [
            ("Temporal", endpoints.temporal_address),
            ("Web UI", endpoints.temporal_ui or "none"),
            ("database", without_password(endpoints.environment["DATABASE_URL"])),
            ("shop", stand_ins.shop),
            ("model", stand_ins.model),
            ("worker", f"pid {worker.pid}"),
        ]
    )
    return Stage(screen, connection, program, worker, stand_ins.shop)


def _forget_records(folder: Path) -> None:
    """The shop begins with empty books, so that what is counted is this demo's."""
    for old in folder.glob("shop.sqlite3*"):
        old.unlink()


def _own_environment() -> dict[str, str]:
    """The environment, without what it may say of a Temporal server of the person's own (TLS, keys, profiles)."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}


@dataclass
class Stage:
    """The demo once everything runs."""

    screen: Screen
    connection: Connection
    program: Program
    worker: Child
    shop_url: str

    async def start_run(self) -> RunHandle:
        """Start the refund; the shop will hold back its first answer."""
        fault = {"path": "/orders/*", "after_effect": "hang"}
        async with self._shop() as shop:
            (await shop.post("/faults", json=fault)).raise_for_status()
        key = f"demo-{uuid.uuid4().hex[:8]}"
        given: dict[str, JsonValue] = {"order": ORDER, "amount": AMOUNT}
        handle = await self.connection.client.start_new("refunds", given, user=REQUESTER, idempotency_key=key)
        self.screen.line(f"started {handle.id}: {REQUESTER} asks for {AMOUNT} back on order {ORDER}", "bold")
        self.screen.facts([("Web UI", self.connection.run_url(handle.id) or "none")])
        return handle

    async def kill_worker_in_the_middle(self, stack: AsyncExitStack, handle: RunHandle) -> None:
        """`kill -9` while the shop's answer is under way; it holds it back so that the kill cannot come too late."""
        async with self._shop() as shop:
            if not await _before_the_end(handle, shop.get("/hanging", params={"at_least": "1"})):
                self.screen.line("the run ended before it looked the order up, so no worker is killed", "yellow")
                return
            self.screen.line(
                f"the order was looked up and the answer is under way: kill -9 {self.worker.pid} (the worker)", "red"
            )
            await self.worker.kill()
            (await shop.post("/release")).raise_for_status()
        self.worker = await start_child(stack, self.program)
        self.screen.line(f"started another worker, pid {self.worker.pid}; Temporal notices the dead one within 4 s")

    async def account(self, result: RunResult, *, approved: bool) -> ExitCode:
        """Show how it ended and what it cost, and count the effects where they happened."""
        show_result(self.screen, result)
        async with self._shop() as shop:
            counts = (await shop.get("/records")).raise_for_status().json()["counts"]
        wanted = 1 if approved else 0
        told = counts["messages"] == wanted or (not approved and counts["messages"] <= 1)
        right = result.status is RunStatus.COMPLETED and counts["refunds"] == wanted and told
        self.screen.line("the shop's own records", "bold")
        self.screen.facts([("refunds", str(counts["refunds"])), ("messages to the customer", str(counts["messages"]))])
        self.screen.facts([("it cost", format_usd(result.spend.cost_micros))])
        self.screen.facts([("Web UI", self.connection.run_url(result.run_id) or "none")])
        if not right:
            self.screen.line(f"that is not what had to happen: {wanted} of each, and a completed run", "bold red")
        return ExitCode.OK if right else ExitCode.UNEXPECTED

    def _shop(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.shop_url, timeout=SHOP_LIMIT.total_seconds(), trust_env=False)


async def _before_the_end(handle: RunHandle, event: Coroutine[None, None, httpx2.Response]) -> bool:
    """Whether the shop reports the event before the run is over."""
    happening, ending = asyncio.create_task(event), asyncio.create_task(handle.result())
    try:
        await asyncio.wait({happening, ending}, return_when=asyncio.FIRST_COMPLETED)
        return happening.done() and happening.result().is_success
    finally:
        happening.cancel()
        ending.cancel()
