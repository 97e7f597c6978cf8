"""What is an answer worth: can it be used, which calls does it ask for, does it end the run, with which output?"""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, JsonValue

from activities import caches, transcripts
from activities.postgres import Connection
from activities.providers.interface import ProviderAnswer, ProviderRequest
from activities.runs import RunRecord
from activities.schemas import schema_problem
from durable_agents.domain.artifacts import preview
from durable_agents.domain.canonical import canonical_json, digest, parse_json
from durable_agents.domain.effects import Effect
from durable_agents.domain.failures import Failure, FailureKind
from durable_agents.domain.identifiers import Digest, Micros
from durable_agents.domain.messages import Message, ToolCallBlock
from durable_agents.domain.model_calls import (
    MAX_CALLS_PER_ANSWER,
    ModelAnswer,
    ModelCallRequest,
    PinnedModel,
    RequestedCall,
    StopReason,
)
from durable_agents.domain.prices import Usage

_INLINE_ARGUMENTS = 1024
_INLINE_OUTPUT = 16 * 1024
_TEXT_PREVIEW = 300


@dataclass(frozen=True)
class Output:
    """What an answer that ends the run gives back."""

    value: JsonValue = None
    artifact: Digest | None = None
    problem: Failure | None = None


@dataclass(frozen=True)
class Bill:
    """What an answer costs a run."""

    usage: Usage
    cost: Micros
    unknown: Micros
    overrun: Micros
    cached_tokens: int | None = None


async def write_answer(
    connection: Connection, run: RunRecord, call: ModelCallRequest, model: PinnedModel, answer: ProviderAnswer, bill: Bill
) -> ModelAnswer:
    """Make a usable answer the message of its turn, in the caller's transaction."""
    label = await transcripts.label_at(connection, call.tenant, call.run_id, call.turn)
    stored = await transcripts.put(connection, call.tenant, call.run_id, call.turn, 0, answer.message, label)
    ended = await output_of(connection, run, answer)
    return ModelAnswer(
        stop=answer.stop,
        text=preview(answer.message.text(), _TEXT_PREVIEW),
        calls=requested_calls(answer.message),
        usage=bill.usage,
        cost_micros=bill.cost,
        unknown_micros=bill.unknown,
        overrun_micros=bill.overrun,
        message_bytes=stored.size,
        head=digest(answer.message.model_dump(mode="json"))[:16],
        model=model.model,
        output=ended.value,
        output_artifact=ended.artifact,
        cached_tokens=bill.cached_tokens,
        problem=ended.problem,
    )


async def earlier_answer(
    connection: Connection, run: RunRecord, call: ModelCallRequest, model: PinnedModel, request: ProviderRequest
) -> ModelAnswer | None:
    """The answer to exactly this request, if the model's entry allows and there is one; it costs nothing."""
    if model.cache is None:
        return None
    found = await caches.get(connection, call.tenant, _cache_key(model, request))
    if not isinstance(found, dict):
        return None
    kept = KeptAnswer.model_validate(found)
    answer = ProviderAnswer(message=kept.message, stop=kept.stop, usage=None, request_id="cache", model=model.model)
    nothing = Micros(0)
    bill = Bill(Usage(input_tokens=0, output_tokens=0), nothing, nothing, nothing, cached_tokens=kept.counted_tokens)
    return await write_answer(connection, run, call, model, answer, bill)


async def keep(
    connection: Connection,
    run: RunRecord,
    model: PinnedModel,
    request: ProviderRequest,
    answer: ProviderAnswer,
    written: ModelAnswer,
) -> None:
    """Keep a good answer for the same request, unless it asks for an effect: that must be asked for anew each time."""
    effects = {call.tool for call in answer.message.tool_calls() if not _is_read(run, call.tool)}
    if model.cache is None or effects or written.problem is not None or answer.usage is None:
        return
    kept = KeptAnswer(message=answer.message, stop=answer.stop, counted_tokens=written.counted_tokens)
    await caches.put(connection, run.tenant, _cache_key(model, request), kept.model_dump(mode="json"), model.cache)


class KeptAnswer(BaseModel):
    """An answer as the cache has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    message: Message
    stop: StopReason
    counted_tokens: int


def _is_read(run: RunRecord, tool: str) -> bool:
    plan = run.terms.tools.get(tool)
    return plan is not None and plan.effect is Effect.READ


def _cache_key(model: PinnedModel, request: ProviderRequest) -> Digest:
    """Everything the provider would be sent."""
    messages: list[JsonValue] = [message.model_dump(mode="json") for message in request.messages]
    tools: list[JsonValue] = [spec.model_dump(mode="json") for spec in request.tools]
    return digest(["model", model.provider, model.model, request.max_tokens, request.system, tools, messages])


def unusable(answer: ProviderAnswer) -> Failure | None:
    """Answers that were paid for and still are none."""
    match answer.stop:
        case StopReason.MAX_TOKENS:
            return Failure(kind=FailureKind.TRUNCATED, message="the answer was cut off at its length limit")
        case StopReason.CONTEXT_FULL:
            return Failure(kind=FailureKind.CONTEXT_TOO_LONG, message="the conversation no longer fits the model's context")
        case StopReason.REFUSED:
            return Failure(kind=FailureKind.REFUSED, message="the model, or its provider's filter, refused to answer")
        case StopReason.DONE | StopReason.TOOL_CALLS | StopReason.PAUSED:
            calls = len(answer.message.tool_calls())
            if calls > MAX_CALLS_PER_ANSWER:
                message = f"{calls} tool calls, {MAX_CALLS_PER_ANSWER} are the most that are made at once"
                return Failure(kind=FailureKind.TOO_MANY_CALLS, message=message)
            empty = not answer.message.text().strip() and not calls and answer.stop is not StopReason.PAUSED
            return Failure(kind=FailureKind.EMPTY_ANSWER, message="the answer was empty") if empty else None


async def output_of(connection: Connection, run: RunRecord, answer: ProviderAnswer) -> Output:
    """The run's output, when this answer asks for no tool."""
    if answer.message.tool_calls() or answer.stop is StopReason.PAUSED:
        return Output()
    text = answer.message.text().strip()
    schema = run.agent.definition.output
    value: JsonValue = text
    if schema is not None:
        try:
            value = parse_json(_unfenced(text))
        except ValueError as error:
            return Output(problem=Failure(kind=FailureKind.OUTPUT_INVALID, message=f"not JSON: {error}"))
        if problem := schema_problem(schema, value):
            return Output(problem=Failure(kind=FailureKind.OUTPUT_INVALID, message=preview(problem, 500)))
    whole = canonical_json(value)
    if len(whole) <= _INLINE_OUTPUT:
        return Output(value=value)
    return Output(artifact=await transcripts.put_artifact(connection, run.tenant, whole.decode()))


def _unfenced(text: str) -> str:
    """Models like to put JSON into a Markdown fence, whatever they are told."""
    if text.startswith("```") and text.endswith("```"):
        return text.partition("\n")[2].rpartition("```")[0]
    return text


def requested_calls(message: Message) -> tuple[RequestedCall, ...]:
    """The tool calls of an answer as history shows them."""
    return tuple(
        RequestedCall(index=index, tool=preview(block.tool, 64), arguments=_inline(block))
        for index, block in enumerate(message.tool_calls())
    )


def _inline(block: ToolCallBlock) -> dict[str, JsonValue] | None:
    arguments = block.arguments
    return arguments if arguments is not None and len(canonical_json(arguments)) <= _INLINE_ARGUMENTS else None
