"""Is a destination found in trusted text when it stands there, and never when it only seems to?"""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import JsonValue

from durable_agents.domain.agents import DEFAULT_OUTCOME_LADDER, provenance_ladder
from durable_agents.domain.approvals import Ladder, Rung
from durable_agents.domain.canonical import digest, visible
from durable_agents.domain.effects import Effect
from durable_agents.domain.permissions import Policy, Ruling, Verdict, ever_unasked
from durable_agents.domain.provenance import Label, TrustedText, judged, permitted, problem, result_label, way_out
from durable_agents.domain.tools import Risk, ToolSpec
from tests.domain.strategies import any_text, checked, json_values

BOB = "bob@example.com"
destinations = st.from_regex(r"[a-z0-9]{1,8}([.+_@-][a-z0-9]{1,8}){0,4}", fullmatch=True)
joiners = st.sampled_from([*"abz019.@-_+=&/\\#%~$^:", "'", "é", "本"])
"""What makes another word of a word when it stands right beside it, and a letter follows."""
around = st.sampled_from(
    [" ", "\n", "\t", ", ", "; ", "(", ")", "<", ">", '"', "\u00a0", "\u3000", "，", "“", "”", "[", "]", "|"]
)
HIDDEN = ["\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u202e", "\u034f", "\ufe0f", "\u3164", "\x00", "\x1b", "\U000e0041"]
LOOK_ALIKES = [
    "b\u043eb@example.com", "bob@ex\u0430mple.com", "\uff42\uff4f\uff42@example.com", "bob\uff20example.com",
    "bob@example\uff0ecom", "bob@examp1e.com", "\U0001d41bob@example.com", "bob@example.\u217dom", "bob@exampl\u212e.com",
    "\u212aate@example.com",
]  # fmt: skip


def text_of(prompt: str = "", given: JsonValue = None) -> TrustedText:
    """Trusted text."""
    return TrustedText.of(prompt, given)


def tool_spec(risk: Risk = "egress", **fields: Any) -> ToolSpec:
    """A tool that sends, to `to`, unless told otherwise."""
    values: dict[str, Any] = {
        "name": "send", "description": "d", "parameters": {}, "effect": Effect.READ if risk == "read" else Effect.AT_MOST_ONCE,
        "risk": risk, "resource": "", "timeout": timedelta(seconds=1), "destination": ("to",),
    }  # fmt: skip
    return ToolSpec(**(values | fields))


def against(spec: ToolSpec, arguments: dict[str, JsonValue], given: JsonValue = None, *permits: str) -> str | None:
    """What provenance has against a call in a conversation that holds untrusted text."""
    return problem(spec, arguments, Label.UNTRUSTED, text_of("", given), permits)


@checked
@given(any_text, around, destinations, around, any_text)
def test_a_destination_that_stands_alone_is_found(before: str, left: str, wanted: str, right: str, after: str) -> None:
    """Whatever else a user writes: what stands between spaces, brackets or quotes needs no human."""
    text = f"{before}{left}{wanted}{right}{after}"
    assert text_of(text).has(wanted)
    assert text_of(text.upper()).has(wanted.upper())
    assert text_of("", {"mail": [text]}).has(wanted)


@checked
@given(destinations, st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=5), joiners, around)
@example(BOB, "evil", ".", " ")
@example(BOB, "not", "+", "(")
def test_a_part_of_a_word_is_never_found(wanted: str, other: str, joiner: str, edge: str) -> None:
    """`bob@example.com` is another person than notbob@example.com, and than bob@example.com.evil."""
    for text in (f"{other}{wanted}", f"{wanted}{other}", f"{other}{joiner}{wanted}", f"{wanted}{joiner}{other}"):
        assert not text_of(f"##{edge}{text}{edge}##").has(wanted), text
        assert not text_of("", [text]).has(wanted), text


