"""Which agents lie in the folders of DURABLE_AGENTS_AGENTS_PATH, and can a worker use them?"""

from dataclasses import dataclass
from pathlib import Path

from activities.agent_files import AgentFileError
from activities.agents import CATALOG_FILE, AgentCatalog, load_agent
from durable_agents.settings import read_settings
from starter.cli.exit_codes import ExitCode
from starter.cli.options import Session
from starter.cli.screen import Screen


@dataclass(frozen=True)
class FoundAgent:
    """An agent's folder; `problem` is empty when a worker can use it."""

    name: str
    folder: str
    version: str
    description: str
    problem: str


def list_agents(session: Session) -> ExitCode:
    """List the agents; the exit code says whether all of them can be used."""
    found = find_agents(read_settings().agent_folders)
    screen = Screen(as_json=session.as_json)
    screen.table(
        ["agent", "version", "folder", "what it does, or what is wrong"],
        ([agent.name, agent.version[:12], agent.folder, agent.problem or agent.description] for agent in found),
    )
    screen.document([vars(agent) for agent in found])
    return ExitCode.USAGE if any(agent.problem for agent in found) else ExitCode.OK


def find_agents(folders: tuple[Path, ...]) -> list[FoundAgent]:
    """Every agent of the folders, each read for itself: one that is broken does not hide the others."""
    return [_read(file.parent) for folder in folders for file in sorted(folder.glob(f"*/{CATALOG_FILE}"))]


def problem_of(folders: tuple[Path, ...]) -> str:
    """Why a worker would not start with these folders; empty when it would."""
    try:
        AgentCatalog.load(folders)
    except AgentFileError as error:
        return str(error)
    return ""


def _read(folder: Path) -> FoundAgent:
    try:
        agent = load_agent(folder)
    except AgentFileError as error:
        return FoundAgent(name=folder.name, folder=str(folder), version="", description="", problem=str(error))
    definition = agent.pinned.definition
    return FoundAgent(definition.name, str(folder), agent.version, definition.description, "")
