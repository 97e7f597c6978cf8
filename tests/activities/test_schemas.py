"""Is a value that does not fit its schema told where, and can a schema do nothing but describe?"""

import pytest
from pydantic import JsonValue

from activities.schemas import check_schema, schema_problem

SCHEMA: dict[str, JsonValue] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["order", "amount"],
    "properties": {
        "order": {"type": "string", "pattern": "^[A-Z]-[0-9]+$"},
        "amount": {"type": "number", "exclusiveMinimum": 0},
        "lines": {"type": "array", "items": {"type": "object", "properties": {"price": {"type": "integer"}}}},
    },
}


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"order": "A-1", "amount": 5}, None),
        ({"order": "A-1", "amount": 5.5, "lines": [{"price": 1}]}, None),
        ({"order": "a-1", "amount": 5}, "order: "),
        ({"order": "A-1", "amount": 0}, "amount: "),
        ({"order": "A-1", "amount": "5"}, "amount: "),
        ({"order": "A-1", "amount": True}, "amount: "),
        ({"order": "A-1"}, 'value: "amount" is a required property'),
        ({"order": "A-1", "amount": 5, "to": "me"}, "value: Additional properties are not allowed"),
        ({"order": "A-1", "amount": 5, "lines": [{"price": 1}, {"price": "x"}]}, "lines.1.price: "),
        ([], "value: "),
        (None, "value: "),
        ("text", "value: "),
    ],
)
def test_each_error_names_its_place(value: JsonValue, place: str | None) -> None:
    """The model repairs its output, and a caller their input, by this line."""
    problem = schema_problem(SCHEMA, value)
    assert (problem is None) == (place is None)
    if problem is not None and place is not None:
        assert problem.startswith(place)
        assert "\n" not in problem


def test_a_line_names_at_most_five_errors() -> None:
    """The line goes back into the model's context and into the run's explanation."""
    problem = schema_problem({"type": "array", "items": {"type": "integer"}}, ["x"] * 1000)
    assert problem is not None
    assert problem.count(";") == 4
    assert len(problem) < 1_000


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "objekt"},
        {"type": 5},
        {"properties": []},
        {"required": "order"},
        {"pattern": "("},
        {"minimum": "1"},
        {"$ref": "#/nowhere"},
        {"$ref": "https://evil.example/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"properties": {"a": {"$ref": "http://127.0.0.1:1/"}}},
        {"$schema": "https://evil.example/meta"},
    ],
    ids=str,
)
def test_what_is_no_schema_is_refused_and_nothing_is_fetched(schema: dict[str, JsonValue]) -> None:
    """A reference that is followed is a request of ours to an address of somebody else's choice."""
    with pytest.raises(ValueError, match=r"^not a JSON schema: ") as refused:
        check_schema(schema)
    assert "\n" not in str(refused.value)
    check_schema({})
    check_schema({"$defs": {"a": {"type": "string"}}, "$ref": "#/$defs/a"})
