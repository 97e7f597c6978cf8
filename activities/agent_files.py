"""What does an agent's folder say, and where exactly is it wrong?

YAML 1.2 (`on` and `no` stay words), duplicate keys refused, every error with file and line.
"""

import importlib.util
import sys
import traceback
from collections.abc import Mapping
from datetime import timedelta
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from activities.permissions import check_condition
from activities.schemas import check_schema
from durable_agents.domain.agents import AgentDefinition
from durable_agents.domain.permissions import Policy
from durable_agents.domain.tools import Tool

M = TypeVar("M", bound=BaseModel)
_UNITS = [("d", timedelta(days=1)), ("h", timedelta(hours=1)), ("m", timedelta(minutes=1)), ("s", timedelta(seconds=1))]


class AgentFileError(Exception):
    """An agent's folder cannot be used. `str()` is one line: file, line, what is wrong."""


def read_definition(folder: Path) -> AgentDefinition:
    """`agent.yaml`, checked."""
    file = folder / "agent.yaml"
    definition, document = _read(file, AgentDefinition)
    if definition.name != folder.name:
        raise _error(file, document, ("name",), f"the name {definition.name!r} must be the folder's, {folder.name!r}")
    for field in ("input", "output"):
        schema = getattr(definition, field)
        try:
            if schema is not None:
                check_schema(schema)
        except ValueError as error:
            raise _error(file, document, (field,), str(error)) from None
    return definition


def read_policy(folder: Path) -> Policy:
    """`policy.yaml`, checked; every condition compiles."""
    return read_policy_file(folder / "policy.yaml")


def read_policy_file(file: Path) -> Policy:
    """A policy from a file of any name."""
    policy, document = _read(file, Policy)
    for number, rule in enumerate(policy.rules):
        try:
            if rule.when is not None:
                check_condition(rule.when)
        except ValueError as error:
            raise _error(file, document, ("rules", number, "when"), str(error)) from None
    return policy


def policy_error(file: Path, place: tuple[str | int, ...], message: str) -> AgentFileError:
    """What is wrong with a part of a policy that can only be judged together with its agent."""
    return _error(file, _document(file), place, message)


def policy_text(policy: Policy) -> str:
    """A policy as YAML that reads back as the same policy, what is as by default left out."""
    text = StringIO()
    yaml = YAML(typ="rt", pure=True)
    yaml.width = 4096  # a line of the policy is a line of a diff
    stated = policy.model_dump(exclude_defaults=True)
    yaml.dump(_written({name: stated[name] for name in Policy.model_fields if name in stated or name == "rules"}), text)
    return text.getvalue()


def _written(value: object) -> object:
    """As a person would write it: durations with a unit."""
    if isinstance(value, Mapping):
        return {name: _written(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_written(item) for item in value]
    if isinstance(value, timedelta):
        return next(
            (f"{value // unit}{letter}" for letter, unit in _UNITS if not value % unit and value // unit < 10**6),
            TypeAdapter(timedelta).dump_python(value, mode="json"),
        )
    return value


def read_prompt(folder: Path, name: str) -> str:
    """The text of the prompt file, not empty."""
    try:
        text = (folder / name).read_text(encoding="utf8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise definition_error(folder, ("prompt",), f"{name} cannot be read: {_reason(error)}") from None
    if not text:
        raise definition_error(folder, ("prompt",), f"{name} is empty")
    return text


def read_tools(folder: Path) -> dict[str, Tool]:
    """The `@tool` functions of `tools.py`; none without such a file."""
    file = folder / "tools.py"
    if not file.exists():
        return {}
    module = _import(file, f"durable_agents_tools_{folder.name.replace('-', '_').replace('.', '_')}")
    return {value.spec.name: value for value in vars(module).values() if isinstance(value, Tool)}


def definition_error(folder: Path, place: tuple[str | int, ...], message: str) -> AgentFileError:
    """What is wrong with a part of `agent.yaml` that can only be judged together with the folder's other files."""
    file = folder / "agent.yaml"
    return _error(file, _document(file), place, message)


def _import(file: Path, name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # somebody else's code: whatever it raises is this file's error
        del sys.modules[name]
        message = str(error.msg if isinstance(error, SyntaxError) else error).partition("\n")[0]
        raise AgentFileError(f"{file}:{_line_in(file, error)}: {type(error).__name__}: {message}") from error
    return module


def _line_in(file: Path, error: BaseException) -> int:
    """The line of the file that led to the error."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return error.lineno or 1
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return (lines[-1] if lines else None) or 1


def _document(file: Path) -> CommentedMap:
    yaml = YAML(typ="rt")
    try:
        document = yaml.load(file.read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError) as error:
        raise AgentFileError(f"{file}: cannot be read: {_reason(error)}") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise AgentFileError(f"{file}:{line}: {error.problem or error.context}") from None
    except YAMLError as error:  # a character that YAML does not take; it comes without a mark
        raise AgentFileError(f"{file}:1: {_reason(error)}") from None
    except RecursionError:
        raise AgentFileError(f"{file}:1: is nested too deeply") from None
    if not isinstance(document, CommentedMap):
        raise AgentFileError(f"{file}:1: must be a mapping of names to values")
    return document


def _reason(error: Exception) -> str:
    """Why, without the path (it is in front already), as one line."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error).strip().partition("\n")[0]


def _read(file: Path, model: type[M]) -> tuple[M, CommentedMap]:
    document = _document(file)
    try:
        return model.model_validate(_plain(document)), document
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _error(file, document, first["loc"], first["msg"]) from None


def _error(file: Path, document: CommentedMap, place: tuple[str | int, ...], message: str) -> AgentFileError:
    where = ".".join(map(str, place))
    return AgentFileError(f"{file}:{_line(document, place)}: {f'{where}: ' if where else ''}{message}")


def _line(document: object, place: tuple[str | int, ...]) -> int:
    """The line of the deepest part of `place` that the file has."""
    line, here = 1, document
    for part in place:
        if isinstance(here, CommentedMap) and part in here:
            line = here.lc.key(part)[0] + 1
        elif isinstance(here, CommentedSeq) and isinstance(part, int) and part < len(here):
            line = here.lc.item(part)[0] + 1
        else:
            break
        here = here[part]
    return line


def _plain(value: object) -> object:
    """Ruamel's containers and scalars as plain Python, which strict pydantic types insist on."""
    if isinstance(value, CommentedMap):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, CommentedSeq):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value
