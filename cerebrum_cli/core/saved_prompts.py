"""Saved prompts: one Markdown file each, with settings in a TOML header between +++ lines, and the prompt below."""

from __future__ import annotations

import json
from dataclasses import field
from pathlib import Path
from shlex import quote

from cerebrum_cli.core.config import parse_toml, read_config_text, read_settings
from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.grammar import schema_file
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.settings import SAVED_PROMPT, SourcedLayer
from cerebrum_cli.core.text import did_you_mean

SUFFIX = ".md"
FENCE = "+++"
INPUT = "{input}"  # in a prompt, the place of the question
PROMPT_KEYS = ("schema", "extract")  # of a header, besides settings
OBJECT_KEYS = ("prompt", "system", "model", *PROMPT_KEYS)


@frozen
class SavedPrompt:
    """Settings and a prompt under a name; `schema` is a JSON Schema that constrains the answer, or its file.

    `extract` is the code block that is printed: True for the first, "last", or the first in a language.
    """

    name: str
    settings: JsonObject = field(default_factory=dict)
    prompt: str | None = None
    schema: str | None = None
    extract: bool | str = False

    def fill(self, input: str) -> str:
        """The question for an input, which may be empty unless the prompt has a place for it. Raises UsageError."""
        if self.prompt is None:
            return input
        if INPUT not in self.prompt:
            return f"{self.prompt}\n\n{input}" if input else self.prompt
        if not input:
            problem = f"the saved prompt {self.name} uses {INPUT}, but no input was given"
            raise UsageError(problem, "give it as an argument, in a file with -f, or through a pipe")
        return self.prompt.replace(INPUT, input)

    def require_without(self, use: str, *keys: str) -> None:
        """Raise UsageError if the prompt sets a key that has no effect in a use."""
        for key in keys:
            if getattr(self, key):
                problem = f"the saved prompt {self.name} sets {key}, which has no effect in {use}"
                raise UsageError(problem, f"use cerebrum ask -p {quote(self.name)}")

    @property
    def header(self) -> JsonDict:
        """Keys and values of the header, as TOML has them."""
        values = {}
        for key, value in self.settings.items():
            values[key] = list(map(str, value)) if isinstance(value, tuple) else value
        if self.schema:
            values["schema"] = self.schema
        if self.extract:
            values["extract"] = self.extract
        return values

    def file_text(self) -> str:
        lines = [FENCE]
        for key, value in self.header.items():
            text = json.dumps(value, ensure_ascii=False)  # which differs from TOML in one character
            lines.append(f"{key} = {text}".replace("\x7f", "\\u007f"))
        lines.append(FENCE)
        if self.prompt:
            lines.append(self.prompt)
        return "\n".join(lines) + "\n"

    def as_object(self) -> JsonDict:
        settings = self.header
        own = {key: settings.pop(key, None) for key in OBJECT_KEYS}
        return {"name": self.name, **own, "prompt": self.prompt, "settings": settings}


@frozen
class PromptDirectory:
    """The directory of a user's saved prompts; a file is read when its prompt is needed."""

    path: Path

    def names(self) -> list[str]:
        return sorted(file.stem for file in self.path.glob(f"[!.]*{SUFFIX}"))

    def file(self, name: str) -> Path:
        return self.path / f"{name}{SUFFIX}"

    def find_file(self, name: str, is_option: bool = False) -> Path:
        """The file of a prompt whose name is an argument, or the value of -p. Raises UsageError if there is none."""
        names = self.names()
        if name in names:
            return self.file(name)
        hint = f"{did_you_mean(name, names)}list all with cerebrum prompts list"
        if is_option and len(name.split()) > 1:
            hint = f"-p takes the name of a saved prompt; the question is an argument: cerebrum ask {quote(name)}"
        raise UsageError(f"no saved prompt named {name!r}", hint)

    def find(self, name: str, is_option: bool = False) -> SavedPrompt:
        """Read a prompt by its name. Raises UsageError if there is none, and ConfigError with file and key."""
        return read_prompt(self.find_file(name, is_option))

    def read_all(self) -> list[SavedPrompt]:
        return [read_prompt(self.file(name)) for name in self.names()]


def read_prompt(path: Path) -> SavedPrompt:
    """Read the file of a prompt; paths in its header are relative to its directory. Raises ConfigError."""
    header, prompt = split_header(read_config_text(path).replace("\r\n", "\n"), path)
    values = parse_toml(header, path)
    schema = values.pop("schema", None)
    extract = values.pop("extract", False)
    where = f"{path}: "
    if schema is not None and not (isinstance(schema, str) and schema):
        raise ConfigError.invalid("schema", schema, "a JSON Schema, or the path of one", where)
    if not isinstance(extract, (bool, str)) or extract == "":
        raise ConfigError.invalid("extract", extract, 'true, "last", or a language like "python"', where)
    if extract and schema:
        raise ConfigError.conflict("extract", "schema", "remove one of them", where)
    settings = SourcedLayer(read_settings(values, header, path, PROMPT_KEYS), origin=SAVED_PROMPT)
    if schema and (file := schema_file(schema, path.parent)):
        schema = str(file)
    return SavedPrompt(path.stem, settings, prompt.strip("\n") or None, schema, extract)


def split_header(text: str, path: Path) -> tuple[str, str]:
    """The header, which keeps its line numbers, and what is below it. Raises ConfigError if its end is missing."""
    if not text.startswith(FENCE):
        return "", text
    header, fence, prompt = text.removeprefix(FENCE).partition(f"\n{FENCE}")
    if not fence:
        raise ConfigError(f"{path}: the header has no end", f"add a line with {FENCE} below the settings")
    return header, prompt
