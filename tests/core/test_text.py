"""Text for people: times of any year, and names of any length."""

import pytest

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
