"""How does a run wait for a human, without a worker slot, until somebody decides or the deadline says no?"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Literal

from temporalio import workflow

from durable_agents.activity_contracts import (
    ArrivalQuestion,
    Notice,
    SentQuestion,
    VerificationQuestion,
    find_arrival,
    find_sent_decisions,
    tell_approvers,
    verify_decisions,
)
from durable_agents.domain import approvals, run_state
from durable_agents.domain.approvals import Approval, ApprovalKind, Consent, Standing
from durable_agents.domain.identifiers import ApprovalId, CallPath, TenantId, UserId
from durable_agents.domain.run_state import RunState
from durable_agents.domain.signatures import Bound
from durable_agents.domain.tool_calls import ConsentNeeded
from workflows import activity_options
from workflows.run_budget import wall_deadline
from workflows.run_scope import RunScope

_OF_THE_RUN = (ApprovalKind.TOP_UP, ApprovalKind.TAKE_OVER)
"""What no executor asks, and so none tells people of."""
VERIFIED_AT_ONCE = 200
"""Decisions; what is wrong with each goes into history."""


async def consent_for(
    run: RunScope, needed: ConsentNeeded, path: CallPath, *, moot: Callable[[], bool] = lambda: False
) -> Consent | None:
    """Ask, and wait for the one outcome. None: waiting was interrupted, or the question is `moot`; the run knows which."""
    opened = _approval(run, needed, path)
    fresh = run.state.approval(opened.id) is None
    run.apply(run_state.asked, workflow.now(), opened)
    run.apply(_waiting, 1)
    if opened.kind in _OF_THE_RUN and fresh:
        await _tell(run, opened, "asked")
    consent = await _outcome(run, needed.approval_id, moot)
    run.apply(_waiting, -1)
    if consent is not None:
        run.apply(run_state.closed, workflow.now(), consent)
    return consent


async def _outcome(run: RunScope, wanted: ApprovalId, moot: Callable[[], bool]) -> Consent | None:
    looked: datetime | None = None
    while True:
        approval = run.state.approval(wanted)
        assert approval is not None
        if (decided := run.state.decided.get(wanted)) is not None:
            return decided
        if run.state.to_verify(wanted):
            await _verify(run, approval)
            continue
        if wanted in run.state.disputed:
            await _arbitrate(run, approval)
            continue
        if run.interrupted or moot() or _out_of_time(run.state):
            return None
        if workflow.now() < approval.deadline:
            due = approval.remind_at is not None and approval.remind_at <= workflow.now()
            await (_remind(run, approval) if due else _wait(run, approval, moot))
            continue
        if looked != approval.deadline:
            looked = approval.deadline
            await _look_for_undelivered(run, approval)
            continue
        following = approvals.escalated(approval, workflow.now())
        if following is None:
            return approvals.expiry(approval, workflow.now())
        run.apply(run_state.escalated, workflow.now(), following)
        await _tell(run, following, "escalation")


async def _wait(run: RunScope, approval: Approval, moot: Callable[[], bool]) -> None:
    """Until something about this approval changes, its deadline passes, or the run's own time is over."""
    end = min(approval.deadline, wall_deadline(run.state) or approval.deadline, approval.remind_at or approval.deadline)

    def stirred() -> bool:
        state = run.state
        stirs = approval.id in state.decided or approval.id in state.disputed or bool(state.to_verify(approval.id))
        return stirs or run.interrupted or moot()

    try:
        await workflow.wait_condition(
            stirred,
            timeout=max(end - workflow.now(), timedelta(0)),
            timeout_summary=f"deadline of {approval.id}: {approval.title[:80]}",
        )
    except TimeoutError:
        return


async def _verify(run: RunScope, approval: Approval) -> None:
    """Signed decisions have arrived: who has signed them?"""
    question = VerificationQuestion(
        bound=Bound.to(
            approval,
            tenant=TenantId(run.request.tenant),
            namespace=workflow.info().namespace,
            run_id=run.request.run_id,
            first_execution=workflow.info().first_execution_run_id,
        ),
        decisions=run.state.to_verify(approval.id)[:VERIFIED_AT_ONCE],
    )
    answer = await workflow.execute_local_activity(verify_decisions, question, **activity_options.VERIFY_DECISIONS)
    run.apply(run_state.verified, approval.id, answer.problems)


