"""How does a run take whatever it is started with or sent?

Anybody who may write to the namespace may send any number of payloads in any encoding. Code that raises while it takes them fails
every workflow task of its run, for ever; so they are taken raw, and what makes no sense is an empty payload or a typed failure.
"""

import functools
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic import ValidationError
from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError

from durable_agents.domain.canonical import inert
from durable_agents.domain.failures import Failure, FailureKind
from durable_agents.domain.identifiers import RunId
from durable_agents.domain.run_state import RunInput
from durable_agents.domain.runs import RunResult, RunStatus
from durable_agents.domain.tools import describe_errors

NOTHING = RunInput(agent="unreadable", user="unreadable", idempotency_key="unreadable")
Run = TypeVar("Run")
Result = TypeVar("Result")


def any_input(handler: Callable[[Run, RawValue], None]) -> Callable[..., None]:
    """A handler of one raw payload that also takes none, or several, as an empty one."""

    @functools.wraps(handler)  # the SDK reads from the signature that the payload is taken raw
    def handle(run: Run, *payloads: object) -> None:
        handler(run, _the_one(payloads))

    return handle


def any_input_async(method: Callable[[Run, RawValue], Awaitable[Result]]) -> Callable[..., Awaitable[Result]]:
    """The same for a coroutine."""

    @functools.wraps(method)
    async def handle(run: Run, *payloads: object) -> Result:
        return await method(run, _the_one(payloads))

    return handle


def read_start(payload: RawValue) -> tuple[RunInput, ApplicationError | None]:
    """What the run was started with, or nothing in particular and the failure to end with.

    Raises:
        ValidationError: the state of a run that continued as new cannot be read: it waits for a release that can.
    """
    try:
        return RunInput.model_validate_json(payload.payload.data), None
    except ValidationError as error:
        if workflow.info().continued_run_id is not None:
            raise
        message = inert(f"this starts no run: {describe_errors(error)}", 500)
        failure = Failure(kind=FailureKind.INVALID_INPUT, message=message)
        run = RunId(workflow.info().workflow_id)
        result = RunResult(run_id=run, status=RunStatus.FAILED, explanation=message, failure=failure)
        return NOTHING, ApplicationError(message, result, type=failure.kind, non_retryable=True)


def _the_one(payloads: tuple[object, ...]) -> RawValue:
    """Several payloads have been decoded without regard to what is wanted, so none of them is it."""
    first = payloads[0] if len(payloads) == 1 else None
    return first if isinstance(first, RawValue) else RawValue(Payload())
