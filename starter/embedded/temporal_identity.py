"""Is the Temporal server that answers on this address the one that works on this database file?

A port tells nothing: another project's server may have it. Every database file has a cluster id of its own, which the server says
to any client and keeps in the file; the two are compared.
"""

import asyncio
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from temporalio.api.workflowservice.v1 import GetClusterInfoRequest
from temporalio.client import Client
from temporalio.service import RPCError

_LIMIT = timedelta(seconds=5)  # for one try; a port may accept and then say nothing


async def answers_from(address: str, database: Path) -> bool:
    """Whether a client can connect to `address`, its namespace `default` answers, and the server's data is in `database`."""
    try:
        async with asyncio.timeout(_LIMIT.total_seconds()):  # connecting takes no limit of its own
            client = await Client.connect(address)
            await client.count_workflows()
            cluster = await client.workflow_service.get_cluster_info(GetClusterInfoRequest())
    except (RPCError, RuntimeError, TimeoutError):  # the SDK reports a failed connect as RuntimeError
        return False
    return _is_cluster_of(database, cluster.cluster_id)


def _is_cluster_of(database: Path, cluster_id: str) -> bool:
    question = "select count(*) from cluster_metadata_info where instr(data, cast(? as blob)) > 0"
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            return bool(connection.execute(question, (cluster_id,)).fetchone()[0])
    except sqlite3.Error:
        return False
