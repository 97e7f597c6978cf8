"""Does a newcomer who types what README.md and docs/ say get what they promise?

Every `bash` and `python` block is run, in the order of the page, with a real worker on real servers, by a shell that knows
nothing else; every block that carries a file's name is that file. A block that cannot run here says why in a comment above it:
`<!-- not run: reason -->`.
"""

import ast
import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr

from durable_agents import AgentClient, RunHandle, RunStatus
from durable_agents.errors import NotFound
from durable_agents.search_attributes import AGENT_STATUS
from durable_agents.settings import PREFIX, Settings
from starter.children import WORKER, WORKER_READY, Child, Program
from starter.demo import shop, stand_in_model
from starter.demo.loopback import serve
from starter.embedded.servers import Endpoints
from tests.support.waiting import eventually
from tests.support.world import TestDatabase, fresh_database

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", *DOCS]
RUN = {"bash", "python"}
KEY = re.compile(r"\b(?:order-A-[0-9]+|greet-ada)\b")
"""The idempotency keys of the runs that the blocks start."""
LARGEST_PICTURE = 300 * 1024

NOT_RUN = {
    "README.md: make demo          # a refund that waits for your consent and survives kill -9; YES=1 decides for you",
    "README.md: make install && . .venv/bin/activate",
    "README.md: python -m starter dev",
    'README.md: curl -X POST "$STAND_IN/script" -d',
    "README.md: export TEMPORAL_ADDRESS=temporal.example.com:7233 TEMPORAL_NAMESPACE=agents",
    "README.md: cp deploy/.env.example deploy/.env         # and fill in what is empty",
    "money.md: python -m starter ledger settle run:acme:order-A-1001 3 1",
    "consent.md: python -m starter approve order-A-1005 --tenant acme --by ann --key ann.key",
    "web-ui.md: temporal activity pause --workflow-id run:acme:order-A-1001 --activity-id tool-2.0",
}
"""Every block that is not run, by its page and the beginning of its first line."""

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]+) -->\n)?(?:^`(?P<file>[\w./-]+)`\n\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: what it holds, whose file it is, and why it is not run."""

    page: str
    language: str
    text: str
    file: str = ""
    reason: str = ""

    @property
    def name(self) -> str:
        """How people find it."""
        return f"{self.page}: {self.text.partition(chr(10))[0]}"


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    for found in _BLOCK.finditer(page.read_text()):
        yield Block(page.name, found["language"], found["text"], found["file"] or "", found["reason"] or "")


def to_run(page: Path) -> list[Block]:
    """The blocks of a page that somebody would type."""
    return [block for block in blocks(page) if block.language in RUN and not block.reason and not _is_agent_file(block)]


def _is_agent_file(block: Block) -> bool:
    return block.file.startswith("my-agents/")


@dataclass(frozen=True)
class Desk:
    """A newcomer's desk: a checkout, a shell's environment, and what is seen from outside."""

    checkout: Path
    environment: Mapping[str, str]
    client: AgentClient
    model_url: str
    shop_url: str
    http: httpx2.AsyncClient

    async def type(self, block: Block) -> str:
        """Run a block as it stands; everything it printed. Afterwards the runs it names have come to rest."""
        command = self._command(block)
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.checkout,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(30):
            said = (await process.communicate())[0].decode()
        assert process.returncode == 0, f"{block.name} ended with {process.returncode}:\n{said}"
        for key in dict.fromkeys(KEY.findall(block.text)):
            await eventually(lambda key=key: self._at_rest(self.client.get(f"run:acme:{key}")))  # type: ignore[misc]
        return said

    def _command(self, block: Block) -> tuple[str, ...]:
        if block.language == "bash":
            return ("/bin/bash", "-euo", "pipefail", "-c", block.text)
        file = self.checkout / (block.file or "block.py")
        file.write_text(block.text)
        return (sys.executable, str(file))

    async def _at_rest(self, run: RunHandle) -> bool:
        """Has the run ended, or does it wait for a human, and does the search know it too?"""
        try:
            status = (await run.status()).status
        except NotFound:
            return False
        listed = [one async for one in self.client.temporal.list_workflows(f'WorkflowId = "{run.id}"')]
        known = {one.typed_search_attributes.get(AGENT_STATUS) for one in listed}
        return known == {status.value} and (status.is_end or status is RunStatus.WAITING_APPROVAL)

    async def counts(self) -> dict[str, int]:
        """What the shop has done."""
        counted: dict[str, int] = (await self.http.get(f"{self.shop_url}/records")).json()["counts"]
        return counted

    async def teach(self, script: object) -> None:
        """Tell the stand-in model what to say."""
        (await self.http.post(f"{self.model_url}/script", json=script)).raise_for_status()


@pytest.fixture
async def desk(endpoints: Endpoints, tmp_path: Path) -> AsyncIterator[Desk]:
    """What `python -m starter dev` gives a newcomer, with the agent of the README beside the refunds agent."""
    assert endpoints.urls is not None
    for entry in ROOT.iterdir():
        if not entry.name.startswith("."):
            (tmp_path / entry.name).symlink_to(entry)
    for block in filter(_is_agent_file, blocks(README)):
        file = tmp_path / block.file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(fresh_database(endpoints.urls))
        shop_url = await stack.enter_async_context(serve(shop.create_app(tmp_path / "shop.sqlite3")))
        model_url = await stack.enter_async_context(serve(stand_in_model.create_app()))
        environment = _environment(endpoints, database, tmp_path, shop_url, model_url)
        heard: list[str] = []
        theirs = {**environment, "DURABLE_AGENTS_AGENTS_PATH": "agents:my-agents"}
        worker = await Child.start(Program("worker", WORKER, theirs, WORKER_READY, heard.append, tmp_path))
        stack.push_async_callback(worker.stop, timedelta(seconds=10))
        client = await AgentClient.connect(endpoints.temporal_address)
        http = await stack.enter_async_context(httpx2.AsyncClient(timeout=10))
        yield Desk(tmp_path, environment, client, model_url, shop_url, http)


def _environment(endpoints: Endpoints, database: TestDatabase, home: Path, shop_url: str, model_url: str) -> dict[str, str]:
    """A bare shell's, plus what `dev` would tell."""
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "USER": "newcomer",
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "127.0.0.1",
        "TEMPORAL_ADDRESS": endpoints.temporal_address,
        "DATABASE_URL": database.app,
        "DURABLE_AGENTS_OWNER_DATABASE_URL": database.owner,
        "DURABLE_AGENTS_GRACEFUL_SHUTDOWN": "1s",
        "ANTHROPIC_API_KEY": "stand-in",
        "ANTHROPIC_BASE_URL": model_url,
        "OPENAI_API_KEY": "stand-in",
        "OPENAI_BASE_URL": f"{model_url}/v1",
        "SHOP_URL": shop_url,
    }


