"""A world whose clock can be moved: the real server with time skipping, for deadlines of hours and days."""

import shutil
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.testing import WorkflowEnvironment

from durable_agents import AgentClient, RunHandle
from durable_agents.data_converter import DATA_CONVERTER
from starter.embedded.servers import Endpoints
from starter.embedded.temporal import SEARCH_ATTRIBUTES
from tests.support.world import TestDatabase, World, open_world, settings_for


@dataclass
class SkippingWorld(World):
    """A world in which hours pass in no time, when the test says so."""

    environment: WorkflowEnvironment | None = None

    async def pass_time(self, run: RunHandle, length: timedelta) -> None:
        """Let so much time pass for a run."""
        assert self.environment is not None
        await self.environment.fast_forward(self.client.temporal.get_workflow_handle(run.id), length)


@pytest.fixture(scope="session")
async def skipping_environment() -> AsyncIterator[WorkflowEnvironment]:
    """One time-skipping server for the session; it skips only when told to."""
    beside = Path(sys.executable).parent / "temporal"
    attributes = [part for name, kind in SEARCH_ATTRIBUTES.items() for part in ("--search-attribute", f"{name}={kind}")]
    async with await WorkflowEnvironment.start_time_skipping_v2(
        dev_server_existing_path=str(beside) if beside.exists() else shutil.which("temporal"),
        dev_server_log_level="error",
        dev_server_extra_args=["--dynamic-config-value", "frontend.WorkflowTimeSkippingEnabled=true", *attributes],
        data_converter=DATA_CONVERTER,
    ) as environment:
        with environment.with_time_skipping_disabled():
            yield environment


@pytest.fixture
async def skipping(
    skipping_environment: WorkflowEnvironment, endpoints: Endpoints, database: TestDatabase, model_url: str, shop_url: str
) -> AsyncIterator[SkippingWorld]:
    """Everything a run needs, on the server whose clock can be moved."""
    queue = f"q-{uuid.uuid4().hex[:8]}"
    client = AgentClient(skipping_environment.client, task_queue=queue, identity="tester")
    settings = settings_for(database.app, queue, model_url)
    async with open_world(endpoints, database, client, settings, model_url, shop_url) as world:
        yield SkippingWorld(**vars(world), environment=skipping_environment)
