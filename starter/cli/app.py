"""Which commands are there, and what does each take?

Every command imports what it does inside itself: `--help` and a typing error must be answered at once, and the Temporal SDK
and pydantic alone take half a second to import. That is the reason beside each of these imports.
"""

import asyncio

import typer

from starter.cli import (
    account_commands,
    audit_commands,
    key_commands,
    ledger_commands,
    limit_commands,
    policy_commands,
    spend_commands,
)
from starter.cli.exit_codes import ExitCode
from starter.cli.options import (
    Address,
    Agent,
    AgentFilter,
    ApprovalArgument,
    AsJson,
    BudgetText,
    By,
    Input,
    KeyFile,
    Limit,
    MaybeRun,
    Port,
    PriorityName,
    Raise,
    Reason,
    Reset,
    Run,
    RunKey,
    Session,
    StandIn,
    Status,
    Tenant,
    TenantFilter,
    User,
    Wait,
    Yes,
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=False,
    rich_markup_mode=None,  # plain help: rich alone would take half of the time there is
    pretty_exceptions_enable=False,
    epilog="Add --debug to any command for a traceback. Exit codes: docs/exit-codes.md.",
)


app.add_typer(account_commands.app, name="accounts")
app.add_typer(audit_commands.app, name="audit")
app.add_typer(key_commands.app, name="keys")
app.add_typer(ledger_commands.app, name="ledger")
app.add_typer(limit_commands.app, name="limits")
app.add_typer(policy_commands.app, name="policy")
app.add_typer(spend_commands.app, name="spend")


@app.callback()
def starter() -> None:
    """Durable agents: start runs, watch them, decide for a human, and run everything on this machine."""


@app.command()
def demo(*, yes: Yes = False) -> ExitCode:
    """Show it all in a minute: a refund that waits for consent and survives kill -9."""
    from starter.demo.demo import demo as show  # noqa: PLC0415 - import time

    return asyncio.run(show(yes=yes))


@app.command()
def dev(
    *,
    reset: Reset = False,
    temporal_port: Port = None,
    ui_port: Port = None,
    postgres_port: Port = None,
    stand_in: StandIn = False,
    as_json: AsJson = False,
) -> ExitCode:
    """Run the embedded servers and a worker until Ctrl-C."""
    from starter.cli import dev as development  # noqa: PLC0415 - import time

    ports = development.Ports(temporal=temporal_port, ui=ui_port, postgres=postgres_port)
    return asyncio.run(development.dev(Session(None, as_json), ports, afresh=reset, stand_in=stand_in))


@app.command()
def run(
    agent: Agent,
    *,
    input: Input = "{}",  # noqa: A002 - the option's name
    tenant: Tenant = "default",
    user: User = None,
    key: RunKey = None,
    budget: BudgetText = None,
    priority: PriorityName = "normal",
    wait: Wait = True,
    as_json: AsJson = False,
    address: Address = None,
) -> ExitCode:
    """Start a run of an agent and follow it; the exit code says how it ended."""
    from starter.cli import run_commands  # noqa: PLC0415 - import time

    asked = run_commands.Start(
        agent=agent, input=input, tenant=tenant, user=user, key=key, budget=budget, priority=priority, wait=wait
    )
    return asyncio.run(run_commands.start(Session(address, as_json), asked))


@app.command()
def watch(run: Run, *, tenant: Tenant = "default", as_json: AsJson = False, address: Address = None) -> ExitCode:
    """Follow a run until it ends; the exit code says how it ended."""
    from starter.cli import run_commands  # noqa: PLC0415 - import time

    return asyncio.run(run_commands.watch(Session(address, as_json), run, tenant))


@app.command()
def status(run: Run, *, tenant: Tenant = "default", as_json: AsJson = False, address: Address = None) -> ExitCode:
    """Show where a run stands."""
    from starter.cli import run_commands  # noqa: PLC0415 - import time

    return asyncio.run(run_commands.status(Session(address, as_json), run, tenant))


