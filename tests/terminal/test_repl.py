"""The chat loop: piped scripts, slash commands, and keys at a terminal."""

import os
import re
import time
from collections.abc import Callable
from io import BytesIO, StringIO
from pathlib import Path

import pytest
from command_line import COMMAND, CommandLine, Finished
from person import OpenTerminal
from scripted_command import app_for

from cerebrum_cli.core.text import strip_controls
from cerebrum_cli.main import run
from cerebrum_cli.terminal.repl import repl
from cerebrum_cli.terminal.repl.key_codes import KeyReader
from cerebrum_cli.terminal.repl.questions import shorten_question, split_questions
from cerebrum_cli.terminal.repl.slash_commands import SLASH_COMMANDS
from cerebrum_cli.terminal.repl.slash_lines import help_text
from cerebrum_cli.terminal.streams import Streams

# Reading questions.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("\n  \none\n\n", ["one"]),
        ("a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\rh\r\ni", ["a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\rh", "i"]),
        ('"""\na\n\nb\n"""\nc', ["a\n\nb", "c"]),
        ('"""a\nb"""', ["a\nb"]),
        ('"""\n  a\nb\n"""', ["  a\nb"]),
        ('"""\nnever closed\nat all', ["never closed\nat all"]),
        ('say """ here', ['say """ here']),
        ('"""\nx = """y""" + z\n"""\nb', ['x = """y""" + z', "b"]),
        ('/set stop """\nb', ['/set stop """', "b"]),
    ],
)
def test_split_questions_reads_lines_and_fenced_blocks(text: str, expected: list[str]) -> None:
    assert [line.text for line in split_questions(text)] == expected


def test_long_questions_are_shortened_to_their_ends() -> None:
    lines = [f"Cats sleep {number}." for number in range(300)]
    shown = shorten_question("\n".join([*lines, "x" * 1000, "word " * 50])).splitlines()
    assert shown == [*lines[:4], "(294 more lines)", *lines[-2:], "x" * 200 + " ...", "word " * 39 + "word ..."]


# Slash commands.


def test_help_fits_a_screen_and_explains_every_command(open_chat: OpenTerminal) -> None:
    person = open_chat()
    person.type("/help\r", shows="Ctrl-Z")
    lines = person.screen.lines
    rows = lines[lines.index("> /help") : lines.index("Ctrl-Z             suspend (resume with fg)")]
    assert len(rows) < 24 - 2  # with the last one, the prompt and the toolbar
    help = " ".join(" ".join(rows).split())
    assert not [slash.usage for slash in SLASH_COMMANDS if slash.usage not in help]
    person.type("/help /retry\r", shows="answer again")
    person.leave()


@pytest.mark.parametrize("width", [60, 44, 30])
def test_help_keeps_its_words_in_narrow_windows(width: int) -> None:
    rows = [(slash.usage, slash.help) for slash in SLASH_COMMANDS]
    help = help_text(rows, width)
    assert max(map(len, help.splitlines())) <= width
    assert help.split() == " ".join(f"{usage} {effect}" for usage, effect in rows).split()


# Keys.


UNDERSTOOD = {
    "13;2": "\n",
    "13;6": "\n",
    "13": "\r",
    "27": "\x1b",
    "32;2": " ",
    "97;2": "A",
    "1092": "\u0444",
    "99;5": "\x03",
    "127;2": "\x7f",
}
IGNORED = (
    *("[57441;2u", "[97;9u", "[97;5:3u", "[49;5u", "[9;5u", "[27;5;9~"),  # keys without a character
    *("[I", "[O", "[<0;12;5M", "[<0;12;5m", "[M !\n", "[96;14;13M"),  # the focus, and the mouse
    *("]11;rgb:1e1e/1e1e/1e1e\x1b\\", "]4;1;rgb:cd/00/00\x07", "P>|tmux 3.4\x1b\\", "_Gi=1;OK\x1b\\"),
    *("[?62;22c", "[>0;276;0c", "[?2026;2$y", "[?997;1n", "[0n", "[8;24;80t"),
)


