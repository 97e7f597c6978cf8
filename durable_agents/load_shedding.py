"""Is there so much to do that unimportant work had better not begin?

Asked by the client before it starts a low-priority run, at the server's own figures of the task queue: what is refused here has
cost nobody anything. Normal and high runs are never asked about; the server takes high ones first, and tenants in turn.
"""

from datetime import timedelta

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.common import Priority

from durable_agents.domain import runs
from durable_agents.domain.identifiers import TenantId

DEFAULT_BACKLOG = 1_000
"""Tasks waiting in the queue above which low-priority starts are refused: some seconds of work for one worker."""
SHORTEST_WAIT, LONGEST_WAIT = timedelta(seconds=5), timedelta(minutes=10)
_KEYS = {"high": 1, "normal": 3, "low": 5}  # Temporal's scale, 1 is served first


def priority_of(priority: runs.Priority, tenant: TenantId) -> Priority:
    """A run's place in the queue: its own priority, and its tenant as the key of fairness (at most 64 bytes)."""
    return Priority(priority_key=_KEYS[priority], fairness_key=tenant)


async def wait_before_start(temporal: Client, task_queue: str, most: int, patience: timedelta) -> timedelta | None:
    """How long a low-priority start should wait; None: it may begin."""
    waiting, rate = 0, 0.0
    for kind in (TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY):
        question = DescribeTaskQueueRequest(
            namespace=temporal.namespace, task_queue=TaskQueue(name=task_queue), task_queue_type=kind, report_stats=True
        )
        answer = await temporal.workflow_service.describe_task_queue(question, timeout=patience)
        waiting += answer.stats.approximate_backlog_count
        rate += answer.stats.tasks_dispatch_rate
    return retry_hint(waiting, rate, most)


def retry_hint(waiting: int, per_second: float, most: int) -> timedelta | None:
    """When the backlog should be back within its bound, at the rate of now."""
    if waiting <= most:
        return None
    seconds = (waiting - most) / per_second if per_second > 0 else LONGEST_WAIT.total_seconds()
    return min(max(timedelta(seconds=seconds), SHORTEST_WAIT), LONGEST_WAIT)
