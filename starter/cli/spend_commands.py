"""Which commands does `spend` have, and what does each take?

As in `app`, each imports what it does inside itself: `--help` must be answered at once.
"""

import asyncio
from typing import Annotated

import typer

from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.options import AgentFilter, AsJson, Session

Tenants = Annotated[
    list[str] | None,
    typer.Option("--tenant", help="Of this tenant; repeat it for several. `default` if absent.", metavar="TENANT"),
]
AllTenants = Annotated[bool, typer.Option("--all-tenants", help="Of every tenant that the ledger knows.")]
Grouping = Annotated[
    str, typer.Option("--by", help="tenant, user, agent, version, run, step, model, provider, tool, day; several as user,model.")
]
Since = Annotated[str | None, typer.Option(help="From here on: 2026-11-20, 2026-11-20T15:00, or 24h or 7d ago; UTC.")]
Until = Annotated[str | None, typer.Option(help="Up to here, excluded; written like --since.")]
UserFilter = Annotated[str | None, typer.Option(help="Only runs for this user.")]
RunFilter = Annotated[str | None, typer.Option(help="Only this run: run:<tenant>:<key>, or the key alone.")]
Top = Annotated[int | None, typer.Option(min=1, max=100_000, help="The dearest so many; the rest as (others).")]
Format = Annotated[str | None, typer.Option("--format", help="table, csv or json; --json is --format json.")]
Factor = Annotated[int, typer.Option(min=2, max=1_000_000, help="Above so many times the median of the agent's ended runs.")]
AtLeast = Annotated[str, typer.Option("--at-least", help="Of runs that cost less, in dollars, the cost is no anomaly.")]

app = typer.Typer(rich_markup_mode=None, help="Show what was spent, on what; `spend anomalies`: which runs spent far too much.")


@app.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    *,
    by: Grouping = "agent",
    since: Since = None,
    until: Until = None,
    tenants: Tenants = None,
    all_tenants: AllTenants = False,
    agent: AgentFilter = None,
    user: UserFilter = None,
    run: RunFilter = None,
    top: Top = None,
    layout: Format = None,
    as_json: AsJson = False,
) -> ExitCode:
    """Show what was spent on models, on what; needs no worker. Every request to a provider stands in exactly one group."""
    if context.invoked_subcommand is not None:
        if by != "agent" or as_json or any((since, until, tenants, all_tenants, agent, user, run, top, layout)):
            raise CliError("options of `spend anomalies` stand behind it: write spend anomalies --tenant …")
        return ExitCode.OK
    from starter.cli import spend  # noqa: PLC0415 - import time

    asked = spend.Asked(
        tenants=spend.named(tenants, all_tenants=all_tenants), since=since, until=until, agent=agent, user=user, run=run
    )
    return asyncio.run(spend.show(Session(None, as_json), asked, by, top, layout))


@app.command()
def anomalies(
    *,
    since: Since = None,
    until: Until = None,
    tenants: Tenants = None,
    all_tenants: AllTenants = False,
    agent: AgentFilter = None,
    user: UserFilter = None,
    factor: Factor = 5,
    at_least: AtLeast = "0.01",
    layout: Format = None,
    as_json: AsJson = False,
) -> ExitCode:
    """List the runs, ended or not, whose cost or tokens are far above their agent's norm."""
    from starter.cli import spend  # noqa: PLC0415 - import time

    asked = spend.Asked(tenants=spend.named(tenants, all_tenants=all_tenants), since=since, until=until, agent=agent, user=user)
    return asyncio.run(spend.anomalies(Session(None, as_json), asked, factor, at_least, layout))
