"""What does Temporal make of a database that is not there?

It tries again, for as long as it takes: an activity that cannot write down what it does must not do it. Of a connection that
was cut nobody knows whether its COMMIT was heard; the attempt itself can find out, by reading.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import asyncpg
from temporalio.exceptions import ApplicationError

T = TypeVar("T")
STORAGE_UNAVAILABLE = "storage_unavailable"
_PASSING = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what a killed server looks like in the middle of a reply, now and then
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,
)
_CUT = (
    ConnectionError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)


async def again_if_cut(step: Callable[[], Awaitable[T]]) -> T:
    """Run a step once more when its connection was cut, on another connection, before anybody takes the attempt for lost.

    The step must recognize what it has committed before. A server that is gone altogether is Temporal's affair.
    """
    with suppress(*_CUT):
        return await step()
    try:
        return await step()
    except asyncpg.UniqueViolationError:  # the first COMMIT was still under way when this step looked; it is done now
        return await step()


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn the database's passing troubles into a retryable error with one line."""
    try:
        yield
    except _PASSING as error:
        line = str(error).partition("\n")[0] or type(error).__name__
        raise ApplicationError(f"PostgreSQL is not available: {line}", type=STORAGE_UNAVAILABLE) from error
