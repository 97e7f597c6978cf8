"""What was spent on models, for whom, by what, and which runs spend far more than is usual?

Read from PostgreSQL alone, as the application or the auditor: no worker and no Temporal server is asked. Row-level security shows
one tenant at a time, so tenants are named, and several are added up here.
"""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

from pydantic import JsonValue

from activities import spending
from activities.account_limits import known_tenants
from activities.postgres import Database
from activities.spending import Wanted
from durable_agents.domain.identifiers import Micros, TenantId
from durable_agents.domain.prices import format_usd, usd_to_micros
from durable_agents.domain.spending import (
    Amounts,
    Anomaly,
    Dimension,
    Spending,
    anomaly,
    dimensions,
    norm,
    ranked,
    worst_first,
)
from starter.cli.connection import full_run_id
from starter.cli.database import open_database
from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.inputs import read_moment, read_name
from starter.cli.options import Session
from starter.cli.plain_text import plain
from starter.cli.screen import Screen

_TOO_LONG = "the report takes too long: narrow it by --since, --until or --agent"
_FORMATS = ("table", "csv", "json")
_SHORT_VERSION = 12
_HEADINGS = ("cost", "unknown", "overrun", "calls", "input", "cached", "output", "runs", "completed", "per completed")
_AMOUNTS = ("cost_micros", "unknown_micros", "overrun_micros", "calls", "input_tokens", "cached_input_tokens", "output_tokens")
_COUNTS = ("runs", "completed", "per_completed_micros")
_ANOMALY = ("run", "agent", "user", "status", "cost_micros", "usual_cost_micros", "times_cost", "tokens", "usual_tokens",
            "times_tokens", "far_above_in")  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What the person typed, unread."""

    tenants: tuple[str, ...]
    """Empty: all there are."""
    since: str | None = None
    until: str | None = None
    agent: str | None = None
    user: str | None = None
    run: str | None = None

    def wanted(self, now: datetime) -> Wanted:
        """As a question to the tables.

        Raises:
            CliError: something cannot be meant.
        """
        since, until = read_moment(self.since, "--since", now), read_moment(self.until, "--until", now)
        if since is not None and until is not None and since >= until:
            raise CliError(
                f"--since {self.since} is not before --until {self.until}, which is excluded: nothing lies between them"
            )
        agent = None if self.agent is None else read_name(self.agent, "an agent")
        return Wanted(since, until, agent, _storable(self.user, "--user"), self._run())

    def _run(self) -> str | None:
        if self.run is None:
            return None
        if len(self.tenants) != 1 and not self.run.startswith("run:"):
            raise CliError(f"--run {self.run} is a key of which tenant: give run:<tenant>:<key>, or one --tenant")
        return full_run_id(self.run, self.tenants[0] if self.tenants else "")

    async def names(self, database: Database) -> list[TenantId]:
        """The tenants, each once."""
        return [TenantId(name) for name in dict.fromkeys(self.tenants)] or await known_tenants(database)


def named(tenants: list[str] | None, *, all_tenants: bool) -> tuple[str, ...]:
    """The tenants that are meant, none for all.

    Raises:
        CliError: one cannot be a tenant, or some and all are meant.
    """
    if all_tenants and tenants:
        raise CliError("--tenant and --all-tenants contradict each other: give one of them")
    return () if all_tenants else tuple(read_name(name, "a tenant") for name in tenants or ["default"])


async def show(session: Session, asked: Asked, by: str, top: int | None, layout: str | None) -> ExitCode:
    """Show spending by group, and its sum."""
    form = _form(session, layout)
    try:
        grouping = dimensions(by)
    except ValueError as error:
        raise CliError(f"--by: {error}") from None
    wanted = asked.wanted(datetime.now(UTC))
    groups: list[Spending] = []
    amounts, runs, completed = Amounts(), 0, 0
    async with open_database(_TOO_LONG) as database:
        for tenant in await asked.names(database):
            async with database.transaction(tenant) as connection:
                found, everything = await spending.grouped(connection, tenant, grouping, wanted)
            groups = _merged(groups, found)
            amounts = amounts.plus(everything.amounts)
            runs, completed = runs + (everything.runs or 0), completed + (everything.completed or 0)
    _print(form, grouping, ranked(groups, grouping, top), Spending((), amounts, runs, completed))
    return ExitCode.OK


def _merged(groups: list[Spending], more: list[Spending]) -> list[Spending]:
    """Both together; no run belongs to two tenants, so even distinct runs add up."""
    merged = {one.group: one for one in groups}
    for one in more:
        known = merged.get(one.group)
        merged[one.group] = one if known is None else Spending(
            one.group,
            known.amounts.plus(one.amounts),
            (known.runs or 0) + (one.runs or 0),
            (known.completed or 0) + (one.completed or 0),
        )  # fmt: skip
    return list(merged.values())


def _print(form: str, by: Sequence[Dimension], groups: Sequence[Spending], everything: Spending) -> None:
    names = [dimension.value for dimension in by]
    screen = Screen(as_json=form != "table")
    if form == "csv":
        rows = [[*one.group, *_numbers(one)] for one in groups]
        _write_csv([*names, *_AMOUNTS, *_COUNTS], rows)
    elif form == "table":
        rows_shown = [[*map(_short, by, one.group), *_cells(one)] for one in groups]
        screen.table([*names, *_HEADINGS], [*rows_shown, ["total", *[""] * (len(names) - 1), *_cells(everything)]])
    screen.line(_summary(everything))
    if form == "json":
        headings = [*names, *_AMOUNTS, *_COUNTS]
        listed: list[JsonValue] = [dict(zip(headings, [*one.group, *_numbers(one)], strict=True)) for one in groups]
        total: dict[str, JsonValue] = dict(zip([*_AMOUNTS, *_COUNTS], _numbers(everything), strict=True))
        screen.document({"by": [*names], "groups": listed, "total": total})


def _summary(everything: Spending) -> str:
    amounts = everything.amounts
    billed = f"{format_usd(amounts.cost_micros)} in {amounts.calls:,} requests of {everything.runs:,} runs"
    unknown = f"; up to {format_usd(amounts.unknown_micros)} more is held and unsettled" if amounts.unknown_micros else ""
    overrun = f"; providers counted {format_usd(amounts.overrun_micros)} beyond their maximum" if amounts.overrun_micros else ""
    return f"total {billed}{unknown}{overrun}"


def _numbers(one: Spending) -> list[int | None]:
    return [*one.amounts.values(), one.runs, one.completed, one.per_completed_micros]


def _cells(one: Spending) -> list[str]:
    amounts = one.amounts
    money = [format_usd(value) for value in (amounts.cost_micros, amounts.unknown_micros, amounts.overrun_micros)]
    counts = [f"{value:,}" for value in amounts.values()[3:]]
    runs = ["-" if value is None else f"{value:,}" for value in (one.runs, one.completed)]
    return [*money, *counts, *runs, "-" if one.per_completed_micros is None else format_usd(one.per_completed_micros)]


def _short(dimension: Dimension, name: str) -> str:
    return name[:_SHORT_VERSION] if dimension is Dimension.VERSION else name


async def anomalies(session: Session, asked: Asked, factor: int, at_least: str, layout: str | None) -> ExitCode:
    """List runs far above their agent's norm."""
    form, least = _form(session, layout), _least(at_least)
    wanted = asked.wanted(datetime.now(UTC))
    found: list[Anomaly] = []
    judged, without_norm = 0, set[str]()
    async with open_database(_TOO_LONG) as database:
        for tenant in await asked.names(database):
            async with database.transaction(tenant) as connection:
                runs = await spending.runs(connection, tenant, wanted)
                norms = {agent: norm(await spending.latest(connection, tenant, agent)) for agent in {run.agent for run in runs}}
            judged += len(runs)
            without_norm |= {agent for agent, usual in norms.items() if usual is None}
            found += [one for run in runs if (one := anomaly(run, norms[run.agent], factor, least)) is not None]
    _print_anomalies(form, worst_first(found), _judgement(len(found), judged, factor, without_norm))
    return ExitCode.OK


