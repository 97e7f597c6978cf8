"""Does a JSON value fit a JSON schema?"""

from collections.abc import Mapping

import jsonschema_rs
from pydantic import JsonValue

_MOST_ERRORS = 5


def schema_problem(schema: Mapping[str, JsonValue], value: JsonValue) -> str | None:
    """What is wrong with a value, as one line with the place of each error; None when it fits."""
    errors = list(_validator(schema).iter_errors(value))[:_MOST_ERRORS]
    if not errors:
        return None
    return "; ".join(f"{'.'.join(str(part) for part in error.instance_path) or 'value'}: {error.message}" for error in errors)


def check_schema(schema: Mapping[str, JsonValue]) -> None:
    """Raise ValueError when this is no usable JSON schema."""
    try:
        _validator(schema)
    except (jsonschema_rs.ValidationError, ValueError) as error:
        raise ValueError(f"not a JSON schema: {str(error).partition(chr(10))[0]}") from None


def _validator(schema: Mapping[str, JsonValue]) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(dict(schema), retriever=_refuse)


def _refuse(uri: str) -> JsonValue:
    """A schema must not make us fetch something."""
    raise ValueError(f"a schema may not refer to {uri}")
