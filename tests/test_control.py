"""What a model says cannot steer a terminal: control sequences are taken out, however they are cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cerebrum_cli.terminal.control import MAX_HELD, ControlFilter, strip_controls

SEQUENCES = {
    "a\x1b[31mred\x1b[0m": "ared",
    "a\x1b[2J\x1b[1;1Hb": "ab",
    "a\x1b[?1049hb": "ab",
    "a\x1b]0;title\x07b": "ab",
    "a\x1b]0;title\x1b\\b": "ab",
    "a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\b": "alinkb",
    "a\x1b]52;c;aGk=\x07b": "ab",
    "a\x1bPq#0~\x1b\\b": "ab",
    "a\x1b_G\x1b\\b": "ab",
    "a\x9b31mb": "ab",
    "a\x9d0;title\x9cb": "ab",
    "a\x85\x8d\x9fb\x9c": "a",
    "a\x1bcb": "ab",
    "a\x1b(0b": "ab",
    "a\x1b#8b": "ab",
    "a\x1b": "a",
    "a\x1b\nb": "a\nb",
    "a\x1b[31": "a[31",
    "a\x1b]0;never ends": "a]0;never ends",
    "one\rtwo\r\nthree": "onetwo\nthree",
    "a\x08\x08b\x07\x7f\x00c": "abc",
    "tab\tline\nend": "tab\tline\nend",
    "é 日本語 😀 \N{NO-BREAK SPACE}": "é 日本語 😀 \N{NO-BREAK SPACE}",
}


@pytest.mark.parametrize(("text", "clean"), SEQUENCES.items())
def test_control_sequences_are_taken_out_wherever_they_are_cut(text: str, clean: str) -> None:
    assert strip_controls(text) == clean
    for cut in range(len(text) + 1):
        assert streamed([text[:cut], text[cut:]]) == clean
    assert streamed(list(text)) == clean


def streamed(pieces: list[str]) -> str:
    """Return what comes through a filter in pieces."""
    through = ControlFilter()
    return "".join(map(through.feed, pieces)) + through.flush()


PIECES = st.lists(
    st.one_of(
        st.text(max_size=8), st.sampled_from([*SEQUENCES, "\x1b", "[", "]", "\\", "\x07", "3", "m", "\x9b", "P"])
    ),
    max_size=12,
)


@given(PIECES)
@example(["\x1b]a\x1b", "[3", "1m"])
def test_what_comes_through_holds_no_control_and_does_not_depend_on_the_pieces(pieces: list[str]) -> None:
    clean = streamed(pieces)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", clean)
    assert clean == strip_controls("".join(pieces))


@given(st.text(st.characters(exclude_categories=["Cc"], include_characters="\t\n")))
def test_text_without_controls_is_unchanged(text: str) -> None:
    assert streamed([text]) == strip_controls(text) == text


def test_a_sequence_that_never_ends_hides_no_more_than_its_bound() -> None:
    through = ControlFilter()
    text = "\x1b]0;" + "x" * MAX_HELD
    assert "".join(map(through.feed, text)).endswith("xx")
    assert through.feed("shown") == "shown"
