"""One harmless tool."""

from durable_agents import Effect, tool


@tool(effect=Effect.READ)
async def echo(text: str) -> str:
    """Say a text again."""
    return text
