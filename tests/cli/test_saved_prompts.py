"""Saved prompts: config.toml, what `ask`, `chat` and `batch` do with one, and `cerebrum prompts`, which edits them."""

from __future__ import annotations

import json
import os
import stat
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, Finished
from hypothesis import given
from hypothesis import strategies as st
from scripted_command import run_here
from templates import chatml_prompt

from cerebrum_cli.cli.config_file import prompt_table, table_line, with_prompt, without_prompt
from cerebrum_cli.core.config import read_config
from cerebrum_cli.core.errors import ConfigError

CONFIG = '''
temperature = 0.1
[prompts.sum]
system = "Be brief."
temperature = 0.9
prompt = """
Sum up: {input}
{braces} {0} stay
"""
[prompts.list]
prompt = "List three"
[prompts.tone]
system = "Be kind."
max-tokens = 7
[prompts.parsed]
schema = "answer.json"
'''
BLOCKS = "One:\n```c\n1;\n```\nTwo:\n```python\n2\n```\nThree:\n```\n3\n```\n"


class Home:
    """A user with one model, scripted, and a config.toml with saved prompts."""

    def __init__(self, user: CommandLine, text: str) -> None:
        self.home = user.home
        self.config = user.config / "config.toml"
        self.config.write_text(text, encoding="utf-8")
        (user.config / "answer.json").write_text('{"type": "object"}', encoding="utf-8")

    @property
    def text(self) -> str:
        return self.config.read_text(encoding="utf-8")

    def run(self, *arguments: str | Path, piped: bytes | None = None, **script: Any) -> Finished:
        return run_here({"reply": "Yes.", **script}, self.home, *arguments, piped=piped)

    def params(self, *arguments: str) -> dict[str, Any]:
        """Sampling parameters of a batch of one row."""
        backends: list[Any] = []
        (self.home / "in.txt").write_text("One?\n")
        done = self.run("batch", "in.txt", "-o", "-", *arguments, rows={"One?": "1"}, seeds=["2"], backends=backends)
        assert done.code == 0, done.err
        [params] = backends[-1].params
        return {key: getattr(params, key) for key in ("temperature", "max_tokens")}


