"""Run AI agents in production on Temporal: the kernel that callers, tools and workers share."""

from durable_agents.client import AgentClient, RunHandle
from durable_agents.domain.approvals import Approval, ApprovalDecision
from durable_agents.domain.budgets import Budget
from durable_agents.domain.effects import Effect
from durable_agents.domain.runs import RunRequest, RunResult, RunStatus
from durable_agents.domain.tools import ToolContext, ToolFailed, ToolUnavailable, tool
from durable_agents.errors import AgentError

__all__ = [
    "AgentClient",
    "AgentError",
    "Approval",
    "ApprovalDecision",
    "Budget",
    "Effect",
    "RunHandle",
    "RunRequest",
    "RunResult",
    "RunStatus",
    "ToolContext",
    "ToolFailed",
    "ToolUnavailable",
    "tool",
]
