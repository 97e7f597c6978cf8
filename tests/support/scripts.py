"""What does the stand-in model say in most tests?"""

from pydantic import JsonValue

Call = tuple[str, dict[str, JsonValue]]


def turns(*steps: str | Call | list[Call]) -> JsonValue:
    """A script of one step a turn: a text, one tool call, or several at once. A repeated request gets the same answer."""
    return {"steps": [_step(step) for step in steps], "per": "turn"}


def refund(amount: str = "250.00", tool: str = "issue_refund") -> Call:
    """A call of a refunding tool."""
    return (tool, {"order": "A-1001", "amount": amount})


def tell(text: str = "hello") -> Call:
    """A call that can happen at most once."""
    return ("tell_customer", {"order": "A-1001", "text": text})


def _step(step: str | Call | list[Call]) -> JsonValue:
    if isinstance(step, str):
        return {"text": step}
    calls = step if isinstance(step, list) else [step]
    return {"tool_calls": [{"name": name, "arguments": arguments} for name, arguments in calls]}
