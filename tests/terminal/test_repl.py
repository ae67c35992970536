"""The chat loop: piped scripts, slash commands, and keys at a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import CommandLine, Finished, assert_error
from person import OpenTerminal

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.terminal.repl.questions import ScriptInput, shorten_question, split_questions
from cerebrum_cli.terminal.repl.repl import fit_segments
from cerebrum_cli.terminal.repl.slash_commands import COMMANDS, SLASH_COMMANDS
from cerebrum_cli.terminal.repl.slash_lines import SlashLine, help_text, parse_slash

# Reading questions.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("\n  \none\n\n", ["one"]),
        ('"""\na\n\nb\n"""\nc', ["a\n\nb", "c"]),
        ('"""a\nb"""', ["a\nb"]),
        ('"""\n  a\nb\n"""', ["  a\nb"]),
        ('"""\nnever closed\nat all', ["never closed\nat all"]),
        ('say """ here', ['say """ here']),
        ('"""doc""" is what?\nb', ['"""doc""" is what?', "b"]),
        ('"""\nx = """y""" + z\n"""\nb', ['x = """y""" + z', "b"]),
    ],
)
def test_split_questions_reads_lines_and_fenced_blocks(text: str, expected: list[str]) -> None:
    assert list(split_questions(text)) == expected


def test_script_input_echoes_questions_as_at_a_prompt() -> None:
    written: list[str] = []
    lines = ScriptInput('one\n"""\na\nb\n"""\n', written.append)
    assert [lines.read(), lines.read()] == ["one", "a\nb"]
    assert written == ["> one\n", "> a\n... b\n"]
    with pytest.raises(EOFError):
        lines.read()


def test_long_questions_are_shortened_to_their_ends() -> None:
    lines = [f"Cats sleep {number}." for number in range(300)]
    shown = shorten_question("\n".join([*lines, "x" * 1000])).splitlines()
    assert shown == [*lines[:4], "...", *lines[-3:], "x" * 200 + " ..."]


# Slash commands.


def test_help_names_every_slash_command() -> None:
    help = help_text(SLASH_COMMANDS, 1000)
    for slash in SLASH_COMMANDS:
        assert f"/{slash.name}" in help
        assert slash.help in help
    assert "Ctrl-D" in help
    for width in (60, 44, 30):
        assert max(map(len, help_text(SLASH_COMMANDS, width).splitlines())) <= width
        assert help_text(SLASH_COMMANDS, width).split() == help.split()


def test_parse_slash_splits_a_command_or_suggests_a_close_one() -> None:
    assert parse_slash("/system  Be brief. ", COMMANDS) == SlashLine("system", "Be brief.")
    assert parse_slash("/undo", COMMANDS) == SlashLine("undo", "")
    assert parse_slash("what is /undo?", COMMANDS) is parse_slash(" /undo", COMMANDS) is None
    for line, hint in (
        ("/udno", "did you mean /undo? "),
        ("/rename", "did you mean /save? "),
        ("/?", "did you mean /help? "),
        ("/usr/bin", "list commands with /help"),
        ("/", "list commands"),
    ):
        with pytest.raises(UsageError) as caught:
            parse_slash(line, COMMANDS)
        assert caught.value.hint.startswith(hint)


# Piped scripts.


def chat(user: CommandLine, script: str, *arguments: str) -> Finished:
    """Run a script on the real small model, which generates two tokens per reply."""
    done = user.run("chat", "-n", "2", *arguments, stdin=script)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out + done.err
    return done


@pytest.mark.slow
def test_chat_script_output_is_a_transcript(user: CommandLine) -> None:
    script = "Who are you?\n/undo\nWhat are you?\n/retry 0.5\n/xyzzy\n/system Be kind.\n/exit\nnever asked\n"
    done = chat(user, script)
    echoed = [line for line in done.out.splitlines() if line.startswith("> ")]
    assert echoed == [f"> {line}" for line in script.splitlines()[:-1]]
    question, reply = user.contents("who-are-you")
    assert question == "What are you?"
    assert reply in done.out
    truncated = ("note: answer truncated at 2 tokens", "      raise --max-tokens")
    assert [line for line in done.err.splitlines() if line not in truncated] == [
        "Undone: Who are you?",
        "error: unknown command /xyzzy",
        " hint: list commands with /help; to send the text itself, put a space before the slash",
        "system prompt: Be kind.",
    ]


