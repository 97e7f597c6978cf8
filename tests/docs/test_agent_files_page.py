"""Does docs/agent-files.md name every field that an agent's files can have?"""

from pathlib import Path

import pytest
from pydantic import BaseModel

from durable_agents.domain.agents import AgentDefinition, ModelEntry, StatedPrice
from durable_agents.domain.approvals import Ladder, Rung
from durable_agents.domain.budgets import Budget
from durable_agents.domain.fallbacks import Fallback
from durable_agents.domain.loops import LoopGuard
from durable_agents.domain.permissions import Policy, Rule
from durable_agents.domain.routing import Route
from durable_agents.domain.scarcity import AtLimit

PAGE = (Path(__file__).parents[2] / "docs" / "agent-files.md").read_text(encoding="utf8")
MODELS: list[type[BaseModel]] = [
    AgentDefinition, ModelEntry, StatedPrice, Budget, AtLimit, LoopGuard, Route, Fallback, Policy, Rule, Ladder, Rung,
]  # fmt: skip


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_is_described(model: type[BaseModel]) -> None:
    """A field nobody can read about is a field nobody uses, or uses wrongly."""
    missing = [name for name in model.model_fields if f"`{name}`" not in PAGE and f"`{name}:" not in PAGE]
    assert missing == []