@pytest.mark.timeout(110)
async def test_who_types_the_readme_from_top_to_bottom_gets_what_it_says(desk: Desk) -> None:
    """The README is the product for whoever comes first; a block that fails is a reader who leaves."""
    said = {}
    for block in to_run(README):
        if "greet-ada" in block.text:
            await desk.teach(_script_of_the_readme())
        said[block.name] = await desk.type(block)
    everything = "\n".join(said.values())
    for key in ("order-A-1001", "order-A-1005", "order-A-1009"):
        result = await desk.client.get(f"run:acme:{key}").result()
        assert (result.status, result.spend.tool_calls) == (RunStatus.COMPLETED, 3), key
        assert any("approved by ann" in entry.what for entry in await desk.client.get(f"run:acme:{key}").timeline())
    greeter = desk.client.get("run:acme:greet-ada")
    assert (await greeter.result()).output == "Ada was greeted."
    assert "greet: ok" in [entry.what for entry in await greeter.timeline()]
    assert (await desk.counts())["refunds"] == 3
    assert "completed {'order': 'A-1001'" in everything, "approve_refund.py prints the result"
    assert "the schema is up to date" in everything
    for page in DOCS:
        for block in to_run(page):
            await desk.type(block)


def _script_of_the_readme() -> object:
    """What the README has the stand-in model say for the newcomer's own agent."""
    (told,) = [block.text for block in blocks(README) if block.text.startswith("curl")]
    script: object = json.loads(told.partition("-d '")[2].rpartition("'")[0])
    return script


def test_the_blocks_that_are_not_run_are_these_and_each_says_why() -> None:
    """A block that silently stops being run is a promise that nobody checks; the list makes it a decision."""
    skipped = [block for page in PAGES for block in blocks(page) if block.language in RUN and block.reason]
    unexpected = [block.name for block in skipped if not any(block.name.startswith(known) for known in NOT_RUN)]
    gone = [known for known in NOT_RUN if not any(block.name.startswith(known) for block in skipped)]
    assert (unexpected, gone) == ([], [])
    assert all(len(block.reason) > 30 for block in skipped)


