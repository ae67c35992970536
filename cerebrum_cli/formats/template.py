"""The Jinja template embedded in a GGUF file, as one more format.

A template is untrusted code, so it runs in Jinja's sandbox. And it is text glued to text: to know which characters
of its render are a user's, it is rendered with placeholders for the messages, and the two renders must agree.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from cerebrum_cli.formats.format import ThoughtMarkup
from cerebrum_cli.formats.plain import EMBEDDED
from cerebrum_cli.formats.thinking import THOUGHTS
from cerebrum_cli.ground.conversation import Conversation
from cerebrum_cli.ground.errors import FormatError
from cerebrum_cli.ground.parts import Part, Text, Tokens, joined

if TYPE_CHECKING:
    from jinja2 import Template

PLACEHOLDER = "\ue000{}\ue001"
PLACED = re.compile("\ue000(\\d+)\ue001")
TRIMS: tuple[Callable[[str], str], ...] = (str, str.strip, str.rstrip, str.lstrip)


@dataclass(frozen=True, slots=True)
class EmbeddedFormat:
    """A model's own template with its vocabulary's `bos` and `eos`, and options the user gave for it.

    `names_token` says whether a text spells out a special token; it decides whether a template that
    rewrites its messages can be trusted with them.
    """

    source: str
    bos: str
    eos: str
    names_token: Callable[[str], bool]
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = EMBEDDED
    stop: tuple[str, ...] = ()
    default_system: str | None = None
    thoughts: tuple[ThoughtMarkup, ...] = THOUGHTS
    verbatim: bool = False

    def render(self, conversation: Conversation) -> tuple[Part, ...]:
        """Return the template's prompt, its own text trusted and the messages' not; FormatError if it refuses."""
        messages = _messages(conversation)
        template = _compile(self.source)
        real = self._fill(template, messages)
        placed = self._fill(
            template, [{**message, "content": PLACEHOLDER.format(i)} for i, message in enumerate(messages)]
        )
        pieces = _agreeing(placed, real, messages)
        if pieces is not None:
            offset = len(messages) - len(conversation.messages)
            said = {i + offset: message.tokens for i, message in enumerate(conversation.messages)}
            return joined(
                tuple(
                    Text(text, trusted=True) if index is None else _spoken(text, said.get(index))
                    for index, text in pieces
                )
            )
        if any(self.names_token(message["content"]) for message in messages):
            raise FormatError(
                "this model's template rewrites a message that spells out a special token",
                "take the token out of the text, or choose another --format",
            )
        return (Text(real, trusted=True),)

    def _fill(self, template: Template, messages: list[dict[str, str]]) -> str:
        import jinja2

        try:
            return template.render(
                {
                    "messages": messages,
                    "add_generation_prompt": True,
                    "bos_token": self.bos,
                    "eos_token": self.eos,
                    **self.options,
                }
            )
        except jinja2.TemplateError as error:
            raise FormatError(
                f"the model's template refuses this conversation: {error}",
                "change what it names, or choose another --format",
            ) from error
        except Exception as error:  # a template is code: it can fail in any way code can
            raise FormatError(
                f"the model's template fails: {type(error).__name__}: {error}", "choose another with --format"
            ) from error


def _spoken(text: str, tokens: tuple[int, ...] | None) -> Part:
    return Text(text) if tokens is None else Tokens(tokens)


def _messages(conversation: Conversation) -> list[dict[str, str]]:
    system = conversation.system_prompt
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": message.role, "content": message.content} for message in conversation.messages]


def _agreeing(placed: str, real: str, messages: list[dict[str, str]]) -> list[tuple[int | None, str]] | None:
    """Return the real render cut into template text (None) and message texts (their index); None if they disagree.

    Templates may trim messages, and do so by role, so each role's ways of trimming are tried.
    """
    cut = PLACED.split(placed)
    roles = sorted({message["role"] for message in messages})
    for ways in itertools.product(TRIMS, repeat=len(roles)):
        trim = dict(zip(roles, ways, strict=True))
        pieces = list(_pieces(cut, messages, trim))
        if "".join(text for _, text in pieces) == real:
            return pieces
    return None


def _pieces(
    cut: list[str], messages: list[dict[str, str]], trim: Mapping[str, Callable[[str], str]]
) -> Iterator[tuple[int | None, str]]:
    for at, text in enumerate(cut):
        if at % 2 == 0:
            yield None, text
        else:
            message = messages[int(text)]
            yield int(text), trim[message["role"]](message["content"])


def _compile(source: str) -> Template:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise FormatError(
            f"the model's template cannot be read: {error}", "choose a format with --format, or use --raw"
        ) from error


def _to_json(value: Any, indent: int | None = None) -> str:
    """Write JSON as model templates expect it: characters as they are, not escaped for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(pattern)
