"""Control sequences are stripped, however text is split."""

import re

import pytest
from cases import rows
from hypothesis import example, given, strategies as st

from cerebrum_cli.core.text import MAX_HELD, strip_complete, strip_controls

SEQUENCES = dict(rows("control_sequences"))


@pytest.mark.parametrize(("text", "clean"), SEQUENCES.items())
def test_control_filter_strips_sequences_split_anywhere(text: str, clean: str) -> None:
    assert strip_controls(text) == clean
    for split in range(len(text) + 1):
        assert streamed([text[:split], text[split:]]) == clean
    assert streamed(list(text)) == clean


def streamed(chunks: list[str]) -> str:
    clean, held = "", ""
    for chunk in chunks:
        text, held = strip_complete(held + chunk)
        clean += text
    return clean + strip_controls(held)


PARTS = (*SEQUENCES, "\x1b", "[", "]", "\\", "\x07", "3", "m", "\x9b", "P", "\0", "\u2068", "é", "\n", "a b")


@given(st.lists(st.sampled_from(PARTS) | st.characters(max_codepoint=0x9F), max_size=16))
@example(["\x1b]a\x1b", "[3", "1m"])
def test_control_filter_output_does_not_depend_on_the_chunks(chunks: list[str]) -> None:
    clean = streamed(chunks)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", clean)
    assert clean == strip_controls("".join(chunks))


def test_control_filter_holds_back_a_limited_number_of_characters() -> None:
    text = "\x1b]0;" + "x" * MAX_HELD
    assert strip_complete(text[:MAX_HELD]) == ("", text[:MAX_HELD])
    assert streamed([*text, "shown"]).endswith("xxshown")
