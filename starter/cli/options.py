"""Which arguments and options do the commands share, and what is said of them in `--help`?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True)
class Session:
    """How a command connects and speaks.

    Attributes:
        address: the Temporal server's host:port, None to find it.
        as_json: one JSON document on stdout, messages on stderr.
    """

    address: str | None
    as_json: bool


Address = Annotated[
    str | None, typer.Option(help="Temporal's host:port; else TEMPORAL_*, else a running `dev`, else localhost:7233.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, messages on stderr.")]
Tenant = Annotated[str, typer.Option(help="The tenant the run belongs to.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="run:<tenant>:<key>, or the key alone with --tenant.")]
MaybeRun = Annotated[str | None, typer.Argument(metavar="[RUN]", help="One run; without it, all that wait.")]
ApprovalArgument = Annotated[
    str | None, typer.Argument(metavar="[APPROVAL]", help="The approval's id; not needed when exactly one waits.")
]
Agent = Annotated[str, typer.Argument(metavar="AGENT", help="The agent's name.")]
Input = Annotated[str, typer.Option(help="JSON, @file, or - for stdin.")]
User = Annotated[str | None, typer.Option(help="Who asks for the run; else DURABLE_AGENTS_IDENTITY, else the login name.")]
RunKey = Annotated[str | None, typer.Option("--key", help="Idempotency key: the same key is the same run. Random if absent.")]
BudgetText = Annotated[str | None, typer.Option(help="Limits, e.g. cost_usd=0.50,turns=10,wall_time=24h.")]
PriorityName = Annotated[str, typer.Option("--priority", help="low (refused when too much waits), normal or high.")]
Raise = Annotated[str | None, typer.Option("--raise", help="Higher limits, e.g. cost_usd=1.00,turns=20.")]
Wait = Annotated[bool, typer.Option(help="Follow the run until it ends, or only start it.")]
Reason = Annotated[str, typer.Option(help="Why; it is kept with the run.")]
KeyFile = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", help="Your private key, to sign with; else DURABLE_AGENTS_SIGNING_KEY.")
]
By = Annotated[str | None, typer.Option(help="Who decides; else DURABLE_AGENTS_IDENTITY, else the login name.")]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="At most so many, newest first.")]
Status = Annotated[str | None, typer.Option(help="Only runs of this status, e.g. running, waiting_approval, failed.")]
AgentFilter = Annotated[str | None, typer.Option(help="Only runs of this agent.")]
TenantFilter = Annotated[str | None, typer.Option(help="Only runs of this tenant.")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="A fixed port; else the usual one, or any free one.")]
Reset = Annotated[bool, typer.Option("--reset", help="Delete what the embedded servers keep, then start afresh.")]
StandIn = Annotated[
    bool, typer.Option("--stand-in", help="Also run the demo's shop and, without a key, a model that stands in for the real one.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Nobody is asked: the demo approves by itself and ends.")]
