"""Can a worker of this release go on with the runs that earlier ones began?

Whoever changes the order of steps in a workflow learns it here, not from runs of days that cannot go on after a deployment.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHistory
from temporalio.workflow import NondeterminismError

from tests.replay import record
from tests.support.world import replayer

HISTORIES = sorted(record.HISTORIES.rglob("*.json"))
SCHEDULED = "activityTaskScheduledEventAttributes"


def load(path: Path) -> dict[str, Any]:
    """A history as data."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


async def replay(name: str, history: dict[str, Any]) -> None:
    """Replay as a worker would that takes the run over."""
    await replayer().replay_workflow(WorkflowHistory.from_json(workflow_id(history) or name, history))


def workflow_id(history: dict[str, Any]) -> str:
    """The id the run was started under; runs look at it."""
    started: dict[str, Any] = history["events"][0]["workflowExecutionStartedEventAttributes"]
    return str(started.get("workflowId", ""))


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_every_frozen_history_replays(path: Path) -> None:
    """A run that was under way when the code changed must come to the same steps again, or it is stuck for ever."""
    await replay(path.stem, load(path))


def test_every_way_a_run_can_go_is_frozen() -> None:
    """A way without a history is a way that may be broken unseen."""
    assert {path.stem for path in HISTORIES} >= set(record.SCENARIOS)
    assert len(HISTORIES) >= 10


@pytest.mark.parametrize("field", ["activityType", "activityId"])
async def test_a_history_with_two_steps_swapped_is_refused(field: str) -> None:
    """The gate must be able to fail: another order of steps is what a careless change makes."""
    history = load(record.path_of("completed_with_tools"))
    steps = [event[SCHEDULED] for event in history["events"] if SCHEDULED in event]
    asked, called = (next(step for step in steps if step["activityType"]["name"] == name) for name in ("call_model", "run_tool"))
    asked[field], called[field] = called[field], asked[field]
    with pytest.raises(NondeterminismError):
        await replay("swapped", history)


def test_nothing_of_the_machine_they_were_recorded_on_is_left() -> None:
    """They are published with the code."""
    private = re.compile(r"/(?:root|home|work|Users)/|@(?!worker)[\w.-]*vm\b")
    assert [path.name for path in HISTORIES if private.search(path.read_text())] == []


def test_a_history_that_is_there_is_never_written_again(tmp_path: Path) -> None:
    """Add-only: to overwrite a history is to forget the runs that look like it."""
    there = tmp_path / "happened.json"
    record.write(there, "{}")
    with pytest.raises(AssertionError, match="never overwritten"):
        record.write(there, "{}")
