"""How are a policy's conditions evaluated?

The one module that knows CEL. Errors come back from the library as values; everything but true and false is an error here.
"""

from collections.abc import Callable, Mapping
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any

from cel_expr_python import cel
from pydantic import BaseModel

from durable_agents.domain.permissions import ConditionError

_ENVIRONMENT = cel.NewEnv(
    variables={
        "args": cel.Type.Map(cel.Type.STRING, cel.Type.DYN),
        **dict.fromkeys(("tool", "resource", "role", "user", "tenant", "agent", "risk"), cel.Type.STRING),
        "roles": cel.Type.List(cel.Type.STRING),
        "spent": cel.Type.DYN,  # a number like those of `args`: `spent > 1` and `spent > 1.5` are both meant
        "calls": cel.Type.INT,
        "now": cel.Type.TIMESTAMP,
    }
)


@lru_cache(maxsize=1024)
def _compiled(condition: str) -> cel.Expression:
    return _ENVIRONMENT.compile(condition)


def check_condition(condition: str) -> None:
    """Raise ValueError with one line when a condition does not compile to true or false."""
    try:
        kind = _compiled(condition).return_type()
    except RuntimeError as error:
        raise ValueError(f"condition {condition!r}: {str(error).partition(chr(10))[0]}") from None
    if kind != cel.Type.BOOL:
        raise ValueError(f"condition {condition!r} gives {kind}, not true or false; compare it with something")


def evaluate(condition: str, facts: Mapping[str, object]) -> bool:
    """The value of a condition. Raises ConditionError for anything but true and false."""
    try:
        result = _compiled(condition).eval(data=dict(facts))
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise ConditionError(str(error).partition("\n")[0]) from None
    if result.type() != cel.Type.BOOL:
        raise ConditionError(str(result.value()).partition("\n")[0])
    return bool(result.value())


def plain(value: object) -> object:
    """A validated argument as CEL takes it: decimals and enums as plain numbers and strings, times as ISO text."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    for kind, convert in _CONVERSIONS:
        if isinstance(value, kind):
            return convert(value)
    return str(value)


_CONVERSIONS: tuple[tuple[type | tuple[type, ...], Callable[[Any], object]], ...] = (  # the kind decides what Any is
    (Decimal, float),
    (Enum, lambda member: plain(member.value)),
    (date, lambda day: day.isoformat()),  # a datetime is a date
    (timedelta, lambda length: length.total_seconds()),
    (BaseModel, lambda model: {name: plain(getattr(model, name)) for name in type(model).model_fields}),
    (Mapping, lambda mapping: {str(key): plain(item) for key, item in mapping.items()}),
    ((list, tuple, set, frozenset), lambda items: [plain(item) for item in items]),
)
