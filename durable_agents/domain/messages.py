"""What does a conversation consist of, whichever provider speaks it?"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from durable_agents.domain.identifiers import Digest


class TextBlock(BaseModel):
    """Plain text. Text over 32 KiB lies in an artifact; `text` then holds only its beginning."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["text"] = "text"
    text: str
    artifact: Digest | None = None


class ToolCallBlock(BaseModel):
    """The model asks for a tool. `arguments` is None when they were not a JSON object; `problem` then says why."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["tool_call"] = "tool_call"
    id: str
    tool: str
    arguments: dict[str, JsonValue] | None
    problem: str = ""


class ToolResultBlock(BaseModel):
    """What came of a tool call; `call_id` names the `ToolCallBlock`. Text over 32 KiB lies in an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["tool_result"] = "tool_result"
    call_id: str
    tool: str
    text: str
    is_error: bool = False
    artifact: Digest | None = None


class OpaqueBlock(BaseModel):
    """Something only its provider understands (thinking, encrypted reasoning) and wants back unchanged."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["opaque"] = "opaque"
    provider: str
    body: dict[str, JsonValue]


Block = Annotated[TextBlock | ToolCallBlock | ToolResultBlock | OpaqueBlock, Field(discriminator="type")]


class Message(BaseModel):
    """One entry of the transcript: what the user or the agent's owner said, what the model answered, what a tool returned."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Literal["user", "assistant", "tool"]
    blocks: tuple[Block, ...]

    def text(self) -> str:
        """The plain text of the message, blocks joined by a blank line."""
        return "\n\n".join(block.text for block in self.blocks if isinstance(block, TextBlock))

    def tool_calls(self) -> tuple[ToolCallBlock, ...]:
        """The tools this message asks for, in order."""
        return tuple(block for block in self.blocks if isinstance(block, ToolCallBlock))
