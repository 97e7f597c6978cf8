"""With which number does the command line end, and what does the number mean?"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Every exit code; `docs/exit-codes.md` holds the same table, and a test compares the two."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    NOT_REACHABLE = 3
    NO_WORKER = 4
    NOT_FOUND = 5
    REFUSED = 6
    KEY_REUSED = 7
    OVERLOADED = 8
    DIFFERS = 9
    DEGRADED = 10
    DENIED = 11
    EXPIRED = 12
    BUDGET_EXHAUSTED = 13
    CANCELLED = 14
    FAILED = 15
    HANDED_OFF = 16
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """One line for people."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "done; a run that was waited for completed",
    ExitCode.UNEXPECTED: "an unexpected error, or a check of `doctor`, count of `demo` or try of `policy test` that did not hold",
    ExitCode.USAGE: "wrong usage, bad input or a bad setting; nothing was done",
    ExitCode.NOT_REACHABLE: "a server is not reachable, or could not be started",
    ExitCode.NO_WORKER: "no worker answers; what was sent is stored and goes on when one does",
    ExitCode.NOT_FOUND: "there is no such run, or nothing of that name",
    ExitCode.REFUSED: "a message to a run was refused; the reason is printed",
    ExitCode.KEY_REUSED: "the idempotency key belongs to a different request",
    ExitCode.OVERLOADED: "too much is waiting for a low-priority run; the line says when to try again",
    ExitCode.DIFFERS: "`ledger` found counters that are not the sum of their entries, or `audit` found a log that was changed",
    ExitCode.DEGRADED: "the run completed with less than it was asked for",
    ExitCode.DENIED: "the run ended because a human said no",
    ExitCode.EXPIRED: "the run ended because nobody decided in time",
    ExitCode.BUDGET_EXHAUSTED: "the run ended at a limit of its budget",
    ExitCode.CANCELLED: "the run was cancelled",
    ExitCode.FAILED: "the run failed, or was terminated from outside",
    ExitCode.HANDED_OFF: "the run was handed off",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C; runs go on without the command line",
}


class CliError(Exception):
    """The command cannot go on. `str()` is one line, `cause: remedy`."""

    def __init__(self, message: str, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.code = code