@pytest.fixture
def home(user: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A user who has the prompts of CONFIG."""
    monkeypatch.chdir(user.home)
    return Home(user, CONFIG)


@pytest.fixture
def editable(new_user: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A user who has FILE, with its comments."""
    monkeypatch.chdir(new_user.home)
    return Home(new_user, FILE)


def prompt_of(home: Home, *arguments: str | Path, piped: bytes | None = None) -> str:
    """The exact prompt of a question."""
    done = home.run("ask", "--dry-run", "-q", *arguments, piped=piped)
    assert done.code == 0, done.err
    return done.out


# config.toml.


def test_config_reads_saved_prompts(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG + '[prompts.far]\nschema = "/a/b.json"\nstop = "x"\ndrafts = "off"\n', encoding="utf-8")
    prompts = read_config(path).prompts
    assert list(prompts) == ["sum", "list", "tone", "parsed", "far"]
    assert prompts["sum"].settings == {"system": "Be brief.", "temperature": 0.9}
    assert prompts["sum"].prompt == "Sum up: {input}\n{braces} {0} stay"
    assert prompts["tone"].settings == {"system": "Be kind.", "max_tokens": 7}
    assert prompts["parsed"].schema == tmp_path / "answer.json"
    assert prompts["far"].schema == Path("/a/b.json")
    assert prompts["far"].settings == {"stop": ("x",), "drafts": False}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[prompts]\nsum = 1", "`prompts` must contain only tables"),
        ("[prompts.sum]\nprmpt = 'x'", "[prompts.sum]: unknown key `prmpt`"),
        ("[prompts.sum]\nprompt = ' '", "[prompts.sum]: invalid prompt: ' '"),
        ("[prompts.sum]\nschema = {}", "[prompts.sum]: invalid schema: {}"),
        ("[prompts.sum]\nextract = ''", "[prompts.sum]: invalid extract: ''"),
        ("[prompts.sum]\nextract = true\nschema = 'x'", "[prompts.sum]: extract and schema cannot be used together"),
        ("[prompts.sum]\ntop_p = 2", "[prompts.sum]: invalid top_p: 2"),
    ],
)
def test_config_reports_an_invalid_saved_prompt(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert caught.value.message == f"{path}: {problem}"
    assert caught.value.hint


# cerebrum ask.


def test_ask_puts_argument_files_and_pipe_into_a_saved_prompt(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    (home.home / "a.txt").write_text("note\n")
    question = "a.txt:\n```txt\nnote\n```\n\nthis\n\npiped"
    expected = chatml_prompt(f"Sum up: {question}\n{{braces}} {{0}} stay", "Be brief.")
    assert prompt_of(home, "-p", "sum", "-f", "a.txt", "this", piped=b"piped\n") == expected
    assert prompt_of(home, "--saved-prompt", "list") == chatml_prompt("List three")
    assert prompt_of(home, "--saved-prompt", "list", piped=b"birds") == chatml_prompt("List three\n\nbirds")
    assert prompt_of(home, "-p", "list", "--raw", "of") == "List three\n\nof"
    monkeypatch.setenv("CEREBRUM_SAVED_PROMPT", "list")
    assert prompt_of(home) == chatml_prompt("List three")


def test_ask_reports_a_saved_prompt_without_input(home: Home) -> None:
    for piped in (None, b"", b" \n"):
        done = home.run("ask", "-p", "sum", piped=piped)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("error: the saved prompt sum uses {input}, but no input was given\n hint: ")
    done = home.run("ask", "-p", "tone")
    assert (done.code, done.err.splitlines()[0]) == (2, "error: no prompt given")


def test_ask_fills_the_last_message_of_a_list(home: Home) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (home.home / "m.json").write_text(json.dumps([*messages, {"role": "user", "content": "birds"}]))
    prompt = prompt_of(home, "-p", "list", "--messages", "m.json")
    assert "user\na<" in prompt and "user\nList three\n\nbirds<" in prompt


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("what is it?", "cerebrum ask 'what is it?'"),
        ("summ", "did you mean sum?"),
        ("xyz", "saved prompts: sum, list, tone, parsed"),
    ],
)
def test_ask_reports_an_unknown_saved_prompt(home: Home, name: str, hint: str) -> None:
    done = home.run("ask", "-p", name)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: no saved prompt named {name!r}\n hint: ")
    assert hint in done.err


