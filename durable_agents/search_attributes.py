"""By what can runs be found in the Temporal Web UI?

Three of the ten Keyword slots and one of the three KeywordList slots a namespace on PostgreSQL has.
"""

from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes

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
