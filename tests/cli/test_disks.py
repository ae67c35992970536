"""Disks that are full or cannot be written: one error that names the file, and whatever only reads still works."""

import json

import pytest
from command_line import ROOT, CommandLine, Finished, assert_error, start_python

QUESTION = '{"id": 1, "question": "What is 1 plus 2?", "answer": "3"}\n'
READ_ONLY_HOME = """
import json, subprocess, sys
from pathlib import Path

home, program, commands = sys.argv[1:]
bind = ["bwrap", "--dev-bind", "/", "/", "--ro-bind", home, home]
sys.exit(subprocess.run([*bind, sys.executable, "-c", program, home, commands]).returncode)
"""
RUN_ALL = """
import json, sys
from dataclasses import astuple
from pathlib import Path
from command_line import CommandLine

user = CommandLine(Path(sys.argv[1]))
print(json.dumps([astuple(user.run(*command)) for command in json.loads(sys.argv[2])]))
"""


def run_on_read_only_disk(user: CommandLine, *commands: tuple[str, ...]) -> list[Finished]:
    user.vouch_for_models()
    with start_python(READ_ONLY_HOME, user.home, RUN_ALL, json.dumps(commands), home=user.home) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    return [Finished(*done) for done in json.loads(out)]


@pytest.mark.slow
@pytest.mark.usefixtures("bubblewrap")
def test_read_only_disk_is_read_and_errors_name_the_file(new_user: CommandLine) -> None:
    (new_user.home / "q.jsonl").write_text(QUESTION)
    (new_user.config / "prompts").mkdir()
    (new_user.config / "prompts" / "saved.md").touch()
    for command in (("ask", "-m", "nano", "--session", "mine", "What is 1 plus 2?"), ("eval", "q.jsonl", "-m", "nano")):
        assert new_user.run(*command).code == 0
    listed, shown, asked, *refused = run_on_read_only_disk(
        new_user,
        ("sessions", "list", "--json"),
        ("runs", "show", "q-nano.jsonl", "--json"),
        ("ask", "-m", "nano", "What is 1 plus 2?"),
        ("prompts", "rm", "saved", "-y"),
        ("prompts", "edit", "new"),
        ("eval", "q.jsonl", "-m", "nano", "--samples", "2"),
        ("sessions", "rm", "mine", "-y"),
    )
    assert [session["name"] for session in listed.object] == ["mine"]
    assert shown.code == 0
    assert asked.code == 0 and "this exchange was not saved: " in asked.err
    for done, place in zip(refused, ("saved.md", "new.md", "not writable", "locks"), strict=True):
        assert_error(done, done.code, place)
        assert done.code in (1, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("bubblewrap")
def test_empty_read_only_disk_has_no_sessions(new_user: CommandLine) -> None:
    (new_user.home / "q.jsonl").write_text(QUESTION)
    listed, searched, evaluated = run_on_read_only_disk(
        new_user, ("sessions", "list", "--json"), ("sessions", "search", "x"), ("eval", "q.jsonl", "-m", "nano")
    )
    assert (listed.code, listed.out) == (0, "[]\n")
    assert searched.code == 0
    assert_error(evaluated, 2, "is not writable")


def test_full_disk_for_temporary_files_is_an_error(new_user: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    unverified = new_user.home / "own.gguf"
    unverified.write_bytes((ROOT / "cerebrum_cli" / "data" / "nano.gguf").read_bytes())

    def no_space(*_: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("cerebrum_cli.engine.llama.first_load.TemporaryFile", no_space)
    done = new_user.run("ask", "-m", str(unverified), "--no-log", "Hi")
    assert_error(done, 1, "error: No usable temporary directory found in ['/tmp']", "set TMPDIR")