def test_saved_prompt_is_between_variables_and_the_command_line(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    assert home.params("-p", "sum") == {"temperature": 0.9, "max_tokens": None}
    monkeypatch.setenv("CEREBRUM_TEMPERATURE", "0.5")
    monkeypatch.setenv("CEREBRUM_MAX_TOKENS", "9")
    assert home.params("-p", "sum") == {"temperature": 0.9, "max_tokens": 9}
    assert home.params("-p", "sum", "--temperature", "0") == {"temperature": 0, "max_tokens": 9}
    assert home.params("-p", "tone") == {"temperature": 0.5, "max_tokens": 7}
    monkeypatch.setenv("CEREBRUM_SYSTEM", "From a variable.")
    assert "Be brief." in prompt_of(home, "-p", "sum", "x")
    assert "Typed." in prompt_of(home, "-p", "sum", "-s", "Typed.", "x")


def test_saved_schema_yields_to_a_typed_constraint(user: CommandLine, home: Home) -> None:
    (home.home / "number.gbnf").write_text('root ::= "17"\n')
    (user.config / "answer.json").write_text('{"const": "four"}')
    done = user.run("ask", "-p", "parsed", "x")
    assert (done.code, done.out) == (0, '"four"\n')
    assert user.run("ask", "-p", "parsed", "x", "--grammar", "number.gbnf").out == "17\n"
    assert user.run("ask", "-p", "parsed", "x", env={"CEREBRUM_GRAMMAR": "number.gbnf"}).out == '"four"\n'
    assert user.run("ask", "-p", "parsed", "x", env={"CEREBRUM_FINAL": "1"}).out == '"four"\n'
    final = user.run("ask", "-p", "parsed", "x", "--final")
    assert (final.code, final.err.splitlines()[0]) == (2, "error: --final and --schema cannot be used together")


@pytest.mark.slow
def test_saved_prompt_extracts_a_code_block_unless_told_otherwise(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def code(*arguments: str, reply: str = BLOCKS) -> str:
        done = home.run("ask", "-p", "code", "x", *arguments, reply=reply)
        assert (done.code, done.err) == (0, "")
        return done.out

    for value, block in (("true", "1;\n"), ('"python"', "2\n"), ("false", BLOCKS), ('"last"', "3\n")):
        home.config.write_text(f"[prompts.code]\nextract = {value}\n")
        assert code() == block
    monkeypatch.setenv("CEREBRUM_EXTRACT", "python")
    assert (code(), code("--extract=c")) == ("3\n", "1;\n")
    monkeypatch.setenv("CEREBRUM_FINAL", "1")
    assert code() == "3\n"
    monkeypatch.delenv("CEREBRUM_EXTRACT")
    assert code("--final", reply="The answer is 4.") == "4\n"
    code("--votes", "2", reply="The answer is 4.")


def test_batch_and_chat_refuse_a_saved_extraction(home: Home) -> None:
    home.config.write_text("[prompts.code]\nextract = true\n")
    (home.home / "in.txt").write_text("One?\n")
    for use, arguments in (("a batch", ("batch", "in.txt", "-o", "-")), ("a chat", ("chat",))):
        done = home.run(*arguments, "-p", "code", piped=b"x\n")
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"error: the saved prompt code sets extract, which has no effect in {use}\n")


def test_saved_session_holds_the_question_and_not_the_name(home: Home) -> None:
    assert home.run("ask", "-p", "list", "birds").out == "Yes.\n"
    shown = home.run("sessions", "show", "list-three-birds", "--json").object
    assert [message["content"] for message in shown["messages"]] == ["List three\n\nbirds", "Yes."]
    assert home.run("ask", "-c", "-p", "tone", "More?").code == 0
    assert home.run("sessions", "show", "list-three-birds", "--json").object["system_prompt"] == "Be kind."


# cerebrum batch.


@pytest.mark.slow
def test_batch_fills_in_rows_and_keeps_their_errors(home: Home) -> None:
    (home.home / "in.csv").write_text("a,b\n1,2\n3,{input}\n")
    more = ("--template", "{a} and {b}", "-p", "list", "--include-input")
    done = home.run("batch", "in.csv", "-o", "-", *more, rows={"1 and 2": "x"}, seeds=["y"])
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["prompt"] for row in rows] == ["List three\n\n1 and 2", "List three\n\n3 and {input}"]
    assert [row["text"] for row in rows] == ["x", "y"]
    assert rows[0]["input"] == {"a": "1", "b": "2"}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    lines = [{"messages": [*messages, {"role": "user", "content": "c"}]}, {"prompt": ""}]
    (home.home / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = home.run("batch", "in.jsonl", "-o", "-", "-p", "list", rows={}, seeds=["y"])
    last, empty = (json.loads(line) for line in done.out.splitlines())
    assert (done.code, last["prompt"], empty["prompt"]) == (6, "List three\n\nc", None)
    assert empty["error"]["type"] == "no_prompt"


def test_batch_records_the_text_of_a_saved_prompt(home: Home) -> None:
    (home.home / "in.txt").write_text("One?\n")

    def run(*more: str) -> Finished:
        return home.run("batch", "in.txt", "-o", "out.jsonl", *more, rows={"x": "x"}, seeds=["y"])

    assert run("-p", "list").code == 0
    assert run("-p", "list").code == 0
    meta = (home.home / "out.jsonl.meta.json").read_text()
    assert '"List three"' in meta and "use" not in json.loads(meta)["fingerprint"]
    home.config.write_text(home.config.read_text().replace("[prompts.list]", "[prompts.other]"))
    assert run("-p", "other").code == 0
    home.config.write_text(home.config.read_text().replace("List three", "List four"))
    changed = run("-p", "other")
    assert changed.code != 0
    assert "another prompt (List three, now List four)" in changed.err


# cerebrum chat.


def script(home: Home, text: str, *arguments: str) -> tuple[Finished, list[str]]:
    """A chat from a pipe, and the questions of its session."""
    done = home.run("chat", "--session", "s", *arguments, piped=text.encode())
    shown = home.run("sessions", "show", "s", "--json")
    messages = shown.object["messages"] if shown.code == 0 else []
    return done, [message["content"] for message in messages if message["role"] == "user"]


def shown_values(done: Finished, setting: str) -> list[str]:
    """Values of a setting that /set and /params have shown."""
    lines = (line.split() for line in done.err.splitlines())
    return [line[1] for line in lines if line[:1] == [setting]]


def test_chat_uses_a_saved_prompt_for_the_first_question(home: Home) -> None:
    done, questions = script(home, "birds\nshorter\n/params\n/use list\n/params\n/system\n", "-p", "sum", "-n", "5")
    assert done.code == 0, done.err
    assert questions == ["Sum up: birds\n{braces} {0} stay", "shorter"]
    assert shown_values(done, "temperature") == ["0.9", "0.1"]  # those of the prompt are removed with it
    assert shown_values(done, "max_tokens") == ["5", "5"]
    assert "no system prompt\n" in done.err


def test_chat_switches_saved_prompts(home: Home) -> None:
    lines = "/use\n/use sum\nit\n/set temperature\n/use tone\n/params\n/system\nmore\n/use list\n/system\nbirds\n"
    done, questions = script(home, lines)
    assert done.code == 0, done.err
    assert questions == ["Sum up: it\n{braces} {0} stay", "more", "List three\n\nbirds"]
    assert done.out.startswith("> /use\nname    model  prompt\nsum     -      Sum up: {input} {braces} {0} stay\n")
    assert "using sum for the next question\n" in done.err
    assert "using tone\n" in done.err
    assert shown_values(done, "max_tokens") == ["7"]
    assert shown_values(done, "temperature") == ["0.1", "0.1"]
    assert "system prompt: Be kind.\n" in done.err
    assert "no system prompt\n" in done.err


def test_chat_keeps_what_the_user_set_after_a_prompt(home: Home) -> None:
    done, _ = script(home, "/set top_k 3\n/system Mine.\n/use list\n/params\n/system\n", "-p", "sum")
    assert shown_values(done, "top_k") == ["3", "3"]
    assert done.err.count("system prompt: Mine.\n") == 2
    script(home, "One?\n", "-s", "Of the session.")
    done, _ = script(home, "/system\n/use list\n/system\n", "-p", "tone")
    assert done.err.index("system prompt: Be kind.") < done.err.index("system prompt: Of the session.")


def test_chat_refuses_what_it_cannot_apply(home: Home) -> None:
    problem = (
        "error: the saved prompt parsed sets schema, which has no effect in a chat\n hint: use cerebrum ask -p parsed\n"
    )
    done = home.run("chat", "-p", "parsed", piped=b"x\n")
    assert (done.code, done.err) == (2, problem)
    assert problem in script(home, "/use parsed\n")[0].err
    assert "error: no saved prompt named 'nothing'" in script(home, "/use nothing\n")[0].err
    assert " hint: saved prompts: sum, list" in script(home, "/use what is it\n")[0].err


FILE = '''\
# My settings.
top_k = 3  # few

# Two prompts.
[prompts.sum]  # short
temperature = 0.9  # warm
prompt = """
Sum up: {input}
[prompts.list]
"""

# The server.
[endpoints.lab]
url = "http://localhost:1"

# Another.
[prompts."a b"]
system = "Be kind."
'''
WITHOUT_SUM = """\
# My settings.
top_k = 3  # few

# Two prompts.
# The server.
[endpoints.lab]
url = "http://localhost:1"

# Another.
[prompts."a b"]
system = "Be kind."
"""


def editor(directory: Path, code: str) -> str:
    """An editor: a Python program that changes the text `text` of the file."""
    program = directory / "editor.py"
    opened = "import sys, pathlib\npath = pathlib.Path(sys.argv[-1])\ntext = path.read_text()"
    program.write_text(f"{opened}\n{code}\npath.write_text(text)\n")
    return f"'{sys.executable}' '{program}'"


# Text of config.toml.


def test_config_file_keeps_everything_else() -> None:
    assert without_prompt(FILE, "sum") == WITHOUT_SUM
    assert without_prompt(FILE, "a b") == FILE[: FILE.index('[prompts."a b"]')]
    assert with_prompt(FILE, "new", {"prompt": "x"}) == FILE + '\n[prompts.new]\nprompt = "x"\n'
    changed = with_prompt(FILE, "sum", {"temperature": 0.5, "system": "A\nB"})
    assert "temperature = 0.5 # warm\n" in changed.replace("  #", " #")
    assert 'system = """\nA\nB"""\n' in changed
    assert [line for line in FILE.splitlines() if "#" in line and "warm" not in line] == [
        line for line in changed.splitlines() if "#" in line and "warm" not in line
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        '[prompts]\na = {prompt = "x"}\nsum = {prompt = "y"}\n',
        'prompts.sum.prompt = "y"\nmodel = "z"\n',
        '[ prompts . "sum" ]\r\nprompt = "y"\r\n[endpoints.b]\r\nurl = "u"\r\n',
        '[prompts.a]\nprompt = "[prompts.sum]\\n"\n[prompts.sum]\nprompt = """\n[prompts.a]\n"""\n',
    ],
)
def test_config_file_is_written_in_many_ways(text: str) -> None:
    values = tomllib.loads(text)
    others = {key: table for key, table in values.get("prompts", {}).items() if key != "sum"}
    changed = tomllib.loads(with_prompt(text, "sum", {"prompt": "a\nb", "top_k": 1}))
    assert changed == {**values, "prompts": {**others, "sum": {"prompt": "a\nb", "top_k": 1}}}
    if "sum" in values.get("prompts", {}):
        removed = tomllib.loads(without_prompt(text, "sum"))
        assert {"prompts": {}, **removed} == {**values, "prompts": others}


