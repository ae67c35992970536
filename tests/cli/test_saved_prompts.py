"""Saved prompts: how config.toml defines them, and what `ask`, `chat` and `batch` do with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, Finished
from person import OpenTerminal
from scripted_command import run_here
from templates import chatml_prompt

from cerebrum_cli.core.config import SavedPrompt, read_config
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
SCHEMA = '{"type": "object"}'


class Home:
    """A user with one model, scripted, and saved prompts."""

    def __init__(self, user: CommandLine) -> None:
        self.home = user.home
        self.config = user.config / "config.toml"
        self.config.write_text(CONFIG, encoding="utf-8")
        (user.config / "answer.json").write_text(SCHEMA, encoding="utf-8")

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
    monkeypatch.chdir(user.home)
    return Home(user)


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
        ("prompts = 1", "`prompts` must contain only tables"),
        ("[prompts]\nsum = 1", "`prompts` must contain only tables"),
        ("[prompts.sum]\nprmpt = 'x'", "[prompts.sum]: unknown key `prmpt`"),
        ("[prompts.sum]\nprompt = ' '", "[prompts.sum]: prompt is ' '"),
        ("[prompts.sum]\nprompt = 1", "[prompts.sum]: prompt is 1"),
        ("[prompts.sum]\nschema = {}", "[prompts.sum]: schema is {}"),
        ("[prompts.sum]\nextract = 1", "[prompts.sum]: extract is 1"),
        ("[prompts.sum]\nextract = ''", "[prompts.sum]: extract is ''"),
        ("[prompts.sum]\nextract = true\nschema = 'x'", "[prompts.sum]: extract and schema cannot be used together"),
        ("[prompts.sum]\ntop_p = 2", "[prompts.sum]: top_p is 2"),
    ],
)
def test_config_reports_an_invalid_saved_prompt(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert caught.value.message == f"{path}: {problem}"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("prompt", "input", "question"),
    [
        (None, "a", "a"),
        (None, "", ""),
        ("List three", "", "List three"),
        ("List three", "of {input}", "List three\n\nof {input}"),
        ("A {input}. {0} {x} {{}} {input}!", "{input}", "A {input}. {0} {x} {{}} {input}!"),
    ],
)
def test_saved_prompt_fills_in_the_input(prompt: str | None, input: str, question: str) -> None:
    assert SavedPrompt("p", {}, prompt).fill(input) == question


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


@pytest.mark.parametrize(
    ("value", "code"), [("true", "1;\n"), ('"last"', "3\n"), ('"python"', "2\n"), ("false", BLOCKS)]
)
def test_saved_prompt_extracts_a_code_block(home: Home, value: str, code: str) -> None:
    home.config.write_text(f"[prompts.code]\nextract = {value}\n")
    assert home.run("ask", "-p", "code", "x", reply=BLOCKS).out == code


def test_typed_options_override_a_saved_extraction(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.config.write_text('[prompts.code]\nextract = "last"\n')
    monkeypatch.setenv("CEREBRUM_EXTRACT", "python")
    assert home.run("ask", "-p", "code", "x", reply=BLOCKS).out == "3\n"
    assert home.run("ask", "-p", "code", "x", "--extract=c", reply=BLOCKS).out == "1;\n"
    monkeypatch.setenv("CEREBRUM_FINAL", "1")
    assert home.run("ask", "-p", "code", "x", reply=BLOCKS).out == "3\n"
    monkeypatch.delenv("CEREBRUM_EXTRACT")
    assert home.run("ask", "-p", "code", "x", "--final", reply="The answer is 4.").out == "4\n"
    voted = home.run("ask", "-p", "code", "x", "--votes", "2", reply="The answer is 4.")
    assert (voted.code, voted.err) == (0, "")


def test_batch_and_chat_refuse_a_saved_extraction(home: Home) -> None:
    home.config.write_text("[prompts.code]\nextract = true\n")
    (home.home / "in.txt").write_text("One?\n")
    for use, arguments in (("a batch", ("batch", "in.txt", "-o", "-")), ("a chat", ("chat",))):
        done = home.run(*arguments, "-p", "code", piped=b"x\n")
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"error: the saved prompt code sets extract, which {use} cannot apply\n")


def test_saved_session_holds_the_question_and_not_the_name(home: Home) -> None:
    assert home.run("ask", "-p", "list", "birds").out == "Yes.\n"
    shown = home.run("sessions", "show", "list-three-birds", "--json").object
    assert [message["content"] for message in shown["messages"]] == ["List three\n\nbirds", "Yes."]
    assert home.run("ask", "-c", "-p", "tone", "More?").code == 0
    assert home.run("sessions", "show", "list-three-birds", "--json").object["system_prompt"] == "Be kind."


# cerebrum batch.


def test_batch_fills_in_each_row_after_the_template(home: Home) -> None:
    (home.home / "in.csv").write_text("a,b\n1,2\n3,{input}\n")
    more = ("--template", "{a} and {b}", "-p", "list", "--include-input")
    done = home.run("batch", "in.csv", "-o", "-", *more, rows={"1 and 2": "x"}, seeds=["y"])
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["prompt"] for row in rows] == ["List three\n\n1 and 2", "List three\n\n3 and {input}"]
    assert [row["text"] for row in rows] == ["x", "y"]
    assert rows[0]["input"] == {"a": "1", "b": "2"}


def test_batch_keeps_errors_and_messages_of_rows(home: Home) -> None:
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": text} for role, text in zip(roles, "abc", strict=True)]
    lines = [{"messages": messages}, {"prompt": ""}, {"prompt": "x", "temperature": 0.3}]
    (home.home / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = home.run("batch", "in.jsonl", "-o", "-", "-p", "list", rows={"x": "x"}, seeds=["y"])
    assert done.code == 6
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["prompt"] for row in rows] == ["List three\n\nc", None, "List three\n\nx"]
    assert rows[1]["error"]["type"] == "no_prompt"


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
    lines = (line.split(maxsplit=1) for line in done.err.splitlines())
    return [line[1] for line in lines if line[:1] == [setting]]


def test_chat_uses_a_saved_prompt_for_the_first_question(home: Home) -> None:
    done, questions = script(home, "birds\nshorter\n", "-p", "list")
    assert done.code == 0, done.err
    assert questions == ["List three\n\nbirds", "shorter"]


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


def test_chat_removes_the_settings_of_an_earlier_prompt(home: Home) -> None:
    done, _ = script(home, "/params\n/use list\n/params\n/system\n", "-p", "sum", "-n", "5")
    assert shown_values(done, "temperature") == ["0.9", "0.1"]
    assert shown_values(done, "max_tokens") == ["5", "5"]
    assert "no system prompt\n" in done.err


def test_chat_keeps_what_the_user_set_after_a_prompt(home: Home) -> None:
    done, _ = script(home, "/set top_k 3\n/system Mine.\n/use list\n/params\n/system\n", "-p", "sum")
    assert shown_values(done, "top_k") == ["3", "3"]
    assert done.err.count("system prompt: Mine.\n") == 2


def test_chat_restores_the_system_prompt_of_its_session(home: Home) -> None:
    script(home, "One?\n", "-s", "Of the session.")
    done, _ = script(home, "/system\n/use list\n/system\n", "-p", "tone")
    assert done.err.index("system prompt: Be kind.") < done.err.index("system prompt: Of the session.")


def test_chat_refuses_what_it_cannot_apply(home: Home) -> None:
    problem = "error: the saved prompt parsed sets schema, which a chat cannot apply\n hint: cerebrum ask -p parsed\n"
    done = home.run("chat", "-p", "parsed", piped=b"x\n")
    assert (done.code, done.err) == (2, problem)
    assert problem in script(home, "/use parsed\n")[0].err
    assert "error: no saved prompt named 'nothing'" in script(home, "/use nothing\n")[0].err
    assert " hint: saved prompts: sum, list" in script(home, "/use what is it\n")[0].err


@pytest.mark.slow
def test_chat_completes_and_shows_a_saved_prompt(open_chat: OpenTerminal, new_user: CommandLine) -> None:
    (new_user.config / "config.toml").write_text(CONFIG)
    person = open_chat("Fine.")
    person.type("/use li\t")
    person.wait_for("/use list")
    person.type("\r")
    person.wait_for("using list for the next question")
    person.wait_for("with list")
    person.type("birds\r")
    person.wait_for("Fine.")
    assert not any("with list" in line for line in person.screen.lines)
