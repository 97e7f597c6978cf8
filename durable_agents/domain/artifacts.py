"""When does text leave the row it belongs to and become an artifact that is referred to?"""

INLINE_LIMIT = 32 * 1024
"""Bytes of UTF-8. History, queries and rows stay small; what is larger lies in an artifact under its digest."""
PREVIEW = 400
"""Characters of a large text that stay in its place, for people."""


def belongs_in_artifact(text: str) -> bool:
    """Is this text too large to stand in a row or in history?"""
    return len(text.encode()) > INLINE_LIMIT


def preview(text: str, limit: int = PREVIEW) -> str:
    """The beginning of a text, with a mark where it was cut."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