@pytest.mark.slow
def test_chat_script_saves_every_turn(user: CommandLine) -> None:
    chat(user, "".join(f"Question {number}?\n" for number in range(3)), "--session", "long")
    assert user.contents("long")[::2] == [f"Question {number}?" for number in range(3)]
    chat(user, "One more?\n", "-c")
    chat(user, "And more?\n", "--session", "long")
    assert len(user.contents("long")) == 10


def test_slash_prompt_shows_the_evaluated_prompt(user: CommandLine, tmp_path: Path) -> None:
    notes = tmp_path / "my notes.txt"
    notes.write_text("Cats sleep.")
    done = chat(user, f"/system Be kind.\n/file {notes}\nWho sleeps?\n/undo\n/prompt\n/fork other\nAnd now?\n/tokens\n")
    assert "<|im_start|>system\nBe kind.<|im_end|>\n" in done.out
    names = [row["name"] for row in user.run("sessions", "list", "--json").object]
    assert names[0] == "other"
    assert len(names) == 2
    assert done.err.splitlines()[-1].startswith("context ")


def test_slash_command_errors_do_not_end_the_chat(user: CommandLine) -> None:
    rows = [
        ("/retry\n", "no question to answer"),
        ("/retry hot\n", "invalid /retry: 'hot'"),
        ("/votes 300\n", "invalid /votes: '300'"),
        ("/undo\n", "nothing to undo"),
        ("/continue\n", "no reply to continue"),
        ("/fork\n", "no messages yet"),
        ("/load nowhere\n", 'no session named "nowhere"'),
        ("/file nowhere.txt\n", "nowhere.txt: No such file or directory"),
        ("/final\n", "no reply yet"),
        ("/think\n", "no reply yet"),
        ("/stats\n", "no reply yet"),
    ]
    done = chat(user, "".join(line for line, _ in rows) + "/exit\n")
    assert done.err.splitlines()[::2] == [f"error: {error}" for _, error in rows]
    assert all(hint.startswith(" hint: ") for hint in done.err.splitlines()[1::2])
    assert done.out.endswith("> /exit\n")


def test_chat_script_without_an_answer_fails(user: CommandLine) -> None:
    failed = user.run("chat", "--ctx", "256", stdin=f"{'word ' * 300}\n/undo\n{'word ' * 400}\n")
    assert failed.code == 4
    assert failed.err.count("error: the prompt has ") == 2
    assert "/clear starts over" in " ".join(failed.err.split())
    answered = user.run("chat", "-n", "2", "--ctx", "256", stdin=f"hi\n{'word ' * 300}\n")
    assert answered.code == 0
    assert answered.err.count("error: the prompt has ") == 1


def test_chat_rejects_invalid_options(user: CommandLine) -> None:
    done = user.run("chat", "--set", "overflow=shift", stdin="hi\n")
    assert_error(done, 2, "invalid --set overflow: 'shift'", "it must be drop-oldest or stop")
    done = user.run("chat", "-c", "--session", "x", stdin="hi\n")
    assert_error(done, 2, "-c and --session cannot be used together")


