"""What may a turn see of its run, and how does it change it?"""

from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol

from durable_agents.domain.run_state import RunState
from durable_agents.domain.runs import RunRequest

P = ParamSpec("P")


class RunScope(Protocol):
    """The run as its turns see it. They never assign state; they apply pure transitions."""

    @property
    def request(self) -> RunRequest:
        """What was asked for; `input` is empty after the run continued as new."""
        ...

    @property
    def state(self) -> RunState:
        """The state now."""
        ...

    @property
    def interrupted(self) -> bool:
        """Must waiting stop: is a cancel requested, or the history full?"""
        ...

    def apply(self, transition: Callable[Concatenate[RunState, P], RunState], *args: P.args, **kwargs: P.kwargs) -> None:
        """Replace the state by what the transition makes of it and the arguments."""
        ...
