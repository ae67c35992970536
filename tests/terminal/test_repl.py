"""The chat loop without a terminal: what is read as a question, a key or a path, and what a script prints."""

import os
from collections.abc import Callable
from io import BytesIO, StringIO
from pathlib import Path

import pytest
from cases import rows
from command_line import CommandLine, Finished
from scripted_command import app_for, run_here

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.text import strip_controls
from cerebrum_cli.engine import memory_plan
from cerebrum_cli.main import run
from cerebrum_cli.terminal.repl import repl
from cerebrum_cli.terminal.repl.key_codes import KeyReader
from cerebrum_cli.terminal.repl.questions import shorten_question, split_questions
from cerebrum_cli.terminal.repl.slash_commands import SLASH_COMMANDS
from cerebrum_cli.terminal.repl.slash_lines import help_text
from cerebrum_cli.terminal.repl.typed_paths import named_files, split_paths
from cerebrum_cli.terminal.streams import Streams

# Questions, keys and paths.


@pytest.mark.parametrize(("what", "text", "expected"), rows("typed_questions"))
def test_split_questions_reads_lines_and_fenced_blocks(what: str, text: str, expected: list[str]) -> None:
    assert [line.text for line in split_questions(text)] == expected


def test_long_questions_are_shortened_to_their_ends() -> None:
    lines = [f"Cats sleep {number}." for number in range(300)]
    shown = shorten_question("\n".join([*lines, "x" * 1000, "word " * 50])).splitlines()
    assert shown == [*lines[:4], "(294 more lines)", *lines[-2:], "x" * 200 + " ...", "word " * 39 + "word ..."]


@pytest.mark.parametrize("width", [60, 44, 30])
def test_help_keeps_its_words_in_narrow_windows(width: int) -> None:
    commands = [(slash.usage, slash.help) for slash in SLASH_COMMANDS]
    help = help_text(commands, width)
    assert max(map(len, help.splitlines())) <= width
    assert help.split() == " ".join(f"{usage} {effect}" for usage, effect in commands).split()


@pytest.mark.parametrize(("what", "sent", "characters"), rows("typed_keys"))
def test_keys_of_newer_terminals_become_characters_and_reports_nothing(what: str, sent: str, characters: str) -> None:
    read, write = os.pipe()
    with open(read), open(write, "w") as terminal:
        print("a", sent, "b", sep="", end="", file=terminal, flush=True)
        assert KeyReader(read).read() == f"a{characters}b"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cats.txt", "my dogs.txt", "a,b.c", "notes"):
        Path(name).touch()
    Path("docs").mkdir()


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(("what", "text", "paths", "question"), rows("typed_paths"))
def test_paths_are_told_from_the_question_behind_them(what: str, text: str, paths: list[str], question: str) -> None:
    expected = [path if "://" in path else Path(path).expanduser() if path == "~/x" else Path(path) for path in paths]
    assert split_paths(text) == (expected, question)


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(UsageError, match="the path is empty"):
        split_paths('"" Why?')


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(("what", "question", "names"), rows("named_files"))
def test_words_that_name_files_are_told_from_others(what: str, question: str, names: list[str]) -> None:
    assert named_files(question) == [Path(name) for name in names]


# Piped scripts; `transcripts/chat*.txt` have what they print.

Talk = Callable[..., tuple[list[str], list[str]]]


@pytest.fixture
def talk(tmp_path: Path, chatml_model: Path) -> Talk:
    """A function that pipes text into a chat in this process, and returns its lines on standard output and error.

    The input is taken for a terminal, or the output.
    """

    def run_chat(
        text: str, *arguments: str, shows_out: bool = False, reply: str = "Me.", context: int = 1000
    ) -> tuple[list[str], list[str]]:
        out, err = StringIO(), StringIO()
        streams = Streams(out, err, BytesIO(text.encode()), shows_out, False, not shows_out)
        app = app_for({"rows": {}, "seeds": [reply], "context": context}, tmp_path, streams)
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