def test_slash_commands_report_their_results(user: CommandLine) -> None:
    rows = [
        ("/set tempo 1\n", "error: unknown setting 'tempo'"),
        ("/system X\n/system default\n", "no system prompt"),
        ("/set temperature hot\n", "error: invalid temperature: 'hot'"),
        ("/set system x\n", "error: /set cannot change system"),
        ("/set --top-p 0.5\n", "top_p  0.5"),
        ("/set stop END\n", "stop  'END'"),
        ("/set stop the end\n", "stop  'the end'"),
        ("/set stop 'the end' \" END\"\n", "stop  'the end', ' END'"),
        ("/set stop '\n", 'stop  "\'"'),
        ("/set logit_bias ' a=-2' '3=1'\n", "logit_bias  ' a=-2', '3=1'"),
        ("/retry 7\n", "error: a seed has no effect at temperature 0"),
        ("/model nowhere\n", "error: unknown model 'nowhere'"),
        ("/model\n", "small, prompt format: embedded"),
        ("/copy\n", "error: no reply yet"),
        ("/save\n", "error: /save needs a name"),
        ("/export talk.md\n", "error: the conversation is empty"),
        ("hi\n/copy 1\n", "error: /copy 1: the last reply has 0 code blocks"),
        ("/edit\n", "error: cannot edit while questions are piped in"),
        ("/edit both\n", "error: invalid /edit: 'both'"),
        ("/export talk.pdf\n", "error: talk.pdf: unsupported file type"),
        ("/save tea\n", "Session saved as 'tea'; every turn is saved automatically"),
    ]
    reported = iter(chat(user, "".join(lines for lines, _ in rows)).err.splitlines())
    assert [message for _, message in rows if message not in reported] == []  # in this order


def test_slash_params_shows_the_settings_in_effect_and_set_all_of_them(user: CommandLine) -> None:
    def names(script: str) -> list[str]:
        return [line.split()[0] for line in chat(user, script).err.splitlines()]

    assert names("/params\n") == ["model", "max_tokens", "temperature", "format", "ctx", "threads"]
    assert "top_k" in names("/set temperature 1\n/params\n")
    assert {"model", "top_k", "seed", "cache_gb"} <= set(names("/set\n"))


def test_toolbar_drops_the_least_important_segments() -> None:
    segments = {"session": "tea", "model": "small", "format": "embedded", "context": "context 1/9"}
    for width, shown in (
        (80, "tea | small | embedded | context 1/9 | 5 t/s | with a.txt"),
        (50, "tea | small | embedded | context 1/9 | with a.txt"),
        (32, "small | context 1/9 | with a.txt"),
        (5, "context 1/9"),
    ):
        assert fit_segments({**segments, "speed": "5 t/s", "files": "with a.txt"}, width) == shown


def test_slash_export_chooses_the_format_by_suffix(user: CommandLine, tmp_path: Path) -> None:
    formats = {"md": "markdown", "json": "json", "sharegpt": "sharegpt", "txt": "transcript"}
    lines = "".join(f"/export {tmp_path}/my talk.{suffix}\n" for suffix in formats)
    chat(user, f"hi\n{lines}", "--session", "talk")
    for suffix, format in formats.items():
        exported = (tmp_path / f"my talk.{suffix}").read_text()
        assert exported == user.run("sessions", "export", "talk", "--as", format).out


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_prompt_takes_multi_line_questions(open_chat: OpenTerminal, user: CommandLine) -> None:
    person = open_chat("Yes.")
    person.type("one\x0atwo\x1b\rthree\r")  # Ctrl-J, then Alt-Enter
    person.wait_for("Yes.")
    person.type('"""\rfour\r\rfive\r"""\r')
    person.type("\x1b[200~six\nseven\n" + "line\n" * 40 + "\x1b[201~")
    person.type("\r/help\r", shows="Ctrl-X Ctrl-E")
    person.leave()
    [first, second, third] = user.contents("one-two-three")[::2]
    assert (first, second) == ("one\ntwo\nthree", "four\n\nfive")
    assert third.splitlines()[:3] == ["six", "seven", "line"]
    assert third.count("line") == 40


THOUGHT = "<think>Let me see.</think>Yes."


@pytest.mark.slow
def test_chat_summarizes_reasoning_in_one_line(open_chat: OpenTerminal) -> None:
    person = open_chat(THOUGHT, pause=0.01)
    person.type("Is it?\r", shows="tokens; /think shows it")
    person.wait_for("Yes.")
    assert not any("Let me see" in line for line in person.screen.lines)
    person.type("/think\r", shows="Let me see.")
    person.type("/prompt\r", shows="<think>Let me see.</think>Yes.")
    person.leave()
