"""Is any text storable, is every value spelled in one way, and is what a person reads inert?"""

import json
import timeit
import unicodedata
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from durable_agents.domain.canonical import (
    canonical_json,
    digest,
    escape_json,
    escape_text,
    inert,
    parse_json,
    restore_json,
    restore_text,
)
from tests.domain.strategies import any_text, checked, json_values


@checked
@given(any_text)
def test_any_text_comes_back_as_it_was(text: str) -> None:
    """The escape must be reversible for every text, also for one that looks escaped already."""
    assert restore_text(escape_text(text)) == text


@checked
@given(any_text, any_text)
def test_two_texts_never_escape_to_one(one: str, other: str) -> None:
    """Else two different calls would have one digest, and consent for one would be consent for the other."""
    assert (escape_text(one) == escape_text(other)) == (one == other)


@checked
@given(any_text)
def test_escaped_text_is_what_postgres_takes(text: str) -> None:
    """U+0000 and lone surrogates poison a row for ever: neither text nor jsonb takes them."""
    escaped = escape_text(text)
    assert "\x00" not in escaped
    assert escaped.encode("utf8").decode("utf8") == escaped


@pytest.mark.parametrize(
    "text", ["\x00", chr(0xD800), chr(0xDFFF), "\x1a", "\x1a0000", "\x1a\x1a", "a\x00\x1a001ab", "\U0001f600"]
)
def test_the_awkward_texts_come_back(text: str) -> None:
    """Each has broken an escaping scheme once."""
    assert restore_text(escape_text(text)) == text
    assert restore_json(escape_json({text: [text]})) == {text: [text]}


@checked
@given(json_values)
def test_any_json_comes_back_as_it_was(value: JsonValue) -> None:
    """Keys, values, at any depth."""
    assert restore_json(escape_json(value)) == value


def shuffled(value: JsonValue) -> JsonValue:
    """The same value with its keys in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(list(value))}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@checked
@given(json_values)
def test_key_order_does_not_change_a_digest(value: JsonValue) -> None:
    """Python, jsonb and the wire all order keys as they like; consent must survive that."""
    escaped = escape_json(value)
    assert digest(shuffled(escaped)) == digest(escaped)
    assert digest(json.loads(canonical_json(escaped))) == digest(escaped)


@checked
@given(json_values, json_values)
def test_different_values_have_different_digests(one: JsonValue, other: JsonValue) -> None:
    """True is not 1 and "1" is not 1: a digest that says so lets another call through."""
    first, second = escape_json(one), escape_json(other)
    assert (digest(first) == digest(second)) == (canonical_json(first) == canonical_json(second))
    alike: list[JsonValue] = [1, True, "1", None, "null", [], {}, [1], {"1": 1}, "", 1.5]
    assert len({digest(value) for value in alike}) == len(alike)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": NaN}', "NaN"),
        ("[Infinity]", "Infinity"),
        ("-Infinity", "-Infinity"),
        ("1e400", "Infinity"),
        ("[-1e999]", "Infinity"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{"x": {"a": 1, "a": 1}}', "twice"),
        ("[" * 300 + "]" * 300, "deeper than 200"),
        ("[" * 100_000, "deeper than 200"),
        ('{"a":' * 100_000, "deeper than 200"),
        ('{"a": 1', "delimiter"),
        ("", "Expecting value"),
        ("9" * 5000, "digits"),
    ],
    ids=lambda text: text[:12],
)
def test_what_is_no_strict_json_is_refused_in_one_line(text: str, reason: str) -> None:
    """NaN passes every budget check, a second key hides behind the first, and depth kills the parser of whoever reads next."""
    with pytest.raises(ValueError, match=reason) as refused:
        parse_json(text)
    assert "\n" not in str(refused.value)


def test_bytes_that_are_no_text_are_refused() -> None:
    """A payload by hand can be anything."""
    with pytest.raises(ValueError, match="decode"):
        parse_json(b'{"a": "\xff"}')


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), {"a": [float("nan")]}])
def test_python_values_that_are_no_json_are_refused(value: JsonValue) -> None:
    """Values come from SDKs too, past any parser."""
    with pytest.raises(ValueError, match="not JSON"):
        escape_json(value)
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


@checked
@given(any_text, st.integers(min_value=1, max_value=60))
def test_untrusted_text_becomes_one_harmless_line(text: str, limit: int) -> None:
    """It must not move the cursor, turn the reading direction, hide itself or break out of a table before somebody consents."""
    shown = inert(text, limit)
    assert shown.isprintable()
    assert not set(shown) & set("`|<>\n\r\t")
    assert len(shown) <= limit + 40
    assert inert(shown, 1000) == shown


@pytest.mark.parametrize(
    "char", ["\x1b", "\u202e", "\u2066", "\u200b", "\u200d", "\ufeff", "\u00ad", "\u2028", "\u3164", "\u115f", "\uffa0", "\u2800",
             "\u034f", "\ufe0f", "\U000e0041", "\U000e0100", "\u180e", "\u00a0"]
)  # fmt: skip
def test_no_invisible_character_stays_invisible(char: str) -> None:
    """`pay<blank>bob` and `paybob` must not look alike to whoever consents."""
    assert char not in inert(f"pay{char}bob"), unicodedata.name(char, hex(ord(char)))
    assert f"\\u{ord(char):04x}" in inert(f"pay{char}bob")


def test_truncation_is_marked() -> None:
    """What was cut off could be the part that matters; the reader must know there is more."""
    assert inert("x" * 500, 10) == "x" * 10 + "… (490 more characters)"
    assert inert("x" * 10, 10) == "x" * 10


def test_a_line_of_a_huge_text_costs_no_more_than_its_beginning() -> None:
    """A tool's result may have 50 MB; escaping all of it would stop the worker's heartbeats, and the call would be made again."""
    small, huge = (min(timeit.repeat(partial(inert, "x" * size, 100), number=3, repeat=3)) for size in (10_000, 20_000_000))
    assert huge < 20 * small + 0.1
