"""Which Temporal server does a command talk to?

What `--address` says; else the `TEMPORAL_*` environment or profile; else the servers of a running `dev`; else localhost:7233.
"""

import os
import re
from dataclasses import dataclass
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from durable_agents.client import AgentClient, RunHandle
from durable_agents.domain.identifiers import KEY, NAME, Key, Name, RunId, TenantId, run_id
from durable_agents.settings import Settings, read_settings
from starter.cli.endpoints import RunningServers, running_servers
from starter.cli.exit_codes import CliError
from starter.cli.options import Session

_EXPLICIT = ("TEMPORAL_ADDRESS", "TEMPORAL_PROFILE", "TEMPORAL_CONFIG_FILE")
_FULL_ID = re.compile(rf"^run:{NAME[1:-1]}:{KEY[1:-1]}$")


@dataclass(frozen=True)
class Connection:
    """A connected client and, where it is known, the Web UI beside the server."""

    client: AgentClient
    settings: Settings
    ui: str | None
    address: str | None
    """The `--address` that was given, to be repeated in commands that are shown."""

    def run_url(self, run: RunId | str) -> str | None:
        """Where the Web UI shows a run."""
        if self.ui is None:
            return None
        return f"{self.ui}/namespaces/{quote(self.client.temporal.namespace, safe='')}/workflows/{quote(run, safe='')}"


async def connect(session: Session) -> Connection:
    """Connect to the server that is meant.

    Raises:
        NotReachable: nothing answers there within 5 s.
        SettingsError: the environment holds something that cannot be.
    """
    settings = read_settings()
    found = None if session.address else servers_of_dev(settings)
    address = session.address or (found.temporal_address if found else None)
    client = await AgentClient.connect(address, task_queue=settings.task_queue, identity=settings.identity or None)
    return Connection(client=client, settings=settings, ui=found.temporal_ui if found else None, address=session.address)


async def connect_to_run(session: Session, run: str, tenant: str) -> tuple[Connection, RunHandle]:
    """Connect, and take the run of a full id, or of a key and its tenant.

    Raises:
        CliError: neither can be one; nothing was connected to.
    """
    wanted = full_run_id(run, tenant)
    connection = await connect(session)
    return connection, connection.client.get(wanted)


def servers_of_dev(settings: Settings) -> RunningServers | None:
    """The servers of a running `dev`, unless the environment names others."""
    if any(os.environ.get(name) for name in _EXPLICIT):
        return None
    return running_servers(settings.state_dir)


def full_run_id(run: str, tenant: str) -> RunId:
    """`run:<tenant>:<key>` from itself, or from a key.

    Raises:
        CliError: it is neither.
    """
    if _FULL_ID.match(run):
        return RunId(run)
    try:
        return run_id(TenantId(TypeAdapter(Name).validate_python(tenant)), TypeAdapter(Key).validate_python(run))
    except ValidationError:
        wanted = "a full id run:<tenant>:<key>, or a key of letters, digits and . _ : @ / + - with --tenant"
        raise CliError(f"{run!r} of tenant {tenant!r} cannot be a run: give {wanted}") from None
