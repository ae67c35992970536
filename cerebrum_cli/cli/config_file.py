"""Change the tables `[prompts.NAME]` in the text of config.toml; comments and all other lines stay as they are."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from shlex import quote
from typing import Any

from cerebrum_cli.core.config import PROMPTS, line_of
from cerebrum_cli.core.errors import ConfigError

SKELETON = '''\
# prompt = """
# Write a commit message for this change:
#
# {input}
# """
# system = "Be brief."
# model = "cerebrum-7b"
# temperature = 0.2
# schema = "answer.schema.json"  # relative to this file
# extract = true  # print only the first code block
'''
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def table_line(text: str, name: str) -> int | None:
    """Number of the line with the header of a prompt's table, from 1; None if it has no header of its own."""
    header = _header(name).search(text)
    return line_of(text, header.start()) if header else None


def with_skeleton(text: str, name: str) -> str:
    return f"{_separated(text)}[{PROMPTS}.{_key(name)}]\n{SKELETON}"


def with_prompt(text: str, name: str, values: Mapping[str, Any]) -> str:
    """Append a prompt's table, or change the existing one. Raises ConfigError if it is written in an unusual way."""
    import tomlkit

    expected = tomllib.loads(text)
    if name in expected.setdefault(PROMPTS, {}):
        document = tomlkit.parse(text)
        table: Any = document[PROMPTS][name]
        for key in [key for key in table if key not in values]:
            del table[key]
        for key, value in values.items():
            table[key] = _toml_value(value)
        changed = document.as_string()
    else:
        changed = _separated(text) + prompt_table(name, values)
    expected[PROMPTS][name] = dict(values)
    return _verified(changed, expected, name)


def without_prompt(text: str, name: str) -> str:
    """Remove a prompt's table, but not the comments before the next one. Raises ConfigError as `with_prompt` does."""
    import tomlkit

    expected = tomllib.loads(text)
    del expected[PROMPTS][name]
    document = tomlkit.parse(text)
    table: Any = document[PROMPTS][name]
    if header := _header(name).search(text):
        comments = [item.as_string() for key, item in table.value.body if key is None]
        body = table.as_string()
        kept = "".join(comments[len(comments) - _trailing(table) :])
        shortened = text[: header.start()] + kept.lstrip("\r\n") + text[header.end() + len(body) :]
        if _parses_to(shortened, expected):
            return shortened
    del document[PROMPTS][name]
    return _verified(document.as_string(), expected, name)


def prompt_table(name: str, values: Mapping[str, Any]) -> str:
    import tomlkit

    table = tomlkit.table()
    for key, value in values.items():
        table[key] = _toml_value(value)
    return f"[{PROMPTS}.{_key(name)}]\n{table.as_string()}"


def _toml_value(value: Any) -> Any:
    """Text of several lines on lines of its own."""
    import tomlkit

    if not isinstance(value, str) or "\n" not in value or "\r" in value or value.startswith("\n"):
        return value
    return tomlkit.value('"""\n' + tomlkit.string(value, multiline=True).as_string().removeprefix('"""'))


def _trailing(table: Any) -> int:
    body = table.value.body
    return next((count for count, (key, _) in enumerate(reversed(body)) if key is not None), len(body))


def _verified(text: str, expected: Mapping[str, Any], name: str) -> str:
    if not _parses_to(text, expected):
        problem = f"[{PROMPTS}.{name}] is written in a form that cannot be changed automatically"
        raise ConfigError(problem, f"edit the file: cerebrum prompts edit {quote(name)}")
    return text


def _parses_to(text: str, expected: Mapping[str, Any]) -> bool:
    """Whether the values of a text are the expected ones; a missing group of prompts is an empty one."""
    try:
        return {PROMPTS: {}, **tomllib.loads(text)} == {PROMPTS: {}, **expected}
    except (ValueError, RecursionError):
        return False


def _separated(text: str) -> str:
    return f"{text.rstrip()}\n\n" if text.strip() else ""


def _header(name: str) -> re.Pattern[str]:
    keys = "|".join(map(re.escape, dict.fromkeys((_key(name), json.dumps(name, ensure_ascii=False), f"'{name}'"))))
    return re.compile(rf"^[ \t]*\[[ \t]*{PROMPTS}[ \t]*\.[ \t]*(?:{keys})[ \t]*\][^\n]*\n?", re.MULTILINE)


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else json.dumps(name, ensure_ascii=False)
