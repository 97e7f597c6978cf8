"""What does a person see of a run, an approval, a budget and a result?

All data passes `screen.shown`. The model's own words are labelled untrusted: they are what an attacker would write.
"""

import json
import shlex
from datetime import UTC, datetime, timedelta

from durable_agents.domain.approvals import ANYBODY, Approval
from durable_agents.domain.budgets import Budget, Limit, Spend
from durable_agents.domain.identifiers import RunId
from durable_agents.domain.prices import format_usd
from durable_agents.domain.runs import BudgetView, RunResult, RunStatus, RunView
from starter.cli.screen import Screen

UNSIGNED = "whoever may write to the Temporal namespace can decide in anybody's name; docs/consent.md"
_STYLES = {RunStatus.COMPLETED: "green", RunStatus.FAILED: "red", RunStatus.WAITING_APPROVAL: "yellow"}


def show_approval(screen: Screen, run: RunId, approval: Approval, address: str | None) -> None:
    """What waits for a human: the facts that will be executed, who may decide until when, and the commands that decide."""
    screen.line(f"approval {approval.id} of {run} waits for a human", "bold yellow")
    screen.facts(
        [
            ("call", approval.title),
            *((f"  {name}", value) for name, value in approval.facts.items()),
            ("bound to", f"{approval.digest[:16]}… (tool, arguments, run and policy: another argument is another approval)"),
            ("asked for by", approval.requester),
            ("may decide", _approvers(approval)),
            *([("must approve", _quorum(approval))] if approval.quorum > 1 else []),
            ("deadline", _deadline(approval)),
            ("signature", "wanted: only signed decisions count" if approval.ladder.signed else f"not wanted: {UNSIGNED}"),
            *([("untrusted, the model says", f"“{approval.model_says}”")] if approval.model_says else []),
            *((verb, decision_command(verb, run, approval, address)) for verb in ("approve", "deny")),
        ]
    )


def decision_command(verb: str, run: RunId, approval: Approval, address: str | None) -> str:
    """The command that decides, to be copied."""
    where = ["--address", address] if address else []
    return shlex.join(["python", "-m", "starter", verb, run, approval.id, *where])


def _approvers(approval: Approval) -> str:
    named = ", ".join("anybody" if person == ANYBODY else person for person in approval.approvers)
    rungs = len(approval.ladder.rungs)
    return f"{named}, but not {approval.requester}" + (f" (rung {approval.rung + 1} of {rungs})" if rungs > 1 else "")


def _quorum(approval: Approval) -> str:
    agreed = ", ".join(voice.by for voice in approval.agreed)
    return f"{approval.quorum} different people" + (f"; so far {agreed}" if agreed else "")


def _deadline(approval: Approval) -> str:
    left = approval.deadline - datetime.now(UTC)
    when = approval.deadline.astimezone().isoformat(sep=" ", timespec="seconds")
    return f"{when} ({_in_words(left)} left)" if left > timedelta(0) else f"{when} (over)"


def _in_words(length: timedelta) -> str:
    minutes = int(length.total_seconds()) // 60
    if minutes >= 48 * 60:
        return f"{minutes // 1440} days"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def show_status(screen: Screen, view: RunView, url: str | None) -> None:
    """Where a run stands."""
    screen.line(f"{view.run_id}: {view.status}", _STYLES.get(view.status, "bold"))
    screen.facts(
        [
            ("agent", f"{view.agent} {(view.agent_version or '')[:12]}".strip()),
            *([("policy", f"version {view.policy_version} {view.policy_digest[:12]}")] if view.policy_digest else []),
            ("for", f"{view.user} ({view.tenant})"),
            ("turn", str(view.turn)),
            ("doing", view.doing),
            ("spent", spent(view.spend, view.budget)),
            *([("cancel", f"asked for by {view.cancel_requested.by}")] if view.cancel_requested else []),
            *([("waits for", approval.title) for approval in view.pending_approvals]),
            *([("web", url)] if url else []),
        ]
    )
    if view.rejected_count:
        screen.line(f"  {view.rejected_count} messages did not count; the last ones:", "yellow")
        screen.facts([(entry.at.strftime("%H:%M:%S"), f"{entry.excerpt}: {entry.reason}") for entry in view.rejected_messages])
    if view.result is not None:
        show_result(screen, view.result)


def show_result(screen: Screen, result: RunResult) -> None:
    """How a run ended. The output holds the model's words."""
    screen.line(f"{result.run_id} ended: {result.status}", _STYLES.get(result.status, "bold"))
    screen.facts([("why", result.explanation)] if result.explanation else [])
    if result.output is not None:
        text = result.output if isinstance(result.output, str) else json.dumps(result.output, ensure_ascii=False)
        screen.facts([("output, by the model", text)])
    if result.output_artifact is not None:
        screen.facts([("output", f"artifact {result.output_artifact}")])
    screen.facts([("turns", str(result.turns)), ("spent", spent(result.spend))])


def spent(spend: Spend, budget: Budget | None = None) -> str:
    """Money and counts in one line."""
    limit = f" of {format_usd(budget.cost_micros)}" if budget and budget.cost_micros is not None else ""
    unknown = f" and up to {format_usd(spend.unknown_micros)} unsettled" if spend.unknown_micros else ""
    counts = f"{spend.model_calls} model calls, {spend.tool_calls} tool calls"
    tokens = f"{spend.input_tokens:,} + {spend.output_tokens:,} tokens"
    return f"{format_usd(spend.cost_micros)}{limit}{unknown} ({counts}, {tokens})"


def show_budget(screen: Screen, run: RunId, view: BudgetView) -> None:
    """Every limit of a run with what is used of it."""
    screen.line(f"budget of {run}", "bold")
    screen.table(["limit", "used", "allowed"], [(limit, _used(limit, view), _allowed(limit, view.budget)) for limit in Limit])


def _used(limit: Limit, view: BudgetView) -> str:
    match limit:
        case Limit.COST:
            return format_usd(view.spend.committed_micros)
        case Limit.WALL_TIME:
            return str(timedelta(seconds=round(view.wall_seconds)))
        case Limit.WORKING_TIME:
            return str(timedelta(seconds=round(view.working_seconds)))
        case _:
            return f"{getattr(view.spend, limit.value):,}"


def _allowed(limit: Limit, budget: Budget) -> str:
    value = getattr(budget, limit.value)
    if value is None:
        return "unlimited"
    if budget.cost_micros is not None and limit is Limit.COST:
        return format_usd(budget.cost_micros)
    return f"{value:,}" if isinstance(value, int) else str(value)