@pytest.mark.parametrize(
    ("sent", "characters"),
    [
        *((f"\x1b[{key}u", character) for key, character in UNDERSTOOD.items()),
        *((f"\x1b{code}", "") for code in IGNORED),
        *((key, key) for key in ("\x1b[A", "\x1b[1;5C", "\x1b[200~", "\x1b[201~", "\x1b[3~", "\x1b[2;1R", "[13;2u")),
        ("\x1b[27;2;13~", "\n"),
    ],
)
def test_keys_of_newer_terminals_become_characters_and_reports_nothing(sent: str, characters: str) -> None:
    read, write = os.pipe()
    with open(read), open(write, "w") as terminal:
        print("a", sent, "b", sep="", end="", file=terminal, flush=True)
        assert KeyReader(read).read() == f"a{characters}b"


# Piped scripts.


def chat(user: CommandLine, script: str, *arguments: str) -> Finished:
    """Run a script on the real small model, which generates two tokens per reply."""
    done = user.run("chat", "-n", "2", "--temperature", "0", *arguments, stdin=script)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out + done.err
    return done


def test_chat_script_without_an_answer_fails(user: CommandLine) -> None:
    failed = user.run("chat", "--ctx", "256", stdin=f"{'word ' * 300}\n/undo\n{'word ' * 400}\n")
    assert failed.code == 4
    assert failed.err.count("error: the prompt has ") == 2
    assert "/clear starts over" in " ".join(failed.err.split())
    answered = user.run("chat", "-n", "2", "--ctx", "256", stdin=f"hi\n{'word ' * 300}\n")
    assert answered.code == 0
    assert answered.err.count("error: the prompt has ") == 1


def test_chat_saves_the_prompt_cache_unless_no_cache(user: CommandLine) -> None:
    states = user.home / ".cache" / "cerebrum" / "states"
    for cached in (False, True):
        chat(user, f"{'word ' * 60}\n", "--session", f"cached-{cached}", *([] if cached else ["--set", "cache_gb=0"]))
        assert len(list(states.glob("*.state"))) == cached
    again = chat(user, "And?\n/stats\n", "--session", "cached-True")
    assert " cached)" in again.out + again.err
    assert user.run("sessions", "rm", "cached-True", "-y").code == 0
    assert not list(states.glob("*.state"))


# A user at a terminal.


SCRIPT = {"rows": {"Who?": "Me."}, "seeds": ["Yes."]}
PASTES = (
    "/* one */\n/* two */",
    "/undo\n/clear\n",
    '"""One.\n\nTwo.\n"""\nimport os\n',
    '"""\nquoted\n"""',
    "/system Be kind.\n/retry",
)
MISUSED = {"/exit codes in bash?": "/exit has no argument", "/undo 5x": "invalid /undo: '5x'"}


@pytest.mark.slow
def test_pasted_text_is_literal_and_a_misused_command_no_question(open_chat: OpenTerminal, user: CommandLine) -> None:
    person = open_chat("", "--session", "literal", **SCRIPT)
    for text in PASTES:
        person.type("\x1b[200~" + text.replace("\n", "\r") + "\x1b[201~ Why?\r", shows="Yes.")
    person.type("\x1b[A\r", shows="Yes.")  # from the history
    person.type(" /tmp is full\r", shows="Yes.")
    for text, problem in MISUSED.items():
        person.type(f"{text}\r", shows=f"error: {problem}")
    person.type("/udno\r", shows="did you mean /undo?")
    person.type("\x1b[200~/system Be\x1b[201~ kind.\r", shows="system prompt: Be kind.")
    person.type("\x1b[200~/clear\r\x1b[201~\r", shows="New conversation")
    person.leave()
    pasted = [f"{text} Why?" for text in (*PASTES, PASTES[-1])]
    assert user.contents("literal")[::2] == [*pasted, " /tmp is full"]


