"""How does one agent run go, from its admission to its one end?

Read it with `model_turn`, `tool_turn` and `human_gate`; what can be said to it meanwhile is in `run_messages`.
Only this module assigns the run's state.
"""

import asyncio
from collections.abc import Callable
from typing import Concatenate, ParamSpec, assert_never

from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ActivityError, ApplicationError, RetryState

from durable_agents import search_attributes
from durable_agents.activity_contracts import AdmissionRequest, Ending, Refusal, admit_run, finish_run
from durable_agents.domain import budgets, endings, run_state, run_views
from durable_agents.domain.approvals import Consent
from durable_agents.domain.budgets import Limit
from durable_agents.domain.canonical import inert
from durable_agents.domain.failures import Failure, FailureKind
from durable_agents.domain.identifiers import TenantId
from durable_agents.domain.model_calls import ModelAnswer
from durable_agents.domain.run_state import REJECTED_KEPT, RunInput, RunState
from durable_agents.domain.runs import (
    CancelRequest,
    RunResult,
    RunStatus,
)
from durable_agents.domain.scarcity import Reached
from durable_agents.domain.turns import Next, Step, after_model_call, after_tool_turn, signature
from workflows import activity_options, run_budget
from workflows.any_input import any_input, any_input_async, read_start
from workflows.fallback_turn import fallback_turn
from workflows.model_turn import model_turn
from workflows.run_messages import RunMessages
from workflows.tool_turn import TurnEnd, tool_turn
from workflows.top_up_turn import top_up_turn

P = ParamSpec("P")
MESSAGES_PER_EXECUTION = 1_500
"""The server takes 2,000 updates and 10,000 signals of one execution; before that the run continues as new."""


