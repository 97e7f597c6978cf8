"""Which commands does `audit` have, and what does each take?

As in `app`, each imports what it does inside itself: `--help` must be answered at once.
"""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from starter.cli.exit_codes import ExitCode
from starter.cli.options import AsJson, Session, Tenant

Tenants = Annotated[
    list[str] | None,
    typer.Option("--tenant", metavar="TENANT", help="Only this tenant; repeat it for several. Every known tenant if absent."),
]
RunFilter = Annotated[str | None, typer.Option(help="Only this run: run:<tenant>:<key>, or the key alone.")]
Events = Annotated[
    list[str] | None, typer.Option("--event", metavar="EVENT", help="Only this event, e.g. run_ended; repeatable.")
]
Since = Annotated[str | None, typer.Option(help="From here on: 2026-11-20, 2026-11-20T15:00, or 24h or 7d ago; UTC.")]
Until = Annotated[str | None, typer.Option(help="Up to here, excluded; written like --since.")]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="At most so many, the newest ones.")]
JsonLines = Annotated[bool, typer.Option("--json", help="JSON lines on stdout, messages on stderr.")]
Anchors = Annotated[
    list[Path] | None,
    typer.Option("--anchors", metavar="FILE", help="Compare with these anchors; repeatable. Else the file of the settings."),
]
AnchorsTo = Annotated[
    Path | None, typer.Option("--anchors", metavar="FILE", help="Append to this file; else to the one of the settings.")
]
Export = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help="Verify this export instead of a database; - for stdin.")
]
To = Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Where to; stdout if absent. Replaced as a whole, or not.")]

app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=False, help="Show, verify, anchor and export the audit log; docs/audit.md."
)


@app.command()
def show(
    *,
    tenant: Tenant = "default",
    run: RunFilter = None,
    events: Events = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 50,
    as_json: JsonLines = False,
) -> ExitCode:
    """Show entries of a tenant's log, oldest first; needs no worker."""
    from starter.cli import audits  # noqa: PLC0415 - import time

    asked = audits.Asked(tenant, run=run, events=tuple(events or ()), since=since, until=until)
    return asyncio.run(audits.show(Session(None, as_json), asked, limit))


@app.command()
def verify(*, tenants: Tenants = None, anchors: Anchors = None, file: Export = None, as_json: AsJson = False) -> ExitCode:
    """Check every entry's hash, and the log against its anchors; exit code 9 when something was changed. Changes nothing."""
    from starter.cli import audits  # noqa: PLC0415 - import time

    session = Session(None, as_json)
    if file is not None:
        return audits.verify_export(session, file, tenants, anchors)
    return asyncio.run(audits.verify(session, tenants, anchors))


@app.command()
def anchor(*, anchors: AnchorsTo = None, as_json: AsJson = False) -> ExitCode:
    """Append the head of every tenant's log to a file outside the database; exit code 9 when a log does not continue."""
    from starter.cli import audits  # noqa: PLC0415 - import time

    return asyncio.run(audits.anchor(Session(None, as_json), anchors))


@app.command()
def export(*, tenants: Tenants = None, to: To = None) -> ExitCode:
    """Write whole logs as JSON lines, with all that `audit verify --file` needs to check them without a database."""
    from starter.cli import audits  # noqa: PLC0415 - import time

    return asyncio.run(audits.export(tenants, to))
