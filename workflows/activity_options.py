"""How long may each activity take, and what does Temporal retry?

The only place in `workflows/` with a timeout or a retry number. Temporal retries what is raised, without limit: the physical
tries that cost or do something are counted in their journals (3 requests per model call, 4 tries per tool call), so that a
database that is away for an hour uses none of them up.
"""

from datetime import timedelta

from temporalio.common import RetryPolicy
from temporalio.workflow import ActivityConfig, LocalActivityConfig

from durable_agents.domain.agents import ToolPlan
from durable_agents.domain.effects import Effect
from durable_agents.domain.model_calls import PinnedModel

HEARTBEAT_TIMEOUT = timedelta(seconds=4)  # four heartbeats; after a kill -9 another worker starts within this and a second
STORAGE_TIME = timedelta(seconds=60)  # the transactions before and after a call, each with its own statement timeout
UPKEEP_TIME = timedelta(seconds=95)  # for each of three steps: a round is due every five minutes

_PATIENT = RetryPolicy(initial_interval=timedelta(seconds=1), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=10))
_PROVIDER = RetryPolicy(initial_interval=timedelta(seconds=1), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=30))

UNKNOWN_TOOL = ToolPlan(effect=Effect.READ, timeout=timedelta(seconds=1))
"""A tool the agent does not have: the executor only tells the model so."""

FIND_ARRIVAL = LocalActivityConfig(start_to_close_timeout=timedelta(seconds=10), retry_policy=_PATIENT)
VERIFY_DECISIONS = FIND_ARRIVAL
FIND_SENT_DECISIONS = FIND_ARRIVAL
TELL_APPROVERS = FIND_ARRIVAL


def model_call(
    model: PinnedModel, time_left: timedelta | None, *, task_queue: str, activity_id: str, summary: str
) -> ActivityConfig:
    """Options of `call_model`: one attempt takes at most the model's own timeout; all of them end with the run's time."""
    config = ActivityConfig(
        task_queue=task_queue,
        start_to_close_timeout=model.timeout + STORAGE_TIME,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=_PROVIDER,
        activity_id=activity_id,
        summary=summary,
    )
    if time_left is not None:
        config["schedule_to_close_timeout"] = max(time_left, timedelta(seconds=1))
    return config


def tool_call(plan: ToolPlan, *, activity_id: str, summary: str) -> ActivityConfig:
    """Options of `run_tool`: an effect that was begun is seen through, whatever the run's time says."""
    return ActivityConfig(
        start_to_close_timeout=plan.timeout + STORAGE_TIME,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=_PATIENT,
        activity_id=activity_id,
        summary=summary,
    )


def admit_run(summary: str) -> ActivityConfig:
    """Options of `admit_run`: short transactions, tried until the database is there."""
    return _short("admit", summary)


def finish_run(summary: str) -> ActivityConfig:
    """Options of `finish_run`: as `admit_run`."""
    return _short("finish", summary)


def find_earlier_answer() -> ActivityConfig:
    """Options of `find_earlier_answer`: one query."""
    return _short("earlier-answer", "has this been answered before?")


def record_decision(approval: str, summary: str) -> ActivityConfig:
    """Options of `record_decision`: one short transaction."""
    return _short(f"decision-{approval[3:9]}", summary)


def upkeep(activity_id: str) -> ActivityConfig:
    """Options of a round over all tenants: tried again until the next one is due."""
    return ActivityConfig(
        start_to_close_timeout=UPKEEP_TIME,
        schedule_to_close_timeout=UPKEEP_TIME,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=_PATIENT,
        activity_id=activity_id,
    )


def _short(activity_id: str, summary: str) -> ActivityConfig:
    return ActivityConfig(
        start_to_close_timeout=STORAGE_TIME,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=_PATIENT,
        activity_id=activity_id,
        summary=summary,
    )
