"""What is a tool, what does the model see of it, and what do its author and the run promise each other?"""

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, create_model
from pydantic_core import PydanticUndefined

from durable_agents.domain.effects import Effect
from durable_agents.domain.identifiers import CallPath, EffectKey, RunId, TenantId, UserId

Risk = Literal["read", "write", "egress"]
"""What a tool can do to the world, for policies: look, change, or carry data out."""

DEFAULT_TIMEOUT = timedelta(seconds=30)
MAX_TIMEOUT = timedelta(hours=1)
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class ToolFailed(Exception):  # noqa: N818 - reads as what its author says: the tool failed
    """Raise it in a tool: the call did nothing and trying again would not help. The model reads the message."""


class ToolUnavailable(Exception):  # noqa: N818 - see ToolFailed
    """Raise it in a tool: the call certainly did nothing, and trying again later may help.

    Any other exception means that nobody knows whether the effect happened. What follows depends on the effect class.
    """


@dataclass(frozen=True)
class ToolContext:
    """What a tool knows of the call it serves.

    `idempotency_key` is stable over every retry of the same call; pass it to the service behind the tool.
    `settings` are the values of the agent's `settings:`, resolved from the worker's environment.
    """

    tenant: TenantId
    user: UserId
    run_id: RunId
    call_path: CallPath
    idempotency_key: EffectKey
    attempt: int
    settings: Mapping[str, str] = field(repr=False)


class ToolSpec(BaseModel):
    """What is pinned of a tool when a run is admitted: all that the model and the workflow see."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    description: str
    parameters: dict[str, JsonValue]
    """JSON schema of the arguments, derived from the signature."""
    effect: Effect
    risk: Risk
    resource: str
    """What the call touches, e.g. `order:{order}`; filled from the arguments for policies. Empty: nothing in particular."""
    timeout: timedelta
    cache: timedelta | None = None
    """How long a result may be given again to the same user of the same agent version; only for reads."""
    trusted: bool = Field(default=False, exclude_if=lambda trusted: not trusted)
    """Its results are as good as the operator's word: nobody else can write into them. See `provenance`."""
    private: bool = Field(default=False, exclude_if=lambda private: not private)
    """Its results are nobody else's business."""
    destination: tuple[str, ...] = Field(default=(), exclude_if=lambda named: not named)
    """Arguments that say where the call goes, beside those in `resource`."""

    def sent(self) -> dict[str, JsonValue]:
        """What of it every model call carries."""
        return {"name": self.name, "description": self.description, "parameters": self.parameters}


ToolFunction = Callable[..., Awaitable[object]]
Reconcile = Callable[..., Awaitable[object | None]]


@dataclass(frozen=True)
class Tool:
    """A typed function the model may call. Made by `@tool`; calling it calls the function."""

    spec: ToolSpec
    function: ToolFunction
    arguments: type[BaseModel]
    result: TypeAdapter[object]
    reconcile: Reconcile | None
    takes_context: bool

    def __call__(self, *args: object, **kwargs: object) -> Awaitable[object]:
        """Call the function itself, as its own unit tests do."""
        return self.function(*args, **kwargs)

    def parse(self, arguments: Mapping[str, JsonValue] | None) -> BaseModel:
        """Validated arguments. Raises ValueError with one line the model can act upon."""
        try:
            return self.arguments.model_validate(arguments or {})
        except ValidationError as error:
            raise ValueError(describe_errors(error)) from None

    def canonical_arguments(self, parsed: BaseModel) -> dict[str, JsonValue]:
        """The arguments as they will be sent, in their one JSON form: what consent is bound to."""
        dumped: dict[str, JsonValue] = parsed.model_dump(mode="json")
        return dumped

    def keywords(self, parsed: BaseModel) -> dict[str, object]:
        """The keyword arguments of the function."""
        return {name: getattr(parsed, name) for name in type(parsed).model_fields}

    def render(self, returned: object) -> str:
        """What the model reads of a result: text as it is, everything else as JSON by the declared return type."""
        return returned if isinstance(returned, str) else self.result.dump_json(returned).decode()


