"""Does docs/messages.md say what can be said to a run, with the fields that the code takes?"""

import inspect
import re
from pathlib import Path

import pytest
from pydantic import BaseModel
from temporalio import workflow

from durable_agents.domain.approvals import MAX_MESSAGE_BYTES, ApprovalDecision
from durable_agents.domain.budgets import Budget
from durable_agents.domain.run_state import REJECTED_KEPT, TIMELINE_KEPT
from durable_agents.domain.runs import BudgetRaise, CancelRequest
from workflows.agent_run import AgentRun

PAGE = (Path(__file__).parents[2] / "docs" / "messages.md").read_text()
COLUMNS = ("message", "kind", "sender", "payload", "refused", "double")
ROWS = [dict(zip(COLUMNS, (cell.strip() for cell in line.strip("| ").split(" | ")), strict=True))
        for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| message")]  # fmt: skip
DEFINITION = workflow._Definition.must_from_class(AgentRun)
OTHER = "any other name"
TAKEN = {
    "submit_approval": ApprovalDecision,
    "decide_approval": ApprovalDecision,
    "request_cancel": CancelRequest,
    "raise_budget": BudgetRaise,
}


def row(message: str) -> dict[str, str]:
    """The line of a message."""
    (found,) = (line for line in ROWS if line["message"].strip("`") == message)
    return found


def fields(of: type[BaseModel]) -> set[str]:
    """The fields of a model as the page writes them."""
    return {name if field.is_required() else f"{name}?" for name, field in of.model_fields.items()}


def named(cell: str) -> set[str]:
    """The names in code style outside of brackets."""
    return set(re.findall(r"`([^`]+)`", re.sub(r"\([^)]*\)", "", cell)))


def handlers() -> set[tuple[str, str]]:
    """Every message the workflow class handles, and its kind."""
    found = {(name or OTHER, "signal") for name in DEFINITION.signals}
    found |= {(name or OTHER, "update") for name in DEFINITION.updates}
    return found | {(name, "query") for name in DEFINITION.queries if name is not None and not name.startswith("__")}


def test_every_message_has_its_line_and_every_line_its_message() -> None:
    """Whoever writes to a run by hand has this page and nothing else."""
    assert {(line["message"].strip("`"), line["kind"]) for line in ROWS} == handlers()
    assert len(ROWS) == len(handlers())


@pytest.mark.parametrize("line", ROWS, ids=[line["message"] for line in ROWS])
def test_a_line_says_everything(line: dict[str, str]) -> None:
    """Sender, payload, when it is refused, and what a double does."""
    assert all(line[column] for column in COLUMNS)


@pytest.mark.parametrize(("message", "model"), TAKEN.items(), ids=list(TAKEN))
def test_a_payloads_fields_are_the_models(message: str, model: type[BaseModel]) -> None:
    """A field that is missing here is never sent; one that is too many makes every message malformed."""
    assert named(row(message)["payload"]) == fields(model)
    handler = getattr(AgentRun, message)
    typed = list(inspect.get_annotations(inspect.unwrap(handler)).values())
    assert model in typed or re.search(rf"{model.__name__}\.(model_validate_json|read)\(", inspect.getsource(handler))


def test_the_limits_of_a_budget_are_all_named() -> None:
    """An operator under pressure must not guess what a limit is called."""
    inner = re.search(r"`budget` \(([^)]*)\)", row("raise_budget")["payload"])
    assert inner is not None
    assert set(re.findall(r"`([^`]+)`", inner[1])) == fields(Budget)


def test_what_a_query_answers_is_named() -> None:
    """The type can be looked up in the code."""
    for name, query in DEFINITION.queries.items():
        if name is not None and not name.startswith("__"):
            (answer,) = named(row(name)["payload"])
            assert answer in str(query.ret_type), name


def test_numbers_on_the_page_are_the_codes() -> None:
    """A limit that has drifted sends somebody looking for a message that was dropped."""
    assert f"over {MAX_MESSAGE_BYTES // 1024} KiB" in row("submit_approval")["refused"]
    assert f"the newest {REJECTED_KEPT})" in PAGE
    assert f"the last {TIMELINE_KEPT}" in row("timeline")["payload"]


def test_every_message_is_described_in_the_web_ui() -> None:
    """The UI shows the handler's description beside its button."""
    assert all(signal.description for signal in DEFINITION.signals.values())
    assert all(update.description for update in DEFINITION.updates.values())
    assert all(query.description for query in DEFINITION.queries.values())
