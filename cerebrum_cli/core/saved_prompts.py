"""Saved prompts: one Markdown file each, with settings in a TOML header between +++ lines, and the prompt below.

In the prompt and in the system prompt, `{input}` stands for the question and any other `{name}` for a value, which the
table `[defaults]` of the header may have. `{{name}}` is the literal text `{name}`; all other braces are text.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from pathlib import Path

from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.grammar import schema_file
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.settings import SAVED_PROMPT, SourcedLayer, parse_toml, read_config_text, read_settings
from cerebrum_cli.core.text import Texts, did_you_mean, well_formed

SUFFIX = ".md"
FENCE = "+++"
INPUT = "input"  # the placeholder of the question
PROMPT_KEYS = ("schema", "extract", "defaults")  # of a header, besides settings
_PLACEHOLDER = re.compile(r"\{(?P<literal>\{[^\W\d]\w*\})\}|\{(?P<name>[^\W\d]\w*)\}")


@frozen
class SavedPrompt:
    """Settings and a prompt under a name; `schema` is a JSON Schema that constrains the answer, or its file.

    `extract` is the code block that is printed: True for the first, "last", or the first in a language. `values` are
    those of placeholders, at first the defaults.
    """

    name: str
    settings: JsonObject = field(default_factory=dict)
    prompt: str | None = None
    schema: str | None = None
    extract: bool | str = False
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def placeholders(self) -> Texts:
        """Names of the values in its prompt and its system prompt."""
        names = [*placeholders_in(self.prompt), *placeholders_in(self.settings.get("system"))]
        return tuple(name for name in dict.fromkeys(names) if name != INPUT)

    def with_values(self, pairs: Iterable[str], form: str) -> SavedPrompt:
        """The prompt with values such as "language=French"; `form` is how one is written, for hints.

        Raises UsageError for an unknown name, and for a value that is missing.
        """
        given = {}
        for pair in pairs:
            name, equals, value = pair.partition("=")
            if not equals:
                raise UsageError(f"invalid value for the saved prompt {self.name}: {pair!r}", f"write {form}")
            if name not in self.placeholders:
                known = ", ".join(self.placeholders) or "none"
                raise UsageError(f"the saved prompt {self.name} has no placeholder {{{name}}}", f"it has: {known}")
            given[name] = well_formed(value)
        values = {**self.values, **given}
        if missing := [name for name in self.placeholders if name not in values]:
            first = missing[0]
            literal = f"in the prompt, write {{{{{first}}}}} for the literal text {{{first}}}"
            hint = f"write {form.replace('NAME', first)}; {literal}"
            raise UsageError(f"the saved prompt {self.name} needs a value for {' and '.join(missing)}", hint)
        settings = SourcedLayer(self.settings)
        if "system" in settings:
            settings["system"] = fill_in(settings["system"], values)
        return replace(self, settings=settings, values=values)

    def fill(self, input: str) -> str:
        """The question for an input, which may be empty unless the prompt has a place for it. Raises UsageError."""
        if self.prompt is None:
            return input
        question = fill_in(self.prompt, {**self.values, INPUT: input})
        if INPUT not in placeholders_in(self.prompt):
            return f"{question}\n\n{input}" if input else question
        if not input:
            problem = f"the saved prompt {self.name} uses {{{INPUT}}}, but no input was given"
            raise UsageError(problem, "give it as an argument, in a file with -f, or through a pipe")
        return question

    def require_for_chat(self) -> None:
        """Raise UsageError if the prompt sets a key that has no effect in a chat."""
        for key in ("schema", "extract"):
            if getattr(self, key):
                problem = f"the saved prompt {self.name} sets {key}, which has no effect in a chat"
                raise UsageError(problem, f"use cerebrum ask -p {shlex.quote(self.name)}")

    def as_object(self) -> JsonDict:
        settings = dict(self.settings)
        return {
            "name": self.name,
            "prompt": self.prompt,
            "system": settings.pop("system", None),
            "model": settings.pop("model", None),
            "schema": self.schema,
            "extract": self.extract or None,
            "placeholders": list(self.placeholders),
            "settings": settings,
        }


@frozen
class PromptDirectory:
    """The directory of a user's saved prompts; a file is read when its prompt is needed."""

    path: Path

    def names(self) -> list[str]:
        return sorted(file.stem for file in self.path.glob(f"[!.]*{SUFFIX}"))

    def file(self, name: str) -> Path:
        return self.path / f"{name}{SUFFIX}"

    def find_file(self, name: str, lister: str = "cerebrum prompts list") -> Path:
        """Raises UsageError if there is no such prompt, with the command that lists them, `lister`, in its hint."""
        names = self.names()
        if name in names:
            return self.file(name)
        hint = f"{did_you_mean(name, names)}list all with {lister}"
        raise UsageError(f"no saved prompt named {name!r}", hint)

    def find(self, name: str) -> SavedPrompt:
        """Read a prompt by its name. Raises UsageError if there is none, and ConfigError with file and key."""
        return read_prompt(self.find_file(name))

    def find_use(self, use: str) -> SavedPrompt:
        """A prompt with its values, as in `tr language=French`; values with spaces are in quotes. Raises as `find`."""
        try:
            name, *values = shlex.split(use)
        except ValueError as error:
            raise UsageError(f"{use}: {error}", "close the quote") from error
        return read_prompt(self.find_file(name, "/use")).with_values(values, f'/use {name} NAME="VALUE"')

    def read_all(self) -> list[SavedPrompt]:
        return [read_prompt(self.file(name)) for name in self.names()]