@pytest.mark.slow
def test_typed_blocks_are_blocks_after_pasted_ones(open_chat: OpenTerminal, user: CommandLine) -> None:
    person = open_chat("", "--session", "blocks", **SCRIPT)
    docstring = '"""\nDoc.\n"""\nimport os'
    paste = "\x1b[200~" + docstring.replace("\n", "\r") + "\x1b[201~"
    person.type(f"{paste}\r", shows="Yes.")
    person.type('"""\rone\r\rtwo\r"""\r', shows="Yes.")
    person.type("\x1b[A" * 6 + "\r", shows="Yes.")  # past the lines of the block, the paste from the history
    person.type(f"{paste}\x15\x7f\x15\x7f\x15\x7f\x15" + '"""\rthree\r"""\r', shows="Yes.")  # it is deleted
    person.leave()
    assert user.contents("blocks")[::2] == [docstring, "one\n\ntwo", docstring, "three"]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["\x1b[C", "\x05", "\x1b[D", "\x01"], ids=["right", "ctrl-e", "left", "ctrl-a"])
def test_a_key_that_moves_the_cursor_takes_what_a_search_found(
    open_chat: OpenTerminal, user: CommandLine, key: str
) -> None:
    person = open_chat("", "--session", "found", **SCRIPT)
    for text in ("an alpha?", "beta?"):
        person.type(f"{text}\r", shows="Yes.")
    person.type("\x12alph", shows="an alpha?")
    person.type(f"{key}\r", shows="Yes.")
    person.leave()
    assert user.contents("found")[::2] == ["an alpha?", "beta?", "an alpha?"]


@pytest.mark.slow
def test_prompt_keeps_a_draft_wraps_long_lines_and_knows_newer_keys(open_chat: OpenTerminal, user: CommandLine) -> None:
    person = open_chat("", **SCRIPT)
    person.type("one\x1b[57441;2u\x1b[13;2utwo\x1b[32;2uthree\x1b[97;9u", shows="... two three")
    person.type("\x1b[99;5u", shows=">")  # Ctrl-C
    person.type("\x1b[A", shows="> one")
    person.type("\r", shows="Yes.")
    person.type("/system Be kind.\x0a\x0aBe brief.\r", shows="system prompt: Be kind.")
    person.type("/system\r", shows="system prompt: Be kind.")
    digits = "0123456789" * 12
    long = digits * 20
    for columns, typed, shown in ((80, f"{digits}\n1", f"{digits}... 1"), (40, long, f"{long[:200]} ...")):
        person.resize(columns, 24)
        person.type(f"{typed}\r", shows="Yes.")
        assert "".join(person.screen.lines).rpartition("> 0")[2].partition("Yes.")[0] == shown[1:]
    person.leave()
    assert user.contents("one-two-three")[0] == "one\ntwo three"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_chat_asks_before_a_bare_exit_leaves(open_chat: OpenTerminal) -> None:
    person = open_chat(**SCRIPT)
    for word in ("exit", "quit"):
        person.type(f"{word}\r", shows="Exit the chat? [Y/n]")
        person.type("n\r", shows="Yes.")
    person.type(":q\r", shows="Exit the chat? [Y/n]")
    person.type("\r")
    assert person.end() == 0
    assert person.has_echo_at_end


Talk = Callable[..., tuple[list[str], list[str]]]


@pytest.fixture
def talk(tmp_path: Path, chatml_model: Path) -> Talk:
    """A function that pipes text into a chat in this process, and returns its lines on standard output and error."""

    def run_chat(text: str, *arguments: str, shows_out: bool = False, **script: object) -> tuple[list[str], list[str]]:
        out, err = StringIO(), StringIO()
        streams = Streams(out, err, BytesIO(text.encode()), shows_out, False, not shows_out)
        app = app_for({**SCRIPT, **script}, tmp_path, streams)
        assert run(["chat", "-m", str(chatml_model), "--no-markdown", *arguments], app) == 0
        return out.getvalue().splitlines(), err.getvalue().splitlines()

    return run_chat