@app.command()
def pending(run: MaybeRun = None, *, tenant: Tenant = "default", as_json: AsJson = False, address: Address = None) -> ExitCode:
    """Show what waits for a human."""
    from starter.cli import approval_commands  # noqa: PLC0415 - import time

    return asyncio.run(approval_commands.pending(Session(address, as_json), run, tenant))


@app.command()
def approve(
    run: Run,
    approval: ApprovalArgument = None,
    *,
    tenant: Tenant = "default",
    reason: Reason = "",
    by: By = None,
    key: KeyFile = None,
    as_json: AsJson = False,
    address: Address = None,
) -> ExitCode:
    """Say yes to what a run waits for."""
    from starter.cli import approval_commands  # noqa: PLC0415 - import time

    said = approval_commands.Said("approve", run, approval, tenant, reason=reason, by=by, key=key)
    return asyncio.run(approval_commands.decide(Session(address, as_json), said))


@app.command()
def deny(
    run: Run,
    approval: ApprovalArgument = None,
    *,
    tenant: Tenant = "default",
    reason: Reason = "",
    by: By = None,
    key: KeyFile = None,
    as_json: AsJson = False,
    address: Address = None,
) -> ExitCode:
    """Say no to what a run waits for."""
    from starter.cli import approval_commands  # noqa: PLC0415 - import time

    said = approval_commands.Said("deny", run, approval, tenant, reason=reason, by=by, key=key)
    return asyncio.run(approval_commands.decide(Session(address, as_json), said))


@app.command()
def cancel(
    run: Run, *, tenant: Tenant = "default", reason: Reason = "", by: By = None, as_json: AsJson = False, address: Address = None
) -> ExitCode:
    """Ask a run to stop at the next safe point."""
    from starter.cli import run_commands  # noqa: PLC0415 - import time

    return asyncio.run(run_commands.cancel(Session(address, as_json), run, tenant, reason=reason, by=by))


@app.command()
def budget(
    run: Run,
    *,
    tenant: Tenant = "default",
    raise_to: Raise = None,
    reason: Reason = "",
    by: By = None,
    as_json: AsJson = False,
    address: Address = None,
) -> ExitCode:
    """Show what a run may use and has used, or raise its limits."""
    from starter.cli import run_commands  # noqa: PLC0415 - import time

    session = Session(address, as_json)
    return asyncio.run(run_commands.budget(session, run, tenant, raise_to=raise_to, reason=reason, by=by))


@app.command()
def runs(
    *,
    status: Status = None,
    agent: AgentFilter = None,
    tenant: TenantFilter = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    address: Address = None,
) -> ExitCode:
    """List runs, newest first; needs no worker."""
    from starter.cli import run_list  # noqa: PLC0415 - import time

    wanted = run_list.Filter(status=status, agent=agent, tenant=tenant)
    return asyncio.run(run_list.runs(Session(address, as_json), wanted, limit))


@app.command()
def agents(*, as_json: AsJson = False) -> ExitCode:
    """List the agents of DURABLE_AGENTS_AGENTS_PATH and what is wrong with them."""
    from starter.cli import agent_list  # noqa: PLC0415 - import time

    return agent_list.list_agents(Session(None, as_json))


@app.command()
def migrate(*, as_json: AsJson = False) -> ExitCode:
    """Bring the database's schema up to date, as its owner."""
    from starter.cli import database  # noqa: PLC0415 - import time

    return asyncio.run(database.bring_up_to_date(Session(None, as_json)))


@app.command()
def doctor(*, as_json: AsJson = False, address: Address = None) -> ExitCode:
    """Check everything a run needs; one line each, with the remedy."""
    from starter.cli import doctor as checks  # noqa: PLC0415 - import time

    return asyncio.run(checks.doctor(Session(address, as_json)))
