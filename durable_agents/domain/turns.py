"""What follows from what a model call brought?"""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from durable_agents.domain.failures import Failure, FailureKind, correction
from durable_agents.domain.loops import LEAST_USUAL, repetition
from durable_agents.domain.model_calls import MAX_REPAIRS, ModelAnswer, ModelOutcome, StopReason
from durable_agents.domain.run_state import RunState

LONG_RUN = "This is turn {turn}; such work usually takes {usual}. Come to an end soon, or say why you cannot."


class Step(StrEnum):
    """What a run does next."""

    CALL_TOOLS = "call_tools"
    ASK_AGAIN = "ask_again"
    REPAIR = "repair"
    WARN = "warn"
    WARN_LONG = "warn_long"
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


def after_tool_turn(state: RunState) -> Next:
    """Decide, when every call of the turn is settled and before `turn_over` forgets what was wrong with it."""
    again = sorted(set(state.turn_mistakes) & set(state.mistakes))
    if again or (state.turn_mistakes and state.repairs >= MAX_REPAIRS):
        wrong = ", ".join(again or state.turn_mistakes)
        return _give_up_on_model(
            state, Failure(kind=FailureKind.TOO_MANY_REPAIRS, message=f"the model repeats its mistake: {wrong}")
        )
    return _after_repetition(state)


def _after_repetition(state: RunState) -> Next:
    assert state.admitted is not None
    found, guard = repetition(state.recent), state.admitted.loops
    if found.rounds < guard.warn:
        return _after_many_turns(state)
    failure = Failure(kind=FailureKind.LOOP, message=f"{found.rounds} identical rounds of {found.cycle} call(s)")
    if found.rounds >= guard.stop:
        return Next(step=Step.FAIL, failure=failure)
    return Next(step=Step.WARN, failure=failure, correction=correction(failure))


def _after_many_turns(state: RunState) -> Next:
    """Far more turns than this agent's runs usually take: told once, then stopped."""
    assert state.admitted is not None
    usual, guard = state.admitted.usual_turns, state.admitted.loops
    times = state.turn // max(usual, LEAST_USUAL) if usual is not None else 0
    if times < guard.long:
        return Next(step=Step.ASK_AGAIN)
    failure = Failure(kind=FailureKind.LOOP, message=f"turn {state.turn}, where {usual} are usual")
    if times >= guard.too_long:
        return Next(step=Step.FAIL, failure=failure)
    if state.told_long:
        return Next(step=Step.ASK_AGAIN)
    return Next(step=Step.WARN_LONG, failure=failure, correction=LONG_RUN.format(turn=state.turn, usual=usual))


def _after_failure(state: RunState, failure: Failure) -> Next:
    """Tell the model about its own failure, at most twice and never the same thing twice; else give up on the model."""
    if failure.kind in (FailureKind.ALLOWANCE_EXCEEDED, FailureKind.ACCOUNT_LIMIT):
        return Next(step=Step.BUDGET_EXHAUSTED, failure=failure)
    told = correction(failure)
    if told and state.repairs < MAX_REPAIRS and signature(failure) not in state.mistakes:
        return Next(step=Step.REPAIR, failure=failure, correction=told)
    if told or failure.answer.next_model:
        return _give_up_on_model(state, failure)
    return Next(step=Step.FAIL, failure=failure)


def _give_up_on_model(state: RunState, failure: Failure) -> Next:
    """The next model of the chain, if there is one."""
    chain = state.admitted.models if state.admitted is not None else ()
    another = state.asked_model != state.model or state.model + 1 < len(chain)
    return Next(step=Step.NEXT_MODEL if another else Step.FAIL, failure=failure)


def signature(failure: Failure) -> str:
    """What makes two failures the same."""
    return f"{failure.kind}: {failure.message}"
