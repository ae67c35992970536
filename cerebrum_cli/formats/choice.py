"""Choose the prompt format of a model: the requested, the catalog's or the embedded one. It is never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import FormatError, PromptTooLong, UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.settings import EMBEDDED
from cerebrum_cli.core.text import did_you_mean
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.vocabulary import Vocabulary, least_tokens
from cerebrum_cli.formats.markup import REASONING_MARKUPS, closing_sentence, mentions_markup
from cerebrum_cli.formats.prompt_format import NAMED_TEMPLATES, PLAIN_FORMATS, RAW, TURN_ENDS, PromptFormat, RawFormat

SERVER = "server"
BUILT_IN: Mapping[str, PromptFormat] = {
    RAW: RawFormat(name=RAW, verbatim=True),
    SERVER: PromptFormat(name=SERVER, markups=REASONING_MARKUPS, is_servers=True),
    **PLAIN_FORMATS,
}
FORMAT_NAMES = (*PLAIN_FORMATS, *NAMED_TEMPLATES, EMBEDDED)
TRIAL_ROLES = (("user",), ("system", "user"), ("user", "assistant") * 20 + ("user",))
OTHER_FORMATS = f"--format ({', '.join(FORMAT_NAMES[:-1])}) or --chat-template FILE"


@frozen
class ChosenFormat:
    """A prompt format by its name, to be built once the vocabulary is loaded.

    The text of those that are not built in is a chat `template`, with the user's `variables`. `origin` is where it is
    from, for errors. Architectures differ in how reasoning is ended early.
    """

    name: str
    template: str | None = None
    variables: JsonObject = field(default_factory=dict)
    origin: str = EMBEDDED
    architecture: str = ""

    @property
    def plain(self) -> PromptFormat | None:
        """The built-in format of this name."""
        return PLAIN_FORMATS.get(self.name)

    def check(self, file: Path | None) -> None:
        """Raise UsageError for variables that are not used, and FormatError for an invalid template in a `file`."""
        if self.name in BUILT_IN:
            if self.variables:
                raise UsageError(
                    f"template_arg needs the format embedded; this model uses {self.name}",
                    "omit it, or add --format embedded",
                )
        elif file:
            from cerebrum_cli.formats.template_sandbox import compile_template

            try:
                compile_template(str(self.template))
            except FormatError as error:
                hint = "correct it, or choose another chat template"
                raise FormatError(f"{file}: the chat template {error.message}", hint) from error

    def build(self, vocabulary: Vocabulary, context_size: int) -> PromptFormat:
        """The prompt format with a vocabulary. Raises FormatError."""
        template = self.template
        if template is None:
            return BUILT_IN[self.name]
        from cerebrum_cli.formats.template import EmbeddedFormat

        return EmbeddedFormat(
            name=self.name,
            stop=TURN_ENDS.get(self.name, ()),
            source=template,
            bos=vocabulary.special_token_text("bos"),
            eos=vocabulary.special_token_text("eos"),
            special_tokens=lambda text: special_tokens(vocabulary, context_size, text),
            variables=self.variables,
            known_markups=tuple(
                markup
                for markup in REASONING_MARKUPS
                if mentions_markup(template, markup) or vocabulary.special_token_ids([markup.open])
            ),
            closing_sentence=closing_sentence(self.architecture),
            origin=self.origin if self.name == EMBEDDED else self.name,
        )

    def preload(self) -> None:
        """Import what builds an embedded format, which takes long. A template of a file may not be tried yet."""
        if self.template is not None:
            import cerebrum_cli.formats.template  # noqa: F401


def choose_format(requested: str | None, known: str | None, template: str | None) -> ChosenFormat:
    """Choose a format. The `template` of a model may be just the name of one, as some converters write."""
    name = requested or known or (EMBEDDED if template is not None else None)
    if name is None:
        raise FormatError(
            "unknown prompt format: the model is not in the catalog, and its file has no chat template",
            f"it may be a base model: add --raw to ask or eval, or choose {OTHER_FORMATS}",
        )
    if name not in FORMAT_NAMES:
        meant = did_you_mean(name.casefold(), FORMAT_NAMES)
        raise UsageError(
            f"unknown format {name!r}",
            f"{meant}use one of {', '.join(FORMAT_NAMES)}, or the path of a chat template, such as ./{name}",
        )
    if name == EMBEDDED and template is None:
        raise FormatError("the model file has no chat template", f"choose {OTHER_FORMATS}, or add --raw to ask or eval")
    if name == EMBEDDED and str(template).strip().casefold() in NAMED_TEMPLATES:
        name = str(template).strip().casefold()
    if name in BUILT_IN:
        return ChosenFormat(name)
    return ChosenFormat(name, NAMED_TEMPLATES.get(name, template))


def mentions_reasoning(template: str | None) -> bool:
    """Whether a chat template has markup that opens reasoning."""
    return template is not None and any(markup.open in template for markup in REASONING_MARKUPS)


def try_template(path: Path) -> None:
    """Render some conversations with a chat template of unknown origin, in a process with limits.

    The file is a model, or holds nothing but a template. Raises MemoryError if memory does not suffice; a template that
    fails in another way is harmless.
    """
    from cerebrum_cli.formats.template_sandbox import run_template, variables
    from cerebrum_cli.gguf.header import read_header

    with path.open("rb") as file:
        is_model = file.read(4) == b"GGUF"
    source = (read_header(path).chat_template or "") if is_model else path.read_text(encoding="utf-8-sig")
    for roles in TRIAL_ROLES:
        messages = [{"role": role, "content": "A question, or its answer.\n" * 100} for role in roles]
        try:
            run_template(source, {**variables(source), "messages": messages})
        except FormatError as error:
            if isinstance(error.__cause__, MemoryError):
                raise error.__cause__ from None


def special_tokens(vocabulary: Vocabulary, context_size: int, text: str) -> TokenIds:
    """The special tokens a text would be tokenized to if it were trusted, in order. Raises PromptTooLong."""
    if least := least_tokens(vocabulary, context_size, (Text(text),)):
        raise PromptTooLong.for_context(f"at least {least}", context_size)
    special = vocabulary.special_token_ids((text,))
    return tuple(token for token in vocabulary.tokenize((Text(text, trusted=True),)) if token in special)
