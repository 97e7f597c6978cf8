"""What does an agent do as its budget runs out: near the limit, and at it?

Near it, the run goes on with less, from there to its end: a cheaper model, fewer tools, a shorter memory. At it, the run parks
and asks a human for more; waiting costs nothing, and silence means no.
"""

from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from durable_agents.domain.approvals import ApprovalKind, Ladder, approval_digest, approval_id
from durable_agents.domain.budgets import Budget, Limit
from durable_agents.domain.canonical import inert
from durable_agents.domain.compact import Compact
from durable_agents.domain.identifiers import CallPath, Digest, RunId
from durable_agents.domain.tool_calls import ConsentNeeded

_TIME = (Limit.WALL_TIME, Limit.WORKING_TIME)


class AtLimit(BaseModel):
    """`at_limit:` in `agent.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    near: int = Field(default=80, ge=1, le=100)
    """Percent of the run's money or tokens, or of an account above it, at which the run goes on with less."""
    model: str | None = None
    """The `name` of a model of the chain that answers from there on."""
    without: tuple[str, ...] = ()
    """Tools that are not used from there on."""
    keep_turns: int | None = Field(default=None, ge=1, le=1000)
    """How many of the last turns the model still reads from there on, beside the input."""
    ask: str | None = None
    """A ladder of `policy.yaml`: who is asked for more when nothing is left. Without it the run ends as budget_exhausted."""
    add: Budget = Budget()
    """By how much each approval raises the limits of the run's own budget."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> "AtLimit":
        named = self.add.model_dump(exclude_none=True)
        if named and self.ask is None:
            raise ValueError("`add` says how much, and nobody is named in `ask`")
        if any(limit.value in named for limit in _TIME):
            raise ValueError("`add` has no times: who has no time left cannot wait for an answer")
        return self


class PinnedAtLimit(Compact):
    """The same with its model and its ladder found."""

    near: int
    model: int | None = None
    without: tuple[str, ...] = ()
    keep_turns: int | None = None
    ladder: Ladder | None = None
    add: Budget = Budget()

    @property
    def describes(self) -> str:
        """What is less from there on, in words; empty: nothing is."""
        parts = []
        if self.model is not None:
            parts.append("another model")
        if self.without:
            parts.append(f"without {', '.join(self.without)}")
        if self.keep_turns is not None:
            parts.append(f"with the last {self.keep_turns} turns in mind")
        return ", ".join(parts)


class Reached(BaseModel):
    """A limit in the way: of the run's own budget, or (None) of an account above it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    limit: Limit | None
    explanation: str


def can_ask(at_limit: PinnedAtLimit | None, reached: Reached) -> bool:
    """Is there somebody to ask, and something they could do?"""
    if at_limit is None or at_limit.ladder is None:
        return False
    return reached.limit is None or getattr(at_limit.add, reached.limit.value) is not None


def topped_up(budget: Budget, add: Budget) -> Budget:
    """`budget` with each limit that `add` names raised by so much; what is unlimited stays so."""
    changed: dict[str, Decimal | int] = {}
    for limit in Limit:
        current, more = getattr(budget, limit.value), getattr(add, limit.value)
        if current is not None and more is not None:
            changed[limit.value] = current + more
    return budget.model_copy(update=changed)


def path(turn: int) -> CallPath:
    """Where in the run the question stands."""
    return CallPath(f"{turn}.budget")


def question(
    run: RunId, turn: int, asked_before: int, reached: Reached, policy_digest: Digest, at_limit: PinnedAtLimit
) -> ConsentNeeded:
    """The request for more: bound to the run, the turn, what is in the way, and what an approval would add."""
    assert at_limit.ladder is not None
    adds = at_limit.add.model_dump(mode="json", exclude_none=True) if reached.limit is not None else {}
    bound = approval_digest(
        run=run,
        path=path(turn),
        kind=ApprovalKind.TOP_UP,
        tool="",
        arguments={"asked_before": asked_before, "limit": reached.limit, "adds": adds},
        policy_digest=policy_digest,
    )
    what = ", ".join(f"{name} +{value}" for name, value in adds.items())
    does = f"raises {what}" if reached.limit is not None else "tries again: raise the account's limit before"
    return ConsentNeeded(
        approval_id=approval_id(bound),
        approval_kind=ApprovalKind.TOP_UP,
        tool="",
        title=f"More budget? {inert(reached.explanation, 150)}",
        facts={"in the way": inert(reached.explanation), "an approval": does},
        model_says="",
        digest=bound,
        policy_digest=policy_digest,
        ladder=at_limit.ladder,
    )
