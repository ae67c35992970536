"""A day with the chat in a real terminal, in fifty steps: `data/day.json` has what is typed and then shown.

Three of its screens are compared as text. With WRITE_TRANSCRIPTS=1 in the environment, those that differ are rewritten.
"""

import os
import re
import signal
from contextlib import suppress
from difflib import ndiff
from pathlib import Path

import pytest
from cases import rows
from command_line import CommandLine
from person import OpenTerminal, Person, keys

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

SCREENS = Path(__file__).with_name("screens")
FAILS_ONCE = "[ -e failed ] || { touch failed; exit 1; }"

DAY = rows("day")
TYPED = DAY["typed"]
WORDS = [f"word{number}" for number in range(400)]
STORIES = {"Tell a story.": " ".join(WORDS), "Tell a fable.": f"{' '.join(WORDS[:40])}\n\nThe end."}
REPLIES = {**DAY["replies"], **STORIES}
OWL, FABLE = "Compare it with an owl.", "Tell a fable."
ASKED = DAY["turns, without replies that are above"]
TURNS = [text for question, reply in ASKED for text in (question, reply or REPLIES[question])]
SCRIPT = {"rows": REPLIES, "seeds": ["Yes."], "pause": 0.001}


def test_a_day_with_the_chat(open_chat: OpenTerminal, user: CommandLine, chatml_model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The cat sleeps.\n")
    (tmp_path / "other.gguf").write_bytes(chatml_model.read_bytes())
    editor = tmp_path / "editor"
    editor.write_text(f'#!/bin/sh\n{FAILS_ONCE}\nsed -i "s/cat?/cow?/; s/dog?/cat?/; s/Yes/No/" "$1"\n')
    editor.chmod(0o755)

    person = open_chat("", "--session", "cats", load=60, reload=0.1, holds=True, **SCRIPT)
    person.play(TYPED["at each moment, Ctrl-C"])
    compare(person, "morning")
    person.play(TYPED["questions in several lines, and at last a reply that is being generated"])
    person.kill(signal.SIGKILL)
    assert person.end() == 128 + signal.SIGKILL

    person = open_chat("", "-c", shell=("env", f"VISUAL={editor}"), reload=60, **SCRIPT)
    person.play(TYPED["the killed chat is resumed"])
    for size in ((20, 12), (200, 12), (40, 24)):
        person.resize(*size)
    person.type(keys("<Ctrl-L>"))
    person.wait_until(lambda: person.screen.visible_lines[:1] == [f"> {OWL}"], "an empty window")
    person.type("\r", shows="Neither likes water.")
    compare(person, "afternoon")
    person.type(f"{FABLE}\r", shows="word4 ")
    person.resize(80, 24)
    person.wait_for("The end.")
    person.play(TYPED["the editor, files, settings and sessions"])
    person.type(keys("<Ctrl-C>"))
    assert person.end() == 0

    person = open_chat("", "-c", **SCRIPT)
    compare(person, "evening")
    person.play(TYPED["the next time"])
    person.leave()
    assert user.contents("owls") == TURNS
    assert (tmp_path / "day.md").read_text().count("## User") == len(TURNS[::2])


def compare(person: Person, name: str) -> None:
    """Compare the rows of the window with a file; the speed is not compared."""
    path = SCREENS / f"{name}.txt"
    if os.environ.get("WRITE_TRANSCRIPTS"):
        person.wait_until_still()
        path.write_text(window(person), encoding="utf-8")
    expected = path.read_text(encoding="utf-8")
    with suppress(AssertionError):
        person.wait_until(lambda: window(person) == expected, path.name)
    shown = window(person)
    assert shown == expected, "\n".join(ndiff(expected.splitlines(), shown.splitlines()))


def window(person: Person) -> str:
    return re.sub(r"\d+ t/s", "N t/s", "\n".join(person.screen.visible_lines)) + "\n"
