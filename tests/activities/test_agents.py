"""Does an agent's version stand for everything that decides how its runs go, and for nothing else?"""

from pathlib import Path

import pytest

from activities.agents import AgentCatalog, load_agent
from durable_agents.domain.agents import DEFAULT_OUTCOME_LADDER, PinnedAgent, opening, outcome_ladder, system_prompt
from durable_agents.domain.identifiers import UserId
from durable_agents.domain.permissions import Policy
from tests.activities.test_agent_files import AGENT, POLICY, TOOLS
from tests.support.world import AGENTS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An agent's folder."""
    made = tmp_path / "clerk"
    made.mkdir()
    for name, text in (("agent.yaml", AGENT), ("policy.yaml", POLICY), ("tools.py", TOOLS), ("prompt.md", "You are a clerk.")):
        (made / name).write_text(text)
    return made


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("prompt.md", "clerk", "Clerk"),
        ("agent.yaml", "claude-haiku-5-5", "claude-haiku-5-6"),
        ("agent.yaml", "max_tokens: 500", "max_tokens: 501"),
        ("agent.yaml", "turns: 20", "turns: 21"),
        ("agent.yaml", "type: object", "type: [object, 'null']"),
        ("policy.yaml", 'args.order != ""', 'args.order != "x"'),
        ("policy.yaml", 'staff: ["*"]', 'staff: ["ann"]'),
        ("policy.yaml", "within: 4h", "within: 5h"),
        ("tools.py", '"""Look."""', '"""Look closely."""'),
        ("tools.py", "order: str", "order: str = 'A'"),
        ("tools.py", "Effect.READ", "Effect.AT_MOST_ONCE"),
        ("tools.py", "effect=Effect.READ", "effect=Effect.READ, risk='egress'"),
        ("tools.py", "effect=Effect.READ", "effect=Effect.READ, resource='{order}'"),
        ("tools.py", "effect=Effect.READ", "effect=Effect.READ, trusted=True"),
        ("tools.py", "effect=Effect.READ", "effect=Effect.READ, private=True"),
        ("tools.py", "effect=Effect.READ", "effect=Effect.READ, destination=('order',)"),
        ("policy.yaml", "rules:", "trusted_destinations: ['x']\nrules:"),
    ],
)
def test_whatever_decides_a_run_makes_another_version(folder: Path, file: str, old: str, new: str) -> None:
    """A run is bound to its version; what changes without a new one would change runs that are under way."""
    before = load_agent(folder)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    after = load_agent(folder)
    assert after.version != before.version
    assert (after.pinned.policy_digest != before.pinned.policy_digest) == (file == "policy.yaml")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("agent.yaml", "name: clerk", "# a comment\nname:   clerk"), ("tools.py", "return order", "return order + ''"),
     ("prompt.md", "You", "\n\nYou"), ("policy.yaml", "rules:", "\nrules:")],
)  # fmt: skip
def test_spelling_does_not_make_another_version(folder: Path, file: str, old: str, new: str) -> None:
    """Two workers with the same agent must agree on its version, whatever their editors did."""
    before = load_agent(folder).version
    (folder / file).write_text((folder / file).read_text().replace(old, new))
    assert load_agent(folder).version == before


def test_a_pinned_agent_survives_storage(folder: Path) -> None:
    """It is read back from PostgreSQL by every activity of the run."""
    pinned = load_agent(folder).pinned
    assert PinnedAgent.model_validate_json(pinned.model_dump_json()) == pinned
    assert pinned.tool("look") is not None
    assert pinned.tool("sell") is None
    assert outcome_ladder(pinned.policy) == outcome_ladder(None) == DEFAULT_OUTCOME_LADDER


def test_a_tool_the_policy_can_never_allow_is_pinned_but_not_offered(folder: Path) -> None:
    """The model is not shown what it could only be denied; a policy put without a deploy may allow it one day."""
    (folder / "policy.yaml").write_text(POLICY.replace("allow: look", "deny: look"))
    agent = load_agent(folder)
    assert agent.pinned.offered(agent.pinned.policy, UserId("ann")) == ()
    looser = Policy.model_validate({"roles": {"boss": ["bob"]}, "rules": [{"allow": "look", "role": "boss"}]})
    assert agent.pinned.offered(looser, UserId("ann")) == ()
    assert agent.pinned.offered(looser, UserId("bob")) == agent.pinned.tools != ()
    assert set(agent.tools) == {"look"}


def test_a_tool_that_is_not_listed_is_not_there(folder: Path) -> None:
    """tools.py may hold more than this agent is given."""
    (folder / "agent.yaml").write_text(AGENT.replace("tools: [look]", "tools: []"))
    assert load_agent(folder).tools == {}


def test_settings_come_from_the_environment_when_they_are_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret is read at the moment of the call and pinned nowhere."""
    agent = load_agent(folder)
    monkeypatch.delenv("SHOP_URL", raising=False)
    assert agent.settings() == {"shop": "http://localhost"}
    monkeypatch.setenv("SHOP_URL", "https://s3cret@shop")
    assert agent.settings() == {"shop": "https://s3cret@shop"}
    assert "s3cret" not in agent.pinned.model_dump_json()
    (folder / "agent.yaml").write_text(AGENT.replace(', default: "http://localhost"', ""))
    monkeypatch.delenv("SHOP_URL")
    with pytest.raises(LookupError, match="setting 'shop' of agent 'clerk': the worker's environment lacks it"):
        load_agent(folder).settings()


def test_the_agents_we_ship_load() -> None:
    """The example is what people copy."""
    assert "refunds" in AgentCatalog.load([ROOT / "agents"]).names()
    assert "clerk" in AgentCatalog.load([AGENTS]).names()
    assert AgentCatalog.load([AGENTS]).get("nobody") is None


def test_the_prompt_carries_the_output_schema_and_the_opening_the_input(folder: Path) -> None:
    """What bounds the first call's tokens is made of exactly these."""
    (folder / "agent.yaml").write_text(AGENT + "output: {type: object, required: [done]}\n")
    prompt = system_prompt(load_agent(folder).pinned)
    assert prompt.startswith("You are a clerk.")
    assert '{"required":["done"],"type":"object"}' in prompt
    assert opening({"b": 1, "a": "x"}).text() == '{"a":"x","b":1}'
