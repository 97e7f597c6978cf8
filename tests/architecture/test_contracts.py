"""Is who may import whom (DESIGN section 2) held by something that fails when it is violated?"""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("durable_agents", "workflows", "activities", "starter")
LINT_IMPORTS = """
import os, sys
sys.path[:] = [".", *(path for path in sys.path if path and not os.path.isdir(os.path.join(path, "activities")))]
from importlinter.cli import lint_imports_command
lint_imports_command()
"""
"""`lint-imports` that sees this folder alone: rooms without `__init__` are merged with those of any other checkout in reach."""
RUFF = Path(sys.executable).with_name("ruff")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]

PURE = {
    "collections", "collections.abc", "dataclasses", "datetime", "decimal", "enum", "fnmatch", "hashlib", "inspect", "json",
    "re", "typing", "unicodedata",
    "pydantic", "pydantic_core",
}  # fmt: skip
"""What the domain may import besides itself. Extend it only by modules that give the same answer at every replay."""

VIOLATIONS = [
    ("durable_agents/domain/runs.py", "import time", "domain-is-pure"),
    ("durable_agents/domain/effects.py", "from os import environ", "domain-is-pure"),
    ("durable_agents/domain/messages.py", "from temporalio import workflow", "domain-is-pure"),
    ("durable_agents/domain/tools.py", "from durable_agents.settings import Settings", "domain-is-pure"),
    ("durable_agents/client.py", "from workflows.agent_run import AgentRun", "kernel-stands-alone"),
    ("durable_agents/settings.py", "import asyncpg", "kernel-stands-alone"),
    ("workflows/model_turn.py", "from activities.audit import verify", "workflows-do-no-io"),
    ("workflows/run_budget.py", "from opentelemetry.exporter import otlp", "workflows-do-no-io"),
    ("workflows/tool_turn.py", "from durable_agents.settings import read_settings", "workflows-do-no-io"),
    ("activities/audit.py", "from workflows import run_budget", "activities-know-no-workflow"),
    ("activities/schemas.py", "from starter.demo import shop", "activities-know-no-workflow"),
    ("starter/demo/shop.py", "import workflows.agent_run", "starter-is-a-consumer"),
    ("activities/model_calls.py", "import anthropic", "only-one-imports-anthropic"),
    ("activities/providers/anthropic.py", "import openai", "only-one-imports-openai"),
    ("activities/upkeep.py", "import apprise", "only-one-imports-apprise"),
    ("activities/consents.py", "import cryptography", "only-one-imports-cryptography"),
    ("starter/demo/loopback.py", "import worker", "nobody-imports-the-worker"),
    ("activities/runs.py", "from worker import sandbox", "nobody-imports-the-worker"),
]

BANNED = [
    "from datetime import datetime\n\nNOW = datetime.now()",
    "import datetime as d\n\nTODAY = d.date.today()",
    "import time\n\nNOW = time.time()",
    "from time import monotonic",
    "import random",
    "import uuid\n\nID = uuid.uuid4()",
    "import os\n\nVALUE = os.environ['HOME']",
    "from os import getenv",
    "TEXT = open('/etc/passwd').read()",
    "from pathlib import Path",
]


