"""What does a run do when its models are at their end?

The agent's file names what to try, in order: an earlier answer, another agent, a fixed text, a human. What is taken stands in the
result and in the timeline.
"""

import contextlib
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ApplicationError, ChildWorkflowError, WorkflowAlreadyStartedError

from durable_agents import search_attributes
from durable_agents.activity_contracts import DecisionRecord, RunReference, find_earlier_answer, record_decision
from durable_agents.domain import budgets, endings, run_state, take_over
from durable_agents.domain.approvals import Consent
from durable_agents.domain.canonical import digest
from durable_agents.domain.failures import Failure
from durable_agents.domain.fallbacks import PinnedFallback, fallbacks_for
from durable_agents.domain.identifiers import TenantId
from durable_agents.domain.run_state import MAX_DEPTH, RunInput
from durable_agents.domain.runs import RunRequest, RunResult, RunStatus
from workflows import activity_options
from workflows.human_gate import consent_for
from workflows.run_scope import RunScope


async def fallback_turn(run: RunScope, failure: Failure, depth: int) -> tuple[RunResult | None, Consent | None]:
    """The end that the first fallback that works brings, and the decision of the human it asked.

    No result: the run is cancelled, or waiting for a human was interrupted, and the run decides what that means.
    """
    terms = run.state.admitted
    for fallback in fallbacks_for(terms.fallbacks, failure.kind) if terms is not None else ():
        if run.state.cancel is not None:
            return None, None
        if fallback.ladder is not None:
            return await _ask_a_human(run, failure, fallback)
        if run.state.lost_to is not None:
            continue  # a human is asked already: what stands before that was tried in vain
        if (result := await _without_a_human(run, failure, fallback, depth)) is not None:
            return result, None
    return endings.failed(run.request.run_id, run.state, failure), None


async def _without_a_human(run: RunScope, failure: Failure, fallback: PinnedFallback, depth: int) -> RunResult | None:
    if fallback.text is not None:
        run.apply(run_state.noted, workflow.now(), "gives the fixed text of the agent's file")
        return endings.fell_back(run.request.run_id, run.state, failure, fallback.text)
    if fallback.agent is not None:
        return await _let_another_agent(run, failure, fallback.agent, depth)
    reference = RunReference(tenant=TenantId(run.request.tenant), run_id=run.request.run_id)
    earlier = await workflow.execute_activity(find_earlier_answer, reference, **activity_options.find_earlier_answer())
    if earlier.run_id is None:
        return None
    run.apply(run_state.noted, workflow.now(), f"gives the answer of {earlier.run_id} again")
    found = endings.Output(earlier.output, earlier.output_artifact)
    return endings.answered_before(run.request.run_id, run.state, failure, earlier.run_id, found)


async def _let_another_agent(run: RunScope, failure: Failure, agent: str, depth: int) -> RunResult | None:
    """A child run of the other agent, on this run's input and what is left of its budget."""
    if depth >= MAX_DEPTH:
        return None
    state, request = run.state, run.request
    run.apply(run_state.noted, workflow.now(), f"agent {agent} stands in")
    stand_in = RunInput(
        agent=agent,
        tenant=request.tenant,
        user=request.user,
        idempotency_key=f"{agent}-for-{digest([request.run_id, agent])[:16]}",
        budget=budgets.left(state.budget, state.spend, state.elapsed(workflow.now())),
        stands_in_for=request.run_id,
        depth=depth + 1,
    )
    try:
        child = await workflow.start_child_workflow(
            "AgentRun",
            stand_in,
            id=stand_in.run_id,
            result_type=RunResult,
            static_summary=f"{stand_in.agent} stands in for {stand_in.stands_in_for}",
            search_attributes=search_attributes.at_start(stand_in.agent, stand_in.tenant, RunStatus.STARTING),
        )
    except WorkflowAlreadyStartedError:  # by somebody else, who took this name
        return None
    result = await _result_of(run, child)
    if result is None:
        run.apply(run_state.stand_in_lost, workflow.now(), agent, stand_in.budget)
        return None
    if result.agent_version is None:  # refused at its admission: it has used nothing
        run.apply(run_state.noted, workflow.now(), f"agent {agent} cannot stand in: {result.explanation}")
        return None
    return endings.stood_in(request.run_id, run.state, failure, result, agent)


async def _result_of(run: RunScope, child: workflow.ChildWorkflowHandle[Any, Any]) -> RunResult | None:
    """How the child ended; None when it was ended from outside. A cancel of this run is passed on to it."""
    await workflow.wait_condition(lambda: child.done() or run.state.cancel is not None)
    if not child.done():
        with contextlib.suppress(ApplicationError):  # it ended at this moment
            await child.signal("request_cancel", run.state.cancel)
    try:
        return RunResult.model_validate(await child)
    except ChildWorkflowError as error:
        cause = error.cause
        return RunResult.model_validate(cause.details[0]) if isinstance(cause, ApplicationError) and cause.details else None


async def _ask_a_human(run: RunScope, failure: Failure, fallback: PinnedFallback) -> tuple[RunResult | None, Consent | None]:
    terms, turn = run.state.admitted, run.state.turn
    assert terms is not None
    assert fallback.ladder is not None
    run.apply(run_state.lost, workflow.now(), failure)
    request: RunRequest = run.request
    asked = take_over.question(request.run_id, turn, failure, run.state.last_text, terms.policy_digest, fallback.ladder)
    decision = await consent_for(run, asked, take_over.path(turn))
    if decision is None:
        return None, None
    if decision.signature is not None and (problem := await _used_up(run, decision)):
        run.apply(run_state.noted, workflow.now(), f"the decision does not hold: {problem}")
        return endings.failed(request.run_id, run.state, failure), None
    return endings.taken_over(request.run_id, run.state, failure, decision), decision


async def _used_up(run: RunScope, decision: Consent) -> str:
    """Write a signed decision down before anything follows from it: what is wrong with it, or empty."""
    tenant, turn = TenantId(run.request.tenant), run.state.turn
    record = DecisionRecord(tenant=tenant, run_id=run.request.run_id, turn=turn, decision=decision)
    options = activity_options.record_decision(decision.approval_id, f"take over · {decision.by}")
    recorded = await workflow.execute_activity(record_decision, record, **options)
    return recorded.problem