async def _tell(run: RunScope, approval: Approval, occasion: Literal["asked", "reminder", "escalation"]) -> None:
    """Tell those who are asked now. Tool calls are told of where they are asked about, by the executor."""
    notice = Notice(
        tenant=TenantId(run.request.tenant),
        run_id=run.request.run_id,
        approval_id=approval.id,
        occasion=occasion,
        title=approval.title,
        asked=approval.asked,
        requester=approval.requester,
        rung=approval.rung,
        deadline=approval.deadline,
    )
    await workflow.execute_local_activity(tell_approvers, notice, **activity_options.TELL_APPROVERS)


async def _remind(run: RunScope, approval: Approval) -> None:
    """Nobody has decided for so long: was a decision lost, or must people be told again?"""
    await _look_for_undelivered(run, approval)
    if approval.id not in run.state.decided and not run.state.to_verify(approval.id):
        await _tell(run, approval, "reminder")
    run.apply(run_state.reminded, workflow.now(), approval.id)


async def _look_for_undelivered(run: RunScope, approval: Approval) -> None:
    """A reminder is due, or the deadline has come, and nobody decided: or did somebody, and the message was lost?"""
    question = SentQuestion(
        tenant=TenantId(run.request.tenant),
        run_id=run.request.run_id,
        approval_id=approval.id,
        since=approval.asked_since,
        until=approval.deadline,
    )
    answer = await workflow.execute_local_activity(find_sent_decisions, question, **activity_options.FIND_SENT_DECISIONS)
    for one in answer.decisions:
        run.apply(run_state.found, one.at, one.decision)


async def _arbitrate(run: RunScope, approval: Approval) -> None:
    """A decision was seen after the deadline: did it arrive before, while no worker was there to see it?"""
    decision = run.state.disputed[approval.id][0]
    question = ArrivalQuestion(
        run_id=run.request.run_id,
        execution=workflow.info().run_id,
        decision=decision,
        asked_since=approval.asked_since,
        deadline=approval.deadline,
    )
    arrival = await workflow.execute_local_activity(find_arrival, question, **activity_options.FIND_ARRIVAL)
    arrived = arrival.at

    def settle(state: RunState) -> RunState:
        undisputed = run_state.undisputed(state, approval.id)
        if arrived is not None:
            return run_state.accepted(undisputed, arrived, "submit_approval", decision)
        following = approvals.escalated(approval, workflow.now())
        if following is not None and approvals.judge(following, decision, workflow.now()).standing is Standing.COUNTS:
            moved = run_state.escalated(undisputed, workflow.now(), following)
            return run_state.accepted(moved, workflow.now(), "submit_approval", decision)
        reason = approvals.judge(approval, decision, workflow.now()).reason
        return run_state.rejected(undisputed, workflow.now(), "submit_approval", reason, decision.excerpt)

    run.apply(settle)


def _approval(run: RunScope, needed: ConsentNeeded, path: CallPath) -> Approval:
    now = workflow.now()
    return Approval(
        id=needed.approval_id,
        kind=needed.approval_kind,
        path=path,
        tool=needed.tool,
        title=needed.title,
        facts=needed.facts,
        model_says=needed.model_says,
        digest=needed.digest,
        policy_digest=needed.policy_digest,
        requester=UserId(run.request.user),
        ladder=needed.ladder,
        requested_at=now,
        deadline=now + needed.ladder.rungs[0].within,
    )


def _waiting(state: RunState, change: int) -> RunState:
    return state.model_copy(update={"clock": state.clock.changed(workflow.now(), waiting=change)})


def _out_of_time(state: RunState) -> bool:
    deadline: datetime | None = wall_deadline(state)
    return deadline is not None and workflow.now() >= deadline
