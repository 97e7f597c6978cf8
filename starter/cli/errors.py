"""Which exit code and which one line belong to an error that a command did not deal with itself?"""

from temporalio.client import RPCTimeoutOrCancelledError
from temporalio.service import RPCError, RPCStatusCode

from durable_agents.errors import AgentError, InvalidRequest, KeyReused, NotFound, NotReachable, NoWorker, Overloaded
from durable_agents.settings import SettingsError
from starter.cli.exit_codes import ExitCode
from starter.embedded.processes import EmbeddedServerError

_KNOWN: dict[type[BaseException], ExitCode] = {
    NotReachable: ExitCode.NOT_REACHABLE,
    NoWorker: ExitCode.NO_WORKER,
    NotFound: ExitCode.NOT_FOUND,
    Overloaded: ExitCode.OVERLOADED,
    KeyReused: ExitCode.KEY_REUSED,
    InvalidRequest: ExitCode.USAGE,
    AgentError: ExitCode.UNEXPECTED,
    SettingsError: ExitCode.USAGE,
    EmbeddedServerError: ExitCode.NOT_REACHABLE,
}
"""In this order: a subclass stands before its base."""


def explain(error: BaseException) -> tuple[ExitCode, str]:
    """The exit code of an error, and `cause: remedy`."""
    for kind, code in _KNOWN.items():
        if isinstance(error, kind):
            return code, str(error)
    if isinstance(error, RPCError):
        return _server_refused(error)
    if isinstance(error, RPCTimeoutOrCancelledError):
        return ExitCode.NO_WORKER, "no worker answered in time: start one with `python worker.py`"
    return ExitCode.UNEXPECTED, f"{type(error).__name__}: {str(error) or 'no cause given'}: run again with --debug"


def _server_refused(error: RPCError) -> tuple[ExitCode, str]:
    if error.status is RPCStatusCode.INVALID_ARGUMENT:
        return ExitCode.USAGE, f"the Temporal server refused: {error}"
    return ExitCode.NOT_REACHABLE, f"the Temporal server does not answer ({error}): check TEMPORAL_ADDRESS, or look at `doctor`"
