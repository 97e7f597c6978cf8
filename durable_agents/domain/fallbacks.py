"""What does an agent do when its models are at their end?"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from durable_agents.domain.approvals import Ladder
from durable_agents.domain.failures import FailureKind
from durable_agents.domain.identifiers import Name


class Fallback(BaseModel):
    """One line of `fallbacks:` in `agent.yaml`: what to do about these kinds of failure, in exactly one way."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    on: tuple[FailureKind | Literal["any"], ...] = Field(min_length=1)
    text: str | None = Field(default=None, min_length=1, max_length=4000)
    """The run ends as degraded with this answer."""
    human: str | None = None
    """A ladder of `policy.yaml`: whoever approves takes the run over (it ends as handed_off); a no, or silence, fails it."""

    agent: Name | None = None
    """Another agent does it, with the same input and the money that is left; its end is this run's end."""
    earlier_answer: Literal[True] | None = None
    """The answer of the last completed run of this agent with the same input of the same user, if it had no effect."""

    @model_validator(mode="after")
    def _one_way(self) -> "Fallback":
        if sum(way is not None for way in (self.text, self.human, self.agent, self.earlier_answer)) != 1:
            raise ValueError("a fallback has exactly one of text, human, agent, earlier_answer")
        return self


class PinnedFallback(BaseModel):
    """A fallback with its ladder found."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    on: tuple[FailureKind | Literal["any"], ...]
    text: str | None = None
    ladder: Ladder | None = None
    agent: str | None = None
    earlier_answer: Literal[True] | None = None


def fallbacks_for(fallbacks: tuple[PinnedFallback, ...], kind: FailureKind) -> tuple[PinnedFallback, ...]:
    """What to try about this kind of failure, in order."""
    return tuple(fallback for fallback in fallbacks if kind in fallback.on or "any" in fallback.on)
