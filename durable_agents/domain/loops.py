"""Is a run going round in circles?

Identical calls with identical results are the commonest way to burn a night's money: the model is warned once, then the run is
stopped with the evidence.
"""

from pydantic import BaseModel, ConfigDict, Field, model_validator

LONGEST_CYCLE = 4
"""Calls in the longest pattern that is looked for (a, b, c, d, a, b, c, d, …)."""


class LoopGuard(BaseModel):
    """When repetition counts as a loop; `loops:` in `agent.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    warn: int = Field(default=3, ge=2, le=1000)
    """So many identical rounds in a row, and the model is told."""
    stop: int = Field(default=5, ge=3, le=1000)
    """So many, and the run ends as failed(loop)."""

    long: int = Field(default=3, ge=2, le=1000)
    """So many times the turns that runs of this agent usually take, and the model is told, once."""
    too_long: int = Field(default=6, ge=3, le=1000)
    """So many times, and the run ends as failed(loop)."""

    @model_validator(mode="after")
    def _told_before_stopped(self) -> "LoopGuard":
        if self.warn >= self.stop:
            raise ValueError(f"warn ({self.warn}) must be below stop ({self.stop}), or the model is never told")
        if self.long >= self.too_long:
            raise ValueError(f"long ({self.long}) must be below too_long ({self.too_long}), or the model is never told")
        return self

    @property
    def remembered(self) -> int:
        """How many calls must be remembered to see this."""
        return LONGEST_CYCLE * self.stop


USUAL_OF = 50
"""How many of the agent's last completed runs say what is usual (their median)."""
USUAL_FROM = 10
"""With fewer completed runs nothing is usual yet."""
LEAST_USUAL = 5
"""Below so many turns a multiple says nothing."""


class Repetition(BaseModel):
    """The same round of calls, several times in a row."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    cycle: int
    rounds: int


def repetition(recent: tuple[str, ...]) -> Repetition:
    """The longest run of identical rounds at the end of `recent` (fingerprints of call and result, oldest first)."""
    best = Repetition(cycle=1, rounds=1 if recent else 0)
    for cycle in range(1, LONGEST_CYCLE + 1):
        rounds = _rounds(recent, cycle)
        if rounds > best.rounds:
            best = Repetition(cycle=cycle, rounds=rounds)
    return best


def _rounds(recent: tuple[str, ...], cycle: int) -> int:
    last = recent[-cycle:]
    rounds = 0
    while (
        len(recent) >= (rounds + 1) * cycle and recent[len(recent) - (rounds + 1) * cycle : len(recent) - rounds * cycle] == last
    ):
        rounds += 1
    return rounds
