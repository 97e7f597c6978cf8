"""Does the worker of this container do its work?

`python -m starter.production.worker_health`, the image's health check: asks Temporal whether a process of this host polled both
sides of the task queue, and the providers' queues, lately. That a process exists says little: a worker that lost the server, or
hangs, polls no more. Exit code 0: it polls; 1: it does not, with the reason.
"""

import asyncio
import os
import socket
import sys
from datetime import UTC, datetime, timedelta

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.service import RPCError

from durable_agents import AgentClient
from durable_agents.domain.task_queues import PROVIDERS, provider_queue
from durable_agents.errors import NotReachable
from durable_agents.settings import SettingsError, read_settings

RECENT = timedelta(seconds=150)
"""A poll is held open for 60 s and noted when it begins; two of them, and time for one that was lost."""


def sides(task_queue: str) -> dict[str, tuple[str, TaskQueueType.ValueType]]:
    """What a worker polls: its name for people, the queue, and which side of it."""
    workflows, activities = TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY
    calls = {f"calls of {provider}": (provider_queue(task_queue, provider), activities) for provider in PROVIDERS}
    return {"workflows": (task_queue, workflows), "activities": (task_queue, activities), **calls}


async def silent_sides(temporal: Client, task_queue: str, host: str, now: datetime) -> list[str]:
    """What no process of this host polled since `now - RECENT`; none when all is well.

    The SDK names a worker `pid@host`; in a container the host's name is its own.
    """
    silent = []
    for side, (queue, kind) in sides(task_queue).items():
        request = DescribeTaskQueueRequest(namespace=temporal.namespace, task_queue=TaskQueue(name=queue), task_queue_type=kind)
        pollers = (await temporal.workflow_service.describe_task_queue(request)).pollers
        polled = [poller.last_access_time.ToDatetime(UTC) for poller in pollers if poller.identity.rpartition("@")[2] == host]
        if not polled or max(polled) < now - RECENT:
            silent.append(side)
    return silent


async def check() -> str:
    """Why this host's worker is not healthy; empty when it is."""
    try:
        queue = read_settings().task_queue
        client = await AgentClient.connect(task_queue=queue)
        silent = await silent_sides(client.temporal, queue, socket.gethostname(), datetime.now(UTC))
    except (SettingsError, NotReachable, RPCError) as error:
        return str(error)
    return f"no worker of this host polls {queue} for {', '.join(silent)}" if silent else ""


def main() -> int:
    """Check once; its exit code."""
    problem = asyncio.run(check())
    print(problem or "polling")
    return 1 if problem else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the SDK's threads abort an interpreter that ends at once now and then (temporalio/sdk-python 300)
