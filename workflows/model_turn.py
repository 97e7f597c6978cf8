"""How does a run ask its model?"""

from temporalio import workflow

from durable_agents.activity_contracts import call_model
from durable_agents.domain import run_state
from durable_agents.domain.budgets import allowance
from durable_agents.domain.identifiers import TenantId
from durable_agents.domain.model_calls import ModelCallRequest, ModelOutcome
from durable_agents.domain.task_queues import provider_queue
from workflows import activity_options
from workflows.run_budget import time_left
from workflows.run_scope import RunScope


async def model_turn(run: RunScope) -> ModelOutcome:
    """One logical model call. The conversation stays in PostgreSQL; ids and numbers go."""
    state = run.state
    assert state.admitted is not None
    place = state.model_now
    model = state.admitted.models[place]
    run.apply(run_state.asking, place)
    request = ModelCallRequest(
        tenant=TenantId(run.request.tenant),
        run_id=run.request.run_id,
        call=state.spend.model_calls + 1,
        turn=state.turn + 1,
        model=place,
        allowance_micros=allowance(state.budget, state.spend),
        correction=state.correction,
        near_limit=state.near_limit,
    )
    return await workflow.execute_activity(
        call_model,
        request,
        **activity_options.model_call(
            model,
            time_left(state, workflow.now()),
            task_queue=provider_queue(workflow.info().task_queue, model.provider),
            activity_id=f"model-{request.call}",
            summary=f"{model.model} · turn {request.turn}" + (" · told about its mistake" if request.correction else ""),
        ),
    )
