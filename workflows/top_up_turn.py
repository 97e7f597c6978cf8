"""What does a run do when a limit is in its way: park, ask for more, go on or end?"""

from temporalio import workflow

from durable_agents.activity_contracts import DecisionRecord, record_decision
from durable_agents.domain import budgets, endings, run_state, scarcity
from durable_agents.domain.identifiers import TenantId
from durable_agents.domain.runs import RunResult, RunStatus
from durable_agents.domain.scarcity import Reached
from workflows import activity_options
from workflows.human_gate import consent_for
from workflows.run_scope import RunScope


async def top_up_turn(run: RunScope, reached: Reached) -> RunResult | None:
    """Ask for more, and wait without a slot or a cent. None: the run goes on, with more or because it is interrupted."""
    terms, state = run.state.admitted, run.state
    assert terms is not None

    def raised() -> bool:
        return reached.limit is not None and run.state.budget != state.budget

    out_of_time = budgets.check_time(state.budget, state.elapsed(workflow.now())) is not None
    if out_of_time or terms.at_limit is None or not scarcity.can_ask(terms.at_limit, reached):
        return endings.ended(run.request.run_id, state, RunStatus.BUDGET_EXHAUSTED, reached.explanation)
    place = scarcity.path(state.turn)
    asked = scarcity.question(run.request.run_id, state.turn, state.top_ups, reached, terms.policy_digest, terms.at_limit)
    decision = await consent_for(run, asked, place, moot=raised)
    if decision is None:
        if raised():
            run.apply(run_state.withdrawn, workflow.now(), asked.approval_id)
        return None
    record = DecisionRecord(
        tenant=TenantId(run.request.tenant),
        run_id=run.request.run_id,
        turn=state.turn,
        decision=decision,
        notes=run.state.notes,
    )
    recorded = await workflow.execute_activity(
        record_decision, record, **activity_options.record_decision(asked.approval_id, f"{asked.title[:120]} · {decision.by}")
    )
    run.apply(run_state.written_down, record.notes)
    if decision.approved and not recorded.problem:
        add = terms.at_limit.add if reached.limit is not None else budgets.Budget()
        run.apply(run_state.topped_up, workflow.now(), add, decision.by)
        return None
    said = "nobody decided in time" if decision.expired else f"more was denied by {decision.by}"
    why = f"{reached.explanation}; {f'the decision does not hold: {recorded.problem}' if recorded.problem else said}"
    return endings.ended(run.request.run_id, run.state, RunStatus.BUDGET_EXHAUSTED, why)
