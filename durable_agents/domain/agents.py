"""What is an agent: which folder makes one, and what of it is pinned when a run is admitted?"""

from datetime import timedelta
from decimal import Decimal
from fnmatch import fnmatchcase

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from durable_agents.domain.approvals import Ladder, Rung
from durable_agents.domain.budgets import Budget
from durable_agents.domain.canonical import canonical_json
from durable_agents.domain.compact import Compact
from durable_agents.domain.durations import Duration
from durable_agents.domain.effects import Effect
from durable_agents.domain.fallbacks import Fallback, PinnedFallback
from durable_agents.domain.identifiers import NAME, Digest, Name, UserId
from durable_agents.domain.loops import LoopGuard
from durable_agents.domain.messages import Message, TextBlock
from durable_agents.domain.model_calls import PinnedModel, Provider
from durable_agents.domain.permissions import Policy, ever_allowed
from durable_agents.domain.prices import Price, PriceTier, Rates, usd_to_micros
from durable_agents.domain.provenance import way_out
from durable_agents.domain.provider_gates import PATIENCE
from durable_agents.domain.routing import PinnedRoute, Route
from durable_agents.domain.scarcity import AtLimit, PinnedAtLimit
from durable_agents.domain.tools import ToolSpec

OUTCOME_LADDER = "outcome_unknown"
"""The policy's ladder for effects whose outcome nobody knows; without it anybody is asked for a day."""
PROVENANCE_LADDER = "provenance"
"""The policy's ladder for calls that untrusted text may have led to; without it anybody is asked for a day."""
DEFAULT_OUTCOME_LADDER = Ladder(rungs=(Rung(within=timedelta(days=1)),))


