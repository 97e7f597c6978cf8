"""Fixtures that tests of every room share: real servers once a session, everything else once a test."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from durable_agents import AgentClient
from starter.demo import shop as shop_app
from starter.demo import stand_in_model
from starter.demo.loopback import serve
from starter.embedded.servers import EmbeddedServers, Endpoints
from tests.support.world import (
    TestDatabase,
    World,
    fresh_database,
    open_world,
    prepare_template,
    require_no_wedged_run,
    settings_for,
)


@pytest.fixture(scope="session")
async def endpoints(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Endpoints]:
    """Temporal and PostgreSQL, real, for the whole session."""
    async with EmbeddedServers(tmp_path_factory.mktemp("servers"), headless=True) as found:
        assert found.urls is not None
        await prepare_template(found.urls)
        yield found


@pytest.fixture
async def database(endpoints: Endpoints) -> AsyncIterator[TestDatabase]:
    """A migrated database for one test."""
    assert endpoints.urls is not None
    async with fresh_database(endpoints.urls) as found:
        yield found


@pytest.fixture
async def model_url() -> AsyncIterator[str]:
    """The stand-in for the model providers."""
    async with serve(stand_in_model.create_app()) as url:
        yield url


@pytest.fixture
async def shop_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The shop; agents find it by SHOP_URL."""
    async with serve(shop_app.create_app(tmp_path / "shop.sqlite")) as url:
        monkeypatch.setenv("SHOP_URL", url)
        yield url


@pytest.fixture
async def world(endpoints: Endpoints, database: TestDatabase, model_url: str, shop_url: str) -> AsyncIterator[World]:
    """Everything a run needs but a running worker."""
    queue = f"q-{uuid.uuid4().hex[:8]}"
    client = await AgentClient.connect(endpoints.temporal_address, task_queue=queue, identity="tester")
    settings = settings_for(database.app, queue, model_url)
    async with open_world(endpoints, database, client, settings, model_url, shop_url) as opened:
        yield opened
        await require_no_wedged_run(client, queue)
