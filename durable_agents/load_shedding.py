"""Is there so much to do that unimportant work had better not begin?

Asked by the client before it starts a low-priority run, at the server's own figures of the task queues: what is refused here has
cost nobody anything. The provider's gate is asked when the run is admitted, where PostgreSQL is at hand. Normal and high runs are
never asked about; the server takes high ones first, and tenants in turn.
"""

import asyncio
from datetime import timedelta

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue, TaskQueueStats
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.common import Priority

from durable_agents.domain import runs
from durable_agents.domain.identifiers import TenantId
from durable_agents.domain.task_queues import PROVIDERS, provider_queue

DEFAULT_BACKLOG = 1_000
"""Tasks waiting in the queue above which low-priority starts are refused: some seconds of work for one worker."""
SHORTEST_WAIT, LONGEST_WAIT = timedelta(seconds=5), timedelta(minutes=10)
_KEYS = {"high": 1, "normal": 3, "low": 5}  # Temporal's scale, 1 is served first


def priority_of(priority: runs.Priority, tenant: TenantId) -> Priority:
    """A run's place in the queue: its own priority, and its tenant as the key of fairness (at most 64 bytes)."""
    return Priority(priority_key=_KEYS[priority], fairness_key=tenant)


async def wait_before_start(temporal: Client, task_queue: str, most: int, patience: timedelta) -> timedelta | None:
    """How long a low-priority start should wait, by what waits in the main queue and the providers'; None: it may begin."""

    async def stats(queue: str, kind: TaskQueueType.ValueType) -> TaskQueueStats:
        question = DescribeTaskQueueRequest(
            namespace=temporal.namespace, task_queue=TaskQueue(name=queue), task_queue_type=kind, report_stats=True
        )
        return (await temporal.workflow_service.describe_task_queue(question, timeout=patience)).stats

    activities = (task_queue, *(provider_queue(task_queue, provider) for provider in PROVIDERS))
    found = await asyncio.gather(
        stats(task_queue, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW),
        *(stats(queue, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY) for queue in activities),
    )
    waiting, rate = sum(one.approximate_backlog_count for one in found), sum(one.tasks_dispatch_rate for one in found)
    return retry_hint(waiting, rate, most)


def retry_hint(waiting: int, per_second: float, most: int) -> timedelta | None:
    """When the backlog should be back within its bound, at the rate of now."""
    if waiting <= most:
        return None
    seconds = (waiting - most) / per_second if per_second > 0 else LONGEST_WAIT.total_seconds()
    return min(max(timedelta(seconds=seconds), SHORTEST_WAIT), LONGEST_WAIT)
