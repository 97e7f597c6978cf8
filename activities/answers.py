"""What is an answer worth: can it be used, which calls does it ask for, does it end the run, with which output?"""

from dataclasses import dataclass

from pydantic import JsonValue

from activities import transcripts
from activities.postgres import Connection
from activities.providers.interface import ProviderAnswer
from activities.runs import RunRecord
from activities.schemas import schema_problem
from durable_agents.domain.artifacts import preview
from durable_agents.domain.canonical import canonical_json, parse_json
from durable_agents.domain.failures import Failure, FailureKind
from durable_agents.domain.identifiers import Digest
from durable_agents.domain.messages import Message, ToolCallBlock
from durable_agents.domain.model_calls import MAX_CALLS_PER_ANSWER, RequestedCall, StopReason

_INLINE_ARGUMENTS = 1024
_INLINE_OUTPUT = 16 * 1024


@dataclass(frozen=True)
class Output:
    """What an answer that ends the run gives back."""

    value: JsonValue = None
    artifact: Digest | None = None
    problem: Failure | None = None


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
