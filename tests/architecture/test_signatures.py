"""Are the activities that workflows call the ones that workers register?

A contract whose implementation has another name is scheduled and never picked up; one with another type fails at run time.
"""

import inspect
from collections.abc import Callable
from typing import get_type_hints

import pytest
from temporalio import activity

from durable_agents import activity_contracts
from tests.support.world import World

CONTRACTS = {
    name: value
    for name, value in vars(activity_contracts).items()
    if inspect.isfunction(value) and value.__module__ == activity_contracts.__name__
}


def name_of(function: Callable[..., object]) -> str | None:
    """The activity type under which a function is scheduled or registered."""
    return activity._Definition.must_from_callable(function).name


def shape(function: Callable[..., object]) -> tuple[object, ...]:
    """Parameter names, their types, the result's type, and the promise in words."""
    hints = get_type_hints(function, include_extras=True)
    parameters = [name for name in inspect.signature(function).parameters if name != "self"]
    return parameters, [hints[name] for name in parameters], hints["return"], function.__doc__


@pytest.fixture
async def registered(world: World) -> dict[str | None, Callable[..., object]]:
    """What a worker registers, by activity type."""
    return {name_of(function): function for function in world.worker().main.config()["activities"]}


async def test_workers_register_exactly_the_contracts(registered: dict[str | None, Callable[..., object]]) -> None:
    """One that is missing hangs every run that needs it; one too many is reachable by nobody, or by a mistake."""
    assert set(registered) == {name_of(contract) for contract in CONTRACTS.values()}
    assert len(CONTRACTS) >= 5


async def test_implementations_have_the_contracts_signatures(registered: dict[str | None, Callable[..., object]]) -> None:
    """A type checker sees callers and contract, or implementation and itself; nothing else ties the two together."""
    for contract in CONTRACTS.values():
        assert shape(registered[name_of(contract)]) == shape(contract)


async def test_each_takes_one_model_and_is_named_like_its_function(registered: dict[str | None, Callable[..., object]]) -> None:
    """One model can get a field later without breaking the runs that are under way."""
    for name, contract in CONTRACTS.items():
        parameters, types, *_ = shape(contract)
        assert name_of(contract) == name
        assert isinstance(parameters, list)
        assert isinstance(types, list)
        assert len(parameters) == 1
        assert hasattr(types[0], "model_fields")
        assert name in registered


async def test_a_contract_does_nothing_itself() -> None:
    """Registered by mistake, it must fail at once instead of answering None."""
    for contract in CONTRACTS.values():
        with pytest.raises(NotImplementedError):
            await contract(None)
