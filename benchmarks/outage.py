"""What does an outage of a provider look like from the provider's side, and does any run notice it?

`python benchmarks/outage.py [--seconds 60] [--runs 200]` runs agents on real servers and two worker processes of its own against
a model on loopback that answers 529 for a while, and prints what arrived there before, during and after. Exit code 1 if an aim
was missed. The chain has one model: a run that does not wait has nowhere to go.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import asyncpg
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from durable_agents import AgentClient, RunHandle, RunStatus
from durable_agents.domain.provider_gates import PATIENCE
from starter.children import WORKER, WORKER_READY, Child, Program
from starter.demo.loopback import serve
from starter.embedded.servers import EmbeddedServers, Endpoints
from tests.support.world import fresh_database, prepare_template

WINDOW = 5.0
"""Seconds over which requests are counted: in shorter ones a steady stream of a few requests a second has peaks of its own."""
AGENT_FILES = {
    "agent.yaml": "name: patient\ndescription: Waits for its one model.\nmodels:\n"
    "  - {provider: anthropic, model: claude-haiku-5-5, max_tokens: 200, timeout: 60s}\nbudget: {turns: 500}\n",
    "prompt.md": "Go on.\n",
    "policy.yaml": "rules: []\n",
}


@dataclass
class Outage:
    """A model that answers after some time, or not at all for a while, and knows when it was asked.

    A conversation is `turns` calls and nothing else: each answer but the last asks to be asked again.
    """

    latency: float
    turns: int
    failing: bool = False
    asked: list[tuple[float, bool]] = field(default_factory=list)
    """When, and whether it answered."""

    async def answer(self, request: Request) -> Response:
        """One request."""
        self.asked.append((time.monotonic(), not self.failing))
        if self.failing:
            return JSONResponse({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, 529)
        body = await request.json()
        had = sum(len(message["content"]) for message in body["messages"] if message["role"] == "assistant")
        await asyncio.sleep(self.latency * random.uniform(0.75, 1.25))  # noqa: S311 - no model is a metronome
        return JSONResponse(
            {
                "id": f"msg_{len(self.asked)}",
                "type": "message",
                "role": "assistant",
                "model": body["model"],
                "content": [{"type": "text", "text": "on"}],
                "stop_reason": "pause_turn" if had + 1 < self.turns else "end_turn",
                "stop_sequence": None,
                "usage": {"input_tokens": 20 + 10 * had, "output_tokens": 5},
            }
        )


@dataclass(frozen=True)
class Times:
    """When what began, by the monotonic clock."""

    steady: float
    outage: float
    back: float
    end: float


@dataclass(frozen=True)
class Figures:
    """Requests per second at the provider, and how the runs ended."""

    before: float
    peak_before: float
    during: float
    after: float
    peak: float
    probes: int
    failed: int
    degraded: int
    recovered_after: float
    """Seconds from the end of the outage to the first answer."""

    @property
    def share(self) -> float:
        """Of the normal requests, how many came during the outage."""
        return self.during / self.before

    @property
    def recovery(self) -> float:
        """The highest rate after the outage, of the steady rate before."""
        return self.peak / self.before

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"requests/s before the outage   {self.before:.1f} (peak {self.peak_before:.1f}, windows of {WINDOW:.0f} s)",
            f"requests/s during   {self.during:.2f}",
            f"requests/s after   {self.after:.1f} (peak {self.peak:.1f})",
            f"during the outage   {self.share:.1%} of normal, {self.probes} requests in all   (aim: at most 10 % plus probes)",
            f"recovery peak   {self.recovery:.2f} × steady   (aim: at most 1.5)",
            f"first answer   {self.recovered_after:.1f} s after the provider was back",
            f"runs that failed   {self.failed}, degraded   {self.degraded}   (aim: 0)",
        ]


def write_agent(folder: Path) -> Path:
    """A folder of agents with one that has one model."""
    (folder / "patient").mkdir(parents=True)
    for name, text in AGENT_FILES.items():
        (folder / "patient" / name).write_text(text)
    return folder


def app_of(model: Outage) -> Starlette:
    """The model as a server."""
    return Starlette(routes=[Route("/v1/messages", model.answer, methods=["POST"])])


async def pass_seconds(seconds: float) -> None:
    """The load runs on meanwhile."""
    await asyncio.sleep(seconds)


async def outage(
    model: Outage, client: AgentClient, *, runs: int, warm_up: float, seconds: float
) -> tuple[Times, list[RunStatus]]:
    """Start the runs over one answer's time, let them settle, break the model, mend it, and wait for every run."""
    handles: list[RunHandle] = []
    for n in range(runs):
        handles.append(await client.start_new("patient", {"n": n}, tenant="bench", user="bench"))
        await pass_seconds(model.latency / runs)
    steady = time.monotonic() + warm_up / 2
    await pass_seconds(warm_up)
    model.failing, broken = True, time.monotonic()
    await pass_seconds(seconds)
    model.failing, back = False, time.monotonic()
    async with asyncio.timeout(PATIENCE.total_seconds() + 3 * model.turns * model.latency):  # it ends by itself, whatever happens
        results = await asyncio.gather(*(handle.result() for handle in handles))
    return Times(steady, broken, back, time.monotonic()), [result.status for result in results]