def test_config_file_that_would_be_damaged_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        with_prompt('prompts = {a = {prompt = "x"}}\n', "sum", {"prompt": "y"})
    assert caught.value.hint == "edit the file: cerebrum prompts edit sum"


@given(st.text(st.characters(codec="utf-8")), st.text("ab_-.\"' é", min_size=1))
def test_prompt_table_holds_any_text(text: str, name: str) -> None:
    table = prompt_table(name, {"prompt": text, "stop": [text], "drafts": False, "temperature": 0.5})
    [(found, values)] = tomllib.loads(table)["prompts"].items()
    assert (found, values["prompt"], values["stop"]) == (name, text, [text])
    assert table_line(f"\n{table}", name) == 2


# cerebrum prompts list, show, rm.


def test_prompts_are_listed_and_shown(editable: Home) -> None:
    assert editable.run("prompts", "list").out == (
        "name  model  prompt\n"
        "sum   -      Sum up: {input} [prompts.list]\n"
        "a b   -      Be kind.\n"
    )  # fmt: skip
    first, second = editable.run("prompts", "list", "--json").object
    assert first == {
        "name": "sum",
        "prompt": "Sum up: {input}\n[prompts.list]",
        "system": None,
        "model": None,
        "schema": None,
        "extract": None,
        "settings": {"temperature": 0.9},
    }
    assert editable.run("prompts", "show", "a b", "--json").object == second
    assert editable.run("prompts", "show", "a b").out == '[prompts."a b"]\nsystem = "Be kind."\n'
    unknown = editable.run("prompts", "show", "su")
    assert (unknown.code, unknown.err.splitlines()[0]) == (2, "error: no saved prompt named 'su'")


