"""Reasoning at a real terminal: one that fills the context, and one that is shown as it is generated."""

from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND
from person import OpenTerminal, Person

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

QUESTION = "What is 38 plus 47?"


def flat(person: Person) -> str:
    """The screen without its line breaks, which depend on its width."""
    return " ".join(" ".join(person.screen.lines).split())


@pytest.fixture(params=[False, True], ids=["drawn", "plain"])
def is_plain(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def open_thinker(open_terminal: OpenTerminal, thinker: Path, is_plain: bool) -> OpenTerminal:
    """A function that opens a chat with a model that reasons, in a window with or without control sequences."""

    def start(*arguments: str) -> Person:
        window: dict[str, Any] = {"size": (40, 20), "ACCESSIBLE": "1"} if is_plain else {}
        person = open_terminal(COMMAND, "chat", "-m", thinker, "--temperature", "0", *arguments, **window)
        person.wait_for(">")
        return person

    return start


def test_chat_continues_reasoning_that_filled_the_context(open_thinker: OpenTerminal) -> None:
    person = open_thinker("--ctx", "50")
    person.type(f"{QUESTION}\r", shows="/retry")
    assert "only reasoning, no answer: the context of 50 tokens is full" in flat(person)
    assert "/set ctx N makes room, then /continue resumes it; or use /think N, then /retry" in flat(person)
    person.type("/continue\r", shows="/set ctx N makes room for more")
    assert "the reply fills the context of 50 tokens" in flat(person)
    person.type("/set ctx 100\r", shows="ctx  100")
    person.type("/continue\r", shows="The answer is 85.")
    person.type("/stats\r", shows="/100 (")
    person.leave()


def test_chat_drops_old_turns_before_it_asks_for_a_larger_context(open_thinker: OpenTerminal) -> None:
    person = open_thinker("--ctx", "100")
    for _ in range(4):
        person.type(f"{QUESTION}\r", shows="The answer is 85.")
    person.leave()
    assert "is full: dropped the" in flat(person)
    assert "the session keeps them; /set ctx N makes room for more" in flat(person)
    assert "only reasoning" not in flat(person)


def test_chat_shows_reasoning_as_it_is_generated(open_thinker: OpenTerminal, is_plain: bool) -> None:
    person = open_thinker("--show-thinking")
    person.type(f"{QUESTION}\r", shows="The answer is 85.")
    assert "I need 38 plus 47. 38 plus 40 makes 78. 78 plus 7 makes 85. reasoned for" in flat(person)
    assert ("\x1b[38;5;243m" in person.output) == (not is_plain)
    assert "/think shows it" not in flat(person)
    person.type("/think hide\r", shows="show_thinking  off")
    person.type(f"{QUESTION}\r", shows="The answer is 85.")
    assert flat(person).count("makes 78.") == 1
    person.type("/think\r", shows="makes 85.")
    person.type("/prompt\r", shows="</think>")
    person.leave()
