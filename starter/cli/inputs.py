"""What did the person type: which input, which limits?"""

import getpass
import re
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from pydantic import JsonValue, TypeAdapter, ValidationError

from durable_agents.domain.accounts import MOST
from durable_agents.domain.budgets import Budget, Limit
from durable_agents.domain.canonical import parse_json
from durable_agents.domain.durations import read_duration
from durable_agents.domain.identifiers import Micros, Name, Person
from durable_agents.domain.prices import MILLION, usd_to_micros
from durable_agents.domain.tools import describe_errors
from durable_agents.settings import read_settings
from starter.cli.exit_codes import CliError

MAX_READ_BYTES = 8 * 1024 * 1024
"""More is not even read; what a run may take is far less, and the kernel says how much."""
_COUNTS = frozenset({Limit.INPUT_TOKENS, Limit.OUTPUT_TOKENS, Limit.MODEL_CALLS, Limit.TOOL_CALLS, Limit.TURNS})


def read_input(source: str) -> dict[str, JsonValue]:
    """The run's input from JSON itself, `@file`, or `-` for stdin.

    Raises:
        CliError: it cannot be read, or is no JSON object.
    """
    try:
        value = parse_json(_text(source))
    except ValueError as error:
        raise CliError(f'--input is not JSON ({error}): give an object like \'{{"order": "A-1001"}}\', @file, or -') from None
    if not isinstance(value, dict):
        raise CliError(f"--input is {_kind(value)}, not a JSON object: put it under a name, like '{{\"order\": …}}'")
    return value


def read_usd(text: str, option: str) -> Micros:
    """An amount of money, written out in digits: no sign, no exponent, no word.

    Raises:
        CliError: it is none, or beyond all money.
    """
    if not re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,6})?", text):
        raise CliError(
            f"{option} {text[:40]!r} is no amount of dollars: write digits with at most six decimals, like 12.50; 0 means none"
        )
    micros = usd_to_micros(Decimal(text))
    if micros > MOST:
        raise CliError(f"{option} {text[:40]} is more than ${MOST // MILLION:,}: leave a limit out where there is to be none")
    return micros


def read_count(text: str, option: str) -> int:
    """A number of tokens, written out in digits.

    Raises:
        CliError: it is none, or beyond all reason.
    """
    if not re.fullmatch(r"[0-9]{1,20}", text):
        raise CliError(f"{option} {text[:40]!r} is no number of tokens: write digits, like 2000000; 0 means none")
    if int(text) > MOST:
        raise CliError(f"{option} {text[:40]} is more than {MOST:,}: leave a limit out where there is to be none")
    return int(text)


def read_actor(by: str | None) -> str:
    """Who acts: as was said, else DURABLE_AGENTS_IDENTITY, else the login name.

    Raises:
        CliError: nobody can be called so.
    """
    who = by if by is not None else read_settings().identity or getpass.getuser()
    try:
        return TypeAdapter(Person).validate_python(who)
    except ValidationError:
        raise CliError(f"--by {who[:40]!r} is nobody: give a name of 1 to 120 characters that print") from None


def _text(source: str) -> str | bytes:
    if source == "-":
        return _bounded(sys.stdin.read(MAX_READ_BYTES + 1).encode(errors="surrogateescape"))
    if not source.startswith("@"):
        return source
    try:
        with Path(source[1:]).open("rb") as file:
            return _bounded(file.read(MAX_READ_BYTES + 1))
    except OSError as error:
        raise CliError(f"--input {source} cannot be read ({error.strerror}): check the path") from None


def _bounded(read: bytes) -> bytes:
    if len(read) > MAX_READ_BYTES:
        raise CliError(f"--input has more than {MAX_READ_BYTES:,} bytes: pass large things by reference, e.g. a URL")
    return read


def _kind(value: JsonValue) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def read_budget(text: str | None, option: str = "--budget") -> Budget | None:
    """Limits written `name=value,name=value`, as a Budget; None when nothing was written.

    Raises:
        CliError: a name or a value is none.
    """
    if text is None:
        return None
    try:
        return Budget.model_validate(dict(_limit(part.strip(), option) for part in text.split(",")))
    except ValidationError as error:
        raise CliError(f"{option}: {describe_errors(error)}: write limits like cost_usd=0.50,turns=10,wall_time=24h") from None


def _limit(part: str, option: str) -> tuple[str, str | int]:
    name, equals, value = part.partition("=")
    if not equals or name not in set(Limit):
        raise CliError(f"{option}: {part!r} is no limit: write name=value with one of {', '.join(Limit)}")
    if name not in _COUNTS:
        return name, value
    try:
        return name, int(value)
    except ValueError:
        raise CliError(f"{option}: {name} is a whole number, not {value!r}: write it like {name}=10") from None


def read_name(value: str, what: str) -> str:
    """A tenant's or agent's name; it goes into a search query, so nothing else may.

    Raises:
        CliError: it cannot be one.
    """
    try:
        return TypeAdapter(Name).validate_python(value)
    except ValidationError:
        raise CliError(f"{value!r} is no name of {what}: use letters, digits and . _ -, at most 64") from None


def read_moment(text: str | None, option: str, now: datetime) -> datetime | None:
    """A date, a date with a time, or a length of time ago, in UTC unless it says otherwise; None when nothing was written.

    Raises:
        CliError: it is none of these, or before all calendars.
    """
    if text is None:
        return None
    try:
        ago = read_duration(text)
        moment = now - ago if isinstance(ago, timedelta) else datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        wanted = "a date like 2026-11-20, a time like 2026-11-20T15:00, or how long ago, like 24h or 7d"
        raise CliError(f"{option} {text[:40]!r} is no moment: give {wanted}") from None
