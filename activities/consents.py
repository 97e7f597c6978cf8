"""Does a decision that a run believes in hold, for whoever is about to act on it?

Asked in the transaction in which the effect is written down as dispatched. Nothing of what the workflow was told is taken for
granted: who said it, that it was signed, over exactly what is about to be done, and that it was not used for anything else.
"""

from activities import approver_keys, signatures
from activities.postgres import Connection
from durable_agents.domain.approvals import Consent, Ladder, right_problem
from durable_agents.domain.identifiers import TenantId
from durable_agents.domain.signatures import Bound, consent_problem

USED = "it was used before, for something else"


async def problem(connection: Connection, consent: Consent, bound: Bound, ladder: Ladder | None, requester: str) -> str | None:
    """Why the decision has no effect; None: it holds, and its nonce is used up with the caller's transaction.

    Args:
        connection: of the transaction in which the effect begins.
        consent: what the run got for a decision.
        bound: what is about to be done, from the caller's own knowledge.
        ladder: whom the policy wanted asked; None: nobody was.
        requester: who asked for the run.
    """
    if ladder is None:
        return "nobody was asked this"
    if (wrong := right_problem(consent, ladder, requester)) is not None:
        return wrong
    signed = [voice for voice in consent.voices if voice.signature is not None]
    wanted = [voice.signature.key for voice in signed if voice.signature is not None]
    keys = await approver_keys.load(connection, bound.tenant, wanted) if wanted else {}
    for voice in signed:
        assert voice.signature is not None
        if (wrong := consent_problem(voice, bound, keys.get(voice.signature.key), signatures.verify)) is not None:
            return wrong
    for voice in signed:
        if not await _use_up(connection, bound, voice):
            return USED
    return None


async def used_elsewhere(connection: Connection, tenant: TenantId, key: str, nonce: str, signature: str) -> bool:
    """Has another decision with this nonce had its effect?"""
    row = await connection.fetchval(
        "select signature from used_nonce where tenant = $1 and key_id = $2 and nonce = $3", tenant, key, nonce
    )
    return row is not None and row != signature


async def _use_up(connection: Connection, bound: Bound, consent: Consent) -> bool:
    """The same decision may come again while its one effect is tried again; any other with this nonce may not."""
    assert consent.signature is not None
    one = consent.signature
    await connection.execute(
        "insert into used_nonce (tenant, key_id, nonce, run_id, approval_id, signature) values ($1, $2, $3, $4, $5, $6)"
        " on conflict do nothing",
        bound.tenant, one.key, one.nonce, bound.run_id, bound.approval_id, one.value,
    )  # fmt: skip
    return not await used_elsewhere(connection, bound.tenant, one.key, one.nonce, one.value)
