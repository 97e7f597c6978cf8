"""Which commands does `limits` have, and what does each take?

As in `app`, each imports what it does inside itself: `--help` must be answered at once.
"""

import asyncio
from typing import Annotated

import typer

from starter.cli.exit_codes import ExitCode
from starter.cli.options import AsJson, Session

Provider = Annotated[str, typer.Argument(metavar="PROVIDER", help="anthropic or openai.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model's id, as in agent.yaml.")]
Requests = Annotated[int | None, typer.Option("--requests-per-minute", min=1, max=10_000_000, help="For each API key.")]
Tokens = Annotated[
    int | None, typer.Option("--tokens-per-minute", min=1, max=10**12, help="For each API key; input and max_tokens together.")
]

app = typer.Typer(rich_markup_mode=None, help="Show and set what may be sent to the providers; see docs/provider-limits.md.")


@app.callback(invoke_without_command=True)
def show(context: typer.Context, *, as_json: AsJson = False) -> ExitCode:
    """Show and set what may be sent to the providers, live; without a command: list every gate."""
    if context.invoked_subcommand is not None:
        return ExitCode.OK
    from starter.cli import limits  # noqa: PLC0415 - import time

    return asyncio.run(limits.show(Session(None, as_json)))


@app.command(name="set")
def set_limits(
    provider: Provider, model: Model, *, requests: Requests = None, tokens: Tokens = None, as_json: AsJson = False
) -> ExitCode:
    """Limit the requests or tokens a minute of a model; what is not given stays as it is."""
    from starter.cli import limits  # noqa: PLC0415 - import time

    return asyncio.run(limits.set_limits(Session(None, as_json), provider, model, requests, tokens))


@app.command()
def clear(provider: Provider, model: Model, *, as_json: AsJson = False) -> ExitCode:
    """Remove the limits of a model."""
    from starter.cli import limits  # noqa: PLC0415 - import time

    return asyncio.run(limits.clear(Session(None, as_json), provider, model))


@app.command(name="open")
def force_open(provider: Provider, model: Model, *, as_json: AsJson = False) -> ExitCode:
    """Open the circuit breaker by hand: nothing is sent to the model, and runs go on with their next one."""
    from starter.cli import limits  # noqa: PLC0415 - import time

    return asyncio.run(limits.force(Session(None, as_json), provider, model, is_open=True))


@app.command(name="close")
def force_closed(provider: Provider, model: Model, *, as_json: AsJson = False) -> ExitCode:
    """Close the circuit breaker: requests are sent again, and failures and pauses are forgotten."""
    from starter.cli import limits  # noqa: PLC0415 - import time

    return asyncio.run(limits.force(Session(None, as_json), provider, model, is_open=False))
