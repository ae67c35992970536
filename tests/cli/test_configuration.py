"""`cerebrum config`: config.toml when it is set by many at once, and edited; transcripts/config.txt has the rest."""

import tomllib
from pathlib import Path

import pytest
from command_line import CommandLine, assert_error


@pytest.fixture
def user(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


def test_settings_that_are_set_at_once_are_all_kept(user: CommandLine) -> None:
    settings = {"temperature": 0.1, "max_tokens": 11, "seed": 12, "top_k": 13, "ctx": 1111, "threads": 1, "top_p": 0.5}
    processes = [user.start("config", "set", key, str(value)) for key, value in settings.items()]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert tomllib.loads((user.config / "config.toml").read_text()) == settings
    assert [path.name for path in user.config.iterdir()] == ["config.toml"]


def test_the_file_is_edited_and_checked_and_keeps_its_permissions(user: CommandLine) -> None:
    file = user.config / "config.toml"
    file.touch()
    file.chmod(0o644)
    (user.home / "editor").write_text('#!/bin/sh\nprintf "foo = 3\\r\\nvi = true\\r\\n" > "$1"')
    (user.home / "editor").chmod(0o755)
    editor = {"EDITOR": str(user.home / "editor")}
    assert_error(user.run("config", "edit", env=editor), 2, "config.toml:1: unknown key `foo`")
    assert file.read_bytes() == b"foo = 3\r\nvi = true\r\n"
    assert user.run("config", "set", "vi", "off").code == 0
    assert file.read_bytes() == b"foo = 3\r\nvi = false\r\n"
    assert file.stat().st_mode & 0o777 == 0o644
