"""Saved prompts: the tables `[prompts.NAME]` of config.toml as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from shlex import quote
from typing import Any

from cerebrum_cli.core.errors import UsageError

INPUT = "{input}"  # in a saved prompt, the place of the question


@dataclass(frozen=True, slots=True)
class SavedPrompt:
    """Settings and a prompt under a name; `schema` is the file of a JSON Schema that constrains the answer.

    `extract` is the code block that is printed: True for the first, "last", or the first in a language.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    schema: Path | None = None
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

    def require_chat(self) -> None:
        """Raise UsageError if a chat cannot do what the prompt asks for."""
        self.require_without("schema", "a chat")
        self.require_without("extract", "a chat")

    def require_without(self, key: str, use: str) -> None:
        """Raise UsageError if the prompt sets a key that has no effect in a use."""
        if getattr(self, key):
            problem = f"the saved prompt {self.name} sets {key}, which {use} cannot apply"
            raise UsageError(problem, f"cerebrum ask -p {quote(self.name)}")

    def table(self) -> dict[str, Any]:
        """Keys and values of its table in config.toml."""
        settings = {
            key: [str(item) for item in value] if isinstance(value, tuple) else value
            for key, value in self.settings.items()
        }
        own = {"prompt": self.prompt, "schema": self.schema and str(self.schema), "extract": self.extract or None}
        return settings | {key: value for key, value in own.items() if value is not None}

    def as_object(self) -> dict[str, Any]:
        """The prompt in JSON."""
        settings = self.table()
        own = {key: settings.pop(key, None) for key in ("prompt", "system", "model", "schema", "extract")}
        return {"name": self.name, **own, "settings": settings}


def find_prompt(prompts: Mapping[str, SavedPrompt], name: str, is_option: bool = False) -> SavedPrompt:
    """A saved prompt by its name, which may be the value of -p. Raises UsageError if there is none."""
    if name in prompts:
        return prompts[name]
    if is_option and len(name.split()) > 1:
        hint = f"-p takes the name of a saved prompt; the question is an argument: cerebrum ask {quote(name)}"
    elif near := get_close_matches(name, prompts, 1):
        hint = f"did you mean {near[0]}? cerebrum prompts list shows all"
    elif prompts:
        hint = f"saved prompts: {', '.join(prompts)}"
    else:
        hint = f"none are saved; cerebrum prompts edit {quote(name)} creates it"
    raise UsageError(f"no saved prompt named {name!r}", hint)
