"""How does a run show itself: to queries, and in the Temporal Web UI?"""

from datetime import datetime

from durable_agents.domain.canonical import inert
from durable_agents.domain.identifiers import TenantId, UserId
from durable_agents.domain.prices import format_usd
from durable_agents.domain.run_state import RunState
from durable_agents.domain.runs import BudgetView, RunRequest, RunStatus, RunView

_SHOWN_LINES = 15


def status(state: RunState) -> RunStatus:
    """Where the run stands."""
    if state.result is not None:
        return state.result.status
    if state.admitted is None:
        return RunStatus.STARTING
    return RunStatus.WAITING_APPROVAL if state.approvals else RunStatus.RUNNING


def view(state: RunState, request: RunRequest) -> RunView:
    """The answer to the query `status`."""
    return RunView(
        run_id=request.run_id,
        agent=request.agent,
        agent_version=state.admitted.version if state.admitted else None,
        policy_digest=state.admitted.policy_digest if state.admitted else None,
        policy_version=state.admitted.policy_version if state.admitted else 0,
        tenant=TenantId(request.tenant),
        user=UserId(request.user),
        status=status(state),
        turn=state.turn,
        doing=state.doing,
        spend=state.spend,
        budget=state.budget,
        pending_approvals=state.approvals,
        rejected_messages=state.rejected,
        rejected_count=state.rejected_count,
        cancel_requested=state.cancel,
        result=state.result,
    )


def budget_view(state: RunState, now: datetime) -> BudgetView:
    """The answer to the query `budget`."""
    elapsed = state.elapsed(now)
    return BudgetView(
        budget=state.budget,
        spend=state.spend,
        kept_micros=state.kept_micros,
        accounts_used=state.accounts_used,
        wall_seconds=elapsed.wall.total_seconds(),
        working_seconds=elapsed.working.total_seconds(),
    )


def markdown(state: RunState) -> str:
    """The run as the Web UI's current details: where it stands, who is asked, what it cost, what happened last.

    What models and people wrote stands in code spans: there a link is no link, an image is not fetched, `&#x202e;` stays text.
    """
    parts = [f"**{status(state)}** · turn {state.turn} · {_quoted(state.doing)}", _money(state)]
    for approval in state.approvals:
        rung = f"rung {approval.rung + 1} of {len(approval.ladder.rungs)}"
        parts.append(
            f"**Waits for {approval.asked}** until {approval.deadline.strftime('%Y-%m-%d %H:%M UTC')} ({rung}): "
            f"`{approval.id}` {_quoted(approval.title)}"
        )
        parts.append("\n".join(f"- {_quoted(name)}: {_quoted(value, 500)}" for name, value in approval.facts.items()))
    if state.rejected:
        last = state.rejected[-1]
        parts.append(f"{state.rejected_count} rejected messages, the last: {_quoted(last.reason)}")
    lines = [f"- {entry.at.strftime('%H:%M:%S')} {_quoted(entry.what)}" for entry in state.timeline[-_SHOWN_LINES:]]
    return "\n\n".join([*parts, "**What happened**", "\n".join(lines)])


def _quoted(text: str, limit: int = 160) -> str:
    """Untrusted text as a code span; `inert` leaves no backtick that could end it."""
    return f"`{inert(text, limit)}`" if text else ""


def _money(state: RunState) -> str:
    """In code spans, because the Web UI takes `$…$` for a formula."""
    spend, limit = state.spend, state.budget.cost_micros
    allowed = f" of `{format_usd(limit)}`" if limit is not None else ""
    held = f", `{format_usd(spend.unknown_micros)}` held for attempts with unknown outcome" if spend.unknown_micros else ""
    return f"`{format_usd(spend.cost_micros)}`{allowed}{held} · {spend.model_calls} model calls · {spend.tool_calls} tool calls"
