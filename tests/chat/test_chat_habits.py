"""What users of other chat programs type: other names of /exit, a model and a question as arguments, dropped files."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO, StringIO
from pathlib import Path

import pytest
from command_line import Finished
from person import OpenTerminal
from scripted_command import app_for, run_here

from cerebrum_cli.main import run
from cerebrum_cli.terminal.streams import Streams

SCRIPT = {"rows": {"Who?": "Me."}, "seeds": ["Yes."]}

Chat = Callable[..., Finished]


@pytest.fixture
def chat(tmp_path: Path, chatml_model: Path) -> Chat:
    """A function that chats through a pipe; the model is `chatml.gguf` in the working directory."""

    def run(script: str, *arguments: str | Path) -> Finished:
        return run_here({**SCRIPT}, tmp_path, "chat", *(arguments or ("-m", chatml_model)), piped=script.encode())

    return run


def test_chat_has_other_names_of_exit_and_asks_a_bare_one_in_a_script(chat: Chat) -> None:
    for name in ("/exit", "/quit", "/bye", "/q"):
        done = chat(f"{name}\nnever asked\n")
        assert (done.code, done.out.splitlines()) == (0, [f"> {name}"])
    assert chat("exit\nWho?\n").out.splitlines() == ["> exit", "Yes.", "> Who?", "Me."]


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


def test_chat_takes_a_model_and_a_question(chat: Chat, chatml_model: Path) -> None:
    assert chat("And you?\n", chatml_model, "Who?").out.splitlines() == ["> Who?", "Me.", "> And you?", "Yes."]
    assert chat("", "-m", chatml_model, "Who?").out.splitlines() == ["> Who?", "Me."]
    done = chat("", chatml_model, "Who", "are you?")
    assert (done.code, done.err.splitlines()[-1]) == (2, " hint: quote the question: 'Who are you?'")


def test_chat_takes_a_question_without_a_model(chat: Chat, tmp_path: Path, chatml_model: Path) -> None:
    run_here({}, tmp_path, "pull", chatml_model, "--default", "-q")
    assert chat("", "Who?").out.splitlines() == ["> Who?", "Me."]
    assert chat("", "Who are you").out.splitlines() == ["> Who are you", "Yes."]
    assert chat("", "2+2").out.splitlines() == ["> 2+2", "Yes."]
    for words in ("Who are you?", "Who are"):
        done = chat("", *words.split())
        assert (done.code, done.err.splitlines()[-1]) == (2, f" hint: quote the question: '{words}'")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("Who",), "to ask it: cerebrum chat -m MODEL Who; to find a model: cerebrum search Who"),
        (("startr",), "did you mean starter?"),
        (("startr", "hello"), "did you mean starter?"),
        (("qwen-9",), "cerebrum search qwen-9"),
    ],
)
def test_chat_argument_that_may_be_a_model_is_not_asked(chat: Chat, words: tuple[str, ...], hint: str) -> None:
    done = chat("", *words)
    assert (done.out, done.code) == ("", 3)
    assert f"unknown model '{words[0]}'" in done.err
    assert hint in done.err


def test_chat_greets_with_a_new_session_and_with_a_reply_that_was_cut_off(tmp_path: Path, chatml_model: Path) -> None:
    def greeting(*arguments: str, script: bytes = b"") -> list[str]:
        out, err = StringIO(), StringIO()
        app = app_for({**SCRIPT}, tmp_path, Streams(out, err, BytesIO(script), False, False, True))
        assert run(["chat", "-m", str(chatml_model), *arguments], app) == 0
        return err.getvalue().splitlines()

    assert greeting("--session", "tea", "-n", "1", script=b"Who?\n")[2] == "New session 'tea'"
    cut_off = ["note: the last reply was cut off (truncated)", "      /continue resumes it"]
    assert greeting("-c")[-2:] == cut_off
    assert greeting("-c", "-n", "9", script=b"Who?\n")[-2:] == cut_off
    assert cut_off[0] not in greeting("-c")


def test_chat_continues_a_reply_that_was_truncated_while_reasoning(tmp_path: Path, chatml_model: Path) -> None:
    err, script = StringIO(), {"rows": {"Who?": "<think>Hm, who?</think>Me."}, "seeds": ["Yes."]}
    streams = Streams(StringIO(), err, BytesIO(b"Who?\n"), False, False, True)
    assert run(["chat", "-m", str(chatml_model), "-n", "9"], app_for(script, tmp_path, streams)) == 0
    truncated = ["note: reply truncated at 9 tokens of reasoning", "      /continue resumes it"]
    assert err.getvalue().splitlines()[-2:] == truncated


def test_chat_writes_an_empty_line_after_a_reply_but_not_before_an_error(tmp_path: Path, chatml_model: Path) -> None:
    out = StringIO()  # of both streams
    streams = Streams(out, out, BytesIO(b"/retry\nWho?\n/continue\n"), True, False, False)
    assert run(["chat", "-m", str(chatml_model), "--no-markdown"], app_for({**SCRIPT}, tmp_path, streams)) == 0
    lines = out.getvalue().splitlines()
    after = {line: lines[number + 1] for number, line in enumerate(lines[:-1])}
    assert after["> /retry"] == "error: no question to answer"
    assert after["Me."] == ""
    assert after["> /continue"].startswith("error: nothing to continue")


def test_sessions_lists_the_latest_20_at_the_end_of_a_terminal(tmp_path: Path, chatml_model: Path) -> None:
    script = "".join(f"Who {number}?\n/clear\n" for number in range(21)) + "/sessions\n"
    out = StringIO()
    streams = Streams(out, StringIO(), BytesIO(script.encode()), True, False, False)
    assert run(["chat", "-m", str(chatml_model)], app_for({**SCRIPT}, tmp_path, streams)) == 0
    rows = out.getvalue().splitlines()[-20:]
    assert [row.split()[0] for row in rows] == [f"who-{number}" for number in range(1, 21)]


def test_retry_says_that_a_greedy_reply_repeats_itself_but_not_a_vote(chat: Chat, chatml_model: Path) -> None:
    same = "note: at temperature 0 the reply is usually the same"
    assert same in chat("Who?\n/retry\n", "-m", chatml_model).err
    assert same not in chat("Who?\n/votes 2\n/retry\n", "-m", chatml_model).err


def test_stats_of_a_reply_from_before_an_undo_are_not_saved(chat: Chat) -> None:
    err = chat("Who?\nWhy?\n/undo\n/stats\n").err
    assert "error: the last reply has no statistics" in err
    assert "error" not in chat("Who?\n/stats\n").err


def test_slash_load_shows_the_last_exchange(chat: Chat, chatml_model: Path) -> None:
    chat("Who?\n", "-m", chatml_model, "--session", "first")
    done = chat("/load first\n")
    assert done.out.split("\n") == ["> /load first", "> Who?", "Me.", "", ""]


def test_slash_system_shows_the_prompt_in_force(chat: Chat, chatml_model: Path) -> None:
    done = chat("/system\n/system Be kind.\n/system\n", "-m", chatml_model, "--format", "cerebrum")
    first, second, third = done.err.splitlines()
    assert first.startswith("system prompt: ") and "thinking artificial intelligence assistant" in first
    assert second == third == "system prompt: Be kind."
    assert "no system prompt" in chat("/system\n").err


def test_slash_file_takes_paths_as_terminals_paste_them(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "a b.txt"
    path.write_text("notes")
    names = [f'"{path}"', str(path), f"'{path}'", str(path).replace(" ", "\\ ")]
    done = chat("".join(f"/file {name}\n" for name in names))
    assert done.err.splitlines() == [f"{path} will be prepended to your next question"] * 4
    done = chat(f'Who?\n/export "{tmp_path}/q r.md"\n')
    assert (tmp_path / "q r.md").exists()


def test_empty_paths_are_not_the_working_directory(chat: Chat, tmp_path: Path, chatml_model: Path) -> None:
    done = chat('/file ""\n')
    assert done.err.splitlines() == ["error: the path is empty", " hint: name a file; `.` is the working directory"]
    for option in ("--file", "--schema"):
        done = run_here({**SCRIPT}, tmp_path, "ask", "Who?", "-m", chatml_model, option, "")
        assert (done.code, done.err.splitlines()) == (2, [f"error: invalid {option}: ''", " hint: it must be a path"])
