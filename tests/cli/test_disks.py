"""Disks that are full or cannot be written: one error that names the file, and whatever only reads still works."""

import subprocess

import pytest
from command_line import COMMAND, ROOT, CommandLine, Finished, assert_error

QUESTION = '{"id": 1, "question": "What is 1 plus 2?", "answer": "3"}\n'


def read_only(user: CommandLine, *words: str) -> Finished:
    """Run a command that cannot write to the home directory."""
    user.vouch_for_models()
    bound = ("bwrap", "--dev-bind", "/", "/", "--ro-bind", str(user.home), str(user.home), COMMAND)
    done = subprocess.run([*bound, *words], env=user.environment(), cwd=user.home, capture_output=True, text=True)
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
@pytest.mark.usefixtures("bubblewrap")
def test_read_only_disk_is_read_and_errors_name_the_file(new_user: CommandLine) -> None:
    (new_user.home / "q.jsonl").write_text(QUESTION)
    (new_user.config / "prompts").mkdir()
    (new_user.config / "prompts" / "saved.md").touch()
    for command in (("ask", "-m", "nano", "--session", "mine", "What is 1 plus 2?"), ("eval", "q.jsonl", "-m", "nano")):
        assert new_user.run(*command).code == 0
    assert [session["name"] for session in read_only(new_user, "sessions", "list", "--json").object] == ["mine"]
    assert read_only(new_user, "runs", "show", "q-nano.jsonl", "--json").code == 0
    asked = read_only(new_user, "ask", "-m", "nano", "What is 1 plus 2?")
    assert asked.code == 0 and "this exchange was not saved: " in asked.err
    assert_error(read_only(new_user, "prompts", "rm", "saved", "-y"), 1, "saved.md")
    assert_error(read_only(new_user, "prompts", "edit", "new"), 2, "new.md")
    assert_error(read_only(new_user, "eval", "q.jsonl", "-m", "nano", "--samples", "2"), 2, "not writable")
    assert_error(read_only(new_user, "sessions", "rm", "mine", "-y"), 1, "locks")


@pytest.mark.slow
@pytest.mark.usefixtures("bubblewrap")
def test_empty_read_only_disk_has_no_sessions(new_user: CommandLine) -> None:
    (new_user.home / "q.jsonl").write_text(QUESTION)
    listed = read_only(new_user, "sessions", "list", "--json")
    assert (listed.code, listed.out) == (0, "[]\n")
    assert read_only(new_user, "sessions", "search", "x").code == 0
    assert_error(read_only(new_user, "eval", "q.jsonl", "-m", "nano"), 2, "is not writable")


def test_full_disk_for_temporary_files_is_an_error(new_user: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    unverified = new_user.home / "own.gguf"
    unverified.write_bytes((ROOT / "cerebrum_cli" / "data" / "nano.gguf").read_bytes())

    def no_space(*_: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("cerebrum_cli.engine.llama.first_load.TemporaryFile", no_space)
    done = new_user.run("ask", "-m", str(unverified), "--no-log", "Hi")
    assert_error(done, 1, "error: No usable temporary directory found in ['/tmp']", "set TMPDIR")
