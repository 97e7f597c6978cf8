"""On which of Temporal's task queues does which work wait?

Everything of a run waits on its own queue, but its model calls: they wait on one queue for each provider, so that an operator can
limit what leaves for a provider without holding up tools, and a slow provider takes no slot that another call needs.
"""

from typing import get_args

from durable_agents.domain.model_calls import Provider

PROVIDERS: tuple[Provider, ...] = get_args(Provider)


def provider_queue(queue: str, provider: Provider) -> str:
    """Where the model calls of runs on `queue` wait, e.g. `durable-agents.anthropic`."""
    return f"{queue}.{provider}"