def tool(
    *,
    effect: Effect,
    risk: Risk = "read",
    resource: str = "",
    timeout: timedelta = DEFAULT_TIMEOUT,
    cache: timedelta | None = None,
    reconcile: Reconcile | None = None,
    trusted: bool = False,
    private: bool = False,
    destination: tuple[str, ...] = (),
) -> Callable[[ToolFunction], Tool]:
    """Declare an async function as a tool. Its docstring is what the model reads, its annotations are the argument schema.

    A keyword-only parameter `context: ToolContext` is filled in by the run and hidden from the model.
    `reconcile(*, context, **arguments)` belongs to `Effect.RECONCILABLE`: it returns the result of the call with
    `context.idempotency_key`, or None if that call never arrived.
    `trusted`: nobody but the operator can write into its results. `private`: they are not for everybody. `destination`: the
    arguments that say where the call goes, beside those that `resource` names.

    Raises:
        TypeError: the declaration cannot work; the message names the function and the remedy.
    """

    def declare(function: ToolFunction) -> Tool:
        name = getattr(function, "__name__", repr(function))
        _require(inspect.iscoroutinefunction(function), f"tool {name} must be `async def`")
        _require(name.isascii() and len(name) <= 64, f"tool {name}: providers take at most 64 ASCII characters as a name")
        _require(bool(function.__doc__), f"tool {name} needs a docstring: it is what the model reads")
        _require(timedelta(0) < timeout <= MAX_TIMEOUT, f"tool {name}: the timeout must be above 0 and at most {MAX_TIMEOUT}")
        _require(cache is None or effect is Effect.READ, f"tool {name}: only a read can be cached, its effect is {effect}")
        needs_reconcile = effect is Effect.RECONCILABLE
        _require(
            needs_reconcile == (reconcile is not None),
            f"tool {name}: `reconcile` belongs to Effect.RECONCILABLE, and only there",
        )
        arguments, result = _types(function, name)
        for placeholder in _PLACEHOLDER.findall(resource):
            _require(placeholder in arguments.model_fields, f"tool {name}: its resource names {placeholder!r}, no parameter")
        for named in destination:
            _require(named in arguments.model_fields, f"tool {name}: its destination names {named!r}, no parameter")
        parameters = _schema(arguments)
        unordered = '"uniqueItems": true' in json.dumps(parameters)  # a set's JSON differs between processes, and so its digest
        _require(not unordered, f"tool {name}: a set has no lasting order that consent could be bound to, take a list")
        spec = ToolSpec(
            name=name,
            description=inspect.cleandoc(function.__doc__ or ""),
            parameters=parameters,
            effect=effect,
            risk=risk,
            resource=resource,
            timeout=timeout,
            cache=cache,
            trusted=trusted,
            private=private,
            destination=destination,
        )
        return Tool(
            spec, function, arguments, result, reconcile, takes_context="context" in inspect.signature(function).parameters
        )

    return declare


def describe_errors(error: ValidationError) -> str:
    """A validation error as one line: each place and what is wrong there."""
    parts = [
        f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors(include_url=False, include_input=False)
    ]
    return "; ".join(parts[:8])


def resource_of(spec: ToolSpec, arguments: Mapping[str, JsonValue]) -> str:
    """The resource a call touches: the pattern with `{argument}` replaced by its value; empty if none is declared.

    In one pass: a value that looks like a placeholder is a value, else the model could name another resource than it touches.
    """

    def filled(found: re.Match[str]) -> str:
        value = arguments[found[1]]
        return value if isinstance(value, str) else json.dumps(value)

    return _PLACEHOLDER.sub(filled, spec.resource)


def resource_fields(pattern: str) -> tuple[str, ...]:
    """The arguments that a resource's pattern names."""
    return tuple(dict.fromkeys(_PLACEHOLDER.findall(pattern)))


def _require(condition: bool, message: str) -> None:  # noqa: FBT001 - a predicate
    if not condition:
        raise TypeError(message)


def _types(function: ToolFunction, name: str) -> tuple[type[BaseModel], TypeAdapter[object]]:
    hints = get_type_hints(function, include_extras=True)
    result: type[object] = hints.pop("return", type(None))
    fields: dict[str, object] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "context":
            continue
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        _require(named, f"tool {name}: *{parameter.name} is not possible, the model passes arguments by name")
        _require(parameter.name in hints, f"tool {name}: parameter {parameter.name} needs a type")
        default = PydanticUndefined if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], ... if default is PydanticUndefined else default)
    made: type[BaseModel] = create_model(name, __config__=ConfigDict(extra="forbid", frozen=True), **fields)  # type: ignore[call-overload]
    return made, TypeAdapter(result)


def _schema(arguments: type[BaseModel]) -> dict[str, JsonValue]:
    schema: dict[str, JsonValue] = arguments.model_json_schema()
    schema.pop("title", None)
    return schema
