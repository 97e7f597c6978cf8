"""Which agents does this worker know, and what of them is pinned into a run?"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from activities.agent_files import AgentFileError, definition_error, read_definition, read_policy, read_prompt, read_tools
from durable_agents.domain.agents import AgentDefinition, EnvironmentValue, PinnedAgent
from durable_agents.domain.canonical import digest
from durable_agents.domain.identifiers import Digest
from durable_agents.domain.provenance import way_out
from durable_agents.domain.tools import Tool
from durable_agents.settings import environment_value

CATALOG_FILE = "agent.yaml"
_SHORTEST_SECRET = 6
"""Characters: what is shorter guards nothing, and would be found in ordinary words."""


@dataclass(frozen=True)
class LoadedAgent:
    """An agent as it lies on this worker's disk: its data, and the functions its tools are."""

    folder: Path
    pinned: PinnedAgent
    version: Digest
    tools: Mapping[str, Tool]

    def settings(self) -> dict[str, str]:
        """The values of `settings:`, read from the environment now. Raises LookupError naming what is not set."""
        found = {}
        for name, value in self.pinned.definition.settings.items():
            resolved = _resolve(value)
            if resolved is None:
                raise LookupError(f"setting {name!r} of agent {self.pinned.definition.name!r}: the worker's environment lacks it")
            found[name] = resolved
        return found

    def without_secrets(self, text: str) -> str:
        """A text with each value that a setting takes from the environment replaced by the setting's name."""
        for name, value in self.pinned.definition.settings.items():
            secret = _resolve(value) if isinstance(value, EnvironmentValue) else None
            if secret is not None and len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, f"[{name}]")
        return text


class AgentCatalog:
    """All agents of a worker, by name."""

    def __init__(self, agents: Mapping[str, LoadedAgent]) -> None:
        self._agents = agents

    @classmethod
    def load(cls, folders: Iterable[Path]) -> "AgentCatalog":
        """Read every agent below the given folders.

        Raises:
            AgentFileError: a folder is missing, an agent is broken, or two have one name. One line, with file and line.
        """
        agents: dict[str, LoadedAgent] = {}
        for folder in folders:
            if not folder.is_dir():
                raise AgentFileError(f"{folder}: there is no such folder of agents; check DURABLE_AGENTS_AGENTS_PATH")
            for file in sorted(folder.glob(f"*/{CATALOG_FILE}")):
                agent = load_agent(file.parent)
                name = agent.pinned.definition.name
                if name in agents:
                    raise AgentFileError(f"{file}: agent {name!r} exists already in {agents[name].folder}")
                agents[name] = agent
        return cls(agents)

    def get(self, name: str) -> LoadedAgent | None:
        """The agent of this name."""
        return self._agents.get(name)

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._agents))


def load_agent(folder: Path) -> LoadedAgent:
    """Read one agent's folder. Raises AgentFileError."""
    definition = read_definition(folder)
    policy = read_policy(folder)
    tools = read_tools(folder)
    for number, name in enumerate(definition.tools):
        if name not in tools:
            known = ", ".join(sorted(tools)) or "none"
            raise definition_error(folder, ("tools", number), f"tools.py has no @tool {name!r} (it has: {known})")
    pinned = PinnedAgent(
        definition=definition,
        prompt=read_prompt(folder, definition.prompt),
        policy=policy,
        policy_digest=digest(policy.document()),
        tools=tuple(tools[name].spec for name in definition.tools),
    )
    if (open_end := way_out(definition.name, pinned.tools, policy)) is not None:
        raise definition_error(folder, ("tools", open_end[0]), open_end[1])
    try:
        pinned.fallbacks(policy)
    except LookupError as error:
        raise AgentFileError(f"{folder / CATALOG_FILE}: fallbacks: {error.args[0]}") from None
    return LoadedAgent(folder, pinned, digest(pinned.model_dump(mode="json")), _listed(definition, tools))


def _listed(definition: AgentDefinition, tools: Mapping[str, Tool]) -> dict[str, Tool]:
    return {name: tools[name] for name in definition.tools}


def _resolve(value: str | EnvironmentValue) -> str | None:
    if isinstance(value, str):
        return value
    found = environment_value(value.env)
    return value.default if found is None else found
