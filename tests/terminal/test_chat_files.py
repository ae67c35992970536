"""Files and the beginnings of replies in a chat, at a real terminal: attached, detached, piped in and continued."""

import re
from pathlib import Path
from shlex import join, quote

import pytest
from command_line import COMMAND, CommandLine
from person import OpenTerminal
from scripted_command import run_here

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.engine import memory_plan
from cerebrum_cli.terminal.repl.typed_paths import named_files, split_paths

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
SCRIPT = {"rows": {"Count": "One two three."}, "seeds": ["Yes."]}
NAMES = ("cats.txt", "my dogs.txt", "a,b.c", "notes")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        (tmp_path / name).write_text(f"This is {name}.\n")
    (tmp_path / "docs").mkdir()
    return tmp_path


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("text", "paths", "question"),
    [
        ("cats.txt", ["cats.txt"], ""),
        ("cats.txt Who sleeps?", ["cats.txt"], "Who sleeps?"),
        ("cats.txt, my dogs.txt,notes Who, and why?", ["cats.txt", "my dogs.txt", "notes"], "Who, and why?"),
        ("'my dogs.txt' \"cats.txt\" x", ["my dogs.txt", "cats.txt"], "x"),
        ("my\\ dogs.txt a,b.c\nx\ny", ["my dogs.txt", "a,b.c"], "x\ny"),
        ("docs *.py src/ ~/x Explain this.", ["docs", "*.py", "src", "~/x"], "Explain this."),
        ("cats.txt dogs.txt 'no such.md' What?", ["cats.txt", "dogs.txt", "no such.md"], "What?"),
        ("no such file", ["no such file"], ""),
        ("cats.txt e.g. Why?", ["cats.txt"], "e.g. Why?"),
        ('notes "Why?"', ["notes"], '"Why?"'),
        ("~nobody-here/x", ["~nobody-here/x"], ""),
        ("x" * 5000, ["x" * 5000], ""),
        ("cats.txt https://a.b//c,d?e=f#g Why?", ["cats.txt", "https://a.b//c,d?e=f#g"], "Why?"),
    ],
)
def test_paths_are_told_from_the_question_behind_them(text: str, paths: list[str], question: str) -> None:
    expected = [path if "://" in path else Path(path).expanduser() if path == "~/x" else Path(path) for path in paths]
    assert split_paths(text) == (expected, question)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("question", "names"),
    [
        ("What is @cats.txt?", ["cats.txt"]),
        ("@notes\n(@my dogs.txt, @docs/): why?", ["notes", "my dogs.txt", "docs"]),
        ("@'my dogs.txt' or @my\\ dogs.txt", ["my dogs.txt"] * 2),
        ("@a,b.c,@./cats.txt...", ["a,b.c", "cats.txt"]),
        ("@cats.txt's end, and @notes:3, @my dogs.txt's.", ["cats.txt", "notes", "my dogs.txt"]),
        *(
            (text, [])
            for text in ("me@notes", "@ann", "@cat.txt", "`@notes`", "@", "@ notes", '@""', "@.", "@/", "@docs")
        ),
    ],
)
def test_words_that_name_files_are_told_from_other_words_with_an_at_sign(question: str, names: list[str]) -> None:
    assert named_files(question) == [Path(name) for name in names]


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(UsageError, match="the path is empty"):
        split_paths('"" Why?')


@pytest.mark.slow
@pytest.mark.usefixtures("files")
def test_files_are_attached_shown_and_detached(open_chat: OpenTerminal, user: CommandLine) -> None:
    person = open_chat(**SCRIPT)
    person.type('/file cats.txt, "my dogs.txt"\r', shows="| with cats.txt, my dogs.txt")
    person.type("/file none\r", shows="detached cats.txt, my dogs.txt")
    person.type("/file cats.txt dogs.txt\r", shows="dogs.txt: No such file")
    assert "with cats.txt" not in person.screen.lines[-1]
    for command in ("/clear", "/load first"):
        if command != "/clear":
            person.type("/save first\rOne?\r", shows="Yes.")
        person.type("/file notes\r", shows="| with notes")
        person.type(f"{command}\r", shows="detached notes")
    person.resize(40, 24)
    person.type("/file cats.txt my dogs.txt\r", shows="cats.txt, my dogs.txt will be prepended")
    person.type("/file notes Who sleeps?\r", shows="Yes.")
    person.type("See @do\t", shows="> See @docs/")
    person.type("\x15Sure, @ann? See @notes, @my\t", shows="@my dogs.txt")
    person.type(".\r", shows="attached notes, my dogs.txt")
    person.wait_for("Yes.")
    person.type("Explain \x1b[200~@notes\n@cats.txt\x1b[201~.\r", shows="Yes.")
    person.leave()
    asked, sure, pasted = user.contents("first")[2::2]
    assert pasted == "Explain @notes\n@cats.txt."
    assert [f"This is {name}." in asked for name in NAMES] == [True, True, False, True]
    assert [f"This is {name}." in sure for name in NAMES] == [False, True, False, True]
    ends = (asked.splitlines()[-1], sure.splitlines()[-1])
    assert ends == ("Who sleeps?", "Sure, @ann? See @notes, @my dogs.txt.")


