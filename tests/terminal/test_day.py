"""A day with the chat in a real terminal, in fifty steps; three of its screens are compared as text.

With WRITE_TRANSCRIPTS=1 in the environment, screens that differ are rewritten.
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
from person import OpenTerminal, Person

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

SCREENS = Path(__file__).with_name("screens")
CTRL_C, CTRL_L, CTRL_R, UP = "\x03", "\x0c", "\x12", "\x1b[A"
PASTE, END_OF_PASTE, OPEN_EDITOR = "\x1b[200~", "\x1b[201~", "\x18\x05"  # Ctrl-X Ctrl-E
FAILS_ONCE = "[ -e failed ] || { touch failed; exit 1; }"

WORDS = [f"word{number}" for number in range(400)]
REPLIES = {**rows("day"), "Tell a story.": " ".join(WORDS), "Tell a fable.": f"{' '.join(WORDS[:40])}\n\nThe end."}
CAT, OWL, FABLE = "What is a cat?", "Compare it with an owl.", "Tell a fable."
TURNS = [
    *(CAT, REPLIES[CAT]),
    *(FABLE, REPLIES[FABLE]),
    *("What is the moral?", "Sleep well."),
    *("a = 1\nb = 2\nWhat is b?", "Yes."),
    *("One line,\n\nand another.", "Yes."),
    *("A line,\na second\nand a third.", "Yes."),
    *(OWL, REPLIES[OWL]),
    *(FABLE, REPLIES[FABLE]),
    *("What is a cow?", "No."),
    *("notes.txt:\n```txt\nThe cat sleeps.\n```\n\nWho sleeps?", REPLIES["Who sleeps?"]),
]
SCRIPT = {"rows": REPLIES, "seeds": ["Yes."], "pause": 0.001}


def test_a_day_with_the_chat(open_chat: OpenTerminal, user: CommandLine, chatml_model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The cat sleeps.\n")
    (tmp_path / "other.gguf").write_bytes(chatml_model.read_bytes())
    editor = tmp_path / "editor"
    editor.write_text(f'#!/bin/sh\n{FAILS_ONCE}\nsed -i "s/cat?/cow?/; s/dog?/cat?/; s/Yes/No/" "$1"\n')
    editor.chmod(0o755)

    person = open_chat("", "--session", "cats", load=60, reload=0.1, holds=True, **SCRIPT)
    morning(person)
    person.kill(signal.SIGKILL)
    assert person.end() == 128 + signal.SIGKILL

    person = open_chat("", "-c", shell=("env", f"VISUAL={editor}"), reload=60, **SCRIPT)
    afternoon(person)
    assert person.end() == 0

    person = open_chat("", "-c", **SCRIPT)
    evening(person)
    person.leave()
    assert user.contents("owls") == TURNS
    assert (tmp_path / "day.md").read_text().count("## User") == len(TURNS[::2])


def morning(person: Person) -> None:
    """Ctrl-C at each moment, and questions in several lines; at the end a reply is being generated."""
    person.type(f"What is{CTRL_C}", shows=">")
    person.type(CTRL_C, shows="Press Ctrl-C again")
    person.type("What is a cat?\r", shows=" 50%")  # loading
    person.type(CTRL_C, shows="interrupted: before the reply began; /retry asks again")
    person.type("/retry\r", shows=" tokens")  # evaluating the prompt
    person.type(CTRL_C, shows="interrupted: before the reply began; /retry asks again")
    person.type("/retry\r", shows="and sleep at noon.")
    compare(person, "morning")
    person.type("Tell a story.\r", shows="word4 ")
    person.type(f"/continue{CTRL_C}", shows="reply interrupted")
    person.wait_for("> /continue")
    person.type("\r", shows="word")
    person.type(CTRL_C, shows="reply interrupted")
    person.type("/undo\r", shows="Undone: Tell a story.")
    person.type("/redo\r", shows="Restored: Tell a story.")
    person.type("/undo\r", shows="Undone: Tell a story.")
    person.type("Tell a fable.\r", shows="word4 ")
    person.type("What is the moral?\r", shows="Sleep well.")
    person.type(f"{PASTE}a = 1\rb = 2\r{END_OF_PASTE}What is b?\r", shows="Yes.")
    person.type('"""\rOne line,\r\rand another.\r"""\r', shows="Yes.")
    person.type("A line,\x0aa second\x1b\rand a third.\r", shows="Yes.")  # Ctrl-J, Alt-Enter
    person.type("Tell a story.\r", shows="word4 ")


def afternoon(person: Person) -> None:
    """The killed chat is resumed, in a narrow window for a time; files, settings and the editor."""
    person.wait_for("the last reply was cut off")
    person.type("/undo\r", shows="Undone: Tell a story.")
    person.type("Compare it with an owl.", shows="> Compare it")
    for size in ((20, 12), (200, 12), (40, 24)):
        person.resize(*size)
    person.type(CTRL_L)
    person.wait_until(lambda: person.screen.visible_lines[:1] == ["> Compare it with an owl."], "an empty window")
    person.type("\r", shows="Neither likes water.")
    compare(person, "afternoon")
    person.type("Tell a fable.\r", shows="word4 ")
    person.resize(80, 24)
    person.wait_for("The end.")
    person.type(f"What is a dog?{OPEN_EDITOR}", shows="error: the editor")
    person.type(OPEN_EDITOR, shows="and sleep at noon.")
    person.type("/edit\r", shows="> What is a cow?")
    person.wait_for("Yes.")
    person.type("/edit\r", shows="no changes")
    person.type("/edit answer\r", shows="reply replaced; /continue continues it")
    person.type("/file no\t", shows="> /file notes.txt")
    person.type("\r", shows="notes.txt will be prepended")
    person.type("/file none\r", shows="detached notes.txt")
    person.type("/file notes.txt Who sleeps?\r", shows="The cat does")
    person.type("/system Be kind.\r", shows="system prompt: Be kind.")
    person.type("/set ctx 4096\r", shows=" 50%")
    person.type(CTRL_C, shows="interrupted: /set did not finish")
    person.type("/model other.gguf\r", shows=" 50%")
    person.type(CTRL_C, shows="interrupted: /model did not finish")
    person.type(f"{CTRL_R}moral", shows="What is the moral?")
    person.type(f"{CTRL_C}/save owls\r", shows="Session saved as 'owls'")
    person.type("/export day.md\r", shows="wrote day.md")
    person.type("/export day.md\r", shows="already exists")
    person.type("/clear\r", shows="New conversation")
    person.type("/search moral\r", shows="user: What is the moral?")
    person.type("/load owls\r", shows="session owls")
    person.type(CTRL_C, shows="Press Ctrl-C again")
    person.type(CTRL_C)


def evening(person: Person) -> None:
    """The conversation is there the next time, with its last exchange and its history."""
    compare(person, "evening")
    person.type("/retry 0.5\r", shows=" t/s")  # in the toolbar of the next prompt
    person.type(UP * 2, shows="> /load owls")
    person.type(f"{CTRL_C}/copy\r", shows="copied the reply")
    person.type("/stats\r", shows="temperature 0.5")


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
