"""`--set KEY=VALUE`: settings by their names, with their variables and shorthands, and the table `--set help`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, Finished, assert_error
from typer.main import get_command

from cerebrum_cli.cli import COMMANDS
from cerebrum_cli.main import assembled

MOST_OPTIONS = {"ask": 38}
MOST = 42  # of any other command


def saved(user: CommandLine, *arguments: str, **variables: str) -> dict[str, Any]:
    """Settings that a command line gives, as they are saved with a prompt."""
    done = user.run("ask", "-y", "--save-prompt", "p", "x", *arguments, env=variables)
    assert done.code == 0, done.err
    table: dict[str, Any] = tomllib.loads(user.run("prompts", "show", "p").out)["prompts"]["p"]
    return {key: value for key, value in table.items() if key != "prompt"}


def ask(user: CommandLine, *arguments: str, **variables: str) -> Finished:
    return user.run("ask", "-m", "missing", "hi", *arguments, env=variables)


@pytest.fixture
def home(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


def test_set_reaches_settings_with_and_without_flags(home: CommandLine) -> None:
    given = ("temperature=0.5", "repeat-penalty=1.1", "drafts=on", "system=", "gpu_layers=all", "logit_bias==1=-2")
    assert saved(home, *(word for each in given for word in ("--set", each))) == {
        "temperature": 0.5,
        "repeat_penalty": 1.1,
        "drafts": True,
        "system": "",
        "gpu_layers": "all",
        "logit_bias": ["=1=-2"],
    }


def test_set_joins_lists_and_takes_the_last_of_other_values(home: CommandLine) -> None:
    lists = ("--set", "stop=a b", "--set", "stop='c d' e", "--set", "seed=1", "--set=seed=2")
    assert saved(home, *lists) == {"stop": ["a b", "c d", "e"], "seed": 2}


def test_set_cache_type_sets_keys_and_values(home: CommandLine) -> None:
    both = {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}
    assert saved(home, "--set", "cache_type=q8_0") == both
    (home.config / "config.toml").write_text('[prompts.q]\ncache_type = "q8_0"\n')
    assert home.run("prompts", "show", "q", "--json").object["settings"] == both


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--set", "temprature=1"), ("--set temprature", "did you mean temperature?", "--set help")),
        (("--set", "overflow=stop"), ("--set overflow: this command has no such setting",)),
        (("--set", "top_k"), ("--set top_k has no value", "--set top_k=VALUE")),
        (("--set", "top_k=-1"), ("--set top_k is -1", "it must be a whole number of 0 or more")),
        (("--set", "min_p=x"), ("--set min_p is 'x'", "from 0 to 1")),
        (("--set", "flash_attn=maybe"), ("--set flash_attn is 'maybe'", "auto, on or off")),
        (("--seed", "1", "--set", "seed=2"), ("--seed and --set seed are both given",)),
    ],
)
def test_set_reports_what_it_cannot_read(home: CommandLine, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    assert_error(ask(home, *arguments), 2, *parts)


def test_set_takes_precedence_over_variables_and_saved_prompts(home: CommandLine, chatml_model: Path) -> None:
    assert_error(ask(home, CEREBRUM_MIROSTAT="1", CEREBRUM_TYPICAL_P="2"), 2, "CEREBRUM_TYPICAL_P is 2.0")
    assert_error(ask(home, CEREBRUM_CACHE_TYPE="q5"), 2, "CEREBRUM_CACHE_TYPE is 'q5'")
    (home.config / "config.toml").write_text('system = "no"\n[prompts.p]\nsystem = "saved"\n')
    arguments = ("ask", "-m", chatml_model, "--dry-run", "-q", "-p", "p", "hi")
    variable = {"CEREBRUM_SYSTEM": "variable"}
    assert "saved" in home.run(*arguments, env=variable).out
    assert "given" in home.run(*arguments, "--set", "system=given", env=variable).out


def test_set_help_prints_the_settings_of_a_command(home: CommandLine) -> None:
    done = home.run("ask", "--set", "help")
    assert (done.code, done.err) == (0, "")
    head, *lines = (re.split(r"  +", line.rstrip()) for line in done.out.splitlines())
    assert head == ["key", "default", "range", "meaning"]
    assert ["top_k", "40", "a whole number of 0 or more", "Keep the K likeliest tokens; 0: all"] in lines
    keys = [line[0] for line in lines]
    assert {"repeat_penalty", "cache_type", "drafts", "cache_gb", "template_arg"} <= {*keys}
    assert not {"overflow", "vi", "batch_invariant", "cache_type_k"} & {*keys}
    assert "batch_invariant" in home.run("batch", "--set", "help").out
    assert "overflow" in home.run("chat", "--set", "help").out


def test_commands_show_few_options() -> None:
    group: Any = get_command(assembled())
    for row in COMMANDS:
        command = group.commands[row.name]
        for each in (command, *getattr(command, "commands", {}).values()):
            context = each.context_class(each, help_option_names=["-h", "--help"])
            shown = re.findall(r"^  -", each.get_help(context), re.M)
            assert 0 < len(shown) <= MOST_OPTIONS.get(each.name, MOST), each.name