@pytest.mark.slow
@pytest.mark.usefixtures("files")
def test_chat_begins_with_files_and_with_piped_text(open_chat: OpenTerminal, user: CommandLine) -> None:
    person = open_chat("", "-f", "cats.txt", "--session", "files", **SCRIPT)
    person.wait_for("| with cats.txt")
    person.type("Who sleeps?\r", shows="Yes.")
    person.leave()
    assert user.contents("files")[0] == "cats.txt:\n```txt\nThis is cats.txt.\n```\n\nWho sleeps?"
    pipe = ("sh", "-c", 'printf "+a\\n-b\\n" | "$@"', "sh")
    person = open_chat("", "Review @notes, @a", "--session", "diff", shell=pipe, **SCRIPT)
    person.wait_for("Yes.")
    person.type("Sure?\r", shows="Yes.")
    person.leave()
    assert user.contents("diff")[::2] == ["notes:\n```\nThis is notes.\n```\n\nReview @notes, @a\n\n+a\n-b", "Sure?"]


@pytest.mark.slow
def test_edited_reply_is_continued_and_its_beginning_can_be_given(
    open_chat: OpenTerminal, user: CommandLine, tmp_path: Path
) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i "s/One/Two/" "$1"\n')
    editor.chmod(0o755)
    person = open_chat("", "-n", "3", shell=("env", f"EDITOR={editor}"), **SCRIPT)
    person.type("Count\r", shows="resumes it")
    person.type("/continue\r", shows="resumes it")
    assert "One tw" in person.screen.lines
    person.type("/edit answer\r", shows="/continue continues it")
    person.type("/set max_tokens 20\r/continue\r", shows="Two two three.")
    person.type("/continue Six \r", shows="Six two three.")
    person.leave()
    assert user.contents("count") == ["Count", "Six two three."]


# The context grows for a prompt.

WORDS = "word " * 100


@pytest.mark.parametrize(
    ("command", "arguments", "code"),
    [
        ("ask", (), 0),
        ("ask", ("--votes", "2"), 0),
        ("chat", (), 0),
        ("ask", ("--ctx", "300"), 4),
        ("chat", ("--ctx", "300"), 4),
    ],
)
def test_context_grows_for_a_file_unless_its_size_was_chosen(
    files: Path, chatml_model: Path, command: str, arguments: tuple[str, ...], code: int
) -> None:
    (files / "words").write_text(WORDS)
    script = {"rows": {}, "seeds": ["The answer is 4."], "context": 300, "grows": 2000}
    asked = ("-f", "words", "How many?", *arguments)
    done = run_here(script, files, command, "-m", chatml_model, *asked, piped=b"")
    assert done.code == code
    assert ("note: increasing the context from 300 to 1280 tokens\n" in done.err) == (code == 0)
    assert ("The answer is 4." in done.out) == (code == 0)


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


HINTS = {
    "/set parameter temperature 0.6": "temperature  0.6",
    "/set nothink": "use /think off",
    "/set verbose": "use /stats",
    "/set top_k=5": "top_k  5",
    "/set think": "think  default",
    "/use tea": "| with tea",
    "/use none": "using no saved prompt",
}


@pytest.mark.slow
def test_chat_grows_its_context_for_a_file_and_knows_other_programs_settings(
    open_chat: OpenTerminal, user: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "words").write_text(WORDS)
    (user.config / "prompts").mkdir()
    (user.config / "prompts" / "tea.md").write_text("Tea: {input}")
    person = open_chat("", "-f", "words", context=300, grows=2000, **SCRIPT)
    person.type("How many?\r", shows="note: increasing the context from 300 to 1280 tokens")
    person.wait_for("Yes.")
    for typed, shown in HINTS.items():
        person.type(f"{typed}\r", shows=shown)
    assert "with tea" not in person.screen.lines[-1]
    person.leave()


@pytest.mark.slow
def test_piped_lines_are_questions_and_words_inside_them_are_found(
    open_terminal: OpenTerminal, chatml_model: Path
) -> None:
    chat = join([COMMAND, "chat", "-m", str(chatml_model), "-n", "1", "--session", "capital"])
    script = f'printf "One?\\r\\n日本の首都\u2028はどこ?\\n" | {chat}; {quote(COMMAND)} sessions search 首都'
    person = open_terminal("sh", "-c", script)
    assert person.end() == 0
    asked = [line for line in person.screen.lines if line.startswith("> ")]
    assert [line[:7] for line in asked] == ["> One?", "> 日本の首都"]
    assert re.match(r"capital  \d{4}-\d\d-\d\d  user: 日本の首都", person.screen.lines[-1])
