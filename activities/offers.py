"""Which of a run's tools is its model offered in this call, and what would the others add to the next?"""

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import JsonValue

from activities.policies import InForce
from activities.runs import RunRecord
from durable_agents.domain.messages import Message
from durable_agents.domain.model_calls import ModelCallRequest
from durable_agents.domain.prices import TOOLS_PROMPT_TOKENS, most_tokens
from durable_agents.domain.tools import ToolSpec


@dataclass(frozen=True)
class Offer:
    """The tools of one model call."""

    tools: tuple[ToolSpec, ...]
    withheld_tokens: int
    """The most that the run's other tools would have added: a policy that is loosened brings them back into the next call, and
    what was counted without them must still be a bound of it."""


def offer(run: RunRecord, call: ModelCallRequest, force: InForce, conversation: Iterable[Message]) -> Offer:
    """What the policy in force can ever allow of the run's tools; near the limit without those the agent's file saves.

    Tools that the conversation has calls of stay where no other is left: providers refuse calls without tools.
    """
    known = tuple(spec for spec in run.agent.tools if spec.name in run.terms.tools)
    at_limit = run.terms.at_limit
    if call.near_limit and at_limit is not None:  # from there on in every call: these never come back
        known = tuple(spec for spec in known if spec.name not in at_limit.without) or known
    allowed = set() if force.policy is None else {spec.name for spec in run.agent.offered(force.policy, run.user)}
    tools = tuple(spec for spec in known if spec.name in allowed)
    if not tools:
        called = {block.tool for message in conversation for block in message.tool_calls()}
        tools = tuple(spec for spec in known if spec.name in called)
    withheld: list[JsonValue] = [spec.sent() for spec in known if spec not in tools]
    hidden = 0 if tools else TOOLS_PROMPT_TOKENS
    return Offer(tools, most_tokens(withheld) + hidden if withheld else 0)
