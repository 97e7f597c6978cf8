"""Which commands does `accounts` have, and what does each take?

As in `app`, each imports what it does inside itself: `--help` must be answered at once.
"""

import asyncio
from typing import Annotated

import typer

from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.options import AsJson, By, Session

Which = Annotated[
    list[str],
    typer.Argument(
        metavar="SCOPE [NAME] PERIOD",
        help="user NAME, agent NAME, tenant, or all; then run, day or month. The name '*' is each without a limit of its own.",
    ),
]
OfTenant = Annotated[str | None, typer.Option("--tenant", help="Whose accounts; `default` if absent.")]
Usd = Annotated[str | None, typer.Option("--usd", metavar="AMOUNT", help="Dollars, at most six decimals, like 12.50; 0: none.")]
Tokens = Annotated[str | None, typer.Option("--tokens", metavar="N", help="Input and output together; 0: none.")]

app = typer.Typer(
    rich_markup_mode=None, help="Show and set what users, agents, tenants and all together may spend; docs/money.md."
)


@app.callback(invoke_without_command=True)
def show(context: typer.Context, *, tenant: OfTenant = None, as_json: AsJson = False) -> ExitCode:
    """Show and set what users, agents, a tenant and everything together may spend, live; without a command: list all of it."""
    if context.invoked_subcommand is not None:
        if tenant is not None or as_json:
            raise CliError(f"options stand behind the command: write accounts {context.invoked_subcommand} … --tenant …")
        return ExitCode.OK
    from starter.cli import accounts  # noqa: PLC0415 - import time

    return asyncio.run(accounts.show(Session(None, as_json), tenant))


@app.command(name="set")
def set_limit(
    which: Which, *, usd: Usd = None, tokens: Tokens = None, tenant: OfTenant = None, by: By = None, as_json: AsJson = False
) -> ExitCode:
    """Limit an account in money, tokens or both, from the next request on; what is not given stays as it is."""
    from starter.cli import accounts  # noqa: PLC0415 - import time

    return asyncio.run(accounts.set_limit(Session(None, as_json), accounts.read_which(which, tenant), usd, tokens, by))


@app.command()
def clear(which: Which, *, tenant: OfTenant = None, by: By = None, as_json: AsJson = False) -> ExitCode:
    """Remove an account's limits of a period: it is unlimited, or held to the limit of each."""
    from starter.cli import accounts  # noqa: PLC0415 - import time

    return asyncio.run(accounts.clear(Session(None, as_json), accounts.read_which(which, tenant), by))