class StatedPrice(BaseModel):
    """A price stated in `agent.yaml`: dollars per million tokens, for models the price list does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    input: Decimal = Field(ge=0, le=10_000)
    output: Decimal = Field(ge=0, le=10_000)
    cached_input: Decimal | None = Field(default=None, ge=0, le=10_000)
    cache_write: Decimal | None = Field(default=None, ge=0, le=10_000)

    @field_validator("*")
    @classmethod
    def _exact(cls, value: Decimal | None) -> Decimal | None:
        if value is not None:
            usd_to_micros(value)
        return value

    def price(self) -> Price:
        """As integer micro-dollars."""
        rates = Rates(
            input=usd_to_micros(self.input),
            output=usd_to_micros(self.output),
            cached_input=usd_to_micros(self.input if self.cached_input is None else self.cached_input),
            cache_write=usd_to_micros(self.input if self.cache_write is None else self.cache_write),
        )
        return Price(tiers=(PriceTier(above_input_tokens=0, rates=rates),), source="agent.yaml")


class ModelEntry(BaseModel):
    """One model of the chain in `agent.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    provider: Provider
    model: str = Field(min_length=1, max_length=120)
    max_tokens: int = Field(default=4096, ge=16, le=128_000)
    timeout: Duration = Field(default=timedelta(seconds=120), gt=timedelta(0), le=timedelta(minutes=30))
    price: StatedPrice | None = None
    cache: Duration | None = Field(default=None, gt=timedelta(0), le=timedelta(days=30))
    """Give the same answer to exactly the same request again for so long, if it asks for no effect."""
    name: str | None = Field(default=None, pattern=NAME)
    """By what `routing:` calls it."""


class EnvironmentValue(BaseModel):
    """A setting that comes from the worker's environment: a secret, an address."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    env: str = Field(pattern=r"^[A-Z][A-Z0-9_]*$")
    default: str | None = None


class AgentDefinition(BaseModel):
    """An agent's `agent.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Name
    description: str = Field(min_length=1, max_length=500)
    prompt: str = Field(default="prompt.md", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """A file in the agent's folder."""
    models: tuple[ModelEntry, ...] = Field(min_length=1, max_length=8)
    """Tried in order; the first is the one that is meant."""
    patience: Duration = Field(default=PATIENCE, ge=timedelta(0), le=timedelta(days=1))
    """How long a model call waits for a provider in trouble, or at its limits, before the next model takes over."""
    tools: tuple[str, ...] = ()
    budget: Budget = Budget()
    at_limit: AtLimit | None = None
    """What a run does without as its budget runs out, and who is asked for more."""
    input: dict[str, JsonValue] | None = None
    """JSON schema of the run's input; absent: any object."""
    output: dict[str, JsonValue] | None = None
    """JSON schema of the run's output; absent: free text."""
    loops: LoopGuard = LoopGuard()
    routing: tuple[Route, ...] = Field(default=(), max_length=20)
    """Which model answers which turn while nothing fails; without a route that applies, the first."""
    fallbacks: tuple[Fallback, ...] = Field(default=(), max_length=20)
    """What follows when the chain is at its end, by kind of failure."""
    settings: dict[str, str | EnvironmentValue] = Field(default_factory=dict)

    @field_validator("tools")
    @classmethod
    def _each_once(cls, tools: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(tools)) != len(tools):
            raise ValueError("a tool is listed twice")
        return tools

    @model_validator(mode="after")
    def _routes_lead_somewhere(self) -> "AgentDefinition":
        names = [entry.name for entry in self.models if entry.name is not None]
        if len(set(names)) != len(names):
            raise ValueError("two models have one name")
        for number, route in enumerate(self.routing):
            if route.use not in names:
                raise ValueError(f"routing.{number}: no model is named {route.use!r}")
        if self.at_limit is not None and self.at_limit.model is not None and self.at_limit.model not in names:
            raise ValueError(f"at_limit.model: no model is named {self.at_limit.model!r}")
        unknown = sorted(set(self.at_limit.without) - set(self.tools)) if self.at_limit is not None else []
        if unknown:
            raise ValueError(f"at_limit.without: {unknown[0]!r} is none of the agent's tools")
        return self

    def routes(self) -> tuple[PinnedRoute, ...]:
        """The routes with their models found."""
        places = {entry.name: index for index, entry in enumerate(self.models)}
        return tuple(PinnedRoute(model=places[route.use], route=route) for route in self.routing)


class PinnedAgent(BaseModel):
    """An agent version: all that decides how its runs go. Its digest is the version."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    definition: AgentDefinition
    prompt: str
    policy: Policy
    policy_digest: Digest
    tools: tuple[ToolSpec, ...]
    """The tools of `agent.yaml`, in its order. Which of them a run is offered is up to the policy in force."""

    def tool(self, name: str) -> ToolSpec | None:
        """The pinned tool of this name."""
        return next((spec for spec in self.tools if spec.name == name), None)

    def offered(self, policy: Policy, user: UserId) -> tuple[ToolSpec, ...]:
        """The tools that a policy can ever allow this agent in a run of this user."""
        return tuple(spec for spec in self.tools if ever_allowed(policy, spec.name, agent=self.definition.name, user=user))

    def misfits(self, policy: Policy) -> list[tuple[tuple[str | int, ...], str]]:
        """Where a policy names what this agent does not have, or lacks what the agent needs: its places, and what is wrong."""
        name, tools = self.definition.name, self.definition.tools
        found: list[tuple[tuple[str | int, ...], str]] = []
        for number, rule in enumerate(policy.rules):
            is_pattern = any(wild in rule.tool for wild in "*?[")
            if not is_pattern and rule.tool not in tools and fnmatchcase(name, rule.agent):
                message = f"agent {name} has no tool {rule.tool!r} (it has: {', '.join(tools) or 'none'})"
                found.append((("rules", number, rule.ruling.value), message))
        if (open_end := way_out(name, self.tools, policy)) is not None:
            found.append((("rules",), open_end[1]))
        asked = [fallback.human for fallback in self.definition.fallbacks]
        asked += [self.definition.at_limit.ask] if self.definition.at_limit is not None else []
        missing = [ladder for ladder in asked if ladder is not None and ladder not in policy.ladders]
        return found + [(("ladders",), f"agent {name} needs a ladder {ladder!r}, as its agent.yaml says") for ladder in missing]

    def fallbacks(self, policy: Policy) -> tuple[PinnedFallback, ...]:
        """The fallbacks with their ladders found. Raises LookupError naming a ladder that the policy lacks."""
        found = []
        for fallback in self.definition.fallbacks:
            ladder = _ladder(policy, fallback.human) if fallback.human is not None else None
            found.append(PinnedFallback(ladder=ladder, **fallback.model_dump(exclude={"human"})))
        return tuple(found)

    def at_limit(self, policy: Policy) -> PinnedAtLimit | None:
        """What happens as the budget runs out, its ladder found. Raises LookupError naming a ladder that the policy lacks."""
        stated = self.definition.at_limit
        if stated is None:
            return None
        places = {entry.name: index for index, entry in enumerate(self.definition.models)}
        return PinnedAtLimit(
            near=stated.near,
            model=places[stated.model] if stated.model is not None else None,
            without=stated.without,
            keep_turns=stated.keep_turns,
            ladder=_ladder(policy, stated.ask) if stated.ask is not None else None,
            add=stated.add,
        )


def outcome_ladder(policy: Policy | None) -> Ladder:
    """Who is asked when nobody knows whether an effect happened; also where no policy can be read."""
    return (policy.ladder(OUTCOME_LADDER) if policy is not None else None) or DEFAULT_OUTCOME_LADDER


def provenance_ladder(policy: Policy | None) -> Ladder:
    """Who is asked when untrusted text may have led to a call."""
    return (policy.ladder(PROVENANCE_LADDER) if policy is not None else None) or DEFAULT_OUTCOME_LADDER


def _ladder(policy: Policy, name: str) -> Ladder:
    found = policy.ladder(name)
    if found is None:
        raise LookupError(f"there is no ladder {name!r} in the policy")
    return found


class ToolPlan(BaseModel):
    """What the workflow must know of a tool to schedule it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    effect: Effect
    timeout: timedelta


class Admitted(Compact):
    """What a run is bound to from its admission on."""

    agent: str
    version: Digest
    policy_digest: Digest
    """Of the policy in force at admission; what holds at a call is read anew."""
    policy_version: int = 0
    """Which version that was; 0: the agent's own policy.yaml."""
    models: tuple[PinnedModel, ...]
    tools: dict[str, ToolPlan]
    """What the policy could ever allow at admission: no other tool is offered, or called, later."""
    budget: Budget
    patience: timedelta = PATIENCE
    loops: LoopGuard = LoopGuard()
    routes: tuple[PinnedRoute, ...] = ()
    fallbacks: tuple[PinnedFallback, ...] = ()
    at_limit: PinnedAtLimit | None = None
    usual_turns: int | None = None
    """How many turns this agent's runs usually take; None: too few have been completed."""
    opening_bytes: int
    """Size of prompt, tool schemas and input: what every call of this run sends."""


def system_prompt(agent: PinnedAgent) -> str:
    """What the model is told about itself, the same for every call of the version."""
    if agent.definition.output is None:
        return agent.prompt
    schema = canonical_json(agent.definition.output).decode()
    how = "When you are done, answer with one JSON value and nothing else. It must fit this JSON schema:"
    return f"{agent.prompt}\n\n{how}\n{schema}"


def opening(given: dict[str, JsonValue]) -> Message:
    """The first message of a run: its input as JSON."""
    return Message(role="user", blocks=(TextBlock(text=canonical_json(given).decode()),))
