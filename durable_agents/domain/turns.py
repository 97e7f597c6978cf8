"""What follows from what a model call brought?"""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from durable_agents.domain.failures import Failure, FailureKind, correction
from durable_agents.domain.model_calls import MAX_REPAIRS, ModelAnswer, ModelOutcome, StopReason
from durable_agents.domain.run_state import RunState


class Step(StrEnum):
    """What a run does next."""

    CALL_TOOLS = "call_tools"
    ASK_AGAIN = "ask_again"
    REPAIR = "repair"
    NEXT_MODEL = "next_model"
    END = "end"
    BUDGET_EXHAUSTED = "budget_exhausted"
    FAIL = "fail"


class Next(BaseModel):
    """The next step, with the failure that led to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    step: Step
    failure: Failure | None = None
    correction: str = ""


def after_model_call(state: RunState, outcome: ModelOutcome) -> Next:
    """Decide, given the state as the outcome left it."""
    if isinstance(outcome, ModelAnswer):
        if outcome.problem is not None:
            return _after_failure(state, outcome.problem)
        if outcome.calls:
            return Next(step=Step.CALL_TOOLS)
        return Next(step=Step.ASK_AGAIN if outcome.stop is StopReason.PAUSED else Step.END)
    return _after_failure(state, outcome.failure)


def _after_failure(state: RunState, failure: Failure) -> Next:
    """Tell the model about its own failure, at most twice; else the next model of the chain; else fail."""
    if failure.kind is FailureKind.ALLOWANCE_EXCEEDED:
        return Next(step=Step.BUDGET_EXHAUSTED, failure=failure)
    told = correction(failure)
    if told and state.repairs < MAX_REPAIRS:
        return Next(step=Step.REPAIR, failure=failure, correction=told)
    chain = state.admitted.models if state.admitted is not None else ()
    if (told or failure.answer.next_model) and state.model + 1 < len(chain):
        return Next(step=Step.NEXT_MODEL, failure=failure)
    return Next(step=Step.FAIL, failure=failure)
