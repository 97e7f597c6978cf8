"""A tool that is always there, and one that is too dear near the end."""

from durable_agents import Effect, tool


@tool(effect=Effect.READ)
async def echo(text: str) -> str:
    """Say a text again."""
    return text


@tool(effect=Effect.READ)
async def search(words: str) -> str:
    """Search far and wide."""
    return f"everything about {words}"
