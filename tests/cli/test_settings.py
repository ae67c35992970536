"""Settings: layers of partial values, folded into one validated value; config.toml and `--set KEY=VALUE` are two."""

import os
import tomllib
from typing import Any

import pytest
from command_line import CommandLine, assert_error

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import OPTIONS, Settings, fold


def test_settings_later_layers_override_and_none_is_ignored() -> None:
    row, config = {"temperature": 0.7, "top_k": 5}, {"temperature": 0.2, "seed": 3}
    assert fold(row, config, {"temperature": 0, "seed": None}) == Settings(temperature=0.0, top_k=5, seed=3)
    assert fold() == fold({}, {"seed": None}) == Settings()


def test_settings_of_a_mode_apply_while_the_merged_think_is_on_or_off() -> None:
    row = {"temperature": 1.0, "think": "on", "thinking": {"top_k": 5}, "no_thinking": {"temperature": 0.7, "top_k": 7}}
    assert fold(row) == fold(row, {"think": 64}, {"think": "on"}) == Settings(temperature=1.0, top_k=5, think="on")
    assert fold(row, {"top_k": 1}, {"think": False}) == Settings(temperature=0.7, top_k=1, think="off")
    assert fold({**row, "think": None}) == Settings(temperature=1.0)


def test_settings_convert_each_value_to_its_type() -> None:
    values: dict[str, Any] = {"lora": ("style.gguf", "tone.gguf:-0.5"), "no_log": True, "cache_gb": 0.5, "system": ""}
    assert fold(values) == Settings(**values)
    assert isinstance(fold({"temperature": 1}).temperature, float)
    assert fold({"gpu_layers": 12, "cpu_moe": 8}) == Settings(gpu_layers="12", cpu_moe="8")
    assert fold({"stop": "one"}).stop == ("one",)
    assert fold({"stop": ["one", "two"]}).stop == ("one", "two")
    with pytest.raises(UsageError, match=r"^invalid .*: 1$"):
        OPTIONS["stop"].validate(["a", 1])


def test_settings_refuse_text_that_is_not_utf_8_unless_it_may_name_a_file() -> None:
    with pytest.raises(UsageError, match=r"^invalid --system: '\\udcff'$") as refused:
        OPTIONS["system"].validate("\udcff")
    assert refused.value.hint == "it must be UTF-8 text"
    assert fold({"model": "\udcff.gguf"}).model == "\udcff.gguf"


EDIT_OR_MOVE = "edit the file, or move it elsewhere"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"stop = {'[' * 5000}{']' * 5000}", "invalid TOML: maximum recursion depth exceeded"),
        (f"top-k = {'9' * 5000}", "invalid TOML: Exceeds the limit"),
        (f"top-k = 0x{'f' * 5000}", "invalid TOML: Exceeds the limit"),
        ("#" * 16_000_001, "larger than 16 MB"),
    ],
)
def test_config_that_cannot_be_read_is_one_line(new_user: CommandLine, text: str, problem: str) -> None:
    path = new_user.config / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert_error(new_user.run("ask", "hi"), 2, f"{path}: {problem}", EDIT_OR_MOVE)


def test_own_files_that_are_not_regular_are_never_waited_for(new_user: CommandLine) -> None:
    for name in ("config/cerebrum/config.toml", "data/cerebrum/models/registry.json"):
        path = new_user.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
        done = new_user.run("list")
        assert f"{path}: not a regular file\n" in done.err
        path.unlink()
    os.mkfifo(new_user.home / "tools.py")
    assert_error(new_user.run("ask", "-m", "nano", "--tool", "tools.py", "hi"), 2, "tools.py: not a regular file")


# `cerebrum config`, when many set config.toml at once, and when it is edited; transcripts/config.txt has the rest.


def test_settings_that_are_set_at_once_are_all_kept(new_user: CommandLine) -> None:
    settings = {"temperature": 0.1, "max_tokens": 11, "seed": 12, "top_k": 13, "ctx": 1111, "threads": 1, "top_p": 0.5}
    processes = [new_user.start("config", "set", key, str(value)) for key, value in settings.items()]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert tomllib.loads((new_user.config / "config.toml").read_text()) == settings
    assert [path.name for path in new_user.config.iterdir()] == ["config.toml"]


def test_the_file_is_edited_and_checked_and_keeps_its_permissions(new_user: CommandLine) -> None:
    file = new_user.config / "config.toml"
    file.touch()
    file.chmod(0o644)
    (new_user.home / "editor").write_text('#!/bin/sh\nprintf "foo = 3\\r\\nvi = true\\r\\n" > "$1"')
    (new_user.home / "editor").chmod(0o755)
    editor = {"EDITOR": str(new_user.home / "editor")}
    assert_error(new_user.run("config", "edit", env=editor), 2, "config.toml:1: unknown key `foo`")
    assert file.read_bytes() == b"foo = 3\r\nvi = true\r\n"
    assert new_user.run("config", "set", "vi", "off").code == 0
    assert file.read_bytes() == b"foo = 3\r\nvi = false\r\n"
    assert file.stat().st_mode & 0o777 == 0o644
