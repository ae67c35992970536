"""Reasoning at a real terminal: one that fills the context, and one that is shown as it is generated."""

from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND
from person import OpenTerminal, Person

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

QUESTION = "What is 38 plus 47?"
SCREENS = pytest.mark.parametrize(
    ("size", "plain"), [((80, 24), {}), ((40, 20), {"ACCESSIBLE": "1"})], ids=["drawn", "plain"]
)


def flat(person: Person) -> str:
    """The screen without its line breaks, which depend on its width."""
    return " ".join(" ".join(person.screen.lines).split())


def chat(open_terminal: OpenTerminal, thinker: Path, *arguments: str, **terminal: Any) -> Person:
    person = open_terminal(COMMAND, "chat", "-m", thinker, "--temperature", "0", *arguments, **terminal)
    person.wait_for(">")
    return person


@SCREENS
def test_chat_continues_reasoning_that_filled_the_context(
    open_terminal: OpenTerminal, thinker: Path, size: tuple[int, int], plain: dict[str, str]
) -> None:
    person = chat(open_terminal, thinker, "--ctx", "50", size=size, **plain)
    person.type(f"{QUESTION}\r", shows="/retry")
    assert "only reasoning, no answer: the context of 50 tokens is full" in flat(person)
    assert "/set ctx N makes room, then /continue resumes it; or use /think N, then /retry" in flat(person)
    person.type("/continue\r", shows="/set ctx N makes room for more")
    assert "the reply fills the context of 50 tokens" in flat(person)
    person.type("/set ctx 100\r", shows="ctx  100")
    person.type("/continue\r", shows="The answer is 85.")
    person.type("/stats\r", shows="/100 (")
    person.leave()


@SCREENS
def test_chat_drops_old_turns_before_it_asks_for_a_larger_context(
    open_terminal: OpenTerminal, thinker: Path, size: tuple[int, int], plain: dict[str, str]
) -> None:
    person = chat(open_terminal, thinker, "--ctx", "100", size=size, **plain)
    for _ in range(4):
        person.type(f"{QUESTION}\r", shows="The answer is 85.")
    person.leave()
    assert "is full: dropped the" in flat(person)
    assert "the session keeps them; /set ctx N makes room for more" in flat(person)
    assert "only reasoning" not in flat(person)


@SCREENS
def test_chat_shows_reasoning_as_it_is_generated(
    open_terminal: OpenTerminal, thinker: Path, size: tuple[int, int], plain: dict[str, str]
) -> None:
    person = chat(open_terminal, thinker, "--show-thinking", size=size, **plain)
    person.type(f"{QUESTION}\r", shows="The answer is 85.")
    assert "I need 38 plus 47. 38 plus 40 makes 78. 78 plus 7 makes 85. reasoned for" in flat(person)
    assert ("\x1b[38;5;243m" in person.output) == (not plain)
    assert "/think shows it" not in flat(person)
    person.type("/think hide\r", shows="show_thinking  off")
    person.type(f"{QUESTION}\r", shows="The answer is 85.")
    assert flat(person).count("makes 78.") == 1
    person.type("/think\r", shows="makes 85.")
    person.type("/prompt\r", shows="</think>")
    person.leave()