@workflow.defn(name="AgentRun")
class AgentRun(RunMessages):
    """One run of an agent.

    Signals: `submit_approval` (a human's decision), `request_cancel`. Updates: `decide_approval` (the same decision, answered at
    once), `raise_budget`. Queries: `status`, `pending_approvals`, `budget`, `timeline`. See docs/messages.md.
    """

    @workflow.init
    @any_input
    def __init__(self, payload: RawValue) -> None:
        request, self._unreadable = read_start(payload)
        self.request = request.asked()
        self._stands_in_for, self._depth = request.stands_in_for, request.depth
        went_on = workflow.info().continued_run_id is not None
        self._forged = request.carried is not None and not went_on
        fresh = RunState(started_at=workflow.info().workflow_start_time)
        self.state = request.carried if request.carried is not None and went_on else fresh
        self._decision: Consent | None = None
        self._published: tuple[RunStatus, tuple[str, ...]] | None = None

    @property
    def interrupted(self) -> bool:
        """Must waiting stop: is a cancel requested, or the history full?"""
        return self.state.cancel is not None or self._must_continue_as_new

    def apply(self, transition: Callable[Concatenate[RunState, P], RunState], *args: P.args, **kwargs: P.kwargs) -> None:
        """Replace the state by what the transition makes of it, and show the change in the Web UI."""
        before = self.state
        self.state = transition(before, *args, **kwargs)
        if self._published is None or _looks_different(before, self.state):
            self._publish()

    @workflow.run
    @any_input_async
    async def run(self, payload: RawValue) -> RunResult:
        """Run to the one end. Temporal's own cancel is a `request_cancel`: the run stops at the next safe point."""
        del payload  # `__init__` has it
        if self._unreadable is not None:
            raise self._unreadable
        life = asyncio.create_task(self._live())
        try:
            result = await asyncio.shield(life)
        except asyncio.CancelledError:
            if workflow.cancellation_reason() is None:
                raise
            asked = CancelRequest(reason=workflow.cancellation_reason() or "cancelled in Temporal")
            self.apply(run_state.cancelling, workflow.now(), asked)
            result = await life
        await workflow.wait_condition(workflow.all_handlers_finished)
        if result.status is RunStatus.FAILED:
            kind = result.failure.kind if result.failure is not None else FailureKind.INTERNAL
            raise ApplicationError(result.explanation, result, type=kind, non_retryable=True)
        return result

    async def _live(self) -> RunResult:
        try:
            result = await self._until_the_end()
        except ActivityError as error:
            result = self._after_activity_error(error)
        except Exception as error:  # noqa: BLE001 - a bug must end the run with its name, not leave it running for ever
            workflow.logger.exception("a bug ended the run")
            result = self._failed(Failure(kind=FailureKind.INTERNAL, message=inert(f"{type(error).__name__}: {error}", 300)))
        self.apply(_ended, result)
        ending = Ending(
            tenant=TenantId(self.request.tenant),
            result=result,
            first_execution=workflow.info().first_execution_run_id,
            decision=self._decision,
            notes=self.state.notes,
            notes_made=self.state.notes_made,
        )
        await workflow.execute_activity(finish_run, ending, **activity_options.finish_run(f"ended: {result.status}"))
        return result

    async def _until_the_end(self) -> RunResult:
        if self.state.admitted is None and (refused := await self._admit()) is not None:
            return refused
        while True:
            self.apply(run_state.scarce, workflow.now())
            if self.state.calls and (end := await self._tools()) is not None:
                return end
            if self.state.cancel is not None:
                return endings.cancelled(self.request.run_id, self.state)
            if self._must_continue_as_new:
                await self._continue_as_new()
            if self.state.lost_to is not None:
                if (end := await self._fall_back(self.state.lost_to)) is not None:
                    return end
                continue
            if (limit := run_budget.before_model_call(self.state, workflow.now())) is not None:
                end = await self._at_limit(Reached(limit=limit.limit, explanation=limit.explanation))
            else:
                end = await self._ask_model()
            if end is not None:
                return end

    async def _admit(self) -> RunResult | None:
        if workflow.info().workflow_id != self.request.run_id:
            message = f"the workflow id must be {self.request.run_id}, or two runs could have one key"
            return self._failed(Failure(kind=FailureKind.INVALID_INPUT, message=message))
        if self._forged:
            message = "only a run that continues as new can bring a state along"
            return self._failed(Failure(kind=FailureKind.INVALID_INPUT, message=message))
        parent = workflow.info().parent
        if self._stands_in_for is not None and (parent is None or parent.workflow_id != self._stands_in_for):
            message = "only the run itself can have another agent stand in for it"
            return self._failed(Failure(kind=FailureKind.INVALID_INPUT, message=message))
        admission = AdmissionRequest(
            request=self.request,
            first_execution=workflow.info().first_execution_run_id,
            stands_in_for=self._stands_in_for,
        )
        outcome = await workflow.execute_activity(
            admit_run, admission, **activity_options.admit_run(f"{self.request.agent} for {self.request.user}")
        )
        if isinstance(outcome, Refusal):
            return self._failed(outcome.failure)
        self.apply(run_state.admitted, workflow.now(), outcome.terms)
        return None

    async def _ask_model(self) -> RunResult | None:
        outcome = await model_turn(self)
        if isinstance(outcome, ModelAnswer):
            self.apply(run_state.answered, workflow.now(), outcome)
        else:
            self.apply(run_state.model_failed, workflow.now(), outcome)
        following = after_model_call(self.state, outcome)
        if following.step is Step.END and isinstance(outcome, ModelAnswer):
            return endings.completed(self.request.run_id, self.state, outcome)
        return await self._go_on(following)

    async def _go_on(self, following: Next) -> RunResult | None:
        match following.step:
            case Step.REPAIR:
                assert following.failure is not None
                self.apply(run_state.repairing, following.correction, signature(following.failure))
            case Step.WARN:
                self.apply(run_state.told, following.correction)
            case Step.WARN_LONG:
                self.apply(run_state.told_long, following.correction)
            case Step.NEXT_MODEL:
                self.apply(run_state.next_model, workflow.now())
            case Step.BUDGET_EXHAUSTED:
                assert following.failure is not None
                own = Limit.COST if following.failure.kind is FailureKind.ALLOWANCE_EXCEEDED else None
                return await self._at_limit(Reached(limit=own, explanation=following.failure.message))
            case Step.FAIL | Step.END:
                assert following.failure is not None
                return await self._fall_back(following.failure)
            case Step.CALL_TOOLS | Step.ASK_AGAIN:
                pass
            case _:
                assert_never(following.step)
        return None

    async def _fall_back(self, failure: Failure) -> RunResult | None:
        result, self._decision = await fallback_turn(self, failure, self._depth)
        if result is not None:
            return result
        limit = budgets.check_time(self.state.budget, self.state.elapsed(workflow.now()))
        return self._exhausted(limit.explanation) if limit is not None else None

    async def _tools(self) -> RunResult | None:
        """See every call of the turn to its end. One whose wait ended with the run's time goes on if that was raised since."""
        while True:
            if (limit := run_budget.before_tool_calls(self.state, workflow.now())) is not None:
                over = await self._at_limit(Reached(limit=limit.limit, explanation=limit.explanation))
                if over is not None:
                    return over
                end = TurnEnd(interrupted=True)
            else:
                end = await tool_turn(self)
            if end.ending is not None:
                return endings.ended(self.request.run_id, self.state, end.ending, end.explanation)
            if not end.interrupted:
                following = after_tool_turn(self.state)
                self.apply(run_state.turn_over)
                return await self._go_on(following)
            if self.state.cancel is not None:
                return endings.cancelled(self.request.run_id, self.state)
            if self._must_continue_as_new:
                await self._continue_as_new()

    async def _at_limit(self, reached: Reached) -> RunResult | None:
        """Ask for more where the agent's file says whom; an agent that stands in has what is left of the run it stands in for."""
        if self._stands_in_for is not None:
            return self._exhausted(reached.explanation)
        return await top_up_turn(self, reached)

    @property
    def _must_continue_as_new(self) -> bool:
        return workflow.info().is_continue_as_new_suggested() or self.state.messages_received >= MESSAGES_PER_EXECUTION

    async def _continue_as_new(self) -> None:
        """Ids and numbers go along; the input has been admitted and stays in PostgreSQL."""
        await workflow.wait_condition(workflow.all_handlers_finished)
        if self.state.disputed or self.state.unverified:
            return  # only this execution's history knows when they arrived: their gates settle them first
        request = self.request.model_dump(exclude={"input"})
        carried = run_state.carried(self.state)
        workflow.continue_as_new(RunInput(**request, carried=carried, stands_in_for=self._stands_in_for, depth=self._depth))

    def _after_activity_error(self, error: ActivityError) -> RunResult:
        elapsed, cause = self.state.elapsed(workflow.now()), error.cause
        message = inert(f"{error.activity_type}: {cause or error}", 300)
        limit = budgets.check_time(self.state.budget, elapsed)
        if limit is None and error.retry_state is RetryState.TIMEOUT:  # at once, when the next try would come too late
            limit = budgets.too_late(self.state.budget, elapsed, f"a longer wait after {message}")
        if limit is not None:
            return self._exhausted(limit.explanation)
        mismatch = isinstance(cause, ApplicationError) and cause.type == FailureKind.CONSENT_MISMATCH
        return self._failed(Failure(kind=FailureKind.CONSENT_MISMATCH if mismatch else FailureKind.INTERNAL, message=message))

    def _exhausted(self, explanation: str) -> RunResult:
        return endings.ended(self.request.run_id, self.state, RunStatus.BUDGET_EXHAUSTED, explanation)

    def _failed(self, failure: Failure) -> RunResult:
        return endings.failed(self.request.run_id, self.state, failure)

    def _publish(self) -> None:
        """Search attributes cost an event, so only when they change; the details are a query and cost nothing."""
        status, pending = run_views.status(self.state), tuple(approval.id for approval in self.state.approvals)
        workflow.set_current_details(run_views.markdown(self.state))
        if (status, pending) == self._published:
            return
        self._published = (status, pending)
        workflow.upsert_search_attributes(search_attributes.of_run(self.request.agent, self.request.tenant, status, pending))


def _looks_different(before: RunState, after: RunState) -> bool:
    """Is there something new to show? Of a flood of junk messages every hundredth is, or showing takes longer than a task may."""
    if after.rejected_count != before.rejected_count:
        return after.rejected_count <= REJECTED_KEPT or after.rejected_count % 100 == 0
    shown = ("timeline", "approvals", "spend", "budget", "result", "admitted", "turn", "cancel")
    return any(getattr(before, name) is not getattr(after, name) for name in shown)


def _ended(state: RunState, result: RunResult) -> RunState:
    changed = state.model_copy(update={"result": result, "approvals": ()})
    return run_state.noted(changed, workflow.now(), f"ended: {result.status}")