def test_chat_greets_with_a_new_session_and_with_a_reply_that_was_cut_off(talk: Talk) -> None:
    assert talk("Who?\n", "--session", "tea", "-n", "1")[1][2] == "New session 'tea'"
    cut_off = ["note: the last reply was cut off (truncated)", "      /continue resumes it"]
    assert talk("", "-c")[1][-2:] == cut_off
    assert talk("Who?\n", "-c", "-n", "9")[1][-3:] == [*cut_off, "> Who?"]
    assert cut_off[0] not in talk("", "-c")[1]
    assert talk("", "-c", "-q")[1] == []


def test_chat_continues_a_reply_that_was_truncated_while_reasoning(talk: Talk) -> None:
    _, err = talk("Who?\n", "-n", "9", rows={"Who?": "<think>Hm, who?</think>Me."})
    assert err[-2:] == [
        "note: reply truncated at 9 tokens of reasoning",
        "      /continue resumes it; /set max_tokens N changes the limit",
    ]


def test_chat_says_that_a_reply_is_blank_even_if_quiet(talk: Talk) -> None:
    assert talk("Who?\n", "-q", rows={"Who?": " \n"})[1][0] == "note: the model's answer is blank"


def test_chat_counts_the_tokens_of_reasoning_and_prints_only_answers_into_a_pipe(talk: Talk) -> None:
    out, err = talk("Who?\n", rows={"Who?": "<think>Hm, who?</think>Me."})
    assert out == ["Me."]
    assert re.fullmatch(r"reasoned for [\d.]+ s, 16 tokens; /think shows it", err[-1])


def test_chat_shows_a_tag_that_nothing_closes_as_the_answer(talk: Talk) -> None:
    out, err = talk("Who?\n", rows={"Who?": "<think> is a tag."}, shows_out=True)
    assert "<think> is a tag." in [strip_controls(line) for line in out]
    assert not [line for line in err if "reason" in line]


@pytest.mark.parametrize(("setting", "seconds", "rings"), [("on", -1.0, 1), ("on", 10.0, 0), ("off", -1.0, 0)])
def test_bell_rings_after_a_long_reply_if_it_is_set(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, setting: str, seconds: float, rings: int
) -> None:
    monkeypatch.setattr(repl, "BELL_AFTER_S", seconds)
    out, _ = talk(f"/set bell {setting}\nWho?\n", shows_out=True)
    assert "".join(out).count("\a") == rings


def test_chat_shows_that_a_reply_fills_the_context(talk: Talk) -> None:
    _, err = talk("Who?\n/stats\n", context=150, rows={"Who?": "Me, and you. " * 9})
    assert err[-1] == "context 150/150, full"


def test_chat_writes_empty_lines_around_a_reply_but_not_before_an_error(talk: Talk) -> None:
    out, err = talk("/retry\nWho?\n/continue\n", shows_out=True)
    assert [strip_controls(line) for line in out] == ["> /retry", "> Who?", "", "Me.", "", "> /continue"]
    assert [line for line in err if "error" in line] == [
        "error: no question yet",
        "error: nothing to continue: the reply is complete",
    ]


def test_sessions_lists_the_latest_20_at_the_end_of_a_terminal(talk: Talk) -> None:
    out, _ = talk("".join(f"Who {number}?\n/clear\n" for number in range(21)) + "/sessions\n", shows_out=True)
    assert [row.split()[0] for row in out[-20:]] == [f"who-{number}" for number in range(1, 21)]


PAGER = """PAGER=sh -c "sed 's/^/| /'; read line < /dev/tty\""""


@pytest.mark.slow
def test_history_is_shown_in_a_pager_without_control_sequences(open_chat: OpenTerminal) -> None:
    person = open_chat("**two**\n\x1b]0;title\x07", shell=("env", PAGER))
    person.type("One?\r", shows="two")
    person.type("/history\r", shows="one")
    assert not [line for line in person.screen.lines if line.startswith("|")]
    person.resize(80, 8)
    person.type("/history\r", shows="| Assistant")
    person.wait_for("| two")
    person.type("\r/set bell\r", shows="bell  off")
    assert "title" not in person.output
    person.resize(20, 20)
    person.type("word " * 25 + "\r", shows="asks again")  # in seven rows
    person.type("/history\r", shows="| Assistant")
    person.type("\r/save tea\r", shows="is saved")
    person.leave()


