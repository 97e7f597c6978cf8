"""Which model of the chain answers the next turn?

The chain says who is asked when somebody fails; routes say who is asked when nobody has. A route whose model fails is not tried
again in this run: the chain takes over, at a turn boundary, with the price and the bound of the model that will bill.
"""

from pydantic import BaseModel, ConfigDict, Field

from durable_agents.domain.model_calls import ContextSize


class Route(BaseModel):
    """One line of `routing:` in `agent.yaml`; every condition that is named must hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    use: str
    """The `name` of a model of the chain."""
    from_turn: int = Field(default=1, ge=1)
    after_tools: tuple[str, ...] = ()
    """The last turn called tools, and only these."""
    context_below: int | None = Field(default=None, gt=0)
    """The next call has at most so many input tokens (its upper bound)."""


class PinnedRoute(BaseModel):
    """A route with its model found: its place in the chain."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: int
    route: Route


def routed_model(routes: tuple[PinnedRoute, ...], *, turn: int, last_tools: tuple[str, ...], context: ContextSize) -> int | None:
    """The model of the first route that applies to the next turn; None: no route does."""
    return next((pinned.model for pinned in routes if _applies(pinned, turn, last_tools, context)), None)


def _applies(pinned: PinnedRoute, turn: int, last_tools: tuple[str, ...], context: ContextSize) -> bool:
    route = pinned.route
    in_time = turn >= route.from_turn
    after = not route.after_tools or (bool(last_tools) and set(last_tools) <= set(route.after_tools))
    small = route.context_below is None or context.bound(pinned.model) <= route.context_below
    return in_time and after and small
