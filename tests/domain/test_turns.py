"""Does the right step follow from what a model call brought?"""

from datetime import timedelta

import pytest

from durable_agents.domain.agents import Admitted
from durable_agents.domain.budgets import Budget
from durable_agents.domain.canonical import digest
from durable_agents.domain.failures import ANSWERS, Failure, FailureKind
from durable_agents.domain.model_calls import (
    MAX_REPAIRS,
    ModelAnswer,
    ModelFailure,
    PinnedModel,
    RequestedCall,
    StopReason,
)
from durable_agents.domain.prices import Usage
from durable_agents.domain.run_state import RunState
from durable_agents.domain.turns import Step, after_model_call, after_tool_turn
from tests.domain.strategies import NOW

MODEL = PinnedModel(provider="anthropic", model="m", max_tokens=10, timeout=timedelta(seconds=1), price=None)
CALL = RequestedCall(index=0, tool="refund", arguments={})
TOLD = [kind for kind, answer in ANSWERS.items() if answer.told_to_model]
FALLING_BACK = [kind for kind, answer in ANSWERS.items() if answer.next_model and not answer.told_to_model]
OUT_OF_BUDGET = (FailureKind.ALLOWANCE_EXCEEDED, FailureKind.ACCOUNT_LIMIT)
FINAL = [
    kind for kind, answer in ANSWERS.items() if not answer.told_to_model and not answer.next_model and kind not in OUT_OF_BUDGET
]


def state(*, chain: int = 1, model: int = 0, repairs: int = 0) -> RunState:
    """A run at a model of its chain, after so many repairs."""
    terms = Admitted(
        agent="a", version=digest("v"), policy_digest=digest("p"), models=(MODEL,) * chain, tools={}, budget=Budget(),
        opening_bytes=0,
    )  # fmt: skip
    return RunState(started_at=NOW, admitted=terms, model=model, asked_model=model, repairs=repairs)


def answer(stop: StopReason = StopReason.DONE, *, calls: bool = False, problem: FailureKind | None = None) -> ModelAnswer:
    """A finished answer."""
    return ModelAnswer(
        stop=stop,
        text="text",
        calls=(CALL,) if calls else (),
        usage=Usage(input_tokens=1, output_tokens=1),
        cost_micros=0,
        message_bytes=1,
        head="0" * 16,
        model="m",
        problem=None if problem is None else Failure(kind=problem, message="why"),
    )


def failed(kind: FailureKind) -> ModelFailure:
    """No answer."""
    return ModelFailure(failure=Failure(kind=kind, message="why"))


@pytest.mark.parametrize(
    ("outcome", "step"),
    [
        (answer(), Step.END),
        (answer(StopReason.TOOL_CALLS, calls=True), Step.CALL_TOOLS),
        (answer(StopReason.DONE, calls=True), Step.CALL_TOOLS),
        (answer(StopReason.PAUSED), Step.ASK_AGAIN),
        (answer(StopReason.PAUSED, calls=True), Step.CALL_TOOLS),
        (failed(FailureKind.ALLOWANCE_EXCEEDED), Step.BUDGET_EXHAUSTED),
        (failed(FailureKind.ACCOUNT_LIMIT), Step.BUDGET_EXHAUSTED),
        (answer(problem=FailureKind.ALLOWANCE_EXCEEDED), Step.BUDGET_EXHAUSTED),
    ],
)
def test_an_answer_is_followed_by_its_step(outcome: ModelAnswer | ModelFailure, step: Step) -> None:
    """A call that is not made, or a pause taken for an end, is a run that stops in the middle."""
    assert after_model_call(state(), outcome).step is step


