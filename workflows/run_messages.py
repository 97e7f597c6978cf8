"""What can be said to a run while it lives, and what can it be asked?

Signals and updates change its state by pure transitions; the run itself (`agent_run`) sees what has changed. What each takes, and
when it is refused, stands in docs/messages.md.
"""

from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec

from pydantic import ValidationError
from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError

from durable_agents.domain import budgets, run_state, run_views
from durable_agents.domain.approvals import Approval, ApprovalDecision, Standing
from durable_agents.domain.canonical import inert
from durable_agents.domain.run_state import RunState
from durable_agents.domain.runs import BudgetRaise, BudgetView, CancelRequest, RunRequest, RunView, TimelineEntry
from workflows.any_input import any_input

P = ParamSpec("P")


class RunMessages:
    """The messages of `AgentRun`."""

    request: RunRequest
    state: RunState

    def apply(self, transition: Callable[Concatenate[RunState, P], RunState], *args: P.args, **kwargs: P.kwargs) -> None:
        """Replace the state by what the transition makes of it."""
        raise NotImplementedError

    @workflow.signal(
        description="Decide a pending approval: {approval_id, decision: approve|deny, by, reason, signature}. The first valid "
        "one wins; a double changes nothing; a late or malformed one is kept among the rejected messages."
    )
    @any_input
    def submit_approval(self, payload: RawValue) -> None:
        """A human's decision, by whatever sender: never lost, never fatal."""
        self.apply(run_state.counted_message)
        data = payload.payload.data
        try:
            decision = ApprovalDecision.read(data)
        except ValueError as error:
            self._reject("submit_approval", str(error), inert(data[:200].decode(errors="replace"), 200))
            return
        self.apply(run_state.received, workflow.now(), "submit_approval", decision)

    @workflow.update(
        description="Decide a pending approval and learn at once whether it counts: {approval_id, decision, by, reason}. "
        "Refused without a trace in history when it does not."
    )
    def decide_approval(self, decision: ApprovalDecision) -> str:
        """The same decision as `submit_approval`; the validator has refused what does not count."""
        self.apply(run_state.counted_message)
        self.apply(run_state.received, workflow.now(), "decide_approval", decision)
        return f"{decision.decision} counts for {decision.approval_id}"

    @decide_approval.validator
    def _validate_decision(self, decision: ApprovalDecision) -> None:
        if decision.signature is not None or self.state.to_verify(decision.approval_id):
            message = "signatures are verified on the way by signal: send submit_approval"
            raise ApplicationError(message, type="decision_refused", non_retryable=True)
        judgement = run_state.judged(self.state, workflow.now(), decision)
        if judgement.standing is not Standing.COUNTS:
            raise ApplicationError(judgement.reason, type="decision_refused", non_retryable=True)

    @workflow.signal(description="Stop at the next safe point: {by, reason}. A double changes nothing.")
    @any_input
    def request_cancel(self, payload: RawValue) -> None:
        """Stop; also a malformed cancel cancels, for stopping must never fail on its wording."""
        self.apply(run_state.counted_message)
        try:
            cancel = CancelRequest.model_validate_json(payload.payload.data or b"{}")
        except ValidationError:
            cancel = CancelRequest(reason="asked for by a malformed request")
        self.apply(run_state.cancelling, workflow.now(), cancel)

    @workflow.update(description="Raise limits of the budget: {budget: {cost_usd, turns, …}, by, reason}.")
    def raise_budget(self, change: BudgetRaise) -> BudgetView:
        """New, higher limits, for the very next step."""
        self.apply(run_state.counted_message)
        self.apply(run_state.budget_raised, workflow.now(), change)
        return self.budget()

    @raise_budget.validator
    def _validate_raise(self, change: BudgetRaise) -> None:
        if self.state.result is not None or self.state.admitted is None:
            raise ApplicationError("the run is not at work", type="budget_refused", non_retryable=True)
        if (limit := budgets.lowers(self.state.budget, change.budget)) is not None:
            message = f"{limit} would not be raised: it is {getattr(self.state.budget, limit.value)} now"
            raise ApplicationError(message, type="budget_refused", non_retryable=True)

    @workflow.signal(dynamic=True, description="Any other signal is kept among the rejected messages.")
    def unknown_signal(self, name: str, args: Sequence[RawValue]) -> None:
        """A mistyped signal name must be visible to whoever sent it."""
        self.apply(run_state.counted_message)
        excerpt = inert(args[0].payload.data[:200].decode(errors="replace"), 200) if args else ""
        self._reject(inert(name, 60), "there is no signal of this name; see docs/messages.md", excerpt)

    @workflow.query(description="Where the run stands.")
    def status(self) -> RunView:
        """Where the run stands."""
        return run_views.view(self.state, self.request)

    @workflow.query(description="What the run waits for humans for.")
    def pending_approvals(self) -> tuple[Approval, ...]:
        """What the run waits for humans for."""
        return self.state.approvals

    @workflow.query(description="What the run may use and has used.")
    def budget(self) -> BudgetView:
        """What the run may use and has used."""
        return run_views.budget_view(self.state, workflow.now())

    @workflow.query(description="What happened, the last 200 lines.")
    def timeline(self) -> tuple[TimelineEntry, ...]:
        """What happened, oldest first."""
        return self.state.timeline

    def _reject(self, message: str, reason: str, excerpt: str) -> None:
        self.apply(run_state.rejected, workflow.now(), message, reason, excerpt)
