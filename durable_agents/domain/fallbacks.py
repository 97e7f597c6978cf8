"""What does an agent do when its models are at their end?"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from durable_agents.domain.approvals import Ladder
from durable_agents.domain.failures import FailureKind


class Fallback(BaseModel):
    """One line of `fallbacks:` in `agent.yaml`: for these kinds of failure, a fixed text or a human who takes over."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    on: tuple[FailureKind | Literal["any"], ...] = Field(min_length=1)
    text: str | None = Field(default=None, min_length=1, max_length=4000)
    """The run ends as degraded with this answer."""
    human: str | None = None
    """A ladder of `policy.yaml`: whoever approves takes the run over (it ends as handed_off); a no, or silence, fails it."""

    @model_validator(mode="after")
    def _one_way(self) -> "Fallback":
        if (self.text is None) == (self.human is None):
            raise ValueError("a fallback has exactly one of text, human")
        return self


class PinnedFallback(BaseModel):
    """A fallback with its ladder found."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    on: tuple[FailureKind | Literal["any"], ...]
    text: str | None = None
    ladder: Ladder | None = None


def fallback_for(fallbacks: tuple[PinnedFallback, ...], kind: FailureKind) -> PinnedFallback | None:
    """The first fallback for this kind of failure."""
    return next((fallback for fallback in fallbacks if kind in fallback.on or "any" in fallback.on), None)