def _print_anomalies(form: str, found: Sequence[Anomaly], summary: str) -> None:
    screen = Screen(as_json=form != "table")
    described = [_described(one) for one in found]
    if form == "csv":
        _write_csv(_ANOMALY, [list(row.values()) for row in described])
    elif form == "table" and found:
        screen.table(("run", "agent", "user", "status", "cost", "usual", "times", "tokens", "usual", "times", "far above in"),
                     [_anomaly_cells(one, row) for one, row in zip(found, described, strict=True)])  # fmt: skip
    screen.line(summary)
    if form == "json":
        screen.document([{**row} for row in described])


def _judgement(found: int, judged: int, factor: int, without_norm: set[str]) -> str:
    nothing_usual = f"; nothing is usual yet for {', '.join(sorted(without_norm))}" if without_norm else ""
    return f"{found:,} of {judged:,} runs are above {factor} times their agent's median{nothing_usual}"


def _described(one: Anomaly) -> dict[str, str | int | None]:
    spent, usual = one.spent, one.norm
    which = [name for name, is_above in (("cost", one.by_cost), ("tokens", one.by_tokens)) if is_above]
    above = "+".join(which)
    cost = (spent.cost_micros, usual.cost_micros, _times(one.cost_times_tenths))
    tokens = (spent.tokens, usual.tokens, _times(one.tokens_times_tenths))
    values = (spent.run, spent.agent, spent.user, spent.status, *cost, *tokens, above)
    return dict(zip(_ANOMALY, values, strict=True))


