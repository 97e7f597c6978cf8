"""Are the house rules that no linter knows (DESIGN 2, CONTRIBUTING) kept?"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import durable_agents

ROOT = Path(__file__).parents[2]
ROOMS = ("durable_agents", "workflows", "activities", "starter", "agents")
PRODUCT = [*(file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))), ROOT / "worker.py"]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
WORKFLOWS = sorted((ROOT / "workflows").glob("*.py"))
NO_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}


def offers_timing(source: str) -> bool:
    """Does a source text state a retry number or a timeout of an activity?"""
    return re.search(r"RetryPolicy\(|_timeout=|maximum_attempts", source) is not None


def assigns_state(source: str) -> bool:
    """Does a source text assign a run's state?"""
    targets: list[ast.expr] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            targets.append(node.target)
    return any(isinstance(target, ast.Attribute) and target.attr == "state" for target in targets)


def unreasoned_imports(source: str) -> Iterator[int]:
    """Lines of imports inside functions that have no reason beside or just above them."""
    lines = source.splitlines()
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    near = lines[max(0, function.lineno - 3) : node.end_lineno]
                    if not any("#" in line for line in near) and "import" not in (ast.get_docstring(function) or ""):
                        yield node.lineno


def naps(source: str) -> bool:
    """Does a source text wait by the clock?"""
    return re.search(r"\bsleep\(", source) is not None


def undocumented_tests(source: str) -> list[str]:
    """The tests of a source text that do not say why they matter."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]


def test_timeouts_and_retry_numbers_stand_in_one_place() -> None:
    """Retry in two layers multiplies; whoever tunes a timeout at night must find all of them on one page."""
    offenders = [file.name for file in WORKFLOWS if offers_timing(file.read_text())]
    assert offenders == ["activity_options.py"]


def test_only_the_run_itself_assigns_its_state() -> None:
    """Turns run in parallel; two that assign would lose each other's changes, and nobody could tell which wrote last."""
    assert [file.name for file in WORKFLOWS if assigns_state(file.read_text())] == ["agent_run.py"]


def test_the_facade_is_small_and_complete() -> None:
    """What is exported is promised for ever."""
    assert len(durable_agents.__all__) <= 25
    assert all(hasattr(durable_agents, name) for name in durable_agents.__all__)
    facades = [file for file in PRODUCT if file.name == "__init__.py" and file.read_text().strip()]
    assert facades == [ROOT / "durable_agents" / "__init__.py"]


def test_an_import_inside_a_function_has_its_reason_beside_it() -> None:
    """Hidden imports hide dependencies; import time is the one reason, and it must be said."""
    found = {f"{file.relative_to(ROOT)}:{line}" for file in PRODUCT for line in unreasoned_imports(file.read_text())}
    assert found == set()
    assert list(unreasoned_imports("def work():\n    import os\n")) == [2]


def test_no_module_has_a_name_that_says_nothing() -> None:
    """What is called utils grows without limit, because everything belongs there."""
    assert [file for file in PRODUCT if NO_NAMES & set(file.stem.split("_")) or NO_NAMES & set(file.parent.name.split("_"))] == []


@pytest.mark.parametrize("room", ["durable_agents", "workflows", "activities"])
def test_a_module_begins_with_the_question_it_answers(room: str) -> None:
    """A reader decides by the first sentence whether this is the file; a module without a question has no reason to be."""
    for file in (ROOT / room).rglob("*.py"):
        source = file.read_text()
        if source and file.parent.name != "durable_agents" and file.name != "__init__.py":
            docstring = ast.get_docstring(ast.parse(source)) or ""
            assert "?" in docstring.partition("\n\n")[0], file


def test_every_test_says_why_and_none_naps() -> None:
    """A test that waits by the clock is slow on good days and red on bad ones; one without a reason is deleted some day."""
    for file in TESTS:
        source = file.read_text()
        assert undocumented_tests(source) == [], file
        assert not naps(source.replace(r'r"\bsleep\("', "")), file


def test_the_rules_above_would_notice() -> None:
    """Each check has seen an offender once."""
    assert offers_timing("x = dict(start_to_close_timeout=1)")
    assert offers_timing("p = RetryPolicy(maximum_attempts=3)")
    assert assigns_state("def f(run):\n    run.state = 1")
    assert naps("await asyncio." + "sle" + "ep(1)")
    assert undocumented_tests("def test_x():\n    pass") == ["test_x"]
