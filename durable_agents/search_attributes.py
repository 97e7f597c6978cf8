"""By what can runs be found in the Temporal Web UI?

Three of the ten Keyword slots and one of the three KeywordList slots a namespace on PostgreSQL has.
"""

from collections.abc import Sequence
from typing import Any

from temporalio.common import SearchAttributeKey, SearchAttributePair, SearchAttributeUpdate, TypedSearchAttributes

AGENT_NAME = SearchAttributeKey.for_keyword("AgentName")
TENANT = SearchAttributeKey.for_keyword("Tenant")
AGENT_STATUS = SearchAttributeKey.for_keyword("AgentStatus")
PENDING_APPROVALS = SearchAttributeKey.for_keyword_list("PendingApprovals")


def at_start(agent: str, tenant: str, status: str) -> TypedSearchAttributes:
    """The attributes a run is started with."""
    return TypedSearchAttributes(
        [
            SearchAttributePair(AGENT_NAME, agent),
            SearchAttributePair(TENANT, tenant),
            SearchAttributePair(AGENT_STATUS, status),
        ]
    )


def of_run(agent: str, tenant: str, status: str, pending: Sequence[str]) -> list[SearchAttributeUpdate[Any]]:
    """The attributes as the run itself keeps them (their value types differ, hence Any)."""
    return [
        AGENT_NAME.value_set(agent),
        TENANT.value_set(tenant),
        AGENT_STATUS.value_set(status),
        PENDING_APPROVALS.value_set(list(pending)),
    ]