@checked
@given(destinations, st.sampled_from(HIDDEN), st.integers(0, 40))
def test_what_hides_characters_is_never_found(wanted: str, hidden: str, place: int) -> None:
    """A human sees bob@example.com, the mail server something else; and a trusted text cannot be cut by what nobody sees."""
    spoiled = wanted[: place % (len(wanted) + 1)] + hidden + wanted[place % (len(wanted) + 1) :]
    assert not text_of(f"to {wanted} {spoiled}").has(spoiled)
    assert not permitted(spoiled, [wanted, spoiled, "*", "**"])
    assert not text_of(f"{wanted}{hidden}.evil not{hidden}{wanted}").has(wanted)


@pytest.mark.parametrize("look_alike", LOOK_ALIKES)
def test_what_only_looks_the_same_is_not_found(look_alike: str) -> None:
    """Another alphabet's letters, and the compatibility forms that servers may or may not map to the plain ones."""
    assert not text_of(f"write to {BOB} or kate@example.com").has(look_alike)
    assert not permitted(look_alike, [BOB, "kate@example.com", "**"] if look_alike[0] == "\u212a" else [BOB])


@checked
@given(any_text, json_values)
def test_any_text_can_be_trusted_and_nothing_hidden_or_empty_is_in_it(prompt: str, given: JsonValue) -> None:
    """The kernel must not stumble over what users paste."""
    text = text_of(prompt, given)
    assert not text.has("")
    assert all(all(map(visible, word)) for word in text.exact if text.has(word))


@pytest.mark.parametrize(
    ("said", "wanted", "is_found"),
    [
        ("Write to bob@example.com.", BOB, True),
        ("Is it bob@example.com? Or 'bob@example.com'?", BOB, True),
        ("**bob@example.com**: ask him", BOB, True),
        ("_bob@example.com is another", BOB, False),
        ("BOB@Example.COM", BOB, True),
        ("ｂｏｂ@example.com, as typed", "ｂｏｂ@example.com", True),
        ("ｂｏｂ@example.com, as typed", BOB, True),
        ("order A-1001, please", "A-1001", True),
        ("order A-1001, please", "a-1001", True),
        ("order A-10011", "A-1001", False),
        ("order A-1001/2", "A-1001", False),
        ("see https://Docs.example.com/d/AbC.", "https://docs.example.com/d/AbC", True),
        ("see https://docs.example.com/d/AbC", "https://docs.example.com/d/aBc", False),
        ("see https://docs.example.com/d", "https://docs.example.com@evil.example/d", False),
        ("straße.example", "strasse.example", False),
        ("bob@example.com", f"{BOB},mallory@evil.example", False),
        ("bob@example.com", f"{BOB} mallory@evil.example", False),
        ("cafe\u0301.example", "café.example", True),
    ],
)
def test_the_rules_of_a_whole_word(said: str, wanted: str, is_found: bool) -> None:
    """Each line is a way people write, or a way others cheat."""
    assert text_of(said).has(wanted) == is_found


def test_a_value_of_the_input_counts_as_a_whole_and_numbers_as_they_are_written() -> None:
    """An address with spaces is one destination, where the user gave it as one."""
    text = text_of("", {"ship": {"to": " 12 High Street, Springfield "}, "account": 4711})
    assert text.has("12 High Street, Springfield")
    assert text.has("4711")
    assert not text.has("ship")
    assert not text_of("12 High Street, Springfield").has("12 High Street, Springfield")


