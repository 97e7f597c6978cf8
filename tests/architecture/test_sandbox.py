"""Is workflow code kept from the clock, from I/O, and from everything that would differ at a replay?"""

import importlib
import json
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from durable_agents.data_converter import DATA_CONVERTER
from durable_agents.domain.runs import RunRequest
from starter.embedded.servers import Endpoints
from worker import WORKFLOWS, sandbox

ROOT = Path(__file__).parents[2]
REFUSED = ("activities", "starter", "worker", "anthropic", "openai", "asyncpg", "httpx2")
"""Written out: a list taken from the worker would shrink along with it."""

TEMPLATE = """
from datetime import UTC, datetime

from temporalio import workflow

{imports}


@workflow.defn(sandboxed=True)
class Probe:
    @workflow.run
    async def run(self) -> str:
        {body}
"""


class Probes:
    """Writes workflow modules that can be imported, and makes workers of them."""

    def __init__(self, folder: Path, client: Client) -> None:
        self.folder = folder
        self.client = client
        self.queue = f"sandbox-{uuid.uuid4().hex[:8]}"

    def worker(self, *, imports: str = "", body: str = "return 'ran'") -> Worker:
        """A worker set up as ours, for a workflow module with these imports and this body."""
        name = f"probe_{uuid.uuid4().hex}"
        (self.folder / f"{name}.py").write_text(TEMPLATE.format(imports=imports, body=body))
        importlib.invalidate_caches()
        return Worker(
            self.client,
            task_queue=self.queue,
            workflows=[importlib.import_module(name).Probe],
            workflow_runner=sandbox(),
            workflow_failure_exception_types=[workflow.NondeterminismError],  # so that a refusal ends the run with its reason
        )

    async def run(self, body: str, imports: str = "") -> str:
        """What a workflow with this body returns."""
        async with self.worker(imports=imports, body=body):
            id_ = f"probe-{uuid.uuid4().hex}"
            answer: str = await self.client.execute_workflow("Probe", id=id_, task_queue=self.queue, result_type=str)
            return answer


@pytest.fixture
async def probes(endpoints: Endpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Probes:
    """Probes on the session's server."""
    monkeypatch.syspath_prepend(tmp_path)
    client = await Client.connect(endpoints.temporal_address, data_converter=DATA_CONVERTER)
    return Probes(tmp_path, client)


@pytest.mark.parametrize("package", REFUSED)
async def test_a_workflow_that_imports_io_is_refused_when_its_worker_is_made(probes: Probes, package: str) -> None:
    """Found out at the start of the worker, not by the first run that replays differently."""
    with pytest.raises(RuntimeError, match="Failed validating workflow") as refused:
        probes.worker(imports=f"import {package}")
    assert re.search(rf"Cannot access {package}\b.* from inside a workflow", repr(refused.value.__cause__))


async def test_a_module_of_ours_that_does_io_is_refused_as_a_part_too(probes: Probes) -> None:
    """Most people will import one function, not the package."""
    with pytest.raises(RuntimeError, match="Failed validating workflow"):
        probes.worker(imports="from activities.transcripts import put")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("return str(datetime.now(UTC))", "datetime.datetime.now"),
        ("import time; return str(time.time())", "time.time"),
        ("import random; return str(random.random())", "random.random"),
        ("import uuid; return str(uuid.uuid4())", "uuid.uuid4"),
        ("import os; return os.environ['PATH']", "os.environ"),
        ("return open('/etc/hostname').read()", "__builtins__.open"),
    ],
    ids=lambda value: value if "return" not in value else "",
)
async def test_clock_chance_environment_and_files_are_refused_in_workflow_code(probes: Probes, body: str, named: str) -> None:
    """Each gives another answer when the run is replayed on another machine; then the run is stuck."""
    with pytest.raises(WorkflowFailureError) as failed:
        await probes.run(body)
    assert isinstance(failed.value.cause, ApplicationError)
    assert f"Cannot access {named}" in failed.value.cause.message


async def test_the_kernel_is_the_same_inside_the_sandbox_and_outside(probes: Probes) -> None:
    """Passed through: importing a hundred models anew for each run would cost 250 ms, and no isinstance would hold."""
    body = "return str(id(RunRequest))"
    assert await probes.run(body, "from durable_agents.domain.runs import RunRequest") == str(id(RunRequest))


async def test_every_workflow_of_ours_is_accepted_and_stays_sandboxed() -> None:
    """A workflow module passed through would lose its protection without a word."""
    runner = sandbox()
    passed = runner.restrictions.passthrough_modules
    for cls in WORKFLOWS:
        definition = workflow._Definition.must_from_class(cls)
        assert definition.sandboxed
        assert cls.__module__.partition(".")[0] == "workflows"
        runner.prepare_workflow(definition)
    assert "workflows" not in passed
    assert "durable_agents" in passed


def test_importing_every_workflow_loads_no_driver_and_no_sdk() -> None:
    """Workflow code that drags in I/O modules is slow to sandbox, and one attribute away from doing I/O."""
    names = [f"workflows.{file.stem}" for file in (ROOT / "workflows").glob("*.py") if file.stem != "__init__"]
    code = f"import sys, json\nfor name in {names}: __import__(name)\nprint(json.dumps(sorted(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    loaded = set(json.loads(said))
    assert loaded.isdisjoint({"anthropic", "openai", "asyncpg", "httpx", "httpx2", "genai_prices", "activities", "ruamel.yaml"})
    assert "workflows.agent_run" in loaded


def test_workflows_have_no_unsafe_blocks() -> None:
    """`workflow.unsafe` switches the sandbox off for a block; the design needs none."""
    for file in (ROOT / "workflows").glob("*.py"):
        assert not re.search(r"\bunsafe\b|\bsandboxed=False\b|\bsandbox_unrestricted\b", file.read_text()), file


def test_the_workflows_package_is_empty() -> None:
    """Whatever it imported would be imported anew in the sandbox of every run (11 ms instead of 1)."""
    assert (ROOT / "workflows" / "__init__.py").read_text() == ""
