"""How is a model called outside of Temporal, attempt by attempt, as Temporal would do it?"""

import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from temporalio.testing import ActivityEnvironment

from activities.agents import AgentCatalog
from activities.model_calls import ModelActivities
from activities.postgres import Database
from activities.providers.anthropic import AnthropicProvider
from activities.providers.interface import ModelProvider
from activities.providers.openai import OpenAIProvider
from activities.runs import RunActivities
from durable_agents.activity_contracts import Admission, AdmissionRequest
from durable_agents.domain.identifiers import Micros, RunId, TenantId
from durable_agents.domain.model_calls import ModelCallRequest, ModelOutcome, Provider
from durable_agents.domain.runs import RunRequest
from starter.demo.loopback import serve
from starter.demo.model_script import Refunds, Reply
from starter.demo.model_wires import ModelRequest
from starter.demo.stand_in_model import ANTHROPIC, OPENAI, Entry, StandIn, Wire

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
PRICE = "{input: 3, output: 15}"


class ToldModel(StandIn):
    """The stand-in, on both wires; what it says to a run is what the test has put down for it, and its bill has names."""

    def __init__(self) -> None:
        super().__init__(Refunds())
        self.told: dict[str, list[Reply]] = {}
        """By the run's key; the last one is said again and again."""
        self.asked_by: list[str] = []
        """Beside each line of the bill, the run's key."""

    def _decide(self, wire: Wire, request: Request, body: bytes) -> tuple[ModelRequest, Reply]:
        decided = super()._decide(wire, request, body)
        if len(self.asked_by) == len(self.bill):  # what was cut off on its way cannot be read, is refused, and costs nothing
            self.asked_by.append("")
        return decided

    def _next(self, asked: ModelRequest) -> Reply:
        found = re.search(r'"key": ?"([^"]+)"', asked.conversation.turns[0].text)
        assert found is not None
        self.asked_by.append(found[1])
        replies = self.told[found[1]]
        return replies.pop(0) if len(replies) > 1 else replies[0]

    def billed_to(self, key: str) -> list[Entry]:
        """The lines of the bill for a run."""
        return [entry for entry, name in zip(self.bill, self.asked_by, strict=True) if name == key]

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Both wires on loopback."""
        paths = {"/v1/messages": ANTHROPIC, "/v1/responses": OPENAI}
        routes = [Route(path, partial(self.ask, wire), methods=["POST"]) for path, wire in paths.items()]
        async with serve(Starlette(routes=routes)) as url:
            yield url


@dataclass
class Caller:
    """One worker's activities, called by hand. Each run has a gate of its own: no run waits for what another one met."""

    database: Database
    catalog: AgentCatalog
    providers: dict[Provider, ModelProvider]

    async def admit(self, agent: str, key: str, *, tenant: str = "acme", user: str = "u") -> RunId:
        """A run whose model may be called."""
        request = RunRequest(agent=agent, input={"key": key}, tenant=tenant, user=user, idempotency_key=key)
        runs = RunActivities(self.database, self.catalog, self.providers, {})
        asked = AdmissionRequest(request=request, first_execution="first")
        outcome = await ActivityEnvironment().run(runs.admit_run, asked)
        assert isinstance(outcome, Admission), outcome
        return request.run_id

    async def attempt(self, request: ModelCallRequest, fence: int) -> ModelOutcome:
        """One attempt; a later one has a larger fence."""
        environment = ActivityEnvironment()
        scheduled = BEGAN + timedelta(microseconds=fence)
        environment.info = replace(environment.info, scheduled_time=BEGAN, current_attempt_scheduled_time=scheduled)
        keys: dict[Provider, str] = dict.fromkeys(self.providers, request.run_id)
        models = ModelActivities(self.database, self.providers, keys)
        return await environment.run(models.call_model, request)


def call_of(tenant: str, run: RunId, call: int, allowance: int | None = None) -> ModelCallRequest:
    """The run's call of that number, which becomes the turn of that number."""
    left, words = None if allowance is None else Micros(allowance), "Go on." if call > 1 else ""
    return ModelCallRequest(
        tenant=TenantId(tenant), run_id=run, call=call, turn=call, model=0, allowance_micros=left, correction=words
    )


def write_agent(folder: Path, provider: Provider, *, timeout: str = "15s") -> None:
    """An agent called as its provider, with one model that has a price."""
    home = folder / provider
    home.mkdir(parents=True)
    entry = f"{{provider: {provider}, model: some-model, max_tokens: 100, timeout: {timeout}, price: {PRICE}}}"
    budget = '{cost_usd: "50.00"}'
    (home / "agent.yaml").write_text(f"name: {provider}\ndescription: Calls.\nmodels: [{entry}]\nbudget: {budget}\n")
    (home / "prompt.md").write_text("Answer.")
    (home / "policy.yaml").write_text("rules: []\n")


@contextlib.asynccontextmanager
async def open_caller(database: str, model: str, agents: Path) -> AsyncIterator[Caller]:
    """A worker's resources, closed at the end."""
    providers: dict[Provider, ModelProvider] = {
        "anthropic": AnthropicProvider("test-key", model),
        "openai": OpenAIProvider("test-key", f"{model}/v1"),
    }
    opened = await Database.open(database)
    try:
        yield Caller(opened, AgentCatalog.load([agents]), providers)
    finally:
        for provider in providers.values():
            await provider.close()
        await opened.close()