@pytest.mark.parametrize(
    ("value", "pattern", "allowed"),
    [
        ("ann@partner.example", "*@partner.example", True),
        ("ANN@Partner.example", "*@partner.example", True),
        ("ann@partner.example.evil", "*@partner.example", False),
        ("mallory@evil.example,ann@partner.example", "*@partner.example", False),
        ("mallory@evil.example ann@partner.example", "*@partner.example", False),
        ("mallory@evil.example/@partner.example", "*@partner.example", False),
        ("https://a.partner.example/x?y=1", "https://*.partner.example/**", True),
        ("https://evil.example/.partner.example/x", "https://*.partner.example/**", False),
        ("https://evil.example#.partner.example/x", "https://*.partner.example/**", False),
        ("https://a.partner.example@evil.example/x", "https://*.partner.example/**", False),
        ("https://a.partner.example/@evil.example", "https://*.partner.example/**", False),
        ("order:A-1", "order:*", True),
        ("axb", "a.b", False),
        ("", "*", False),
    ],
)
def test_the_list_of_a_policy_opens_what_it_says(value: str, pattern: str, allowed: bool) -> None:
    """A star that reached beyond its part of an address would let anybody's address end like the partner's."""
    assert permitted(value, [pattern]) == allowed


def test_only_calls_that_act_are_asked_about_and_only_after_untrusted_text() -> None:
    """A gate in front of every read would be opened without looking."""
    wild: dict[str, JsonValue] = {"to": "mallory@evil.example"}
    assert problem(tool_spec(), wild, Label.TRUSTED, text_of(), ()) is None
    assert against(tool_spec("read"), wild) is None
    expected = "reads untrusted text; 'mallory@evil.example' stands in no trusted text"
    assert against(tool_spec(), wild) == against(tool_spec("write"), wild) == expected
    assert against(tool_spec("read", effect=Effect.IDEMPOTENT), wild) == expected, "an undeclared risk opens nothing"
    assert against(tool_spec(), {"to": BOB}, [BOB]) is None
    assert against(tool_spec(), wild, None, "*@evil.example") is None


def test_every_destination_of_a_call_must_be_trusted_and_one_must_be_there() -> None:
    """The second recipient is as good a way out as the first."""
    spec = tool_spec(destination=("to", "cc"), resource="order:{order}")
    fine: dict[str, JsonValue] = {"to": BOB, "cc": None, "order": "A-1"}
    assert against(spec, fine, [BOB, "A-1"]) is None
    assert against(spec, fine, [BOB], "order:A-1") is None
    others: list[dict[str, JsonValue]] = [
        {"cc": [BOB, "x@y.z"]},
        {"cc": {"a": "x@y.z"}},
        {"order": "B-9"},
        {"to": "x@y.z"},
        {"to": True},
    ]
    for other in others:
        assert "stands in no trusted text" in (against(spec, fine | other, [BOB, "A-1"], "order:A-1") or "")
    assert "names no destination" in (against(tool_spec(), {"to": ""}, [BOB]) or "")
    assert "names no destination" in (against(tool_spec(destination=()), {}, [BOB]) or "")
    crm = tool_spec("write", destination=(), resource="crm")
    assert against(crm, {}, ["crm"]) is not None
    assert against(crm, {}, None, "crm") is None


def test_a_reason_is_one_inert_line() -> None:
    """It is shown to whoever is asked, and holds what an attacker wrote."""
    told = against(tool_spec(), {"to": "a\u202eb\n" + "x" * 900})
    assert told is not None
    assert all(map(visible, told))
    assert len(told) < 200


def test_labels_join_what_was_read() -> None:
    """A trusted tool that is asked for by somebody else gives what somebody else wanted."""
    trusted, plain = tool_spec(trusted=True), tool_spec()
    assert result_label(Label.TRUSTED, trusted) is result_label(Label.TRUSTED, None) is Label.TRUSTED
    assert result_label(Label.TRUSTED, plain) is Label.UNTRUSTED
    assert result_label(Label.UNTRUSTED, trusted) is result_label(Label.UNTRUSTED, None) is Label.UNTRUSTED


