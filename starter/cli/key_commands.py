"""Which commands does `keys` have, and what does each take?

As in `app`, each imports what it does inside itself: `--help` must be answered at once.
"""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from starter.cli.exit_codes import ExitCode
from starter.cli.options import AsJson, By, Session

OfTenant = Annotated[str, typer.Option("--tenant", help="Whose approver.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="Where the private key goes; there must be no such file yet.")]
Approver = Annotated[str, typer.Argument(metavar="APPROVER", help="Who signs with it, as policies name them.")]
Public = Annotated[str, typer.Argument(metavar="PUBLIC_KEY", help="As `keys generate` printed it: 64 hex digits.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="The key's id, k-….")]

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Make, register and revoke the keys with which people sign decisions; docs/consent.md.",
)


@app.command()
def generate(file: File, *, as_json: AsJson = False) -> ExitCode:
    """Make a key: the private half goes to a file for your eyes, the public half is printed, for somebody else to register."""
    from starter.cli import keys  # noqa: PLC0415 - import time

    return keys.generate_key(Session(None, as_json), file)


@app.command()
def add(
    approver: Approver, public_key: Public, *, tenant: OfTenant = "default", by: By = None, as_json: AsJson = False
) -> ExitCode:
    """Register an approver's public key."""
    from starter.cli import keys  # noqa: PLC0415 - import time

    return asyncio.run(keys.add(Session(None, as_json), tenant, approver, public_key, by))


@app.command(name="list")
def list_keys(*, tenant: OfTenant = "default", as_json: AsJson = False) -> ExitCode:
    """List a tenant's keys, revoked ones too."""
    from starter.cli import keys  # noqa: PLC0415 - import time

    return asyncio.run(keys.show(Session(None, as_json), tenant))


@app.command()
def revoke(key: Key, *, tenant: OfTenant = "default", by: By = None, as_json: AsJson = False) -> ExitCode:
    """End a key, for ever: nothing signed with it counts from now on, not even what is under way."""
    from starter.cli import keys  # noqa: PLC0415 - import time

    return asyncio.run(keys.revoke(Session(None, as_json), tenant, key, by))
