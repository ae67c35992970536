"""Saved prompts: one Markdown file each, with settings in a TOML header between +++ lines, and the prompt below.

A name in braces is a placeholder: `{input}` for the question, any other, also in the system prompt, for a value. All
other braces are text: those of JSON and code, of `${HOME}` and of `\\frac{a}{b}`. `{{name}}` stands for `{name}`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import field, replace
from pathlib import Path

from cerebrum_cli.core.config import parse_toml, read_config_text, read_settings
from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.grammar import schema_file
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.row_fields import field_text
from cerebrum_cli.core.settings import SAVED_PROMPT, SourcedLayer
from cerebrum_cli.core.text import Texts, did_you_mean, well_formed

SUFFIX = ".md"
FENCE = "+++"
INPUT = "input"  # the placeholder of the question
_NAME = r"[^\W\d]\w*"
_PIECE = re.compile(
    rf"\$\{{(?!{INPUT}\}}){_NAME}\}}"  # of a shell, or JavaScript
    rf"|\\[A-Za-z]{{2,}}\*?(?:[_^]?\{{(?!{INPUT}\}})[^{{}}]*\}})+"  # of LaTeX; \n may be meant as a line break
    rf"|\{{(?P<literal>\{{+{_NAME}\}}+)\}}"
    rf"|\{{(?P<name>{_NAME})\}}"
)
_VALUE = re.compile(rf"({_NAME})=(.*)", re.DOTALL)
PROMPT_KEYS = ("schema", "extract")  # of a header, besides settings
OBJECT_KEYS = ("prompt", "system", "model", *PROMPT_KEYS)


@frozen
class SavedPrompt:
    """Settings and a prompt under a name; `schema` is a JSON Schema that constrains the answer, or its file.

    `extract` is the code block that is printed: True for the first, "last", or the first in a language. `values` are
    those of placeholders.
    """

    name: str
    settings: JsonObject = field(default_factory=dict)
    prompt: str | None = None
    schema: str | None = None
    extract: bool | str = False
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def placeholders(self) -> Texts:
        """Names of the values that it needs, in its prompt and its system prompt."""
        return tuple(dict.fromkeys([*values_in(self.prompt), *self._system_placeholders]))

    @property
    def fields(self) -> Texts:
        """Placeholders of its prompt that have no value, and so are fields of rows."""
        return tuple(name for name in values_in(self.prompt) if name not in self.values)

    @property
    def _system_placeholders(self) -> list[str]:
        return values_in(self.settings.get("system"))

    @property
    def usage(self) -> str:
        """Its name with its placeholders, as they are written behind -p and /use."""
        return " ".join([shlex.quote(self.name), *(f"{name}=VALUE" for name in self.placeholders)])

    def take_values(
        self, words: Sequence[str], use: str = "-p", has_fields: bool = False
    ) -> tuple[SavedPrompt, list[str]]:
        """The prompt with its values from words such as language=French, and the other words.

        Raises UsageError for an unknown name, and for a value that is missing, unless it `has_fields` of rows.
        """
        form = f"write {use} {self.usage}"
        values: dict[str, str] = {}
        others = []
        for word in words:
            value = _VALUE.fullmatch(word)
            if value is None or (len(words) == 1 and not self.placeholders):
                others.append(word)
            elif value[1] not in self.placeholders:
                near = did_you_mean(value[1], self.placeholders)
                hint = f"{near}{form}; a question that begins like this needs a space before it"
                raise UsageError(f"the saved prompt {self.name} has no placeholder {{{value[1]}}}", hint)
            elif value[1] in values:
                raise UsageError(f"the saved prompt {self.name} got two values for {value[1]}", "omit one of them")
            else:
                values[value[1]] = well_formed(value[2])
        needed = self._system_placeholders if has_fields else self.placeholders
        if missing := [name for name in needed if name not in values]:
            problem = f"the saved prompt {self.name} needs a value for {' and '.join(missing)}"
            raise UsageError(problem, f"{form}; in the prompt, {{{{{missing[0]}}}}} is the text {{{missing[0]}}}")
        settings = self.settings
        if self._system_placeholders:
            system = fill_in(settings["system"], values)
            settings = SourcedLayer(settings, SourcedLayer({"system": system}, origin=SAVED_PROMPT))
        return replace(self, settings=settings, values=values), others

    def fill(self, input: str, fields: JsonObject | None = None) -> str:
        """The question for an input, which may be empty unless the prompt has a place for it.

        The `fields` of a row are values that were not given. Raises UsageError.
        """
        if self.prompt is None:
            return input
        values = {name: field_text(value) for name, value in (fields or {}).items()}
        values |= {**self.values, INPUT: input}
        names = placeholders_in(self.prompt)
        for name in names:
            if name not in values:
                raise UsageError(f"no field `{name}` for the saved prompt {self.name}", f"write -p {self.usage}")
        question = fill_in(self.prompt, values)
        if INPUT not in names:
            return f"{question}\n\n{input}" if input else question
        if not input:
            problem = f"the saved prompt {self.name} uses {{{INPUT}}}, but no input was given"
            raise UsageError(problem, "give it as an argument, in a file with -f, or through a pipe")
        return question

    def require_without(self, use: str, *keys: str) -> None:
        """Raise UsageError if the prompt sets a key that has no effect in a use."""
        for key in keys:
            if getattr(self, key):
                problem = f"the saved prompt {self.name} sets {key}, which has no effect in {use}"
                raise UsageError(problem, f"use cerebrum ask -p {shlex.quote(self.name)}")

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
        return {
            "name": self.name,
            **own,
            "prompt": self.prompt,
            "placeholders": list(self.placeholders),
            "settings": settings,
        }


@frozen
class PromptDirectory:
    """The directory of a user's saved prompts; a file is read when its prompt is needed."""

    path: Path

    def names(self) -> list[str]:
        return sorted(file.stem for file in self.path.glob(f"[!.]*{SUFFIX}"))

    def uses(self) -> list[str]:
        """Completions of /use: each name, and a name with the first value that its prompt needs."""
        uses = self.names()
        for name in self.names():
            with suppress(ConfigError):  # of a file with a fault, the name
                uses += [f"{name} {placeholder}=" for placeholder in self.find(name).placeholders[:1]]
        return uses

    def file(self, name: str) -> Path:
        return self.path / f"{name}{SUFFIX}"

    def find_file(self, name: str, is_option: bool = False) -> Path:
        """The file of a prompt whose name is an argument, or the value of -p. Raises UsageError if there is none."""
        names = self.names()
        if name in names:
            return self.file(name)
        hint = f"{did_you_mean(name, names)}list all with cerebrum prompts list"
        if is_option and len(name.split()) > 1:
            hint = f"-p takes the name of a saved prompt; the question is an argument: cerebrum ask {shlex.quote(name)}"
        raise UsageError(f"no saved prompt named {name!r}", hint)

    def find(self, name: str, is_option: bool = False) -> SavedPrompt:
        """Read a prompt by its name. Raises UsageError if there is none, and ConfigError with file and key."""
        return read_prompt(self.find_file(name, is_option))

    def find_use(self, use: str) -> SavedPrompt:
        """A prompt with its values, as in `tr language=French`; values with spaces are in quotes. Raises as `find`."""
        name, values = use, ""
        if first := re.search(rf"\s{_NAME}=", use):
            name, values = use[: first.start()].rstrip(), use[first.start() :]
        try:
            words = shlex.split(values)
        except ValueError as error:
            raise UsageError(f"{values.strip()}: {error}", "close the quote") from error
        saved, others = self.find(name).take_values(words, "/use")
        if others:
            problem = f"not a value of the saved prompt {name}: {others[0]!r}"
            raise UsageError(problem, f"write /use {saved.usage}, with quotes around a value that has spaces")
        return saved

    def read_all(self) -> list[SavedPrompt]:
        return [read_prompt(self.file(name)) for name in self.names()]


def placeholders_in(text: str | None) -> list[str]:
    return [piece["name"] for piece in _PIECE.finditer(text or "") if piece["name"]]


def values_in(text: str | None) -> list[str]:
    """The placeholders of a text, without that of the question."""
    return [name for name in placeholders_in(text) if name != INPUT]


def fill_in(text: str, values: Mapping[str, str]) -> str:
    """Replace placeholders by their values, in which braces have no meaning; those without a value stay."""
    return _PIECE.sub(lambda piece: piece["literal"] or values.get(piece["name"] or "", piece[0]), text)


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