def _anomaly_cells(one: Anomaly, row: dict[str, str | int | None]) -> list[str]:
    shown = {"cost_micros": format_usd(one.spent.cost_micros), "usual_cost_micros": format_usd(one.norm.cost_micros),
             "tokens": f"{one.spent.tokens:,}", "usual_tokens": f"{one.norm.tokens:,}"}  # fmt: skip
    return [shown.get(name, str("-" if value is None else value)) for name, value in row.items()]


def _times(tenths: int | None) -> str | None:
    return None if tenths is None else f"{tenths // 10}.{tenths % 10}"


def _least(text: str) -> Micros:
    try:
        amount = Decimal(text)
        if not amount.is_finite() or amount < 0:
            raise ValueError(f"{text!r} is no amount of dollars")
        return usd_to_micros(amount)
    except (InvalidOperation, ValueError):
        raise CliError(
            f"--at-least: {text[:40]!r} is no amount of dollars with at most six decimals: write it like 0.05"
        ) from None


def _form(session: Session, layout: str | None) -> str:
    if layout is None:
        return "json" if session.as_json else "table"
    if layout not in _FORMATS:
        raise CliError(f"--format {layout!r} is none: use {', '.join(_FORMATS)}")
    if session.as_json and layout != "json":
        raise CliError(f"--json and --format {layout} contradict each other: give one of them")
    return layout


def _storable(text: str | None, option: str) -> str | None:
    if text is not None and (not text or not text.isprintable()):
        raise CliError(f"{option} {text!r} is nobody: give the name as it stands in the run")
    return text


def _write_csv(headings: Sequence[str], rows: Sequence[Sequence[str | int | None]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows([_harmless(cell) for cell in row] for row in rows)
    sys.stdout.flush()


def _harmless(cell: str | int | None) -> str | int | None:
    """A spreadsheet runs what begins like a formula; nothing that somebody else wrote may do so (OWASP, CSV injection)."""
    if not isinstance(cell, str):
        return cell
    text = plain(cell)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
