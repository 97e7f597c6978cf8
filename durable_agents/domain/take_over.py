"""What is a human asked when the models are at their end?"""

from durable_agents.domain.approvals import ApprovalKind, Ladder, approval_digest, approval_id
from durable_agents.domain.canonical import inert
from durable_agents.domain.failures import Failure
from durable_agents.domain.identifiers import CallPath, Digest, RunId
from durable_agents.domain.tool_calls import ConsentNeeded


def path(turn: int) -> CallPath:
    """Where in the run the question stands."""
    return CallPath(f"{turn}.run")


def question(run: RunId, turn: int, failure: Failure, last_text: str, policy_digest: Digest, ladder: Ladder) -> ConsentNeeded:
    """The request to take the run over, bound to this run, turn and failure."""
    bound = approval_digest(
        run=run,
        path=path(turn),
        kind=ApprovalKind.TAKE_OVER,
        tool="",
        arguments={"failure": failure.kind, "message": failure.message},
        policy_digest=policy_digest,
    )
    return ConsentNeeded(
        approval_id=approval_id(bound),
        approval_kind=ApprovalKind.TAKE_OVER,
        tool="",
        title=f"Take this run over? Its models are at their end: {failure.kind}",
        facts={"failure": failure.kind, "message": inert(failure.message)},
        model_says=inert(last_text, 300),
        digest=bound,
        policy_digest=policy_digest,
        ladder=ladder,
    )
