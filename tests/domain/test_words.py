"""Is what people write in messages storable from the door on, so that no single message can stop a run?

PostgreSQL takes no U+0000. A reason that held one used to be carried to the last row of a run, which then could not end.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, JsonValue, ValidationError

from durable_agents.domain.approvals import ApprovalDecision
from durable_agents.domain.budgets import Budget
from durable_agents.domain.canonical import ensure_escaped, escape_text, restore_json, restore_text
from durable_agents.domain.failures import Failure, FailureKind
from durable_agents.domain.runs import BudgetRaise, CancelRequest, RunRequest, RunResult
from tests.domain.strategies import checked

NASTY = "a\x00b\x1ac\x1a0000d\U0001f600"
MODELS: list[tuple[type[BaseModel], str, dict[str, Any]]] = [
    (ApprovalDecision, "reason", {"approval_id": "a", "decision": "deny", "by": "b"}),
    (CancelRequest, "reason", {"by": "b"}),
    (BudgetRaise, "reason", {"by": "b", "budget": Budget(turns=5)}),
    (Failure, "message", {"kind": FailureKind.INTERNAL}),
    (RunResult, "explanation", {"run_id": "run:acme:k", "status": "cancelled"}),
]
any_words = st.text(st.one_of(st.sampled_from("\x00\x1a09af"), st.characters(exclude_categories=["Cs"])), max_size=30)


@pytest.mark.parametrize(("model", "field", "others"), MODELS, ids=[model.__name__ for model, *_ in MODELS])
def test_what_somebody_wrote_is_storable_from_the_door_on(model: type[BaseModel], field: str, others: dict[str, Any]) -> None:
    """Once it is in the run's state, it goes on into rows, results and other executions."""
    made = model.model_validate(others | {field: NASTY})
    assert "\x00" not in getattr(made, field)
    assert "\\u0000" not in made.model_dump_json()
    again = model.model_validate_json(made.model_dump_json())
    assert again == made
    assert model.model_validate_json(again.model_dump_json()) == made


@checked
@given(any_words)
def test_escaping_again_changes_nothing(text: str) -> None:
    """A field is validated at every door it passes: client, workflow, activity, the next execution."""
    once = ensure_escaped(text)
    assert ensure_escaped(once) == once
    assert ensure_escaped(escape_text(text)) == escape_text(text)
    assert "\x00" not in once
    if "\x1a" not in text:
        assert restore_text(once) == text


@pytest.mark.parametrize("nasty", ["\x00", "\x1a", "\ud800", "a\x00\x1a\udfffb"])
def test_a_runs_input_is_the_same_at_every_door(nasty: str) -> None:
    """The request is validated by client, workflow and activity; its digest tells a repeated start from another one."""
    given_: dict[str, JsonValue] = {nasty: [nasty]}
    made = RunRequest(agent="a", user="u", idempotency_key="k", input=given_)
    again = RunRequest.model_validate_json(made.model_dump_json())
    assert again == made
    assert RunRequest(**dict(again)).digest() == made.digest()
    assert restore_json(dict(made.input)) == given_


def test_stopping_never_fails_on_its_wording() -> None:
    """Temporal's own cancel takes a reason of any length; a run that cannot be cancelled is the worst answer to one."""
    assert CancelRequest(reason="x" * 100_000).reason == "x" * 2000


@pytest.mark.parametrize("by", ["", "a\x00", "a\nb", "\x1b[2J", "a" * 121, None, 5])
@pytest.mark.parametrize(("model", "others"), [(model, others) for model, _, others in MODELS if "by" in others])
def test_nobody_is_called_that(model: type[BaseModel], others: dict[str, Any], by: object) -> None:
    """A name with a control character is a forged line in somebody's log."""
    with pytest.raises(ValidationError):
        model.model_validate(others | {"by": by})


def test_names_in_any_script_are_names() -> None:
    """Not everybody is called ann."""
    for by in ("ann@corp.example", "Łucja Żółć", "王秀英", "o'brien", "a b"):
        assert CancelRequest.model_validate({"by": by}).by == by
