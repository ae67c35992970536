"""Small values: text for people, the order of events, and frozen values."""

from collections.abc import Iterator
from dataclasses import FrozenInstanceError, field, replace

import pytest

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.events import Event, NoticeEvent, PromptEvent, SequenceId, TokenEvent, with_notices_behind
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import format_utc, with_short_names


@pytest.mark.parametrize(
    ("seconds", "time"),
    [
        (0, "1970-01-01T00:00:00+00:00"),
        (253_402_300_800, "9999-12-31T23:59:59+00:00"),
        (1e300, "9999-12-31T23:59:59+00:00"),
        (float("inf"), "9999-12-31T23:59:59+00:00"),
        (-1e18, "0001-01-01T00:00:00+00:00"),
    ],
)
def test_times_of_any_year_are_shown(seconds: float, time: str) -> None:
    assert format_utc(seconds) == time


@pytest.mark.parametrize("name", ["x" * 20_000, "'" + "x y " * 5000 + "'", '"' + "it's " * 5000 + '"', "Q4_" * 5000])
def test_messages_have_the_beginning_and_the_end_of_a_long_name(name: str) -> None:
    shown = with_short_names(f"unknown model {name}: try another")
    assert len(shown) <= len("unknown model : try another") + 200
    assert shown.startswith(f"unknown model {name[:90]}") and shown.endswith(f"{name[-90:]}: try another")


def test_messages_keep_short_names_and_texts() -> None:
    text = f"no such file: '{'x' * 150}', and {'a b ' * 200}"
    assert with_short_names(text) == text


# The order of events of one reply.


ONE = SequenceId(0)
EARLY, LATE = NoticeEvent("early"), NoticeEvent("late")
PROMPT, SOME, MORE = PromptEvent(ONE, 1, 1), TokenEvent(ONE, "Some"), TokenEvent(ONE, " more")


def test_notices_stand_behind_the_text_of_a_reply_even_if_it_fails() -> None:
    lost = EndpointError("connection lost", "ask again")

    def events() -> Iterator[Event]:
        yield from (PROMPT, EARLY, SOME, LATE, MORE)
        raise lost

    seen: list[object] = []
    try:
        seen.extend(with_notices_behind([PROMPT, EARLY, SOME, LATE, MORE]))
        seen.extend(with_notices_behind(events()))
    except EndpointError as error:
        seen.append(error)
    assert seen == [*(PROMPT, EARLY, SOME, MORE, LATE) * 2, lost]


# Frozen values: what is hashed cannot be changed.


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
