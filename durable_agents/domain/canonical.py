"""What is the one spelling of a JSON value, so that equal things have equal digests and any text can be stored?

Two strings poison PostgreSQL for ever, U+0000 and lone surrogates (`text` and `jsonb` refuse them), and NaN passes every
budget check because comparisons with it are false. Both are dealt with here, at one door.
"""

import hashlib
import json
import re
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, JsonValue

from durable_agents.domain.identifiers import Digest

ESCAPE = "\x1a"
"""U+001A SUBSTITUTE, the control character made for this; it escapes itself, so the escaping is reversible."""
_UNSTORABLE = re.compile("[\x00\x1a\ud800-\udfff]")
_ESCAPED = re.compile("\x1a([0-9a-f]{4})")
_NOT_YET = re.compile("[\x00\ud800-\udfff]|\x1a(?![0-9a-f]{4})")
_MAX_DEPTH = 200
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Letters, marks and symbols that show nothing, though Unicode counts them as printable (DerivedCoreProperties.txt,
Default_Ignorable_Code_Point, and the empty Braille pattern)."""


def escape_text(text: str) -> str:
    """`text` with U+0000, lone surrogates and the escape character itself as U+001A and four hex digits."""
    return _UNSTORABLE.sub(lambda match: f"{ESCAPE}{ord(match[0]):04x}", text)


def ensure_escaped(text: str) -> str:
    """`text` storable, and unchanged if it is so already: for fields that are validated at every door they pass.

    (A raw U+001A that happens to stand before four hex digits is taken for an escape.)
    """
    return _NOT_YET.sub(lambda match: f"{ESCAPE}{ord(match[0]):04x}", text)


Words = Annotated[str, AfterValidator(ensure_escaped)]
"""What somebody wrote, in a message or a failure: any text, made storable where it enters, for it ends in PostgreSQL."""


def restore_text(text: str) -> str:
    """The inverse of `escape_text`."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)


def escape_json(value: JsonValue) -> JsonValue:
    """`value` with every string and key escaped by `escape_text`.

    Raises:
        ValueError: the value is nested deeper than 200 levels, or holds NaN or an infinity.
    """
    return _map_strings(value, escape_text, _MAX_DEPTH)


def ensure_escaped_json(value: JsonValue) -> JsonValue:
    """`escape_json` by `ensure_escaped`: doing it again changes nothing."""
    return _map_strings(value, ensure_escaped, _MAX_DEPTH)


def restore_json(value: JsonValue) -> JsonValue:
    """The inverse of `escape_json`."""
    return _map_strings(value, restore_text, _MAX_DEPTH)


def _map_strings(value: JsonValue, change: Callable[[str], str], depth: int) -> JsonValue:
    if depth == 0:
        raise ValueError(f"JSON is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _map_strings(item, change, depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_strings(item, change, depth - 1) for item in value]
    if isinstance(value, float) and not (float("-inf") < value < float("inf")):
        raise ValueError("NaN and Infinity are not JSON")
    return value


def parse_json(text: str | bytes) -> JsonValue:
    """Strict JSON: no NaN, no Infinity, no duplicate keys, at most 200 levels, strings escaped for storage.

    Raises:
        ValueError: the text is not such JSON; the message says why.
    """
    try:
        value: JsonValue = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ValueError(f"JSON is nested deeper than {_MAX_DEPTH} levels") from None
    return escape_json(value)


def _refuse_constant(name: str) -> JsonValue:
    raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found


def canonical_json(value: JsonValue) -> bytes:
    """`value` as UTF-8 JSON: keys sorted, no white space, no NaN. Strings must already be storable."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest(value: JsonValue) -> Digest:
    """SHA-256 in hex of the canonical form."""
    return Digest(hashlib.sha256(canonical_json(value)).hexdigest())


def visible(char: str) -> bool:
    """Does a reader see this character, or is it the space?"""
    return char.isprintable() and not _INVISIBLE.match(char)


def inert(text: str, limit: int = 400) -> str:
    """Untrusted text as one harmless line: controls, bidi and invisible characters escaped, truncation marked.

    What a person reads before consenting must not be able to move the cursor, hide itself, or break out of a table.
    """
    head, rest = text[:limit], max(0, len(text) - limit)  # a result of 50 MB would hold its worker's event loop for ten seconds
    escaped = "".join(char if visible(char) and char not in "`|<>" else f"\\u{ord(char):04x}" for char in head)
    more = len(escaped) - limit + rest
    return escaped if more <= 0 else f"{escaped[:limit]}… ({more} more characters)"
