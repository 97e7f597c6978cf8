"""Is a length of time read as it was meant, and nothing else?"""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from durable_agents.domain.durations import Duration
from tests.domain.strategies import checked

DURATION: TypeAdapter[timedelta] = TypeAdapter(Duration)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("24h", timedelta(hours=24)),
        ("7d", timedelta(days=7)),
        ("0s", timedelta(0)),
        ("999999s", timedelta(seconds=999_999)),
        ("PT4H", timedelta(hours=4)),
        ("P1DT1S", timedelta(days=1, seconds=1)),
        (timedelta(minutes=1), timedelta(minutes=1)),
    ],
    ids=str,
)
def test_a_duration_is_read_as_it_was_meant(written: object, meant: timedelta) -> None:
    """A deadline of 4 h that is read as 4 s denies; one read as 4 days leaves a customer waiting."""
    assert DURATION.validate_python(written) == meant


@pytest.mark.parametrize(
    "written",
    [5, 1.5, True, float("nan"), "5", "5 minutes", "s", "m5", "1.5h", "-5s", "1e3s", "1234567s", "", None, "٣s", "5s\n"],
)
def test_what_has_no_clear_unit_is_refused(written: object) -> None:
    """A bare 30 is seconds to one reader and minutes to another."""
    with pytest.raises(ValidationError):
        DURATION.validate_python(written)


@checked
@given(st.integers(min_value=0, max_value=999_999), st.sampled_from("smhd"))
def test_every_number_with_a_unit_survives_a_round_trip(number: int, unit: str) -> None:
    """What is pinned as JSON when a run is admitted must be the same length when it is read again."""
    read = DURATION.validate_python(f"{number}{unit}")
    assert DURATION.validate_json(DURATION.dump_json(read)) == read
