"""How does a person write a length of time?"""

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_WRITTEN = re.compile(r"([0-9]{1,6})([smhd])")


def read_duration(value: object) -> object:
    """`90s`, `15m`, `24h`, `7d` as a timedelta; anything else is left to pydantic (timedelta, ISO 8601)."""
    if isinstance(value, bool | int | float):
        raise ValueError('write a duration with its unit, like "90s", "15m", "24h" or "7d"')  # noqa: TRY004 - for pydantic
    if isinstance(value, str) and (match := _WRITTEN.fullmatch(value)):
        return timedelta(seconds=int(match[1]) * _UNITS[match[2]])
    return value


Duration = Annotated[timedelta, BeforeValidator(read_duration)]
"""A timedelta that can also be written `90s`, `15m`, `24h`, `7d`."""
