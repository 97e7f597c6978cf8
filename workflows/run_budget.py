"""May the next step begin, and how much time is left?"""

from datetime import datetime, timedelta

from durable_agents.domain import budgets
from durable_agents.domain.budgets import LimitReached
from durable_agents.domain.model_calls import call_maximum
from durable_agents.domain.run_state import RunState


def before_model_call(state: RunState, now: datetime) -> LimitReached | None:
    """The limit in the way of the next model call, checked against the most it can use."""
    assert state.admitted is not None
    needed = call_maximum(state.admitted.models[state.model_now], state.model_now, state.context)
    return budgets.check_model_call(state.budget, state.spend, needed, state.elapsed(now))


def before_tool_calls(state: RunState, now: datetime) -> LimitReached | None:
    """The limit in the way of this turn's tool calls: all of them begin, or none."""
    return budgets.check_tool_calls(state.budget, state.spend, len(state.calls), state.elapsed(now))


def time_left(state: RunState, now: datetime) -> timedelta | None:
    """How long the run may go on working without a human; None is without limit."""
    elapsed = state.elapsed(now)
    left = [
        limit - used
        for limit, used in ((state.budget.wall_time, elapsed.wall), (state.budget.working_time, elapsed.working))
        if limit is not None
    ]
    return min(left) if left else None


def wall_deadline(state: RunState) -> datetime | None:
    """When the run must have ended, whatever it waits for."""
    return None if state.budget.wall_time is None else state.started_at + state.budget.wall_time
