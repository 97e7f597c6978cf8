"""Which runs are there, as the Temporal server itself knows them, with or without a worker?"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from pydantic import JsonValue
from temporalio.client import WorkflowExecution

from durable_agents.client import WORKFLOW, AgentClient
from durable_agents.domain.identifiers import RunId
from durable_agents.domain.runs import RunStatus
from durable_agents.search_attributes import AGENT_NAME, AGENT_STATUS, PENDING_APPROVALS, TENANT
from starter.cli.connection import connect
from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.inputs import read_name
from starter.cli.options import Session
from starter.cli.screen import Screen


@dataclass(frozen=True)
class Filter:
    """Which runs are wanted; None is any."""

    status: str | None
    agent: str | None
    tenant: str | None

    def query(self) -> str:
        """As a visibility query. Every value is a checked name, so none can say more than its place.

        Raises:
            CliError: a value cannot be one.
        """
        if self.status is not None and self.status not in set(RunStatus):
            raise CliError(f"{self.status!r} is no status: use one of {', '.join(RunStatus)}")
        wanted = {
            AGENT_STATUS.name: self.status,
            AGENT_NAME.name: read_name(self.agent, "an agent") if self.agent else None,
            TENANT.name: read_name(self.tenant, "a tenant") if self.tenant else None,
        }
        return " AND ".join([f"WorkflowType = '{WORKFLOW}'", *(f"{name} = '{value}'" for name, value in wanted.items() if value)])


async def runs(session: Session, wanted: Filter, limit: int) -> ExitCode:
    """List runs, newest first."""
    query = wanted.query()
    connection = await connect(session)
    found = [_described(run) async for run in connection.client.temporal.list_workflows(query, limit=limit)]
    screen = Screen(as_json=session.as_json)
    headings = ["run", "agent", "status", "waiting", "started", "ended"]
    screen.table(headings, ([str(run[heading] or "") for heading in headings] for run in found))
    screen.document(list(found))
    return ExitCode.OK


async def waiting_runs(client: AgentClient, tenant: str) -> AsyncIterator[RunId]:
    """The open runs of a tenant that wait for a human."""
    open_runs = f"WorkflowType = '{WORKFLOW}' AND ExecutionStatus = 'Running' AND {TENANT.name} = '{tenant}'"
    async for run in client.temporal.list_workflows(open_runs):
        if _described(run)["waiting"]:
            yield RunId(run.id)


def _described(run: WorkflowExecution) -> dict[str, JsonValue]:
    attributes = run.typed_search_attributes
    return {
        "run": run.id,
        "agent": attributes.get(AGENT_NAME),
        "tenant": attributes.get(TENANT),
        "status": attributes.get(AGENT_STATUS),
        "waiting": len(attributes.get(PENDING_APPROVALS) or ()),
        "started": run.start_time.isoformat(timespec="seconds"),
        "ended": run.close_time.isoformat(timespec="seconds") if run.close_time else None,
    }