def placeholders_in(text: str | None) -> list[str]:
    return [found["name"] for found in _PLACEHOLDER.finditer(text or "") if found["name"]]


def fill_in(text: str, values: Mapping[str, str]) -> str:
    """Replace placeholders by their values, in which braces have no meaning."""
    return _PLACEHOLDER.sub(lambda found: found["literal"] or values.get(found["name"], found[0]), text)


def read_prompt(path: Path) -> SavedPrompt:
    """Read the file of a prompt; paths in its header are relative to its directory. Raises ConfigError."""
    header, prompt = split_header(read_config_text(path).replace("\r\n", "\n"), path)
    values = parse_toml(header, path)
    schema = values.pop("schema", None)
    extract = values.pop("extract", False)
    defaults = values.pop("defaults", {})
    where = f"{path}: "
    if schema is not None and not (isinstance(schema, str) and schema):
        raise ConfigError.invalid("schema", schema, "a JSON Schema, or the path of one", where)
    if not isinstance(extract, (bool, str)) or extract == "":
        raise ConfigError.invalid("extract", extract, 'true, "last", or a language like "python"', where)
    if not isinstance(defaults, dict) or not all(isinstance(value, str) for value in defaults.values()):
        raise ConfigError.invalid("defaults", defaults, 'a table of texts: [defaults] with name = "value"', where)
    if extract and schema:
        raise ConfigError.conflict("extract", "schema", "remove one of them", where)
    settings = SourcedLayer(read_settings(values, header, path, PROMPT_KEYS), origin=SAVED_PROMPT)
    if schema and (file := schema_file(schema, path.parent)):
        schema = str(file)
    return SavedPrompt(path.stem, settings, prompt.strip("\n") or None, schema, extract, defaults)


def split_header(text: str, path: Path) -> tuple[str, str]:
    """The header, which keeps its line numbers, and what is below it. Raises ConfigError if its end is missing."""
    if not text.startswith(FENCE):
        return "", text
    header, fence, prompt = text.removeprefix(FENCE).partition(f"\n{FENCE}")
    if not fence:
        raise ConfigError(f"{path}: the header has no end", f"add a line with {FENCE} below the settings")
    return header, prompt
