"""May this attempt send the effect, or has somebody already?

A dispatch row is committed before the call and its outcome after. What a later attempt may do follows from the row and from
the tool's effect class alone: never a blind retry.
"""

import hashlib
from enum import StrEnum
from typing import assert_never

from pydantic import BaseModel, ConfigDict

from durable_agents.domain.identifiers import CallPath, Digest, EffectKey, RunId, TenantId

MAX_TRIES = 4
"""Physical tries of one tool call whose outcome was not final; beyond it the call is given up (or its outcome is unknown)."""


class Effect(StrEnum):
    """What calling a tool twice would do: the promise its author makes."""

    READ = "read"
    """Changes nothing; calling it again is harmless."""
    IDEMPOTENT = "idempotent"
    """Takes `context.idempotency_key` along; the same key never acts twice."""
    RECONCILABLE = "reconcilable"
    """Takes the key, and can be asked afterwards whether it was acted upon."""
    AT_MOST_ONCE = "at_most_once"
    """Neither. In doubt nobody tries again: a human finds out."""


class DispatchState(StrEnum):
    """What the dispatch row of a tool call says."""

    DISPATCHED = "dispatched"  # sent, or about to be: the outcome is open
    NOT_SENT = "not_sent"  # the last try certainly did nothing
    SETTLED = "settled"  # the outcome is recorded and final
    UNKNOWN = "unknown"  # nobody knows; a human is asked


class Dispatch(BaseModel):
    """The dispatch row of a tool call."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    state: DispatchState
    effect: Effect | None
    """The tool's effect class when the effect was first sent; None: it never was."""
    arguments_digest: Digest
    tries: int
    fence: int
    """Which attempt owns the row: the server's time, in microseconds, at which it was scheduled. Only it may settle."""


class NextStep(StrEnum):
    """What an attempt of a tool activity does."""

    CALL = "call"
    RECONCILE = "reconcile"
    RETURN_RECORDED = "return_recorded"
    DECLARE_UNKNOWN = "declare_unknown"
    GIVE_UP = "give_up"
    REFUSE_OTHER_ARGUMENTS = "refuse_other_arguments"
    REFUSE_STALE = "refuse_stale"


def effect_key(tenant: TenantId, run: RunId, first_execution: str, path: CallPath) -> EffectKey:
    """The idempotency key of a tool call: stable over retry, crash, continue-as-new and reset; it never holds the attempt."""
    text = "\x1f".join(("durable-agents/effect/1", tenant, run, first_execution, path))
    return EffectKey(hashlib.sha256(text.encode()).hexdigest())


def next_step(effect: Effect, row: Dispatch | None, arguments_digest: Digest, fence: int) -> NextStep:
    """What the attempt with this fence may do, given the row an earlier attempt left."""
    if row is None:
        return NextStep.CALL
    if row.arguments_digest != arguments_digest:
        return NextStep.REFUSE_OTHER_ARGUMENTS
    if row.state is DispatchState.SETTLED:
        return NextStep.RETURN_RECORDED
    if row.state is DispatchState.UNKNOWN:
        return NextStep.DECLARE_UNKNOWN
    if fence < row.fence:
        return NextStep.REFUSE_STALE
    return _after_unsettled(effect, row)


def certainly_nothing_happened(before: Dispatch | None) -> bool:
    """A try says that it did nothing: does that hold for the whole call, given the row as the try found it?"""
    return before is None or before.state is DispatchState.NOT_SENT


def _after_unsettled(effect: Effect, row: Dispatch) -> NextStep:
    if row.state is DispatchState.NOT_SENT:
        return NextStep.CALL if row.tries < MAX_TRIES else NextStep.GIVE_UP
    return _after_open_dispatch(effect, row)


_LOOSE_TO_STRICT = (Effect.READ, Effect.IDEMPOTENT, Effect.RECONCILABLE, Effect.AT_MOST_ONCE)


def _after_open_dispatch(effect: Effect, row: Dispatch) -> NextStep:
    """An earlier attempt sent the effect, or died just before, and left no outcome.

    A tool that was declared anew since then promises nothing for what was sent under the old declaration.
    """
    if row.effect is not None and _LOOSE_TO_STRICT.index(row.effect) > _LOOSE_TO_STRICT.index(effect):
        return NextStep.DECLARE_UNKNOWN
    match effect:
        case Effect.READ:
            return NextStep.CALL if row.tries < MAX_TRIES else NextStep.GIVE_UP
        case Effect.IDEMPOTENT:
            return NextStep.CALL if row.tries < MAX_TRIES else NextStep.DECLARE_UNKNOWN
        case Effect.RECONCILABLE:
            return NextStep.RECONCILE if row.tries < 2 * MAX_TRIES else NextStep.DECLARE_UNKNOWN
        case Effect.AT_MOST_ONCE:
            return NextStep.DECLARE_UNKNOWN
    assert_never(effect)