def test_a_block_is_read_with_its_file_its_reason_and_its_language() -> None:
    """The test is worth as much as its reading: a block that is overlooked passes."""
    page = "<!-- not run: because -->\n```bash\na\nb\n```\n\n`x/y.py`\n\n```python\nc\n```\n\n```text\nd\n```\n"
    read = [(found["reason"], found["file"], found["language"], found["text"]) for found in _BLOCK.finditer(page)]
    assert read == [("because", None, "bash", "a\nb\n"), (None, "x/y.py", "python", "c\n"), (None, None, "text", "d\n")]
    for written in PAGES:
        assert written.read_text().count("```") == 2 * len(list(blocks(written))), f"{written.name}: a fence is not read"
    assert sum(len(to_run(written)) for written in PAGES) >= 10


def test_the_tests_that_prove_the_promises_exist() -> None:
    """A proof that was renamed away proves nothing; a reader must be able to run the very test that is named."""
    named = set(re.findall(r"`(test_\w+)`", README.read_text()))
    there = {
        node.name
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(named) >= 10
    assert named - there == set()


def test_the_settings_table_is_what_the_code_reads() -> None:
    """An operator sets what the table says; a missing row is a feature nobody finds, a wrong default an outage."""
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| *(\S*) *\| .+ \|$", README.read_text(), re.MULTILINE))
    fields = {field.validation_alias or PREFIX + name.upper(): name for name, field in Settings.model_fields.items()}
    assert set(rows) == set(fields)
    for variable, cell in rows.items():
        name = fields[variable]
        stated = cell.strip("` ")
        default = Settings.model_fields[name].default
        key = variable if Settings.model_fields[name].validation_alias else name
        assert (getattr(Settings.model_validate({key: stated}), name) if stated else (default or None)) == (default or None), name


def test_a_secret_has_no_default() -> None:
    """A default password is everybody's password."""
    secret = [name for name, field in Settings.model_fields.items() if SecretStr in getattr(field.annotation, "__args__", ())]
    assert len(secret) == 5
    assert all(Settings.model_fields[name].default is None for name in secret)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_points_to_is_there(page: Path) -> None:
    """A dead link in the first minute says that nobody looks after the house."""
    text = _BLOCK.sub("", page.read_text())
    assert [link for link in _links(text) if not (page.parent / link).exists()] == []
    assert [file for file in _files(text) if not (ROOT / file).exists()] == []


def _links(text: str) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link.partition("#")[0] for link in found if "://" not in link and not link.startswith("#")]


def _files(text: str) -> list[str]:
    """File names in code spans that begin in a room of this house."""
    rooms = {entry.name for entry in ROOT.iterdir() if entry.is_dir()}
    spans = re.findall(r"`([\w.-]+/[\w./-]*|[\w-]+\.(?:md|toml|yml|lock))`", text)
    return [span for span in spans if ("/" not in span or span.partition("/")[0] in rooms) and not span.endswith("/X")]


def test_a_dead_link_would_be_seen() -> None:
    """Each check has seen an offender once."""
    assert _links("[a](gone.md) ![b](images/gone.png#x) [c](https://example.com) [d](#here)") == ["gone.md", "images/gone.png"]
    assert _files("`workflows/gone.py` `gone.md` `args.amount/2` `run_tool`") == ["workflows/gone.py", "gone.md"]


def test_the_pictures_are_small_and_shown() -> None:
    """A repository is cloned by everybody; a picture that no page shows is only weight."""
    shown = {(page.parent / link).resolve() for page in PAGES for link in _links(page.read_text())}
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert pictures
    assert [picture.name for picture in pictures if picture.stat().st_size > LARGEST_PICTURE] == []
    assert [picture.name for picture in pictures if picture.resolve() not in shown] == []


def test_a_page_is_written_for_every_machine() -> None:
    """A path of the machine it was written on helps nobody and tells what is nobody's business."""
    private = re.compile(r"/(?:home|root|work|Users)/|simple/|\blocalhost:(?!7233\b)")
    assert [str(page) for page in PAGES if private.search(page.read_text())] == []
    assert private.search("see /home/me/x")
