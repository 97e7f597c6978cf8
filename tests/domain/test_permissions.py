"""Does a policy allow exactly what it says, and nothing when it says nothing or breaks?"""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from durable_agents.domain.canonical import digest
from durable_agents.domain.identifiers import UserId
from durable_agents.domain.permissions import Call, ConditionError, Policy, Rule, Ruling, decide, ever_allowed
from tests.domain.strategies import checked

DIGEST = digest("policy")
LADDERS = {"l": {"rungs": [{"within": "1h"}]}}
ROLES: dict[str, Any] = {"staff": ["*"], "bosses": ["boss"], "nobody": []}


def policy(*rules: dict[str, Any]) -> Policy:
    """A policy of these rules."""
    return Policy.model_validate({"roles": ROLES, "rules": rules, "ladders": LADDERS})


def call(tool: str = "refund", user: str = "ann", resource: str = "order:A-1", **arguments: object) -> Call:
    """Somebody's call."""
    return Call(tool=tool, risk="write", resource=resource, arguments=arguments, user=UserId(user), tenant="acme")


def conditions(condition: str, facts: Mapping[str, object]) -> bool:
    """Conditions of these tests: `yes`, `no`, `error`, or a role's name."""
    if condition == "error":
        raise ConditionError("no such key")
    return condition == "yes" or condition == facts["role"]


def ruling(of: Policy, made: Call) -> tuple[Ruling, int | None]:
    """What a policy says, and by which rule."""
    verdict = decide(of, DIGEST, made, conditions)
    assert verdict.policy_digest == DIGEST
    assert verdict.reason
    return verdict.ruling, verdict.rule


ALLOW, DENY, ASK = Ruling.ALLOW, Ruling.DENY, Ruling.ASK


@pytest.mark.parametrize(
    ("rules", "made", "expected"),
    [
        ([], call(), (DENY, None)),
        ([{"allow": "lookup"}], call(), (DENY, None)),
        ([{"allow": "refund"}], call(), (ALLOW, 0)),
        ([{"allow": "ref*"}], call(), (ALLOW, 0)),
        ([{"allow": "REFUND"}], call(), (DENY, None)),
        ([{"allow": "refund"}], call("refund_all"), (DENY, None)),
        ([{"deny": "refund"}, {"allow": "*"}], call(), (DENY, 0)),
        ([{"allow": "*"}, {"deny": "refund"}], call(), (ALLOW, 0)),
        ([{"ask": "refund", "ladder": "l"}, {"allow": "*"}], call(), (ASK, 0)),
        ([{"allow": "refund", "when": "no"}, {"allow": "refund"}], call(), (ALLOW, 1)),
        ([{"allow": "refund", "when": "no"}], call(), (DENY, None)),
        ([{"allow": "refund", "when": "yes"}], call(), (ALLOW, 0)),
        ([{"allow": "refund", "when": "error"}, {"allow": "*"}], call(), (DENY, 0)),
        ([{"deny": "refund", "when": "error"}, {"allow": "*"}], call(), (DENY, 0)),
        ([{"ask": "refund", "when": "error", "ladder": "l"}, {"allow": "*"}], call(), (DENY, 0)),
        ([{"deny": "refund", "when": "no"}, {"allow": "*", "when": "error"}], call(), (DENY, 1)),
        (
            [{"allow": "lookup", "when": "error"}, {"allow": "*"}],
            call(),
            (ALLOW, 1),
        ),  # a rule about another tool is not evaluated
        ([{"allow": "refund", "role": "bosses"}], call(), (DENY, None)),
        ([{"allow": "refund", "role": "bosses"}], call(user="boss"), (ALLOW, 0)),
        ([{"allow": "refund", "role": "bosses"}], call(user="Boss"), (DENY, None)),
        ([{"allow": "refund", "role": "staff"}], call(user="whoever"), (ALLOW, 0)),
        ([{"allow": "refund", "role": "nobody"}], call(user="boss"), (DENY, None)),
        ([{"allow": "refund", "role": "bosses", "when": "bosses"}], call(user="boss"), (ALLOW, 0)),
        ([{"allow": "refund", "when": "*"}], call(user="boss"), (ALLOW, 0)),
        ([{"allow": "refund", "resource": "order:A-*"}], call(), (ALLOW, 0)),
        ([{"allow": "refund", "resource": "order:B-*"}], call(), (DENY, None)),
        ([{"allow": "refund", "resource": "order:A-*"}], call(resource=""), (DENY, None)),
        ([{"allow": "refund", "resource": "order:A-1"}], call(resource="order:A-1\norder:B-1"), (DENY, None)),
        ([{"allow": "refund", "resource": "order:A-1"}], call(resource="order:*"), (DENY, None)),
    ],
)
def test_the_first_rule_that_matches_decides(
    rules: list[dict[str, Any]], made: Call, expected: tuple[Ruling, int | None]
) -> None:
    """Each row has been somebody's surprise: order, globs, roles, and above all a rule that breaks."""
    assert ruling(policy(*rules), made) == expected