@pytest.mark.parametrize("kind", TOLD)
@pytest.mark.parametrize("recorded", [True, False])
def test_the_model_is_told_about_its_own_failure_at_most_twice(kind: FailureKind, recorded: bool) -> None:
    """A model that cannot repair itself in two tries will not in ten, and each is paid for."""
    outcome = answer(problem=kind) if recorded else failed(kind)
    for repairs in range(MAX_REPAIRS):
        following = after_model_call(state(chain=2, repairs=repairs), outcome)
        assert following.step is Step.REPAIR
        assert following.correction
        assert "{detail}" not in following.correction
    assert after_model_call(state(chain=2, repairs=MAX_REPAIRS), outcome).step is Step.NEXT_MODEL
    end = after_model_call(state(chain=2, model=1, repairs=MAX_REPAIRS), outcome)
    assert (end.step, end.failure) == (Step.FAIL, Failure(kind=kind, message="why"))


@pytest.mark.parametrize("kind", FALLING_BACK)
def test_what_another_model_may_mend_goes_to_the_next_of_the_chain(kind: FailureKind) -> None:
    """Once each, in order; after the last the run fails with the reason."""
    assert after_model_call(state(chain=3), failed(kind)).step is Step.NEXT_MODEL
    assert after_model_call(state(chain=3, model=1), failed(kind)).step is Step.NEXT_MODEL
    assert after_model_call(state(chain=3, model=2), failed(kind)).step is Step.FAIL
    assert after_model_call(state(chain=1), failed(kind)).step is Step.FAIL


@pytest.mark.parametrize("kind", FINAL)
def test_what_no_model_can_mend_ends_the_run(kind: FailureKind) -> None:
    """Trying elsewhere would cost money and hide the cause."""
    following = after_model_call(state(chain=3), failed(kind))
    assert following.step is Step.FAIL
    assert following.failure is not None
    assert following.failure.kind is kind


def test_every_failure_has_its_row_here() -> None:
    """A kind added later must not slip past the tables above."""
    assert {*TOLD, *FALLING_BACK, *FINAL, *OUT_OF_BUDGET} == set(FailureKind)
    assert TOLD
    assert FALLING_BACK
    assert FINAL


def test_a_run_that_was_never_admitted_has_no_chain() -> None:
    """It fails instead of looking for a model that is not there."""
    assert after_model_call(RunState(started_at=NOW), failed(FALLING_BACK[0])).step is Step.FAIL


def test_the_same_failure_twice_is_not_told_twice() -> None:
    """Repairs are left, but the model has read exactly this before: the next model's turn."""
    outcome = answer(problem=FailureKind.OUTPUT_INVALID)
    following = after_model_call(state(chain=2, repairs=1).model_copy(update={"mistakes": ("output_invalid: why",)}), outcome)
    assert following.step is Step.NEXT_MODEL


def test_a_routed_model_that_fails_leads_back_to_the_one_that_is_meant_even_at_the_chains_end() -> None:
    """The route's model is not the chain's: the chain has not been tried yet."""
    routed = state(chain=2, model=0).model_copy(update={"asked_model": 1})
    assert after_model_call(routed, failed(FailureKind.BAD_REQUEST)).step is Step.NEXT_MODEL


@pytest.mark.parametrize(
    ("rounds", "step"), [(1, Step.ASK_AGAIN), (2, Step.ASK_AGAIN), (3, Step.WARN), (4, Step.WARN), (5, Step.FAIL), (9, Step.FAIL)]
)
def test_identical_rounds_are_warned_about_then_stopped(rounds: int, step: Step) -> None:
    """Three tell the model, five end the run; a run that goes on differently is left alone."""
    assert after_tool_turn(state().model_copy(update={"recent": ("x",) * rounds})).step is step


def test_a_mistake_the_model_makes_again_is_given_up_on() -> None:
    """The same senseless call in two turns: the next model, or the end with the mistake's name."""
    again = state(chain=2).model_copy(
        update={"turn_mistakes": ("unknown tool: x",), "mistakes": ("unknown tool: x",), "recent": ("a",)}
    )
    assert after_tool_turn(again).step is Step.NEXT_MODEL
    last = after_tool_turn(again.model_copy(update={"model": 1, "asked_model": 1}))
    assert last.step is Step.FAIL
    assert last.failure is not None
    assert "unknown tool: x" in last.failure.message