@pytest.mark.parametrize("ruling", list(Ruling))
def test_a_verdict_is_never_weakened(ruling: Ruling) -> None:
    """Deny stays deny, ask stays ask and with its own people; only a yes becomes a question."""
    own, other = (Ladder(rungs=(Rung(approvers=(who,), within=timedelta(hours=1)),)) for who in ("bob", "ann"))
    ladder = own if ruling is Ruling.ASK else None
    verdict = Verdict(ruling=ruling, rule=3, reason="r", ladder=ladder, policy_digest=digest("p"))
    assert judged(verdict, None, other) == verdict
    after = judged(verdict, "why", other)
    if ruling is Ruling.ALLOW:
        assert (after.ruling, after.ladder, after.reason, after.rule) == (Ruling.ASK, other, "why", 3)
    else:
        assert after == verdict


def test_the_policy_names_who_is_asked() -> None:
    """Else anybody for a day, as for outcomes nobody knows."""
    rung = {"rungs": [{"approvers": ["@desk"], "within": "4h"}]}
    policy = Policy.model_validate({"groups": {"desk": ["ann"]}, "rules": [], "ladders": {"provenance": rung}})
    assert provenance_ladder(policy).rungs[0].approvers == ("ann",)
    assert provenance_ladder(None) == provenance_ladder(Policy(rules=())) == DEFAULT_OUTCOME_LADDER


def test_a_list_of_destinations_is_in_the_policys_digest_only_where_there_is_one() -> None:
    """Policies from before have the digests that consents and runs are bound to."""
    bare = Policy.model_validate({"rules": []})
    assert bare.document() == {"groups": {}, "roles": {}, "rules": [], "ladders": {}}
    assert bare.document() != Policy.model_validate({"rules": [], "trusted_destinations": ["*"]}).document()


@pytest.mark.parametrize(
    ("rules", "unasked"),
    [
        ([{"allow": "send"}], True),
        ([{"allow": "*", "when": "false"}], True),
        ([{"deny": "send"}, {"allow": "*"}], False),
        ([{"ask": "se*", "ladder": "l"}, {"allow": "*"}], False),
        ([{"ask": "send", "ladder": "l", "when": "calls > 1"}, {"allow": "*"}], True),
        ([{"ask": "send", "ladder": "l", "resource": "x:*"}, {"allow": "*"}], True),
        ([{"ask": "send", "ladder": "l", "role": "boss"}, {"allow": "*"}], True),
        ([{"ask": "send", "ladder": "l", "role": "all"}, {"allow": "*"}], False),
        ([{"ask": "send", "ladder": "l", "agent": "other"}, {"allow": "*"}], True),
        ([{"allow": "*", "agent": "other"}], False),
        ([], False),
    ],
)
def test_a_way_out_is_closed_by_rules_that_hold_always_and_for_everybody(rules: list[Any], unasked: bool) -> None:
    """A question that is asked of some, or sometimes, leaves the way open to the others."""
    document = {"roles": {"boss": ["boss"], "all": ["*"]}, "rules": rules, "ladders": {"l": {"rungs": [{"within": "4h"}]}}}
    policy = Policy.model_validate(document)
    assert ever_unasked(policy, "send", agent="clerk") == unasked
    legs = [tool_spec("read", name="look", private=True), tool_spec(destination=())]
    assert (way_out("clerk", legs, policy) is not None) == unasked


def test_an_agent_that_lacks_one_of_the_three_is_no_danger() -> None:
    """Private data, untrusted text, an ungated way out: two of them are how agents are."""
    policy = Policy.model_validate({"rules": [{"allow": "*"}]})
    look, send = tool_spec("read", name="look", private=True, destination=()), tool_spec(destination=())
    assert way_out("a", [look, send], policy) is not None
    assert way_out("a", [look.model_copy(update={"private": False}), send], policy) is None
    assert way_out("a", [spec.model_copy(update={"trusted": True}) for spec in (look, send)], policy) is None
    assert way_out("a", [look, tool_spec()], policy) is None
    assert way_out("a", [look, tool_spec(destination=(), resource="order:{order}")], policy) is None