def test_prompts_rm_deletes_what_is_confirmed(editable: Home) -> None:
    asked = editable.run("prompts", "rm", "sum")
    assert (asked.code, asked.err) == (1, "sum not deleted; confirm with -y\n")
    assert editable.run("prompts", "rm", "-y", "sum", "nothing").code == 2
    assert editable.text == FILE
    assert editable.run("prompts", "rm", "-y", "sum").err == "deleted sum\n"
    assert editable.text == WITHOUT_SUM
    editable.config.unlink()
    deleted = editable.run("prompts", "rm", "old")
    assert deleted.err.endswith(" hint: none are saved; create it with cerebrum prompts edit old\n")
    assert editable.run("prompts", "list").err == "no saved prompts; cerebrum prompts edit NAME creates one\n"
    assert editable.run("prompts", "list", "--json").object == []


def test_prompts_keep_permissions_and_symlinks(editable: Home) -> None:
    real = editable.home / "dotfiles" / "config.toml"
    real.parent.mkdir()
    editable.config.rename(real)
    editable.config.symlink_to(real)
    real.chmod(0o664)
    assert editable.run("prompts", "rm", "-y", "sum").code == 0
    assert editable.config.is_symlink() and real.read_text() == WITHOUT_SUM
    assert stat.S_IMODE(real.stat().st_mode) == 0o664
    assert os.listdir(real.parent) == ["config.toml"]


