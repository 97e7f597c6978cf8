"""Which commands does `ledger` have, and what does each take?

As in `app`, each imports what it does inside itself: `--help` must be answered at once.
"""

import asyncio
from typing import Annotated

import typer

from starter.cli.exit_codes import ExitCode
from starter.cli.options import AsJson, By, Run, Session, Tenant

OfTenant = Annotated[str | None, typer.Option("--tenant", help="Only this tenant; every tenant that has ever drawn if absent.")]
Call = Annotated[int, typer.Argument(metavar="CALL", min=1, max=2**31 - 1, help="The call, as `ledger unknown` has it.")]
Attempt = Annotated[int, typer.Argument(metavar="ATTEMPT", min=1, max=2**31 - 1, help="The attempt, as `ledger unknown` has it.")]
Usd = Annotated[str, typer.Option("--usd", metavar="AMOUNT", help="What the provider's bill says, like 0.0125; 0: not billed.")]
Why = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Where that stands; it is kept in the audit log.")]

app = typer.Typer(
    rich_markup_mode=None, help="Check the ledger, reconcile it, and settle what may have been billed; docs/money.md."
)


@app.command()
def check(*, as_json: AsJson = False) -> ExitCode:
    """Hold every tenant's counters against their entries and requests; exit code 9 when something differs. Changes nothing."""
    from starter.cli import ledgers  # noqa: PLC0415 - import time

    return asyncio.run(ledgers.check(Session(None, as_json)))


@app.command()
def reconcile(*, tenant: OfTenant = None, as_json: AsJson = False) -> ExitCode:
    """Go once over the ledger, as workers do from time to time: flag lost requests, return what lies idle, check."""
    from starter.cli import ledgers  # noqa: PLC0415 - import time

    return asyncio.run(ledgers.reconcile(Session(None, as_json), tenant))


@app.command()
def unknown(*, tenant: OfTenant = None, as_json: AsJson = False) -> ExitCode:
    """List the requests that may have been billed; their money stays held until somebody settles them."""
    from starter.cli import ledgers  # noqa: PLC0415 - import time

    return asyncio.run(ledgers.unknown(Session(None, as_json), tenant))


@app.command()
def settle(
    run: Run,
    call: Call,
    attempt: Attempt,
    *,
    usd: Usd,
    reason: Why,
    tenant: Tenant = "default",
    by: By = None,
    as_json: AsJson = False,
) -> ExitCode:
    """Book what a request of `ledger unknown` has cost by the provider's bill."""
    from starter.cli import ledgers  # noqa: PLC0415 - import time

    said = ledgers.Said(run, call, attempt, tenant, usd=usd, reason=reason, by=by)
    return asyncio.run(ledgers.settle(Session(None, as_json), said))
