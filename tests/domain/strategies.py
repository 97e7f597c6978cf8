"""What do property tests of the domain draw from, and how do they get a run's parts without writing them out?"""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from durable_agents.domain.approvals import (
    Approval,
    ApprovalDecision,
    ApprovalKind,
    Ladder,
    Rung,
    approval_digest,
    approval_id,
)
from durable_agents.domain.canonical import digest
from durable_agents.domain.identifiers import CallPath, RunId, UserId

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
POLICY = digest("a policy")

checked = settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
"""A property of pure code: enough examples to find an error, few enough for every run of the suite."""

any_text = st.text(st.one_of(st.sampled_from("\x00\x1a\ud800\udfff0123456789abcdef`|<>\u202e é"), st.characters()), max_size=40)
"""Any text at all, and often the characters that storage and screens trip over."""
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text
json_values: st.SearchStrategy[JsonValue] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4), max_leaves=12
)


def ladder(*rungs: tuple[str, ...], within: timedelta = timedelta(hours=1)) -> Ladder:
    """A ladder of rungs with these approvers, an hour each."""
    return Ladder(rungs=tuple(Rung(approvers=approvers, within=within) for approvers in rungs or (("*",),)))


def approval(*rungs: tuple[str, ...], requester: str = "ann@corp.example", path: str = "1.0", **changes: Any) -> Approval:
    """An approval that was asked for at NOW."""
    bound = approval_digest(
        run=RunId("run:acme:k"),
        path=CallPath(path),
        kind=ApprovalKind.TOOL_CALL,
        tool="refund",
        arguments={"amount": "250"},
        policy_digest=POLICY,
    )
    asked: dict[str, Any] = {
        "id": approval_id(bound),
        "kind": ApprovalKind.TOOL_CALL,
        "path": path,
        "tool": "refund",
        "title": "refund amount=250",
        "facts": {"amount": "250"},
        "digest": bound,
        "policy_digest": POLICY,
        "requester": requester,
        "ladder": ladder(*rungs),
        "requested_at": NOW,
        "deadline": NOW + timedelta(hours=1),
    }
    return Approval.model_validate(asked | changes)


def decision(of: Approval, by: str = "boss", **changes: Any) -> ApprovalDecision:
    """Somebody's yes."""
    said: dict[str, Any] = {"approval_id": of.id, "decision": "approve", "by": UserId(by)}
    return ApprovalDecision.model_validate(said | changes)