def figures(model: Outage, times: Times, ended: list[RunStatus], window: float = WINDOW) -> Figures:
    """What the provider saw."""
    asked = [at for at, _ in model.asked]
    during = sum(times.outage <= at < times.back for at in asked)
    answered = min((at for at, good in model.asked if good and at >= times.back), default=times.end)
    return Figures(
        before=sum(times.steady <= at < times.outage for at in asked) / (times.outage - times.steady),
        peak_before=_peak(asked, times.steady, times.outage, window),
        during=during / (times.back - times.outage),
        after=sum(at >= times.back for at in asked) / (times.end - times.back),
        peak=_peak(asked, times.back, times.end, window),
        probes=during,
        failed=sum(status not in (RunStatus.COMPLETED, RunStatus.DEGRADED) for status in ended),
        degraded=ended.count(RunStatus.DEGRADED),
        recovered_after=answered - times.back,
    )


def _peak(asked: list[float], begin: float, end: float, window: float) -> float:
    """The most requests per second in any window that begins with one."""
    inside = [at for at in asked if begin <= at < end]
    return max((sum(first <= at < first + window for at in inside) for first in inside), default=0) / window


@contextlib.asynccontextmanager
async def worker_processes(endpoints: Endpoints, database: str, queue: str, model: str, agents: Path) -> AsyncIterator[None]:
    """Two workers, each a process of its own."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("TEMPORAL_", "DURABLE_AGENTS_"))}
    environment = bare | {
        "TEMPORAL_ADDRESS": endpoints.temporal_address,
        "DATABASE_URL": database,
        "ANTHROPIC_API_KEY": "bench-key",
        "ANTHROPIC_BASE_URL": model,
        "DURABLE_AGENTS_TASK_QUEUE": queue,
        "DURABLE_AGENTS_AGENTS_PATH": str(agents),
        "DURABLE_AGENTS_LOG_LEVEL": "ERROR",
        "DURABLE_AGENTS_GRACEFUL_SHUTDOWN": "1s",
    }
    program = Program("worker", WORKER, environment, WORKER_READY, lambda line: print(f"  worker | {line}"))
    children = await asyncio.gather(Child.start(program), Child.start(program))
    try:
        yield
    finally:
        await asyncio.gather(*(child.stop(timedelta(seconds=10)) for child in children))


async def main(runs: int, seconds: float, latency: float) -> int:
    """Print the figures; 1 if an aim was missed."""
    warm_up = 4 * latency
    turns = 5 + round((warm_up + 30) / latency)  # enough to be busy before, and long enough after
    with tempfile.TemporaryDirectory() as folder:
        agents = write_agent(Path(folder, "agents"))
        model = Outage(latency, turns)
        async with EmbeddedServers(Path(folder), headless=True) as endpoints, serve(app_of(model)) as url:
            assert endpoints.urls is not None
            await prepare_template(endpoints.urls)
            async with fresh_database(endpoints.urls) as database:
                queue = f"bench-{uuid.uuid4().hex[:6]}"
                client = await AgentClient.connect(endpoints.temporal_address, task_queue=queue)
                async with worker_processes(endpoints, database.app, queue, url, agents):
                    print(f"{runs} runs, 2 workers, {seconds:.0f} s of 529, answers take about {latency:.0f} s")
                    times, ended = await outage(model, client, runs=runs, warm_up=warm_up, seconds=seconds)
                tries = await _tries(database.admin)
    found = figures(model, times, ended)
    print("\n".join(found.lines()))
    print(f"requests per model call   {json.dumps(tries)}   (aim: at most 3)")
    good = found.failed == 0 and found.degraded == 0 and found.recovery <= 1.5 and found.share <= 0.1
    print("all aims met" if good else "AN AIM WAS MISSED")
    return 0 if good else 1


async def _tries(admin: str) -> dict[str, int]:
    connection = await asyncpg.connect(admin)
    try:
        per_call = "select count(*) as tries from model_attempt group by tenant, run_id, call"
        rows = await connection.fetch(f"select tries, count(*) as calls from ({per_call}) t group by 1 order by 1")  # noqa: S608
    finally:
        await connection.close()
    return {str(row["tries"]): row["calls"] for row in rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--latency", type=float, default=8.0, help="seconds a good answer takes, more or less")
    given = parser.parse_args()
    code = asyncio.run(main(given.runs, given.seconds, given.latency))
    sys.stdout.flush()
    time.sleep(0.1)  # the SDK's threads abort the interpreter now and then when it ends at once
    sys.exit(code)