# cerebrum ask --save-prompt.


def test_ask_saves_what_is_typed_as_a_prompt(editable: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEREBRUM_MAX_TOKENS", "5")
    (editable.home / "a.json").write_text("{}")
    more = ("-s", "Be brief.", "--temperature", "0.5", "--stop", "x", "--schema", "a.json", "-m", "./m.gguf")
    done = editable.run("ask", "Sum up:\n\n{input}", *more, "--save-prompt", "new")
    assert (done.code, done.out) == (0, "")
    assert done.err == f"new saved in {editable.config}; use it with cerebrum ask -p new\n"
    assert editable.text.startswith(FILE + "\n[prompts.new]\n")
    assert tomllib.loads(editable.text)["prompts"]["new"] == {
        "model": str(editable.home / "m.gguf"),
        "system": "Be brief.",
        "temperature": 0.5,
        "stop": ["x"],
        "prompt": "Sum up:\n\n{input}",
        "schema": str(editable.home / "a.json"),
    }


def test_ask_replaces_a_prompt_only_if_confirmed(editable: Home) -> None:
    refused = editable.run("ask", "New", "--save-prompt", "sum")
    assert (refused.code, editable.text) == (2, FILE)
    assert refused.err.startswith("error: the saved prompt sum already exists\n hint: choose another name")
    assert editable.run("ask", "New", "--save-prompt", "sum", "-y").code == 0
    assert tomllib.loads(editable.text)["prompts"]["sum"] == {"prompt": "New"}
    assert "# short" in editable.text and "# The server." in editable.text
    editable.config.unlink()
    assert editable.run("ask", "-", "--save-prompt", "new", "-q", piped=b"From a pipe\n").err == ""
    assert editable.text == '[prompts.new]\nprompt = "From a pipe"\n'


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("x", "--votes", "3"), "--votes cannot be saved with a prompt"),
        (("x", "-p", "sum"), "--saved-prompt cannot be saved with a prompt"),
        (("-f", "a.txt"), "--file cannot be saved with a prompt"),
        (("-c", "x"), "--continue cannot be saved with a prompt"),
        ((), "nothing to save as new"),
        (("x", "--schema", "none.json"), "none.json: No such file or directory"),
        (("x", "--set", "no_profile=on"), "--set no_profile cannot be saved with a prompt"),
        (("x", "-x", "--schema", "config/cerebrum/config.toml"), "--extract and --schema cannot be used together"),
        (("x", "--save-prompt=-x"), "invalid prompt name: '-x'"),
        (("x", "--save-prompt=a b"), "invalid prompt name: 'a b'"),
    ],
)
def test_ask_reports_what_it_cannot_save(editable: Home, arguments: tuple[str, ...], problem: str) -> None:
    done = editable.run("ask", "--save-prompt", "new", *arguments)
    assert (done.code, done.err.splitlines()[0]) == (2, f"error: {problem}")
    assert editable.text == FILE


