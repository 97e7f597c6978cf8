"""What can go wrong between a caller and its runs, in words the caller can act upon?"""

from datetime import timedelta

from temporalio.service import RPCError, RPCStatusCode

from durable_agents.domain.canonical import inert
from durable_agents.domain.identifiers import RunId


class AgentError(Exception):
    """Something a caller can put right. `str()` is one line: cause and remedy."""


class NotReachable(AgentError):  # noqa: N818 - a state of the world
    """There is no Temporal server where we looked."""


class NoWorker(AgentError):  # noqa: N818 - a state of the world
    """The server is there, but no worker answers for the run."""


class NotFound(AgentError):  # noqa: N818 - a state of the world
    """There is no such run."""


class KeyReused(AgentError):  # noqa: N818 - a state of the world
    """The idempotency key belongs to another request."""


class Overloaded(AgentError):  # noqa: N818 - a state of the world
    """There is too much to do for a low-priority run. `retry_after` says when to try again."""

    def __init__(self, message: str, retry_after: timedelta) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InvalidRequest(AgentError):  # noqa: N818 - a state of the world
    """The request, or a message to a run, was refused."""


def server_error(error: RPCError, run: RunId) -> AgentError:
    """What a refusal of the Temporal server means for a caller."""
    if error.status is RPCStatusCode.NOT_FOUND:
        return NotFound(f"there is no run {run} that this could reach: it never was, or has ended ({first_line(error)})")
    if error.status in (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.FAILED_PRECONDITION, RPCStatusCode.CANCELLED):
        return no_worker(run)
    if error.status is RPCStatusCode.UNAVAILABLE:
        return NotReachable("the Temporal server is gone: check that it runs and TEMPORAL_ADDRESS")
    return InvalidRequest(f"the Temporal server refused: {first_line(error)}")


def no_worker(run: RunId) -> NoWorker:
    """Nobody answers for a run."""
    return NoWorker(f"no worker answers for {run}: start one with `python worker.py`")


def first_line(error: BaseException | None) -> str:
    """The first line of an error's text, harmless to print."""
    return inert(str(error).partition("\n")[0], 300) if error is not None else "no cause given"
