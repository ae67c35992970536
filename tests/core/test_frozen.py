"""Values: what is hashed cannot be changed."""

from dataclasses import FrozenInstanceError, field, replace

import pytest

from cerebrum_cli.core.frozen import frozen


@frozen
class Place:
    name: str
    notes: dict[str, int] = field(default_factory=dict, hash=False)


def test_frozen_values_are_equal_by_their_fields_and_cannot_be_changed() -> None:
    place = Place("Oslo", {"a": 1})
    assert {place: 1}[Place("Oslo", {"a": 1})] == 1
    assert place not in (Place("Oslo"), "Oslo")
    assert repr(replace(place, name="Rome")) == "Place(name='Rome', notes={'a': 1})"
    with pytest.raises(FrozenInstanceError):
        place.name = "Rome"  # type: ignore[misc]