@pytest.mark.parametrize(("arguments", "value"), [(("-x",), True), (("-x", "-xpy"), "py")])
def test_ask_saves_which_code_block_is_extracted(editable: Home, arguments: tuple[str, ...], value: object) -> None:
    assert editable.run("ask", "x", *arguments, "--save-prompt", "new").code == 0
    assert tomllib.loads(editable.text)["prompts"]["new"] == {"prompt": "x", "extract": value}


# cerebrum prompts edit.


def test_prompts_edit_creates_a_table(editable: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    change = "assert '[prompts.new]\\n# prompt = ' in text\ntext = text.replace('# temperature', 'temperature')"
    monkeypatch.setenv("VISUAL", editor(editable.home, change))
    done = editable.run("prompts", "edit", "new")
    assert (done.code, done.err) == (0, f"new saved in {editable.config}\n")
    assert editable.text.startswith(FILE + "\n[prompts.new]\n# prompt = ")
    assert tomllib.loads(editable.text)["prompts"]["new"] == {"temperature": 0.2}


def test_prompts_edit_without_changes_adds_nothing(editable: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    vim = editable.home / "vim"
    vim.write_text('#!/bin/sh\necho "$@" > arguments\n')
    vim.chmod(0o700)
    monkeypatch.setenv("VISUAL", str(vim))
    assert editable.run("prompts", "edit", "a b").err == "no changes\n"
    assert (editable.home / "arguments").read_text() == f"+17 {editable.config}\n"  # the line of its table
    assert editable.run("prompts", "edit", "new").err == "no changes\n"
    monkeypatch.setenv("VISUAL", "false")
    failed = editable.run("prompts", "edit", "new")
    assert (failed.code, editable.text) == (2, FILE)
    assert failed.err.startswith("error: the editor false failed: ")
    editable.config.unlink()
    assert editable.run("prompts", "edit", "new").code == 2
    assert not editable.config.exists()


def test_prompts_edit_keeps_the_text_of_a_fault(editable: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", editor(editable.home, "text += 'prmpt = \"x\"\\n'"))
    done = editable.run("prompts", "edit", "a b")
    assert (done.code, editable.text) == (1, FILE + 'prmpt = "x"\n')
    problem = f"error: {editable.config}: [prompts.a b]: unknown key `prmpt`\n hint: did you mean prompt?"
    assert done.err.startswith(problem)
    assert done.err.endswith("run cerebrum prompts edit 'a b' to open the file again, with your text\n")
    editable.config.write_text(editable.text + "top_k = = 1\n")
    monkeypatch.setenv("VISUAL", editor(editable.home, "text = text.replace('prmpt', 'prompt').replace('= =', '=')"))
    assert editable.run("prompts", "edit", "a b").code == 0
    assert editable.run("prompts", "show", "a b", "--json").object["prompt"] == "x"