def lint_imports(folder: Path) -> tuple[str, set[str]]:
    """What lint-imports says in a folder, and the names of the contracts it finds broken."""
    command = [sys.executable, "-c", LINT_IMPORTS, "--no-cache"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    said = found.stdout + found.stderr
    flat = " ".join(said.split())
    assert ("0 broken" in flat) == (found.returncode == 0), said
    return flat, {contract["id"] for contract in CONTRACTS if f"{contract['name']} BROKEN" in flat}


@pytest.fixture(scope="module")
def copied_house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the house that may be violated."""
    house = tmp_path_factory.mktemp("house")
    for room in ROOMS:
        shutil.copytree(ROOT / room, house / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("worker.py", "pyproject.toml"):
        shutil.copy(ROOT / file, house / file)
    return house


@pytest.fixture
def house(copied_house: Path) -> Iterator[Path]:
    """The copy, put right again after each violation."""
    before = {file: file.read_bytes() for room in ROOMS for file in (copied_house / room).rglob("*.py")}
    yield copied_house
    for file, content in before.items():
        file.write_bytes(content)


def imports_of(source: str) -> set[str]:
    """The modules a source text imports, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
    return found


def impure(source: str) -> set[str]:
    """What a source text imports that the domain may not."""
    return {name for name in imports_of(source) if name not in PURE and not name.startswith("durable_agents.domain")}


def opens_a_pool(source: str) -> bool:
    """Does a source text make a connection pool?"""
    return re.search(r"\bcreate_pool\b|\bPool\(", source) is not None


def test_every_import_contract_is_kept() -> None:
    """The rooms stay apart only as long as nobody can cross them unnoticed."""
    said, broken = lint_imports(ROOT)
    assert broken == set(), said
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in said


@pytest.mark.parametrize(("file", "line", "contract"), VIOLATIONS, ids=[f"{file}: {line}" for file, line, _ in VIOLATIONS])
def test_a_violation_breaks_its_contract(house: Path, file: str, line: str, contract: str) -> None:
    """A contract that cannot fail holds nothing: each is violated, and what breaks names the line that did it."""
    changed = house / file
    changed.write_text(f"{changed.read_text()}\n{line}\n")
    said, broken = lint_imports(house)
    assert contract in broken, said
    assert f"{file.removesuffix('.py').replace('/', '.')} -> " in said


def test_each_contract_has_a_violation() -> None:
    """A contract added without a test that breaks it would be taken on trust."""
    assert {contract["id"] for contract in CONTRACTS} == {contract for *_, contract in VIOLATIONS}


def test_the_domain_imports_nothing_beyond_a_short_list() -> None:
    """A ban list has holes; what decides a run may use only what was looked at and found pure."""
    for file in sorted((ROOT / "durable_agents" / "domain").glob("*.py")):
        assert impure(file.read_text()) == set(), file
    assert impure("def hidden() -> None:\n    from subprocess import run\n") == {"subprocess"}


def test_only_postgres_opens_a_pool() -> None:
    """A second pool would not carry the tenant, and would not refuse an owner's role."""
    products = [file for room in ROOMS for file in (ROOT / room).rglob("*.py")] + [ROOT / "worker.py"]
    assert [file.relative_to(ROOT).as_posix() for file in products if opens_a_pool(file.read_text())] == [
        "activities/postgres.py"
    ]


def test_the_worker_leaves_drivers_and_sdks_to_activities() -> None:
    """worker.py is outside the import graph (a module, no package), so the rule about drivers is held here."""
    packages = {name.partition(".")[0] for name in imports_of((ROOT / "worker.py").read_text())}
    assert packages.isdisjoint({"anthropic", "openai", "asyncpg", "httpx", "httpx2", "starter"})


@pytest.mark.parametrize("source", BANNED, ids=[source.partition("\n")[0] for source in BANNED])
def test_clock_chance_environment_and_files_are_banned_in_pure_rooms(source: str) -> None:
    """The sandbox does not watch the kernel, so lint must: one `datetime.now()` there and a replay differs."""
    for room in ("durable_agents/domain", "workflows"):
        assert re.search("TID251|PTH123", ruff(source, f"{room}/probe.py")), room


def test_the_ban_holds_in_pure_rooms_alone() -> None:
    """Activities and the starter live in the world: a ban there would be ignored, and soon the ban itself."""
    for room in ("activities", "starter/cli", "durable_agents", "tests/domain"):
        assert "TID251" not in ruff("import os\nimport time\n\nprint(os.environ, time.time())", f"{room}/probe.py"), room


def ruff(source: str, name: str) -> str:
    """What ruff says of a source text under a file name, by the project's own settings."""
    command = [str(RUFF), "check", "--no-cache", "--output-format", "concise", "--stdin-filename", name, "-"]
    return subprocess.run(command, cwd=ROOT, input=f"{source}\n", capture_output=True, text=True, check=False).stdout