def test_chat_shows_a_tag_that_nothing_closes_as_the_answer(talk: Talk) -> None:
    out, err = talk("Who?\n", reply="<think> is a tag.", shows_out=True)
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
    assert talk("Who?\n/stats\n", context=150, reply="Me, and you. " * 9)[1][-1] == "context 150/150, full"


def test_chat_writes_empty_lines_around_a_reply_but_not_before_an_error(talk: Talk) -> None:
    out, _ = talk("/retry\nWho?\n/continue\n", shows_out=True)
    assert [strip_controls(line) for line in out] == ["> /retry", "> Who?", "", "Me.", "", "> /continue"]


def test_sessions_lists_the_latest_20_at_the_end_of_a_terminal(talk: Talk) -> None:
    out, _ = talk("".join(f"Who {number}?\n/clear\n" for number in range(21)) + "/sessions\n", shows_out=True)
    assert [row.split()[0] for row in out[-20:]] == [f"who-{number}" for number in range(1, 21)]


# The real small model.


def chat(user: CommandLine, script: str, *arguments: str) -> Finished:
    return user.run("chat", "-n", "2", "--temperature", "0", *arguments, stdin=script)


def test_chat_script_without_an_answer_fails(user: CommandLine) -> None:
    failed = chat(user, f"{'word ' * 300}\n/undo\n{'word ' * 400}\n", "--ctx", "256")
    assert failed.code == 4
    assert failed.err.count("error: the prompt has ") == 2
    assert "/clear starts over" in " ".join(failed.err.split())
    answered = chat(user, f"hi\n{'word ' * 300}\n", "--ctx", "256")
    assert (answered.code, answered.err.count("error: the prompt has ")) == (0, 1)


def test_chat_saves_the_prompt_cache_unless_no_cache(user: CommandLine) -> None:
    states = user.home / ".cache" / "cerebrum" / "states"
    for cached in (False, True):
        chat(user, f"{'word ' * 60}\n", "--session", f"cached-{cached}", *([] if cached else ["--set", "cache_gb=0"]))
        assert len(list(states.glob("*.state"))) == cached
    again = chat(user, "And?\n/stats\n", "--session", "cached-True")
    assert " cached)" in again.out + again.err and "\x1b" not in again.out + again.err
    assert user.run("sessions", "rm", "cached-True", "-y").code == 0
    assert not list(states.glob("*.state"))


# The context grows for a prompt.

WORDS = "word " * 100


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("command", [("ask",), ("ask", "--votes", "2"), ("chat",)])
@pytest.mark.parametrize(("chosen", "code"), [((), 0), (("--ctx", "300"), 4)], ids=["any size", "a chosen size"])
def test_context_grows_for_a_file_unless_its_size_was_chosen(
    tmp_path: Path, chatml_model: Path, command: tuple[str, ...], chosen: tuple[str, ...], code: int
) -> None:
    Path("words").write_text(WORDS)
    script = {"rows": {}, "seeds": ["The answer is 4."], "context": 300, "grows": 2000}
    done = run_here(script, tmp_path, *command, "-m", chatml_model, "-f", "words", "How many?", *chosen, piped=b"")
    assert done.code == code
    assert ("note: increasing the context from 300 to 1280 tokens\n" in done.err) == (not chosen)
    assert ("The answer is 4." in done.out) == (not chosen)


def test_llama_cpp_evaluates_what_the_context_grew_for(user: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    (user.home / "words").write_text(WORDS)
    asked = ("-f", "words", "-n", "4", "--temperature", "0")
    fits = user.run("ask", *asked, "Why?")
    monkeypatch.setattr(memory_plan, "DEFAULT_CONTEXT", 256)
    assert "increasing" not in fits.err
    for command in ("ask", "chat"):
        grown = user.run(command, *asked, "Why?", stdin="")
        assert "increasing the context from 256 to " in grown.err
        assert grown.out.endswith(fits.out), grown
