"""What does Temporal make of a database that is not there?

It tries again, for as long as it takes: an activity that cannot write down what it does must not do it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from temporalio.exceptions import ApplicationError

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


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn the database's passing troubles into a retryable error with one line."""
    try:
        yield
    except _PASSING as error:
        line = str(error).partition("\n")[0] or type(error).__name__
        raise ApplicationError(f"PostgreSQL is not available: {line}", type=STORAGE_UNAVAILABLE) from error
