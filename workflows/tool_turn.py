"""How are the tool calls of one turn made: in parallel, each with its own right, consent and outcome?"""

import asyncio
from dataclasses import dataclass

from temporalio import workflow

from durable_agents.activity_contracts import run_tool
from durable_agents.domain import run_state
from durable_agents.domain.approvals import Consent
from durable_agents.domain.identifiers import TenantId, call_path
from durable_agents.domain.model_calls import RequestedCall
from durable_agents.domain.run_state import RunState
from durable_agents.domain.runs import RunStatus
from durable_agents.domain.tool_calls import ConsentNeeded, ToolCallRequest, ToolOutcome, call_line
from workflows import activity_options
from workflows.human_gate import consent_for
from workflows.run_scope import RunScope


@dataclass(frozen=True)
class TurnEnd:
    """How a turn's calls came out."""

    interrupted: bool = False
    """A call still waits for a human; it is asked for again when the run goes on."""
    ending: RunStatus | None = None
    """A human's no, or silence, that ends the run by the policy's word."""
    explanation: str = ""


async def tool_turn(run: RunScope) -> TurnEnd:
    """Make all unsettled calls of the turn. Every one runs to its end before an error of any is raised."""
    ends = await asyncio.gather(*(_make(run, call) for call in run.state.calls), return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    finished = [end for end in ends if isinstance(end, TurnEnd)]
    ending = next((end for end in finished if end.ending is not None), None)
    return ending or TurnEnd(interrupted=any(end.interrupted for end in finished))


async def _make(run: RunScope, call: RequestedCall) -> TurnEnd:
    run.apply(_unfinished, 1)
    end = await _make_with_consent(run, call)
    run.apply(_unfinished, -1)
    return end


async def _make_with_consent(run: RunScope, call: RequestedCall) -> TurnEnd:
    end = TurnEnd()
    consent: Consent | None = None
    while True:
        outcome = await _execute(run, call, consent)
        if not isinstance(outcome, ConsentNeeded):
            run.apply(run_state.tool_settled, workflow.now(), call, outcome)
            return end
        consent = await consent_for(run, outcome, call_path(run.state.turn, call.index))
        if consent is None:
            return TurnEnd(interrupted=True)
        end = _end_after(outcome, consent)


async def _execute(run: RunScope, call: RequestedCall, consent: Consent | None) -> ToolOutcome:
    state = run.state
    assert state.admitted is not None
    notes = state.notes if consent is not None or call.index == 0 else ()
    request = ToolCallRequest(
        tenant=TenantId(run.request.tenant),
        run_id=run.request.run_id,
        turn=state.turn,
        index=call.index,
        consent=consent,
        near_limit=state.near_limit,
        notes=notes,
    )
    decided = f"{'-approved' if consent.approved else '-denied'}-{consent.approval_id[3:9]}" if consent is not None else ""
    by = f" · {'approved' if consent.approved else 'denied'} by {consent.by}" if consent is not None else ""
    outcome: ToolOutcome = await workflow.execute_activity(
        run_tool,
        request,
        **activity_options.tool_call(
            state.admitted.tools.get(call.tool, activity_options.UNKNOWN_TOOL),
            activity_id=f"tool-{state.turn}.{call.index}{decided}",
            summary=(call_line(call.tool, call.arguments) + by)[:180],
        ),
    )
    run.apply(run_state.written_down, notes)
    return outcome


def _end_after(needed: ConsentNeeded, consent: Consent) -> TurnEnd:
    if consent.expired and needed.ladder.on_expiry == "end":
        return TurnEnd(ending=RunStatus.EXPIRED, explanation=f"{needed.title}: {consent.reason}")
    if not consent.approved and not consent.expired and needed.ladder.on_denial == "end":
        return TurnEnd(ending=RunStatus.DENIED, explanation=f"{needed.title}: denied by {consent.by}: {consent.reason}")
    return TurnEnd()


def _unfinished(state: RunState, change: int) -> RunState:
    return state.model_copy(update={"clock": state.clock.changed(workflow.now(), unfinished=change)})
