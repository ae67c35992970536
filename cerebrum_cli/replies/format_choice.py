"""Choose the prompt format of a model: the requested, the catalog's or the embedded one. It is never guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import FormatError, UsageError
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.settings import EMBEDDED
from cerebrum_cli.core.text import did_you_mean
from cerebrum_cli.formats.named_templates import NAMED_TEMPLATES, TURN_ENDS
from cerebrum_cli.formats.plain import PLAIN_FORMATS, RAW, SERVERS, PromptFormat
from cerebrum_cli.replies.text_tokens import special_tokens

if TYPE_CHECKING:
    from cerebrum_cli.core.vocabulary import Vocabulary

FormatBuilder = Callable[["Vocabulary", int], PromptFormat]
"""Builds the prompt format from a vocabulary and the context size. Raises FormatError."""

FORMAT_NAMES = (*PLAIN_FORMATS, *NAMED_TEMPLATES, EMBEDDED)
BUILT_IN = {RAW.name: RAW, SERVERS.name: SERVERS, **PLAIN_FORMATS}
OTHER_FORMATS = f"--format ({', '.join(FORMAT_NAMES[:-1])}) or --chat-template FILE"
MAX_TEMPLATE_BYTES = 2**20


def choose_format(requested: str | None, known: str | None, template: str | None) -> str:
    """The name of a format. The `template` of a model may be just the name of one, as some converters write."""
    name = requested or known or (EMBEDDED if template is not None else None)
    if name is None:
        raise FormatError(
            "unknown prompt format: the model is not in the catalog, and its file has no chat template",
            f"it may be a base model: add --raw to ask or eval, or choose {OTHER_FORMATS}",
        )
    if name not in FORMAT_NAMES:
        meant = did_you_mean(name.casefold(), FORMAT_NAMES)
        raise UsageError(f"unknown format {name!r}", f"{meant}use one of {', '.join(FORMAT_NAMES)}")
    if name == EMBEDDED and template is None:
        raise FormatError("the model file has no chat template", f"choose {OTHER_FORMATS}, or add --raw to ask or eval")
    written = (template or "").strip().casefold()
    return written if name == EMBEDDED and written in NAMED_TEMPLATES else name


def format_builder(name: str, embedded: str | None, options: JsonObject, origin: str = EMBEDDED) -> FormatBuilder:
    """A function that builds the format once the vocabulary is loaded. Raises UsageError for unused options.

    `origin` is where the template is from, for errors.
    """
    built_in = BUILT_IN.get(name)
    template = NAMED_TEMPLATES.get(name, embedded)
    if built_in:
        if options:
            raise UsageError(
                f"template_arg needs the format embedded; this model uses {name}",
                "omit it, or add --format embedded",
            )
        return lambda *_: built_in

    assert template is not None

    def build(vocabulary: Vocabulary, context_size: int) -> PromptFormat:
        from cerebrum_cli.formats.template import EmbeddedFormat

        return EmbeddedFormat(
            name=name,
            stop=TURN_ENDS.get(name, ()),
            source=template,
            bos=vocabulary.special_token_text("bos"),
            eos=vocabulary.special_token_text("eos"),
            special_tokens=lambda text: special_tokens(vocabulary, context_size, text),
            options=options,
            origin=origin if name == EMBEDDED else name,
        )

    return build


def require_valid(path: Path, template: str) -> None:
    from cerebrum_cli.formats.template_sandbox import compile_template

    try:
        compile_template(template)
    except FormatError as error:
        raise FormatError(
            f"{path}: the chat template {error.message}", "correct it, or choose another chat template"
        ) from error