@pytest.mark.slow
def test_delete_asks_and_begins_a_new_conversation_in_place_of_the_open_one(
    open_chat: OpenTerminal, user: CommandLine
) -> None:
    person = open_chat("", "--session", "tea", **SCRIPT)
    person.type("One?\r", shows="Yes.")
    person.type("/delete\r", shows="Delete session tea? [y/N]")
    person.type("\r", shows="tea not deleted")
    person.type("/clear\r", shows="New conversation")
    person.type("Two?\r", shows="Yes.")
    person.type("/delete tea\r", shows="[y/N]")
    person.type("y\r", shows="tea deleted (2 messages)")
    person.type("/delete\r", shows="[y/N]")
    person.type("y\r", shows="two deleted (2 messages); new conversation")
    person.type("Three?\r", shows="Yes.")
    person.leave()
    assert [row["name"] for row in user.run("sessions", "list", "--json").object] == ["three"]


REASONING = "<think>Let me see.</think>Yes."


@pytest.mark.slow
def test_chat_summarizes_reasoning_in_one_line(open_chat: OpenTerminal) -> None:
    person = open_chat(REASONING, pause=0.01)
    person.type("Is it?\r", shows="tokens; /think shows it")
    person.wait_for("Yes.")
    assert not any("Let me see" in line for line in person.screen.lines)
    person.type("/think\r", shows="Let me see.")
    person.type("/prompt\r", shows="<think>Let me see.</think>Yes.")
    person.leave()


@pytest.mark.parametrize("plain", [{"ACCESSIBLE": "1"}, {"TERM": "dumb"}])
def test_plain_prompt_takes_a_paste_as_one_question_and_refuses_long_lines(
    open_terminal: OpenTerminal, user: CommandLine, plain: dict[str, str]
) -> None:
    person = open_terminal(COMMAND, "chat", "-m", "small", "--temperature", "0", "-n", "2", "--session", "tea", **plain)
    person.wait_for(">")
    person.type("def f():\n    return 1\nWhat is it?\n", shows="What is it?")
    person.wait_for("reply truncated")
    person.type("x" * 3000)
    time.sleep(0.2)
    person.type("y" * 2000 + "\nthe rest\n", shows="nothing was sent")
    person.type("\x1b[IShort?\n\x04", shows="reply truncated")
    assert person.end() == 0
    assert user.contents("tea")[::2] == ["def f():\n    return 1\nWhat is it?", "Short?"]


def test_ctrl_z_at_the_prompt_suspends_the_chat(open_shell: OpenTerminal, chatml_model: Path) -> None:
    shell = open_shell(chatml_model, {"rows": {}, "seeds": ["Yes."]})
    shell.type("./chat\n")
    shell.wait_for("context ")
    shell.type("half a ")
    shell.type("\x1a", shows="Stopped")
    shell.type("fg\n", shows="half a")
    shell.type("question?\r", shows="Yes.")
    shell.type("/exit\r", shows="shell%")


def test_question_taller_than_the_screen_is_shortened_once_it_is_sent(open_chat: OpenTerminal) -> None:
    person = open_chat("Long indeed.")
    pasted = "\n".join(f"line {number}" for number in range(60))
    person.type(f"\x1b[200~{pasted}\x1b[201~", shows="line 59")
    person.type("\r", shows="Long indeed.")
    shown = [line for line in person.screen.lines if "line" in line]
    assert shown == [
        "> line 0",
        *(f"... line {n}" for n in (1, 2, 3)),
        "... (52 more lines)",
        *(f"... line {n}" for n in range(56, 60)),
    ]
    person.leave()