def test_a_broken_rule_says_that_it_broke() -> None:
    """Whoever wrote it must find out from the denial."""
    verdict = decide(policy({"allow": "*", "when": "error"}), DIGEST, call(), conditions)
    assert verdict.reason == "rule 0 could not be evaluated (no such key), so it denies"


def test_asking_comes_with_its_ladder_and_the_rules_reason() -> None:
    """The human reads why they are asked."""
    verdict = decide(policy({"ask": "*", "ladder": "l", "reason": "large"}), DIGEST, call(), conditions)
    assert verdict.ladder is not None
    assert verdict.reason == "large"
    assert decide(policy({"allow": "*"}), DIGEST, call(), conditions).ladder is None


names = st.sampled_from(["refund", "lookup", "ref*", "*", "l?okup", "[rl]*", "tell"])


@st.composite
def rule(draw: st.DrawFn) -> dict[str, Any]:
    """Any rule."""
    effect = draw(st.sampled_from(["allow", "deny", "ask"]))
    made: dict[str, Any] = {
        effect: draw(names),
        "role": draw(st.sampled_from(["*", *ROLES])),
        "resource": draw(st.sampled_from(["*", "order:*", "order:A-1", ""])),
        "when": draw(st.sampled_from([None, "yes", "no", "error", "staff"])),
    }
    return made | ({"ladder": "l"} if effect == "ask" else {})


calls = st.builds(
    call,
    st.sampled_from(["refund", "lookup", "tell"]),
    st.sampled_from(["ann", "boss"]),
    st.sampled_from(["order:A-1", "order:B-1", ""]),
)


@checked
@given(st.lists(rule(), max_size=6), calls)
def test_a_tool_that_could_be_allowed_is_never_hidden(rules: list[dict[str, Any]], made: Call) -> None:
    """The model is not shown what the policy can never allow; hiding more would break an agent without a word."""
    made_policy = policy(*rules)
    if ruling(made_policy, made)[0] is not DENY:
        assert ever_allowed(made_policy, made.tool)


@checked
@given(st.lists(rule(), max_size=6), calls, rule())
def test_rules_after_the_one_that_decides_change_nothing(rules: list[dict[str, Any]], made: Call, extra: dict[str, Any]) -> None:
    """First match wins, so a policy can be read from the top; appending can only open what was denied by default."""
    before = ruling(policy(*rules), made)
    after = ruling(policy(*rules, extra), made)
    assert before in (after, (DENY, None))


@checked
@given(st.lists(rule(), max_size=6), calls)
def test_an_error_above_never_lets_a_rule_below_decide(rules: list[dict[str, Any]], made: Call) -> None:
    """A broken rule that is skipped would let a looser one decide: the commonest hole in policy engines."""
    broken = {"allow": "*", "when": "error"}
    assert ruling(policy(broken, *rules), made) == (DENY, 0)


@pytest.mark.parametrize(
    ("rules", "tool", "shown"),
    [
        ([], "refund", False),
        ([{"deny": "*"}, {"allow": "refund"}], "refund", False),
        ([{"deny": "*", "role": "nobody"}, {"allow": "refund"}], "refund", True),
        ([{"deny": "*", "when": "no"}, {"allow": "refund"}], "refund", True),
        ([{"deny": "*", "resource": "order:*"}, {"ask": "refund", "ladder": "l"}], "refund", True),
        ([{"allow": "lookup"}], "refund", False),
    ],
)
def test_what_can_never_be_allowed_is_not_offered(rules: list[dict[str, Any]], tool: str, shown: bool) -> None:
    """A model that sees a tool will try it; each try costs a turn."""
    assert ever_allowed(policy(*rules), tool) is shown


@pytest.mark.parametrize(
    ("broken", "place"),
    [
        ({"rules": [{}]}, ("rules", 0)),
        ({"rules": [{"allow": "a", "deny": "b"}]}, ("rules", 0)),
        ({"rules": [{"ask": "a"}]}, ("rules", 0)),
        ({"rules": [{"allow": "a", "ladder": "l"}], "ladders": LADDERS}, ("rules", 0)),
        ({"rules": [{"allow": "a"}, {"ask": "a", "ladder": "x"}]}, ("rules", 1, "ladder")),
        ({"rules": [{"allow": "a", "role": "x"}]}, ("rules", 0, "role")),
        ({"rules": [{"allow": "a", "if": "x"}]}, ("rules", 0, "if")),
        ({"rules": "allow all"}, ("rules",)),
        ({}, ("rules",)),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_with_its_place(broken: dict[str, Any], place: tuple[str | int, ...]) -> None:
    """A typo in a policy must stop the worker, not open or close a door by guessing."""
    with pytest.raises(ValidationError) as refused:
        Policy.model_validate(broken)
    assert refused.value.errors()[0]["loc"] == place


def test_roles_are_the_users_own_sorted() -> None:
    """Sorted, because the order of a set would differ between workers."""
    assert policy().roles_of(UserId("boss")) == ("bosses", "staff")
    assert policy().roles_of(UserId("ann")) == ("staff",)
    assert Rule(allow="x").ruling is ALLOW
