"""Which commands does `policy` have, and what does each take?

As in `app`, each imports what it does inside itself: `--help` must be answered at once.
"""

import asyncio
from typing import Annotated

import typer

from starter.cli.exit_codes import ExitCode
from starter.cli.options import Agent, AsJson, By, Session

PolicyFile = Annotated[str, typer.Argument(metavar="FILE", help="A policy as YAML, like an agent's policy.yaml.")]
MaybeAgent = Annotated[str | None, typer.Argument(metavar="[AGENT]", help="Also check it against this agent's last run.")]
OfTenant = Annotated[str, typer.Option("--tenant", help="Whose policy; `default` if absent.")]
Why = Annotated[str, typer.Option("--reason", help="Why; it is kept with the version and in the audit log.")]
Version = Annotated[int, typer.Argument(metavar="VERSION", min=0, help="An earlier version; 0: the agent's own policy.yaml.")]
MaybeVersion = Annotated[int | None, typer.Option("--version", min=0, help="An earlier one; else the version in force.")]
Old = Annotated[str, typer.Argument(metavar="OLD", help="A version, a file, or `now`: the version in force.")]
New = Annotated[str, typer.Argument(metavar="[NEW]", help="The same; `now` if absent.")]
Since = Annotated[str, typer.Option(help="A date, or how long ago, like 24h or 7d.")]
Most = Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="At most so many decisions, the newest.")]

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Show, try and change what agents may do, without a deploy; docs/policies.md.",
)


@app.command()
def get(agent: Agent, *, version: MaybeVersion = None, tenant: OfTenant = "default", as_json: AsJson = False) -> ExitCode:
    """Print a policy as YAML that can be edited and put."""
    from starter.cli import policies  # noqa: PLC0415 - import time

    return asyncio.run(policies.get(Session(None, as_json), policies.read_which(agent, tenant), version))


@app.command()
def put(
    file: PolicyFile, agent: Agent, *, reason: Why, tenant: OfTenant = "default", by: By = None, as_json: AsJson = False
) -> ExitCode:
    """Put a policy in force, from the next decision of every run on."""
    from starter.cli import policies  # noqa: PLC0415 - import time

    change = policies.read_change(by, reason)
    return asyncio.run(policies.put(Session(None, as_json), file, policies.read_which(agent, tenant), change))


@app.command()
def use(
    version: Version, agent: Agent, *, reason: Why, tenant: OfTenant = "default", by: By = None, as_json: AsJson = False
) -> ExitCode:
    """Go back to an earlier version: it is put once more, as a new version."""
    from starter.cli import policies  # noqa: PLC0415 - import time

    change = policies.read_change(by, reason)
    return asyncio.run(policies.use(Session(None, as_json), version, policies.read_which(agent, tenant), change))


@app.command()
def diff(agent: Agent, old: Old, new: New = "now", *, tenant: OfTenant = "default", as_json: AsJson = False) -> ExitCode:
    """Show what differs between two versions, or a version and a file."""
    from starter.cli import policies  # noqa: PLC0415 - import time

    return asyncio.run(policies.diff(Session(None, as_json), policies.read_which(agent, tenant), old, new))


@app.command(name="test")
def try_out(
    file: PolicyFile,
    agent: Agent,
    *,
    since: Since = "7d",
    limit: Most = 10_000,
    tenant: OfTenant = "default",
    as_json: AsJson = False,
) -> ExitCode:
    """Try a policy on the decisions that were recorded: what would it decide otherwise? Exit code 1 if anything."""
    from starter.cli import policies  # noqa: PLC0415 - import time

    return asyncio.run(policies.try_out(Session(None, as_json), file, policies.read_which(agent, tenant), since, limit))


@app.command()
def history(agent: Agent, *, tenant: OfTenant = "default", as_json: AsJson = False) -> ExitCode:
    """List every version: who put it, when and why; the first is in force."""
    from starter.cli import policies  # noqa: PLC0415 - import time

    return asyncio.run(policies.history(Session(None, as_json), policies.read_which(agent, tenant)))


@app.command()
def check(file: PolicyFile, agent: MaybeAgent = None, *, tenant: OfTenant = "default", as_json: AsJson = False) -> ExitCode:
    """Check a file as `put` would, and put nothing; without an agent no database is needed."""
    from starter.cli import policies  # noqa: PLC0415 - import time

    which = None if agent is None else policies.read_which(agent, tenant)
    return asyncio.run(policies.check(Session(None, as_json), file, which))
